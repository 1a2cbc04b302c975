"""Thousands of damaged files: each loads to what was saved, or is refused by the library's own error."""

from __future__ import annotations

import copy
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

import adntn
from adntn import AdntnError, GeneratorConfig, savefile

pytestmark = pytest.mark.usefixtures("few_objects")

CONFIG = GeneratorConfig(topology="mera", order="blocked", activation="prelu", latent_order=1)

Json = Any
Rewrite = Callable[[random.Random, bytes], bytes]


# --- damage -----------------------------------------------------------------------------------------------------------

VALUES: tuple[Json, ...] = (
    *(0, 1, 2, 3, -1, 7, 255, 2**31, 2**32 + 1, 2**63 - 1, 2**64, 10**30, 10**400, 0.5, 1e308, float("nan")),
    *(None, True, False, "", "x", "8", "F64", "I64", "mera", "dense", "factored", "conv", "first", "first.root"),
    *([], [0], [8, 8], [0, 2**62], [[]], [None], {}, {"x": 1}, {"first": "second"}, "\x00", "\ud800", "é" * 50),
)
DTYPES = (
    *("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "U16", "F16", "BF16", "I32", "U32"),
    *("F32", "F64", "C64", "I64", "U64", "F4", "?"),
)
BROKEN = ("", "{}", "[" * 5000, "null", "1e999", '{"format":' * 900, '{"format": 2}', "9" * 5000)


def spots(value: Json) -> list[tuple[Json, Json]]:
    """Return every (container, key) inside nested lists and dicts."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [spot for key in keys for spot in spots(value[key])]


def disturb(rng: random.Random, value: Json) -> None:
    """Change one thing in nested lists and dicts: a value, a key, an entry too many or too few."""
    container, key = rng.choice(spots(value) or [(value, "")])
    match rng.randrange(6):
        case 0 if container:
            del container[key]
        case 1 if container and isinstance(container, dict):
            container[rng.choice(["", "x", "first", "first.root", "__metadata__", key + "s"])] = container.pop(key)
        case 2 if container:
            other, other_key = rng.choice(spots(value))
            container[key] = copy.deepcopy(other[other_key])
        case 3 if container and type(container[key]) is int:
            container[key] += rng.choice([-1, 1, 4, 2**40])
        case _:
            container[key] = copy.deepcopy(rng.choice(VALUES))


def split(content: bytes) -> tuple[Json, bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def join(header: Json, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def sign(header: Json, tensors: dict[str, Tensor]) -> bytes:
    text = json.dumps(header)
    metadata = {"format": "pt", "adntn": text, "adntn.sha256": savefile.digest(text, tensors)}
    return save_bytes(tensors, metadata)


def flip_bits(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8, 100])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    start = rng.randrange(len(changed))
    for i in range(start, min(len(changed), start + rng.choice([1, 1, 2, 8, 64]))):
        changed[i] = rng.choice([0, 255, ord("9"), ord('"'), ord("}"), rng.randrange(256)])
    return bytes(changed)


def flip_in_header(rng: random.Random, content: bytes) -> bytes:
    length = 8 + int.from_bytes(content[:8], "little")
    return flip_bits(rng, content[:length]) + content[length:]


def truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.choice([rng.randrange(len(content)), rng.randrange(17), len(content) - rng.randrange(1, 9)])]


def insert(rng: random.Random, content: bytes) -> bytes:
    at = rng.choice([rng.randrange(len(content)), len(content)])
    return content[:at] + rng.randbytes(rng.choice([1, 2, 4, 8, 1000])) + content[at:]


def remove(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + content[at + rng.choice([1, 2, 4, 8, 100]) :]


def splice(rng: random.Random, content: bytes) -> bytes:
    start, at = rng.randrange(len(content)), rng.randrange(len(content))
    piece = content[start : start + rng.choice([1, 4, 16, 256])]
    return content[:at] + piece + content[at + len(piece) * rng.randrange(2) :]


def edit_length(rng: random.Random, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    near = (length - 1, length + 1, length + 8, length // 2)
    new = rng.choice([0, 1, 2, *near, 10**8, 2**31, 2**63, 2**64 - 1, rng.getrandbits(64)])
    return new.to_bytes(8, "little") + content[8:]


def edit_header(rng: random.Random, content: bytes) -> bytes:
    header, data = split(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        disturb(rng, header)
    return join(header, data)


def edit_tensor_entry(rng: random.Random, content: bytes) -> bytes:
    header, data = split(content)
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    match rng.randrange(3):
        case 0:
            entry["dtype"] = rng.choice(DTYPES)
        case 1:
            entry["shape"] = [rng.choice([0, 1, 2, 8, 2**31, 2**62, -1]) for _ in range(rng.randrange(5))]
        case _:
            offsets = [rng.choice([0, 4, len(data), 2**40, 2**63, -4]) for _ in range(3)]
            entry["data_offsets"] = offsets[: rng.choice([1, 2, 2, 3])]
    return join(header, data)


def edit_metadata(rng: random.Random, content: bytes) -> bytes:
    header, data = split(content)
    metadata = header["__metadata__"]
    match rng.randrange(4):
        case 0:
            disturb(rng, metadata)
        case 1:
            inner = json.loads(metadata["adntn"])
            disturb(rng, inner)
            metadata["adntn"] = json.dumps(inner)
        case 2:
            metadata["adntn"] = rng.choice(BROKEN)
        case _:
            metadata["adntn.sha256"] = rng.choice(["", "0" * 64, metadata["adntn.sha256"].upper()])
    return join(header, data)


def signed_header(rng: random.Random, content: bytes) -> bytes:
    inner = json.loads(split(content)[0]["__metadata__"]["adntn"])
    for _ in range(rng.choice([1, 1, 2, 4])):
        disturb(rng, inner)
    return sign(inner, load_bytes(content))


def signed_config(rng: random.Random, content: bytes) -> bytes:
    inner = json.loads(split(content)[0]["__metadata__"]["adntn"])
    entry = inner["layers"][rng.choice(list(inner["layers"]))]
    targets = [entry, entry["config"], entry["config"], inner["shared"], inner["aliases"]]
    for _ in range(rng.choice([1, 1, 2])):
        target = rng.choice(targets)
        target[rng.choice(list(target))] = copy.deepcopy(rng.choice(VALUES))
    return sign(inner, load_bytes(content))


KINDS = (
    *(torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.uint8, torch.bool, torch.complex64),
)


def signed_tensors(rng: random.Random, content: bytes) -> bytes:
    inner, tensors = json.loads(split(content)[0]["__metadata__"]["adntn"]), load_bytes(content)
    name = rng.choice(list(tensors))
    tensor = tensors.pop(name)
    match rng.randrange(7):
        case 0:
            pass  # gone
        case 1:
            tensors[rng.choice(["x", "first", "second.root", "first.weight", name + "s"])] = tensor
        case 2:
            tensors[name] = tensor.reshape(-1)[: rng.randrange(tensor.numel() + 1)].clone()
        case 3:
            tensors[name] = tensor.reshape(1, *tensor.shape, 1)
        case 4:
            tensors[name] = tensor.to(rng.choice(KINDS))
        case 5:
            inf = float("inf")
            tensors[name] = torch.full_like(tensor.double(), rng.choice([float("nan"), inf, -inf, 1e300]))
        case _:
            tensors[name] = torch.rand_like(tensor.float()).to(tensor.dtype)
    return sign(inner, tensors)


UNSIGNED: tuple[Rewrite, ...] = (
    *(flip_bits, set_bytes, flip_in_header, truncate, insert, remove, splice),
    *(edit_length, edit_header, edit_tensor_entry, edit_metadata),
)
SIGNED: tuple[Rewrite, ...] = (signed_header, signed_config, signed_tensors)


# --- what becomes of it -----------------------------------------------------------------------------------------------


def build() -> nn.ModuleDict:
    """Return a dense model with a convolution, scalar buffers, a tied weight, and one module in two places."""
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    return nn.ModuleDict(
        {"second": second, "first": first, "again": first, "conv": nn.Conv2d(2, 4, 3), "norm": nn.BatchNorm2d(4)}
    )


def compress_all(model: nn.ModuleDict) -> None:
    adntn.compress_(model, CONFIG)


def build_joint() -> nn.ModuleDict:
    """Return a dense model for what format 2 brought: attentions, rows of a shared generator, parameters."""
    parts = {"first": nn.Linear(8, 8), "second": nn.Linear(8, 4), "attn": nn.MultiheadAttention(8, 2)}
    return nn.ModuleDict({**parts, "cross": nn.MultiheadAttention(8, 2, kdim=4), "rnn": nn.LSTM(8, 2)})


def compress_joint(model: nn.ModuleDict) -> None:
    targets = ["first", "second", "attn", "cross", "rnn.weight_hh_l0", "rnn.weight_ih_l0"]
    adntn.compress_(model, CONFIG, targets, shared=[("first", "second"), ("in_proj_weight", "out_proj")])


class Leaning(nn.Module):
    """A user's activation with a number that it learns in each group."""

    def __init__(self, lean: float = 0.5, *, groups: int) -> None:
        super().__init__()
        self.lean = nn.Parameter(torch.full((groups, 1), lean))

    def forward(self, z: Tensor) -> Tensor:
        return z.tanh() + self.lean * z


def build_options() -> nn.ModuleDict:
    """Return a dense model with a layer for every option of a generator that a file has to bring back."""
    tied = {"first": nn.Linear(8, 8), "second": nn.Linear(8, 8), "mine": nn.Linear(8, 8), "wall": nn.Linear(8, 8)}
    convs = {"conv": nn.Conv2d(4, 8, 3), "up": nn.ConvTranspose1d(4, 4, 2), "volume": nn.Conv3d(2, 4, 2)}
    model = nn.ModuleDict({**tied, **convs, "table": nn.Embedding(9, 8, padding_idx=0), "plain": nn.Linear(8, 8)})
    model["second"].weight = model["first"].weight
    model["again"] = model["first"]
    return model


def compress_options(model: nn.ModuleDict) -> None:
    adntn.register_activation("leaning", Leaning)
    first = GeneratorConfig(topology="subspace", subspace_dim=5)
    others = {
        "first": first,
        "second": first,
        "mine": CONFIG.replace(activation="leaning(lean=0.25)", groups=2),
        "wall": GeneratorConfig(topology="brickwall", columns=3, blocks=1, norm="rms"),
        "conv": CONFIG.replace(kernel_radix=3, terms=2, gate=True, norm="layer"),
        "up": GeneratorConfig(topology="tt", bond_dim=3),
        "volume": GeneratorConfig(topology="attn", boundary_layers=2, activation="rational", latent_order=1),
        "table": GeneratorConfig(topology="frozen"),
    }
    adntn.compress_(model, CONFIG, list(others), overrides=others)


def compress_quantized(model: nn.ModuleDict) -> None:
    compress_joint(model)
    adntn.quantize_(model, 8)
    adntn.quantize_(model, 4, ["first", "cross.out_proj"])


#: What is saved, and how it is compressed.
BENCHES: dict[str, tuple[Callable[[], nn.ModuleDict], Callable[[nn.ModuleDict], None]]] = {
    "layers": (build, compress_all),
    "joint": (build_joint, compress_joint),
    "options": (build_options, compress_options),
    "quantized": (build_joint, compress_quantized),
}


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@dataclass
class Bench:
    """A file that is whole, and models to load damaged ones into."""

    content: bytes
    saved: dict[str, Tensor]
    models: dict[str, nn.Module]
    path: Path

    def judge(self, damaged: bytes, into: str) -> str:
        """Load a damaged file; say what became of it, which is an assertion error if it should not."""
        self.path.write_bytes(damaged)
        model = copy.deepcopy(self.models[into])
        start = time.monotonic()
        try:
            adntn.load(model, self.path)
        except AdntnError:
            before, after = self.models[into].state_dict(), model.state_dict()
            same = before.keys() == after.keys() and all(torch.equal(after[name], t) for name, t in before.items())
            outcome = "refused" if same else "refused, but the model has changed"
        else:
            state = values(model)
            equal = state.keys() == self.saved.keys() and all(torch.equal(state[n], t) for n, t in self.saved.items())
            finite = all(bool(p.isfinite().all()) for p in model.parameters())
            outcome = "equal" if equal else "other values" if finite else "not finite"
        assert time.monotonic() - start < 20, "took too long"
        return outcome


@pytest.fixture(params=BENCHES)
def bench(request: pytest.FixtureRequest, tmp_path: Path, own_registry: None) -> Bench:
    make, compress = BENCHES[request.param]
    torch.manual_seed(0)
    model, path = make(), tmp_path / "model.safetensors"
    compress(model)
    adntn.save(model, path)
    torch.manual_seed(1)
    compressed = make()
    compress(compressed)
    header, data = split(path.read_bytes())
    written = json.loads(header["__metadata__"]["adntn"])["format"]
    assert written == (savefile.FORMAT_VERSION if "quantized" in request.node.name else 3)
    adntn.load(model, path)  # quantised numbers come back on their grid
    header = json.loads(json.dumps(header, sort_keys=True))  # safetensors writes metadata in any order
    return Bench(join(header, data), values(model), {"dense": make(), "compressed": compressed}, path)


def peak_memory() -> int:
    resource = pytest.importorskip("resource")
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def run(bench: Bench, number: int, seed: int) -> Counter[tuple[str, str]]:
    seen: Counter[tuple[str, str]] = Counter()
    for index in range(number):
        rng = random.Random(f"{seed} {index}")
        damage = rng.choice((*UNSIGNED, *UNSIGNED, *SIGNED, *SIGNED))
        damaged = damage(rng, bench.content)
        into = rng.choice(("dense", "compressed"))
        try:
            outcome = bench.judge(damaged, into)
        except Exception as error:
            raise AssertionError(f"file {index} of seed {seed}, {damage.__name__}, into {into}: {error!r}") from error
        # A signed file may say other things: whoever can sign can also save.
        allowed = ("refused", "equal", "other values") if damage in SIGNED else ("refused", "equal")
        assert outcome in allowed, f"file {index} of seed {seed}, {damage.__name__}, into {into}: {outcome}"
        seen[damage.__name__, outcome] += 1
    return seen


def check(bench: Bench, number: int, seed: int) -> None:
    assert bench.judge(bench.content, "dense") == bench.judge(bench.content, "compressed") == "equal"
    before = peak_memory()
    seen = run(bench, number, seed)
    assert peak_memory() - before < 512 * 2**20
    for damage in (*UNSIGNED, *SIGNED):
        counts = {outcome: n for (name, outcome), n in seen.items() if name == damage.__name__}
        assert counts["refused"] > sum(counts.values()) / 3, f"{damage.__name__} does little damage: {counts}"


def test_damaged_files_load_as_they_were_or_are_refused(bench: Bench) -> None:
    check(bench, 135, seed=1)


@pytest.mark.slow
def test_ten_thousand_damaged_files_load_as_they_were_or_are_refused(bench: Bench) -> None:
    check(bench, 3_400, seed=2)
