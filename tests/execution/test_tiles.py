"""The cut of a readout into a state and a small matrix, and the product that makes no weight of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conformance_cases import Case, assert_equal, generator_cases
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import adntn
from adntn import Generator, GeneratorConfig
from adntn.contraction import in_digit_order
from adntn.errors import ConfigError, ShapeError
from adntn.execution import tiles
from adntn.nn import Linear
from adntn.topology import BASELINES

CASES: dict[str, Case] = {
    name: case for name, case in generator_cases().items() if case.options.get("topology") not in BASELINES
}
MATRICES = {name: case for name, case in CASES.items() if len(case.shape) == 2}
#: The few whose derivatives of all kinds are checked.
FEW = {
    "paired": Case((20, 12), {"order": "paired", "topology": "mera"}),
    "groups, terms": Case((40, 24), {"terms": 2, "groups": 2, "order": "paired", "topology": "attn"}),
    "digits out of order, groups": Case((10, 3), {"order": (4, 0, 2, 3, 1), "groups": 2}),
    "radix 3": Case((30, 50), {"radix": 3, "order": "block_paired"}),
    "blocked": Case((70, 300), {"order": "blocked"}),
}


def generator(shape: tuple[int, ...] = (64, 64), **options: Any) -> Generator:
    return Generator(shape, GeneratorConfig(**{"order": "paired", **options}))


@pytest.mark.parametrize("name", CASES)
def test_every_entry_of_the_weight_is_a_row_of_the_state_times_a_column_of_the_matrix(name: str) -> None:
    gen: Generator = CASES[name].build()
    where, t = tiles.layout(gen), gen.blueprint.tensorization
    state, matrix = tiles.make(gen)
    assert state.shape[::2] == (where.groups, where.inner) == matrix.shape[:2]
    assert (state.numel(), matrix.numel()) == (where.state_entries, where.matrix_entries)
    whole = (state @ matrix).reshape(where.groups, *where.high, *where.low).permute(0, 1, 4, 2, 5, 3, 6)
    whole = whole.reshape(where.groups, *(h * n for h, n in zip(where.high, where.low, strict=True)))
    for axis, size in enumerate(where.size, start=1):
        whole = whole.narrow(axis, 0, size)
    assert where.ravel == (len(t.axes) == 1)
    assert_equal(in_digit_order(whole, t, range(len(t.axes)), first_dim=1).reshape(gen.shape), gen())


@pytest.mark.parametrize("order", ["paired", "block_paired", "blocked"])
def test_the_state_is_far_smaller_than_the_weight_and_the_matrix_smaller_still(order: str) -> None:
    for name, share in (("ttn", 8), ("attn", 4), ("mera", 4)):
        gen = Generator((4096, 4096), GeneratorConfig(topology=name, order=order), device="meta")
        where = tiles.layout(gen)
        assert where.state_entries == 4096**2 // share
        assert where.matrix_entries <= 512


@pytest.mark.parametrize(
    "shape, options",
    [((64, 64), {}), ((100, 40), {"topology": "mera"}), ((96, 50), {"groups": 2, "terms": 2}), ((9, 50), {"radix": 3})],
    ids=str,
)
def test_multiply_adds_are_those_that_run(shape: tuple[int, int], options: dict[str, Any]) -> None:
    gen = generator(shape, **options)
    made, x = tiles.make(gen), torch.randn(5, shape[1])
    with FlopCounterMode(display=False) as counter:
        tiles.linear(x, gen, made=made)
    assert counter.get_total_flops() == 2 * tiles.layout(gen).multiply_adds(5)


def test_numbers_are_made_in_float32_and_gradients_go_through_to_the_cores() -> None:
    gen = generator().to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = tiles.make(gen)
    assert [t.dtype for t in made] == [torch.float32] * 2
    (made[0].sum() * made[1].sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gen.parameters())


# --- the product ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_the_product_is_that_with_the_weight(name: str) -> None:
    gen: Generator = MATRICES[name].build()
    x, bias = torch.randn(2, 3, gen.shape[1], dtype=torch.float64), torch.randn(gen.shape[0], dtype=torch.float64)
    if tiles.layout(gen).ravel:
        with pytest.raises(ConfigError, match="ravels a weight of shape"):
            tiles.linear(x, gen)
        return
    assert tiles.product_obstacle(gen) is None
    assert_equal(tiles.linear(x, gen, bias), F.linear(x, gen(), bias))
    assert_equal(tiles.linear(x[0, 0], gen, made=tiles.make(gen)), F.linear(x[0, 0], gen()))


@pytest.mark.parametrize("name", FEW)
def test_derivatives_of_all_kinds(name: str) -> None:
    gen: Generator = FEW[name].build()
    x = torch.randn(3, gen.shape[1], dtype=torch.float64, requires_grad=True)
    wanted = [x, *gen.parameters()]

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return tiles.linear(x, gen), F.linear(x, gen())

    ours, theirs = (torch.autograd.grad(y.square().sum(), wanted, create_graph=True) for y in both(x))
    for a, b in zip(ours, theirs, strict=True):
        assert_equal(a, b)
    ours, theirs = (torch.autograd.grad(sum(g.sin().sum() for g in each), wanted) for each in (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        assert_equal(a, b)
    tangent = torch.randn_like(x)
    _, (ours, theirs) = torch.func.jvp(both, (x.detach(),), (tangent,))
    assert_equal(ours, theirs)
    ours, theirs = torch.func.vmap(both)(torch.randn(2, *x.shape, dtype=torch.float64))
    assert_equal(ours, theirs)


@pytest.mark.parametrize("batch", [(), (1,), (0,), (2, 0, 3)], ids=str)
def test_any_leading_dimensions(batch: tuple[int, ...]) -> None:
    gen = generator((20, 12), groups=2)
    x = torch.randn(*batch, 12)
    torch.testing.assert_close(tiles.linear(x, gen), F.linear(x, gen()))


def test_half_precision_and_autocast() -> None:
    layer = Linear(24, 20, config=GeneratorConfig(order="paired"))
    x = torch.randn(5, 24)
    exact = F.linear(x, layer.weight, layer.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tiles.linear(x, layer, layer.bias)
    half = tiles.linear(x.bfloat16(), layer.bfloat16(), layer.bias)
    for y in (cast, half):
        assert y.dtype == torch.bfloat16
        assert (y.float() - exact).norm() < 0.02 * exact.norm()
        y.float().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_compiled_into_one_graph(no_graphs: None) -> None:
    gen, x = generator((20, 12), terms=2, topology="mera"), torch.randn(5, 12)
    compiled = torch.compile(lambda x: tiles.linear(x, gen), backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), F.linear(x, gen()))


def test_no_weight_is_made() -> None:
    class Largest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            self.entries = max([self.entries, *(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))])
            return result

    gen = Generator((1024, 1024), GeneratorConfig(topology="ttn", order="paired"), device="meta")
    x = torch.empty(4, 1024, device="meta", requires_grad=True)
    with Largest() as seen:
        tiles.linear(x, gen).sum().backward()
    where = tiles.layout(gen)
    assert seen.entries == max(where.state_entries, where.between(4)) == 1024**2 // 16


def test_errors_say_what_was_given() -> None:
    with pytest.raises(ShapeError, match=r"input of shape \(3, 63\) does not fit a weight of shape \(64, 64\)"):
        tiles.linear(torch.randn(3, 63), generator())
    with pytest.raises(ShapeError, match=r"input of shape \(\)"):
        tiles.linear(torch.tensor(1.0), generator())
    with pytest.raises(ConfigError, match="topology='lowrank' has no levels to cut"):
        tiles.make(generator(topology="lowrank", order="blocked"))
    with pytest.raises(ConfigError, match="topology='lowrank' has no levels"):
        tiles.linear(torch.randn(3, 64), generator(topology="lowrank", order="blocked"))
    with pytest.raises(ConfigError, match=r"shape \(8, 8, 3, 3\) is no matrix"):
        tiles.linear(torch.randn(3, 8), generator((8, 8, 3, 3)))
    part = Linear.from_dense(torch.nn.Linear(64, 4), share=generator(), rows=(4, 8))
    with pytest.raises(ConfigError, match="not just the 64"):
        tiles.linear(torch.randn(3, 64), part)


# --- layers -----------------------------------------------------------------------------------------------------------


def test_a_layer_without_a_split_runs_by_tiles_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run = tiles.linear
    monkeypatch.setattr(tiles, "linear", lambda x, *rest: calls.append(len(x)) or run(x, *rest))
    config = GeneratorConfig(topology="mera", order="paired")
    layer = Linear(700, 600, config=config, dtype=torch.float64)
    for rows, taken in ((3, True), (600, False)):
        found = []
        for forward in (layer, lambda x: F.linear(x, layer.weight, layer.bias)):
            x = torch.randn(rows, 700, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            x.requires_grad_()
            y = forward(x)
            y.square().sum().backward()
            found.append([y, x.grad, *(p.grad for p in layer.parameters())])
            layer.zero_grad()
        for mine, expected in zip(*found, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)
        assert bool(calls) == taken
        calls.clear()
    with adntn.cached(layer):
        layer(torch.randn(3, 700, dtype=torch.float64))
    layer.execution = "dense"
    layer(torch.randn(3, 700, dtype=torch.float64))
    assert not calls  # a kept weight of this size is faster, and who asks for the whole weight gets it


def test_what_pays() -> None:
    where = tiles.layout(Generator((4096, 4096), GeneratorConfig(topology="ttn", order="paired"), device="meta"))
    assert tiles.pays(where, 128, kept=False)
    assert tiles.pays(where, 128, kept=True)
    assert not tiles.pays(where, 1024, kept=False)
    assert not tiles.pays(where, 256, kept=True)
    small = tiles.layout(Generator((256, 256), GeneratorConfig(topology="ttn", order="paired"), device="meta"))
    assert not tiles.pays(small, 1, kept=False)
