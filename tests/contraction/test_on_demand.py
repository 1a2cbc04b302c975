"""Entries and rows on demand: what they cost, and every way in which they are asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from allocations import Allocations
from conformance_cases import DIFFERENTIATED, EVERYTHING, ORDERS, Case, assert_equal, relative_error
from torch import Tensor, nn

from adntn import EntryIndexError, Generator, GeneratorConfig, ShapeError
from adntn.contraction import on_demand
from adntn.contraction.on_demand import cheapest_cut

#: One of each kind, and what is easily got wrong of it.
CASES = DIFFERENTIATED | {
    "paired": Case((9, 11), {"topology": "mera", "order": "paired"}),
    "flat": Case((9, 11), {"topology": "attn", "order": "flat"}),
    "conv, lowrank": Case((6, 5, 3), {"topology": "lowrank"}),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class OnDemand(nn.Module):
    """Rows, and entries as a product that is not linear in them."""

    def __init__(self, gen: Generator) -> None:
        super().__init__()
        self.gen = gen

    def forward(self, index: Tensor) -> Tensor:
        return self.gen.entries(index).unsqueeze(-1) * self.gen.rows_at(index[..., 0]).flatten(index.ndim - 1)


def whole(gen: Generator, index: Tensor) -> Tensor:
    weight = gen()
    return weight[index.unbind(-1)].unsqueeze(-1) * weight[index[..., 0]].flatten(index.ndim - 1)


def some(gen: Generator, *count: int) -> Tensor:
    return torch.stack([torch.randint(-size, size, count) for size in gen.shape], -1)


def of_parameters(module: nn.Module, index: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
    names = [name for name, _ in module.named_parameters()]

    def function(*values: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (index,))
        return result

    return function, tuple(p.detach().clone() for p in module.parameters())


# --- what they cost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["ttn", "mera"])
@pytest.mark.parametrize("order", ORDERS)
def test_where_the_walk_changes_over_changes_nothing(
    topology: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gen = Case((64, 100, 3, 3), {"order": order, **EVERYTHING[topology]}).build()
    weight, index = gen(), some(gen, 40)
    segments = len(gen._network.walk.whole.segments)  # type: ignore[union-attr]
    assert segments > 1
    for cut in range(segments):
        monkeypatch.setattr(on_demand, "cheapest_cut", lambda *_, cut=cut: cut)
        assert relative_error(gen.entries(index), weight[index.unbind(1)]) < 1e-12
        assert relative_error(gen.rows_at(index[:5, 0]), weight[index[:5, 0]]) < 1e-12


def test_few_entries_need_no_table_and_many_one_of_half_the_wires() -> None:
    gen = Generator((4096, 4096), GeneratorConfig(topology="ttn"), device="meta")
    walk = gen._network.walk  # type: ignore[union-attr]
    plan = walk.whole
    cuts = [cheapest_cut(plan, walk.entries, 1, count) for count in (1, 1 << 10, 1 << 20)]
    assert cuts[0] == 0
    assert cuts == sorted(cuts)
    assert 0 < cuts[1] <= cuts[2] < len(plan.segments)
    left = plan.size_in
    for segment in plan.segments[: cuts[2]]:
        left //= segment.size_in
    assert left <= 2 ** (12 // 2)  # chi ** ceil(H / 2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"topology": "mera"},
        {"topology": "attn", "order": "paired"},
        {"order": "flat"},
        {"groups": 2},
        {"terms": 2},
        {"radix": 4, "latent_order": 2},
        {"topology": "brickwall"},
        {"topology": "tt"},
        {"topology": "tt", "order": "paired"},
        {"topology": "lowrank"},
        {"topology": "subspace"},
        {"topology": "frozen"},
    ],
    ids=str,
)
def test_nothing_of_the_weights_size_is_made(options: dict[str, Any]) -> None:
    gen = Generator((1000, 4096), GeneratorConfig(**{"topology": "ttn", "order": "blocked", **options}))
    index = some(gen, 1000)
    with Allocations() as seen:
        gen.entries(index).square().sum().backward()
    assert 4000 < seen.largest < 4 * gen.blueprint.size / 8, seen.by
    with Allocations() as seen:
        gen.rows_at(index[:4, 0]).square().sum().backward()
    assert 4 * 4 * 4096 <= seen.largest < 4 * gen.blueprint.size / 3, seen.by  # B is the largest, or all rows' states


def test_entries_of_a_large_weight_cost_a_hundredth_of_it() -> None:
    gen = Generator((4096, 4096), GeneratorConfig(topology="ttn"))
    index = some(gen, 1000)
    with Allocations() as seen:
        gen.entries(index).square().sum().backward()
    assert 4000 < seen.largest < 4 * gen.blueprint.size / 60, seen.by


# --- how they are asked for ---------------------------------------------------------------------------------------


@every_case
def test_forward_mode_agrees_with_reverse_mode(case: Case) -> None:
    gen = case.build()
    function, values = of_parameters(OnDemand(gen), some(gen, 3))
    tangents = tuple(torch.randn_like(v) for v in values)
    made, forward = torch.func.jvp(function, values, tangents)
    probe = torch.randn_like(made)
    _, pull = torch.func.vjp(function, *values)
    reverse = sum((g * t).sum() for g, t in zip(pull(probe), tangents, strict=True))
    assert_equal((forward * probe).sum(), reverse)


@every_case
def test_vmap_over_parameters_and_over_indices(case: Case) -> None:
    gen = case.build()
    module, index = OnDemand(gen), some(gen, 3)
    function, values = of_parameters(module, index)
    both = torch.func.vmap(function)(*(torch.stack([v, 2 * v]) for v in values))
    assert_equal(both[0], module(index))
    assert_equal(both[1], function(*(2 * v for v in values)))
    assert_equal(torch.func.vmap(module)(index), module(index))


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize(
    "name",
    [
        "conv, lowrank",
        *(pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "conv, lowrank"),
    ],
)
def test_they_are_one_graph(name: str) -> None:
    gen = CASES[name].build()
    module = OnDemand(gen)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for count in (3, 5):
        index = some(gen, count)
        assert_equal(compiled(index), module(index))
    gen.zero_grad()
    compiled(index).square().sum().backward()
    ours = [p.grad for p in gen.parameters()]
    theirs = torch.autograd.grad(module(index).square().sum(), list(gen.parameters()), allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        if other is not None:
            assert_equal(one, other)  # type: ignore[arg-type]


@every_case
def test_half_precision_and_autocast_sum_in_float32(case: Case) -> None:
    gen = case.build(torch.float32)
    index = some(gen, 20)
    expected = gen.entries(index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gen.entries(index), expected)
        assert gen.rows_at(index[:, 0]).dtype == torch.float32
    half = gen.to(torch.bfloat16)
    made, rows = half.entries(index), half.rows_at(index[:, 0])
    assert made.dtype == rows.dtype == torch.bfloat16
    weight = half()
    assert relative_error(made.float(), weight[index.unbind(1)].float()) < 1e-2
    assert relative_error(rows.float(), weight[index[:, 0]].float()) < 1e-2


@every_case
def test_on_the_meta_device_there_are_shapes(case: Case) -> None:
    gen = Generator(case.shape, case.blueprint().config, device="meta")
    index = torch.zeros(2, 3, len(gen.shape), dtype=torch.int64, device="meta")
    assert gen.entries(index).shape == (2, 3)
    assert gen.rows_at(index[..., 0]).shape == (2, 3, *gen.shape[1:])
    assert gen.entries((0,) * len(gen.shape)).is_meta  # numbers come to the parameters' device


def test_any_form_of_index_a_second_call_and_nothing_at_all() -> None:
    gen = DIFFERENTIATED["norm, gate, terms, kernel radix"].build()
    weight = gen()
    rows, columns = torch.tensor([[0], [-1]]), torch.tensor([2, 0, -3])
    for _ in range(2):
        assert_equal(gen.entries((rows, columns, 1, -1)), weight[rows, columns, 1, -1])
        assert_equal(gen.entries((0, 1, 2, 0)), weight[0, 1, 2, 0])
        assert_equal(gen.rows_at(-1), weight[-1])
    assert gen.entries(torch.zeros(0, 4, dtype=torch.int64)).shape == (0,)
    assert gen.rows_at(torch.zeros(0, dtype=torch.int64)).shape == (0, *gen.shape[1:])
    with pytest.raises(EntryIndexError, match="index 3 is out of range for axis 1"):
        gen.entries((0, 3, 0, 0))
    with pytest.raises(EntryIndexError, match="index -3 is out of range for axis 0"):
        gen.rows_at(torch.tensor([0, -3]))
    with pytest.raises(ShapeError, match="its last dimension needs 4 columns"):
        gen.entries(torch.zeros(5, 2, dtype=torch.int64))


@pytest.mark.parametrize("order", ["blocked", "paired"])
def test_gradients_by_the_adjoint_are_the_same(order: str) -> None:
    gen = Case((9, 11), {"topology": "mera", "order": order, "latent_order": 1}).build()
    index, gradients = some(gen, 7), []
    for backward in ("autograd", "adjoint"):
        gen.backward = backward
        gradients.append(torch.autograd.grad(OnDemand(gen)(index).sum(), list(gen.parameters())))
    for ours, theirs in zip(*gradients, strict=True):
        assert_equal(ours, theirs)
