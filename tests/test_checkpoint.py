"""save and load: what comes back, what a file holds, and that nothing half-done is ever left: no file, no model."""

from __future__ import annotations

import errno
import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import adntn
from adntn import CheckpointError, GeneratorConfig, compress_, load, save, savefile

pytestmark = pytest.mark.usefixtures("few_objects")

CONFIG = GeneratorConfig(topology="ttn", order="blocked", activation="elu", initialization="paper")
MERA = CONFIG.replace(topology="mera", activation="prelu", latent_order=2)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(adntn.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
X = torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4)


class Net(nn.Module):
    """A convolution, a norm with scalar buffers, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.conv(x.to(self.head[2].bias.dtype))).flatten(1))
        return result


def compressed(config: GeneratorConfig = CONFIG, **options: Any) -> Net:
    """Return a model with two generated layers and a dense one, whose norm has seen something."""
    model = Net()
    compress_(model, config, ["conv", "head.0"], **options)
    model(X)
    return model.eval()


def with_layers(*names: str, tied: bool = False) -> nn.ModuleDict:
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in names})
    if tied:
        for layer in model.values():
            layer.weight = model[names[0]].weight
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    if one.keys() != other.keys():
        return False
    return all(other[name].dtype == tensor.dtype and torch.equal(tensor, other[name]) for name, tensor in one.items())


def rewrite(path: Path, edit: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Edit the header and tensors of a file, and sign it anew as ``save`` would."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["adntn"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    edit(header, tensors)
    text = json.dumps(header, sort_keys=True)
    save_file(tensors, path, {"format": "pt", "adntn": text, "adntn.sha256": savefile.digest(text, tensors)})


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("into", ["dense", "compressed"])
@pytest.mark.parametrize(
    "config",
    [CONFIG, MERA, CONFIG.replace(groups=2, bond_dim=3), CONFIG.replace(order="flat"), CONFIG.replace(radix=3)],
    ids=["ttn", "mera", "groups", "flat", "radix"],
)
def test_a_model_comes_back(path: Path, config: GeneratorConfig, into: str) -> None:
    model = compressed(config)
    assert save(model, str(path)) == path
    given = Net() if into == "dense" else compressed(config)
    given.eval()
    assert load(given, str(path)) is given
    assert same(state(given), state(model))
    assert torch.equal(given(X), model(X))
    assert adntn.describe(given) == adntn.describe(model)
    assert given.conv.config == config
    assert type(given.head[2]) is nn.Linear


def test_a_model_comes_back_in_a_fresh_process(path: Path) -> None:
    model = compressed(MERA)
    torch.save(model(X).detach(), path.with_suffix(".expected"))
    save(model, path)
    script = """
import sys, torch, adntn
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_checkpoint import Net, X
model = adntn.load(Net().eval(), sys.argv[2])
assert torch.equal(model(X), torch.load(sys.argv[3], weights_only=True))
assert model.conv.config.topology == "mera"
"""
    arguments = [str(Path(__file__).parent), str(path), str(path.with_suffix(".expected"))]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_comes_back_in_its_own_type(path: Path, dtype: torch.dtype) -> None:
    model = compressed().to(dtype)
    save(model, path)
    given = load(Net().to(dtype).eval(), path)
    assert same(state(given), state(model))
    assert given.conv.weight.dtype == dtype
    assert torch.equal(given(X), model(X))


@pytest.mark.parametrize("into", ["dense", "compressed"])
def test_the_type_of_the_given_model_is_kept(path: Path, into: str) -> None:
    save(compressed().double(), path)
    given = (Net() if into == "dense" else compressed()).bfloat16()
    load(given, path)
    floating = {tensor.dtype for tensor in given.state_dict().values() if tensor.is_floating_point()}
    assert floating == {torch.bfloat16}
    assert given.conv.weight.dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_of_the_given_model_is_kept(path: Path) -> None:
    model = compressed()
    save(model.cuda(), path)
    given = load(Net().eval(), path)
    assert {p.device.type for p in given.parameters()} == {"cpu"}
    assert {p.device.type for p in load(Net().cuda(), path).parameters()} == {"cuda"}
    assert same(state(given), state(model.cpu()))


def test_scalar_and_whole_number_buffers_come_back(path: Path) -> None:
    model = compressed()
    model.train()
    for _ in range(4):
        model(X)
    save(model, path)
    given = load(Net(), path)
    assert given.norm.num_batches_tracked.item() == 5
    assert given.norm.num_batches_tracked.dtype == torch.int64
    assert torch.equal(given.norm.running_var, model.norm.running_var)


def test_infinite_buffers_are_kept(path: Path) -> None:
    model, given = (nn.Sequential(nn.Linear(8, 8)) for _ in range(2))
    model.register_buffer("mask", torch.full((3, 3), float("-inf")))
    given.register_buffer("mask", torch.zeros(3, 3))
    save(model, path)
    assert torch.equal(load(given, path).mask, model.mask)


def test_a_model_without_generated_layers_comes_back(path: Path) -> None:
    model = Net()
    save(model, path)
    assert same(state(load(Net(), path)), state(model))


def test_a_generated_layer_as_the_model_comes_back(path: Path) -> None:
    layer = adntn.nn.Linear(8, 8, config=CONFIG)
    save(layer, path)
    assert same(state(load(adntn.nn.Linear(8, 8, config=CONFIG), path)), state(layer))
    with pytest.raises(CheckpointError, match="Linear on its own has no place"):
        load(nn.Linear(8, 8), path)


@pytest.mark.parametrize("into", ["dense", "compressed"])
@pytest.mark.parametrize("execution", ["dense", "factored", "auto"])
def test_the_execution_comes_back(path: Path, execution: str, into: str) -> None:
    save(compressed(execution=execution), path)
    given = load(Net() if into == "dense" else compressed(execution="dense"), path)
    assert given.conv.execution == given.head[0].execution == execution
    assert given.conv.way == compressed(execution=execution).conv.way


def test_what_is_frozen_stays_frozen_and_a_new_generator_trains(path: Path) -> None:
    save(compressed(), path)
    dense = load(Net().requires_grad_(False), path)
    trained = {name for name, p in dense.named_parameters() if p.requires_grad}
    assert trained == {
        name for name, _ in dense.named_parameters() if name.startswith(("conv.", "head.0.")) and "bias" not in name
    }
    frozen = load(compressed().requires_grad_(False), path)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_mode_and_hooks_of_the_given_model_are_kept(path: Path) -> None:
    save(compressed(), path)
    given, calls = Net(), []
    given.conv.register_forward_hook(lambda *_: calls.append(1))
    load(given, path)(X)
    assert calls == [1]
    assert given.conv.training


# --- names in several places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("a", "b"), ("z", "a"), ("9", "10")], ids="-".join)
def test_a_shared_generator_is_stored_once_and_shared_again(path: Path, names: tuple[str, str]) -> None:
    model = with_layers(*names, tied=True)
    compress_(model, CONFIG)
    save(model, path)
    assert sum(name.endswith("root") for name in load_file(path)) == 1
    for tied in (True, False):
        given = load(with_layers(*names, tied=tied), path)
        assert given[names[0]].root is given[names[1]].root
        assert same(state(given), state(model))
    again = with_layers(*names, tied=True)
    compress_(again, CONFIG)
    assert same(state(load(again, path)), state(model))


def test_a_shared_dense_weight_is_stored_once(path: Path) -> None:
    model = with_layers("a", "b", "c", tied=True)
    save(model, path)
    assert set(load_file(path)) == {"a.weight", "a.bias", "b.bias", "c.bias"}
    given = load(with_layers("a", "b", "c", tied=True), path)
    assert given["a"].weight is given["c"].weight
    assert same(state(given), state(model))


def test_a_module_in_two_places_comes_back(path: Path) -> None:
    def build() -> nn.Sequential:
        block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        return nn.Sequential(block, nn.Linear(8, 8), block)

    model = build()
    compress_(model, CONFIG, ["0.0"])
    save(model, path)
    for given in (build(), build()):
        load(given, path)
        assert isinstance(given[2][0], adntn.nn.Linear)
        assert given[0] is given[2]
        assert same(state(given), state(model))
        load(given, path)  # and once more into what is generated now


def test_views_of_one_memory_are_stored(path: Path) -> None:
    model = nn.Module()
    memory = torch.arange(6.0)
    model.register_buffer("front", memory[:4])
    model.register_buffer("back", memory[2:])
    model.register_buffer("across", torch.arange(6.0).reshape(2, 3).T)
    save(model, path)
    assert same(load_file(path), state(model))


@pytest.mark.parametrize("file", ["compiled", "plain"])
@pytest.mark.parametrize("into", ["compiled", "plain"])
def test_names_are_those_of_the_model_that_was_compiled(path: Path, file: str, into: str) -> None:
    model = compressed()
    save(torch.compile(model, backend="eager") if file == "compiled" else model, path)
    assert set(load_file(path)) == set(model.state_dict())
    given = Net().eval()
    load(torch.compile(given, backend="eager") if into == "compiled" else given, path)
    assert same(state(given), state(model))


def test_a_compiled_model_that_has_run_gives_the_new_outputs(path: Path) -> None:
    torch._dynamo.reset()
    model = compressed()
    save(model, path)
    given = torch.compile(Net().eval(), backend="eager")
    with torch.no_grad():
        given(X)
        torch.testing.assert_close(load(given, path)(X), model(X))
    torch._dynamo.reset()


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_is_safetensors_with_the_names_of_the_state_dict(path: Path) -> None:
    model = compressed()
    save(model, path)
    assert same(load_file(path), state(model))
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["adntn"])
    assert header["format"] == 1
    assert set(header["layers"]) == {"conv", "head.0"}
    assert GeneratorConfig.from_dict(header["layers"]["conv"]["config"]) == CONFIG
    assert header["layers"]["conv"]["shape"] == [8, 3, 3, 3]


def test_the_file_has_the_permissions_of_any_new_file(path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(Net(), path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_an_older_file_is_replaced_and_nothing_else_is_left(path: Path) -> None:
    save(Net(), path)
    model = compressed()
    save(model, path)
    assert same(load_file(path), state(model))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# --- saving goes wrong ------------------------------------------------------------------------------------------------


def poison(value: float) -> Net:
    model = compressed()
    model.conv.root.data[0, 1] = value
    return model


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: poison(float("nan")), r"'conv\.root' has NaN"),
        (lambda: poison(float("inf")), r"'conv\.root' has NaN or infinite"),
        (lambda: compressed().to("meta"), "meta device"),
        (lambda: nn.Sequential(WithExtraState(2, 2)), "'0._extra_state' in the state_dict is a dict"),
    ],
    ids=["nan", "inf", "meta", "extra state"],
)
def test_what_cannot_be_stored_is_refused(path: Path, make: Callable[[], nn.Module], message: str) -> None:
    path.write_text("before")
    with pytest.raises(CheckpointError, match=message):
        save(make(), path)
    assert path.read_text() == "before"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("place", ["no folder/model.safetensors", "a file/model.safetensors", "folder"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        save(Net(), tmp_path / place)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a file", "folder"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*Permission"):
            save(Net(), path)
    finally:
        path.parent.chmod(0o700)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_written(tensors: object, temporary: Path, metadata: object) -> None:
    temporary.write_bytes(b"half a f")
    full_disk()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("before", [True, False], ids=["an older file", "no file"])
@pytest.mark.parametrize(
    "where, what, error",
    [
        ("adntn.savefile.save_file", half_written, CheckpointError),
        ("os.fsync", full_disk, CheckpointError),
        ("pathlib.Path.replace", full_disk, CheckpointError),
        ("os.fsync", interrupted, KeyboardInterrupt),
    ],
    ids=["while writing", "while flushing", "while renaming", "interrupted"],
)
def test_a_full_disk_leaves_what_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str, what: Callable[..., None], error: type, before: bool
) -> None:
    model = compressed()
    if before:
        save(model, path)
    with monkeypatch.context() as patch:
        patch.setattr(where, what)
        with pytest.raises(error) as caught:
            save(Net(), path)
    if error is CheckpointError:
        assert "No space left" in str(caught.value)
    assert [file.name for file in path.parent.iterdir()] == ([path.name] if before else [])
    if before:
        assert same(state(load(Net().eval(), path)), state(model))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_while_saving_leaves_a_whole_file(path: Path) -> None:
    script = """
import os, random, signal, sys, time, torch, adntn
torch.set_num_threads(1)
models = [torch.nn.Sequential(torch.nn.Linear(700, 700)) for _ in range(2)]
for number, model in enumerate(models):
    torch.nn.init.constant_(model[0].weight, float(number))
adntn.save(models[0], sys.argv[1])
random.seed(0)
for _ in range(15):
    pid = os.fork()
    if pid == 0:
        while True:
            for model in models:
                adntn.save(model, sys.argv[1])
    time.sleep(random.uniform(0.005, 0.03))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    weight = adntn.load(torch.nn.Sequential(torch.nn.Linear(700, 700)), sys.argv[1])[0].weight
    assert torch.equal(weight, torch.full_like(weight, weight[0, 0].item()))
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


# --- loading goes wrong -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["dense", "compressed"])
def given(request: pytest.FixtureRequest) -> Net:
    return Net() if request.param == "dense" else compressed()


def refuse(model: nn.Module, path: Path, message: str) -> None:
    """Check that a file is refused, and that the model is exactly as it was."""
    before, modules = state(model), dict(model.named_modules())
    executions = [layer.execution for layer in modules.values() if isinstance(layer, adntn.nn.GeneratedLayer)]
    with pytest.raises(CheckpointError, match=message):
        load(model, path)
    assert same(state(model), before)
    assert dict(model.named_modules()) == modules
    after = [layer.execution for layer in model.modules() if isinstance(layer, adntn.nn.GeneratedLayer)]
    assert after == executions


def test_a_file_that_is_not_there_is_refused(given: Net, tmp_path: Path) -> None:
    refuse(given, tmp_path / "nothing.safetensors", r"no file .*nothing\.safetensors")
    refuse(given, tmp_path, "no file")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(given: Net, path: Path, share: float) -> None:
    save(compressed(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refuse(given, path, "not a whole safetensors file")


def test_every_cut_through_the_header_is_refused(path: Path) -> None:
    save(with_layers("a"), path)
    content, model = path.read_bytes(), with_layers("a")
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        refuse(model, path, "not a whole safetensors file")


@pytest.mark.parametrize(
    "content",
    [b"once upon a time", b"\0" * 64, b"\xff" * 64, b"{}", pickle.dumps({"a": 1}), b"\x10\0\0\0\0\0\0\0" + b"[" * 16],
    ids=["text", "zeros", "ones", "json", "pickle", "brackets"],
)
def test_a_file_of_another_kind_is_refused(given: Net, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refuse(given, path, "not a whole safetensors file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"adntn": "{}"}, {"adntn.sha256": "0"}], ids=str)
def test_safetensors_of_someone_else_are_refused(given: Net, path: Path, metadata: dict[str, str] | None) -> None:
    save_file(state(compressed()), path, metadata)
    refuse(given, path, "not one that adntn.save wrote")


class Bomb:
    """What makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch"])
def test_nothing_is_ever_unpickled(given: Net, path: Path, kind: str) -> None:
    marker = path.parent / "exploded"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        torch.save({"conv.weight": Bomb(marker)}, path, _use_new_zipfile_serialization=kind == "torch")
    refuse(given, path, "not a whole safetensors file")
    assert not marker.exists()
    with path.open("rb") as file:
        if kind == "pickle":
            pickle.load(file)
            assert marker.exists()  # it would have


@pytest.mark.parametrize(
    "what, old, new",
    [
        ("a config", rb"\"latent_order\": 5", rb"\"latent_order\": 4"),
        ("a tensor's name", b'"conv.bias"', b'"conv.bibs"'),
        ("a tensor's type", b'"dtype":"I64"', b'"dtype":"F64"'),
        ("the digest", b'"adntn.sha256":"', b'"adntn.sha256":" '),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_changed_header_is_refused(given: Net, path: Path, what: str, old: bytes, new: bytes) -> None:
    save(compressed(), path)
    content = path.read_bytes()
    assert old in content, what
    changed = content.replace(old, new, 1)
    length = int.from_bytes(content[:8], "little") + len(new) - len(old)
    path.write_bytes(length.to_bytes(8, "little") + changed[8:])
    refuse(given, path, "does not match")


@pytest.mark.parametrize("position", [-1, -500, 0])
def test_a_changed_byte_of_a_tensor_is_refused(given: Net, path: Path, position: int) -> None:
    save(compressed(), path)
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + position if position >= 0 else position] ^= 1
    path.write_bytes(content)
    refuse(given, path, "digest does not match")


Edit = Callable[[dict[str, Any], dict[str, Tensor]], None]


def set_in(*keys: str, to: object) -> Edit:
    def edit(header: dict[str, Any], _: dict[str, Tensor]) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = to

    return edit


def set_tensor(name: str, change: Callable[[Tensor], Tensor]) -> Edit:
    def edit(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors[name])

    return edit


def nan_at_the_end(tensor: Tensor) -> Tensor:
    tensor.view(-1)[-1] = float("nan")
    return tensor


ROOT = "conv.root"
THREE = CONFIG.replace(latent_order=3).to_dict()

WELL_SIGNED: dict[str, tuple[Edit, str]] = {
    "newer format": (set_in("format", to=3), "format 3, newer than the 2"),
    "format is no number": (set_in("format", to="1"), "did not write"),
    "format is true": (set_in("format", to=True), "did not write"),
    "newer config": (set_in("layers", "conv", "config", "version", to=99), "version 99, newer than the .*upgrade"),
    "unknown option": (set_in("layers", "conv", "config", "colour", to="red"), "no option 'colour'"),
    "impossible option": (set_in("layers", "conv", "config", "radix", to=1), "radix=1"),
    "config that needs other tensors": (
        set_in("layers", "conv", "config", to=THREE),
        "conv.*(in the model|missing)",
    ),
    "groups that do not divide": (set_in("layers", "conv", "config", "groups", to=3), "(groups|in the model)"),
    "enormous bond": (set_in("layers", "conv", "config", "bond_dim", to=10**6), "in the model"),
    "layers is a list": (set_in("layers", to=[]), "did not write"),
    "layer is a number": (set_in("layers", "conv", to=3), "did not write"),
    "layer without config": (set_in("layers", "conv", to={}), "did not write"),
    "unknown execution": (set_in("layers", "conv", "execution", to="fast"), "not one that this library writes"),
    "other shape": (set_in("layers", "conv", "shape", to=[8, 27]), r"\(8, 27\).*\(8, 3, 3, 3\)"),
    "shape is text": (set_in("layers", "conv", "shape", to="8333"), "not one that this library writes"),
    "layer that is not there": (
        lambda header, _: header["layers"].update(tail=header["layers"].pop("conv")),
        "no module of that name",
    ),
    "layer that cannot be one": (
        lambda header, _: header["layers"].update(norm=header["layers"].pop("conv")),
        "'norm', which cannot be one",
    ),
    "shared with nothing": (set_in("shared", to={"conv": "tail"}), "did not write"),
    "shared with itself": (set_in("shared", to={"conv": "conv"}), "did not write"),
    "shared in a circle": (set_in("shared", to={"conv": "head.0", "head.0": "conv"}), "did not write"),
    "shared across shapes": (set_in("shared", to={"conv": "head.0"}), "did not write"),
    "shared is a list": (set_in("shared", to=[1, 2]), "did not write"),
    "shared with a list": (set_in("shared", to={"conv": ["head.0"]}), "did not write"),
    "alias of nothing": (set_in("aliases", to={"x": "y"}), "did not write"),
    "alias of a list": (set_in("aliases", to={"x": []}), "did not write"),
    "alias over a tensor": (set_in("aliases", to={"conv.bias": "norm.bias"}), "did not write"),
    "unexpected alias": (set_in("aliases", to={"x": "norm.bias"}), "x is not in the model"),
    "missing tensor": (lambda _, tensors: tensors.pop(ROOT), f"{ROOT} is missing from the file"),
    "missing buffer": (lambda _, tensors: tensors.pop("norm.running_var"), "norm.running_var is missing"),
    "unexpected tensor": (lambda _, tensors: tensors.update(extra=torch.ones(1)), "extra is not in the model"),
    "other tensor shape": (set_tensor(ROOT, lambda t: t[:, 1:].clone()), r"root has shape \(1, 31\) .* \(1, 32\)"),
    "same size, other shape": (set_tensor("conv.bias", lambda t: t.reshape(2, 4)), r"\(2, 4\).*\(8,\)"),
    "whole numbers": (set_tensor(ROOT, lambda t: t.to(torch.int32)), r"root is torch\.int32"),
    "fractions in a counter": (
        set_tensor("norm.num_batches_tracked", lambda t: t + 0.5),
        r"float32 in the file and torch\.int64 in the model",
    ),
    "complex numbers": (set_tensor("conv.bias", lambda t: t.to(torch.complex64)), "complex64"),
    "too large": (set_tensor("conv.bias", lambda t: t.double() + 1e300), "conv.bias has .*too large for torch.float32"),
    "eight bits": (set_tensor(ROOT, lambda t: nan_at_the_end(t).to(torch.float8_e4m3fn)), f"{ROOT} has NaN"),
    "NaN": (set_tensor(ROOT, nan_at_the_end), f"{ROOT} has NaN"),
    "NaN in a dense layer": (set_tensor("head.2.weight", nan_at_the_end), "head.2.weight has NaN"),
}


@pytest.mark.parametrize("name", WELL_SIGNED)
def test_a_well_signed_file_that_does_not_fit_is_refused(given: Net, path: Path, name: str) -> None:
    edit, message = WELL_SIGNED[name]
    save(compressed(), path)
    rewrite(path, lambda *_: None)
    load(compressed(), path)  # the digest is right, and so were the file as it stood
    rewrite(path, edit)
    refuse(given, path, message)


def test_many_problems_are_listed_in_part(path: Path) -> None:
    save(Net(), path)
    refuse(
        nn.Sequential(*(nn.Linear(2, 2) for _ in range(9))), path, r"0\.bias is missing from the file; .*and \d+ more"
    )


def test_an_execution_that_is_not_possible_is_refused(path: Path) -> None:
    config = CONFIG.replace(order="paired")
    models = [nn.Sequential(nn.Linear(32, 32)) for _ in range(3)]
    compress_(models[0], config)
    compress_(models[1], config)
    save(models[0], path)
    rewrite(path, set_in("layers", "0", "execution", to="factored"))
    for model in models[1:]:
        refuse(model, path, "execution='factored' is not possible")


def other_config() -> Net:
    return compressed(MERA)


def other_size() -> Net:
    model = Net()
    model.head[0] = nn.Linear(32, 12)
    return model


def other_kind() -> Net:
    model = Net()
    model.conv = nn.Bilinear(8, 3, 3)  # type: ignore[assignment]
    return model


def without_norm() -> Net:
    model = Net()
    model.norm = nn.Identity()  # type: ignore[assignment]
    return model


def with_more() -> Net:
    model = Net()
    model.head.append(nn.Linear(4, 4))
    return model


def without_bias() -> Net:
    model = Net()
    model.conv = nn.Conv2d(3, 8, 3, bias=False)
    return model


def more_generated() -> Net:
    model = Net()
    compress_(model, CONFIG)
    return model


def on_meta() -> Net:
    return Net().to("meta")


@pytest.mark.parametrize(
    "build, message",
    [
        (other_config, r"'conv' is generated with .*topology='ttn'.* in the file, .*topology='mera'.* in the model"),
        (other_size, r"'head\.0' is a Linear with a weight of shape \(16, 32\) in the file, a Linear with \(12, 32\)"),
        (other_kind, "'conv', which cannot be one in this model: it is a Bilinear"),
        (without_norm, r"norm\.bias is not in the model"),
        (with_more, r"head\.3\.bias is missing"),
        (without_bias, r"conv\.bias is not in the model"),
        (more_generated, r"head\.2\.root is missing.*head\.2\.weight is not in the model"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), "'conv', and the model has no module of that name"),
    ],
    ids=["config", "size", "kind", "without norm", "with more", "without bias", "more generated", "other model"],
)
def test_a_file_of_another_model_is_refused(path: Path, build: Callable[[], nn.Module], message: str) -> None:
    save(compressed(), path)
    refuse(build(), path, message)


def test_a_model_on_the_meta_device_is_refused(path: Path) -> None:
    save(compressed(), path)
    model = Net().to("meta")
    with pytest.raises(CheckpointError, match=r"meta device in the model .*to_empty"):
        load(model, path)
    assert type(model.conv) is nn.Conv2d
    load(model.to_empty(device="cpu"), path)


def test_two_values_for_one_tensor_are_refused(path: Path) -> None:
    save(with_layers("a", "b"), path)
    refuse(
        with_layers("a", "b", tied=True), path, "a.weight and b.weight are one tensor in the model and two different"
    )
    model = with_layers("a", "b")
    compress_(model, CONFIG)
    save(model, path)
    tied = with_layers("a", "b", tied=True)
    compress_(tied, CONFIG)
    refuse(tied, path, "are one tensor in the model")


def test_two_layers_for_one_module_are_refused(path: Path) -> None:
    model = with_layers("a", "b")
    compress_(model, CONFIG)
    save(model, path)
    layer = nn.Linear(8, 8)
    refuse(nn.ModuleDict({"a": layer, "b": layer}), path, "are one tensor in the model")


def test_an_optimiser_that_would_train_what_is_gone_is_refused(path: Path) -> None:
    save(compressed(), path)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    refuse(model, path, "SGD optimiser already holds the weight of 'conv', 'head.0'.*Load the file first")
    assert optimizer.param_groups
    ready = compressed()
    kept = torch.optim.SGD(ready.parameters(), lr=0.1)
    load(ready, path)
    assert kept.param_groups


@pytest.mark.parametrize("in_place", [True, False])
def test_a_layer_compiled_on_its_own_is_refused(path: Path, in_place: bool) -> None:
    save(compressed(), path)
    model = Net()
    if in_place:
        model.conv.compile(backend="eager")
    else:
        model.conv = torch.compile(model.conv, backend="eager")  # type: ignore[assignment]
    refuse(model, path, "'conv' is compiled on its own already; load the file first")


def test_nan_in_a_weight_that_goes_is_no_obstacle(path: Path) -> None:
    save(compressed(), path)
    model = Net()
    model.conv.weight.data.fill_(float("nan"))
    assert load(model, path).conv.weight.isfinite().all()
