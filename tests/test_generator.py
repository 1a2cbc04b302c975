"""The generator as a module: devices, dtypes, memory, ranks, and what it says of itself."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance_cases import CONFIGS, EVERYTHING, ORDERS, TOPOLOGIES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adntn import Generator, GeneratorConfig, memory
from adntn.errors import AdntnError, ConfigError, GeneratorTooLargeError, ShapeError


def test_the_example_of_the_design() -> None:
    gen = Generator((4096, 4096), GeneratorConfig(topology="ttn", order="blocked"))
    assert gen.schedule == (5, 10, 12, 24)
    assert gen.num_modes == 24
    assert gen.num_parameters == 216
    assert gen.rank_bound() == 64
    assert gen.hidden().shape == (1, 4096)
    assert gen().shape == (4096, 4096)
    a, c, b = gen.factors() or ()
    assert (a.shape, c.shape, b.shape) == ((1, 4096, 64), (1, 64, 64), (1, 4096, 64))


def test_a_generator_without_config_has_the_default_one() -> None:
    assert Generator((8, 8)).config == GeneratorConfig()


def test_its_text_says_what_it_is() -> None:
    text = repr(Generator((4096, 4096), GeneratorConfig(topology="mera", order="paired"), device="meta"))
    for part in ("(4096, 4096)", "mera", "'paired'", "(5, 10, 12, 24)", "536"):
        assert part in text


# --- devices and dtypes ---------------------------------------------------------------------------


def test_the_meta_device_allocates_nothing_and_can_be_filled_later() -> None:
    config = GeneratorConfig(topology="mera", activation="prelu")
    gen = Generator((17, 33), config, device="meta")
    assert all(p.is_meta for p in gen.parameters())
    assert gen().is_meta
    assert gen().shape == (17, 33)
    gen.to_empty(device="cpu")
    torch.manual_seed(7)
    gen.reset_parameters()
    torch.manual_seed(7)
    expected = Generator((17, 33), config)
    assert gen.state_dict().keys() == expected.state_dict().keys()
    assert torch.equal(gen(), expected())


def test_the_default_device_is_followed_and_can_be_overruled() -> None:
    with torch.device("meta"):
        assert Generator((8, 8)).root.is_meta
        torch.manual_seed(7)
        gen = Generator((8, 8), device="cpu")
    torch.manual_seed(7)
    assert torch.equal(gen(), Generator((8, 8))())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_everything_it_makes_has_its_dtype(dtype: torch.dtype) -> None:
    gen = Generator((17, 33), GeneratorConfig(topology="mera", activation="prelu"), dtype=dtype)
    assert {p.dtype for p in gen.parameters()} == {dtype}
    assert {gen().dtype, gen.hidden().dtype, *(f.dtype for f in gen.factors() or ())} == {dtype}
    gen().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in gen.parameters())


def test_bfloat16_is_only_the_last_rounding() -> None:
    gen = Generator((64, 64), GeneratorConfig(topology="mera"), dtype=torch.bfloat16)
    exact = Generator((64, 64), gen.config, dtype=torch.float64)
    exact.load_state_dict(gen.state_dict())
    # Half a unit in the last of bfloat16's 8 bits.
    torch.testing.assert_close(gen().double(), exact(), rtol=2**-8, atol=1e-7)


class Operations(TorchDispatchMode):
    """Counts operations, and the largest array that one made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += 1
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))])
        return result


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_array_on_the_way_is_larger_than_the_padded_weight(topology: str, order: str) -> None:
    gen = Generator((1000, 1000), GeneratorConfig(order=order, **TOPOLOGIES[topology]), device="meta")
    with Operations() as seen:
        gen()
    assert 1000**2 <= seen.largest <= 2**20


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_factors_are_made_without_the_weight(topology: str) -> None:
    gen = Generator((4096, 4096), GeneratorConfig(order="blocked", **TOPOLOGIES[topology]), device="meta")
    with Operations() as seen:
        gen.factors()
    assert seen.largest <= 4096 * 128


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_weight_takes_few_operations(topology: str) -> None:
    # One call a core would be some 50 products for the 27 cores and up to 21 gates, each with views around it.
    gen = Generator((4096, 4096), GeneratorConfig(**TOPOLOGIES[topology]), device="meta")
    matmuls = 0

    class Products(Operations):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal matmuls
            matmuls += func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
            return super().__torch_dispatch__(func, types, args, kwargs)

    with Products():
        gen()
    assert 0 < matmuls <= 20


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, options, named",
    [
        ((4096, 4096), {"bond_dim": 16}, ["bond_dim=16", "16**12", "281,474,976,710,656", "(4096, 4096)", "GiB"]),
        ((4096, 4096), {"bond_dim": 8, "topology": "mera"}, ["mera", "8**12"]),
        ((4096, 4096), {"bond_dim": 8, "groups": 2}, ["in each of 2 group"]),
        ((1 << 30, 1 << 30), {}, ["GiB"]),
        ((64, 64), {"bond_dim": 10**30}, ["GiB"]),
        ((4096, 4096), {"bond_dim": 10**30}, ["GiB"]),
        ((64, 64), {"radix": 10**9}, ["GiB"]),
        ((1 << 20, 1 << 20), {"topology": "brickwall", "columns": 4}, ["each of 2 block(s)", "Fewer blocks"]),
        ((1 << 20, 1 << 20), {"topology": "tt"}, ["tt with bond_dim=2", "A smaller bond_dim, or a smaller weight"]),
        ((1 << 20, 1 << 20), {"topology": "lowrank"}, ["lowrank", "A smaller bond_dim, or a smaller weight"]),
        ((1 << 20, 1 << 20), {"topology": "subspace"}, ["hashes the place of every entry"]),
        (
            (64, 64),
            {"topology": "subspace", "subspace_dim": 1 << 40},
            ["subspace with 1,099,511,627,776 numbers", "smaller subspace_dim"],
        ),
        ((1 << 20, 1 << 20), {"topology": "frozen"}, ["hashes the place of every entry"]),
        ((4096, 4096), {"bond_dim": 8, "terms": 3}, ["3 term(s)"]),
    ],
    ids=str,
)
def test_a_generator_too_large_for_memory_is_refused_before_anything_is_allocated(
    shape: tuple[int, ...], options: dict[str, Any], named: list[str]
) -> None:
    with Operations() as seen, pytest.raises(GeneratorTooLargeError) as caught:
        Generator(shape, GeneratorConfig(**options), device="cpu")
    assert seen.count == 0
    for part in named:
        assert part in str(caught.value)


def test_what_fits_depends_on_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 8 * Generator((64, 64), device="meta").blueprint.peak_entries()
    monkeypatch.setattr(memory, "_free_memory", lambda _: needed - 1)
    with pytest.raises(GeneratorTooLargeError):
        Generator((64, 64), device="cpu")
    monkeypatch.setattr(memory, "_free_memory", lambda _: needed)
    Generator((64, 64), device="cpu")
    monkeypatch.setattr(memory, "_free_memory", lambda _: None)
    Generator((64, 64), device="cpu")


MEASURE = """
import sys
import torch
from adntn import Generator, GeneratorConfig
def peak():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(lines["VmHWM"].split()[0])
config = GeneratorConfig.from_json(sys.argv[1])
Generator((64, 64), config)().sum().backward()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak so far, of which a new process inherits its parent's, is forgotten
before = peak()
gen = Generator((2048, 2048), config)
weight = gen()
weight.backward(torch.ones_like(weight))
print((peak() - before) / (8 * gen.blueprint.peak_entries()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "options",
    [
        {"topology": "mera", "terms": 3},
        {"topology": "brickwall", "columns": 4, "gate": True, "norm": "layer"},
        {"topology": "tt"},
        {"topology": "tt", "order": "paired"},
        {"topology": "lowrank"},
        {"topology": "subspace"},
        {"topology": "frozen"},
        {"order": "paired"},
    ],
    ids=str,
)
def test_the_estimate_covers_what_a_generator_holds_and_not_much_more(options: dict[str, Any]) -> None:
    command = [sys.executable, "-c", MEASURE, GeneratorConfig(**options).to_json()]
    share = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    # Memory comes in pages, and what was free already before counts for nothing.
    assert 0.4 < share < 1.15


def test_the_refusal_is_the_librarys_and_pythons_own() -> None:
    assert issubclass(GeneratorTooLargeError, AdntnError)
    assert issubclass(GeneratorTooLargeError, MemoryError)


def test_what_a_shape_cannot_have_is_refused() -> None:
    with pytest.raises(ShapeError, match="groups=3 does not divide the 8 rows"):
        Generator((8, 8), GeneratorConfig(groups=3))
    with pytest.raises(ShapeError, match="zero"):
        Generator((0, 8))
    with pytest.raises(ConfigError, match="the 6 modes"):
        Generator((8, 8), GeneratorConfig(order=(1, 0)))


# --- rank -----------------------------------------------------------------------------------------


def measured_rank(gen: Generator) -> int:
    s = torch.linalg.svdvals(gen().detach().flatten(1))
    return int((s > 1e-9 * s[0]).sum())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topology", EVERYTHING)
@pytest.mark.parametrize("shape", [(64, 64), (60, 100), (32, 32, 3, 3), (16, 256)], ids=str)
def test_the_rank_is_bounded(shape: tuple[int, ...], topology: str, order: str) -> None:
    variants: list[dict[str, Any]] = [CONFIGS["bond 3"], CONFIGS["sine, isometric"], {"groups": 2}]
    if topology in TOPOLOGIES:
        variants.append({"terms": 2, "gate": True})
    for options in variants:
        torch.manual_seed(0)
        gen = Generator(
            shape, GeneratorConfig(**{"order": order, **EVERYTHING[topology], **options}), dtype=torch.float64
        )
        with torch.no_grad():
            for parameter in gen.parameters():
                parameter.add_(torch.randn_like(parameter) * parameter.abs().mean())
        assert measured_rank(gen) <= gen.rank_bound()


@pytest.mark.parametrize(
    "shape, options, bound",
    [
        ((4096, 4096), {}, 64),
        ((4096, 4096), {"topology": "mera"}, 128),
        ((4096, 4096), {"order": "paired"}, 4096),
        ((4096, 4096), {"order": "block_paired"}, 64),
        ((4096, 4096), {"order": "block_paired", "topology": "mera"}, 4096),
        ((4096, 4096), {"bond_dim": 3, "radix": 4}, 27),
        ((4096, 4096), {"bond_dim": 1}, 1),
        ((512, 512, 3, 3), {}, 32),
        ((512, 512, 3, 3), {"order": "paired"}, 512),
        ((4096, 4096), {"groups": 4}, 128),  # blocks of 1024 rows have rank 32 each
        ((8, 4096), {}, 4),  # the cores of the eight rows: one makes the extra mode and o1, one o2 and o3
        ((2, 2), {}, 2),
        ((4096, 4096), {"terms": 3}, 192),
        ((4096, 4096), {"topology": "tt", "bond_dim": 5}, 5),
        ((4096, 4096), {"topology": "tt", "order": "paired"}, 4096),
        ((4096, 4096), {"topology": "lowrank", "bond_dim": 5, "groups": 2}, 10),
        ((8, 4096), {"topology": "lowrank", "bond_dim": 5, "groups": 4}, 8),
        ((4096, 1000), {"topology": "subspace"}, 1000),
        ((512, 512, 3, 3), {"topology": "frozen"}, 512),
        ((4096, 4096), {"topology": "brickwall"}, 4),  # one straddling pair of each column
    ],
    ids=str,
)
def test_rank_bounds_of_known_generators(shape: tuple[int, ...], options: dict[str, Any], bound: int) -> None:
    config = GeneratorConfig(**{"order": "blocked", **options})
    assert Generator(shape, config, device="meta").rank_bound() == bound


@pytest.mark.parametrize("options, bound", [({}, 8), ({"topology": "mera"}, 16), ({"bond_dim": 1}, 1)], ids=str)
def test_a_bound_is_reached(options: dict[str, Any], bound: int) -> None:
    # A bound that is never reached would say too little.
    gen = Generator((64, 64), GeneratorConfig(order="blocked", latent_order=6, **options), dtype=torch.float64)
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.copy_(torch.randn_like(parameter))
    assert gen.rank_bound() == bound
    assert measured_rank(gen) == bound


# --- autocast -------------------------------------------------------------------------------------


def test_autocast_does_not_reach_inside() -> None:
    gen = Generator((64, 64), GeneratorConfig(topology="mera", activation="prelu"))
    outside = (gen(), gen.hidden(), *(gen.factors() or ()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = (gen(), gen.hidden(), *(gen.factors() or ()))
        torch.manual_seed(3)
        gen.reset_parameters()
    for a, b in zip(inside, outside, strict=True):
        assert torch.equal(a, b)
    other = Generator((64, 64), gen.config, device="meta").to_empty(device="cpu")
    torch.manual_seed(3)
    other.reset_parameters()
    assert torch.equal(gen(), other())


def test_nothing_is_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Generator((17, 33), GeneratorConfig(topology="mera", activation="prelu", groups=17))().sum().backward()
