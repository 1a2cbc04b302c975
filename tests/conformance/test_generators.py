"""Every generator of the table against a literal reference, with its factors, names, derivatives and array sizes."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from conformance_cases import (
    ACTIVATIONS,
    BASELINES,
    DIFFERENTIATED,
    EVERYTHING,
    ORDERS,
    TOPOLOGIES,
    Case,
    assert_equal,
    generator_cases,
    relative_error,
)
from reference import generate
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adntn import Generator, GeneratorConfig
from adntn.contraction import plan, run
from adntn.errors import ConfigError
from adntn.topology import TREES

CASES = generator_cases()
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
TREE_CASES = {name: c for name, c in CASES.items() if c.options.get("topology", "ttn") in TREES}
every_tree = pytest.mark.parametrize("case", TREE_CASES.values(), ids=TREE_CASES)

# --- generators against the equations -------------------------------------------------------------


@every_case
def test_weight_and_hidden_state_follow_the_equations(case: Case) -> None:
    gen = case.build()
    values = {name: tensor.detach().numpy() for name, tensor in gen.state_dict().items()}
    weight, hidden = generate(gen.shape, asdict(gen.config), values)
    assert_equal(gen(), torch.from_numpy(weight))
    if hidden is not None:
        assert_equal(gen.hidden(), torch.from_numpy(hidden))
        return
    with pytest.raises(ConfigError, match="has no hidden state"):
        gen.hidden()


def memories(gen: Generator) -> list[Tensor]:
    """Return memory for a weight: contiguous, with the axes the other way round, and with gaps."""
    shape, like = gen.shape, {"dtype": gen.dtype}
    gaps = torch.full([2 * size for size in shape], torch.nan, **like)[tuple(slice(1, None, 2) for _ in shape)]
    return [
        torch.full(shape, torch.nan, **like),
        torch.full(shape[::-1], torch.nan, **like).permute(*range(len(shape))[::-1]),
        gaps,
    ]


@every_case
def test_the_weight_is_made_in_given_memory_too(case: Case) -> None:
    gen = case.build()
    expected = gen().detach()
    with torch.no_grad():
        assert_equal(gen(), expected, tolerance=1e-12)
        for memory in memories(gen):
            assert gen.generate(out=memory) is memory
            assert_equal(memory, expected, tolerance=1e-12)


@every_case
def test_factors_give_the_weight(case: Case) -> None:
    gen = case.build()
    factors = gen.factors()
    assert (factors is None) == (gen.ranks is None)
    if factors is None:
        return
    a, c, b = factors
    (out, inner, *kernel), groups, (r, s) = gen.shape, gen.config.groups, gen.ranks
    assert a.shape == (groups, out // groups, r)
    assert c.shape == (groups, r, s, *kernel)
    assert b.shape == (groups, inner, s)
    weight = torch.einsum("gor,grs...,gis->goi...", a, c, b).reshape(gen.shape)
    assert relative_error(weight, gen()) < 1e-12


@every_case
def test_rows_of_the_factors_are_made_alone(case: Case) -> None:
    gen = case.build()
    # Any shape, and repeated.
    index = torch.randint(gen.shape[0], (2, 5))
    factors, some = gen.factors(), gen.factors_at(index)
    assert (factors is None) == (some is None)
    if factors is None or some is None:
        return
    assert_equal(some[0], factors[0].flatten(0, 1)[index], tolerance=1e-12)
    assert torch.equal(some[1], factors[1])
    assert torch.equal(some[2], factors[2])


@every_case
def test_entries_and_rows_alone_are_those_of_the_weight(case: Case) -> None:
    gen = case.build()
    index = torch.stack([torch.randint(-size, size, (2, 4)) for size in gen.shape], -1)
    weight, parameters = gen(), list(gen.parameters())
    entries, rows = gen.entries(index), gen.rows_at(index[..., 0])
    assert entries.shape == (2, 4)
    assert_equal(entries, weight[index.unbind(-1)], tolerance=1e-12)
    assert_equal(rows, weight[index[..., 0]], tolerance=1e-12)
    probe = torch.randn_like(rows)
    ours, theirs = (
        torch.autograd.grad(
            some.square().sum() + (row * probe).sum(), parameters, allow_unused=True, materialize_grads=True
        )
        for some, row in ((entries, rows), (weight[index.unbind(-1)], weight[index[..., 0]]))
    )
    for own, through_weight in zip(ours, theirs, strict=True):
        assert_equal(own, through_weight, tolerance=1e-10)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(
    "order, shape, expected",
    [
        ("blocked", (64, 64), True),
        ("blocked", (17, 333), True),
        ("blocked", (64, 32, 3, 3), True),
        ("flat", (64, 64), True),  # a ravel of powers of two is the blocked order
        ("flat", (50, 64), True),
        ("flat", (64, 50), False),
        ("flat", (64, 64, 3, 3), False),
        ("paired", (64, 64), False),
        ("paired", (64, 128), False),
        ("paired", (128, 64), False),
        ("paired", (5, 11), False),
        ("paired", (64, 64, 3, 3), False),
        ("paired", (32, 64, 3, 3), False),
        ("block_paired", (64, 64), "ttn"),
        ("block_paired", (64, 64, 3, 3), "ttn"),
    ],
)
def test_factors_are_none_where_the_order_has_no_split(
    topology: str, order: str, shape: tuple[int, ...], expected: bool | str
) -> None:
    gen = Generator(shape, GeneratorConfig(order=order, **TOPOLOGIES[topology]))
    splits = expected is True or expected == topology
    assert (gen.factors() is not None) == splits
    assert gen.rank_bound() <= min(shape[0], gen.blueprint.size // shape[0])


@pytest.mark.parametrize(
    "shape, options, ranks",
    [
        ((4096, 4096), {}, (64, 64)),
        ((4096, 4096), {"topology": "attn"}, (128, 128)),
        ((4096, 4096), {"topology": "mera"}, (128, 128)),
        ((512, 512, 3, 3), {}, (32, 32)),
        ((512, 256, 3, 3), {"groups": 2}, (16, 16)),
        ((4096, 4096), {"order": "block_paired"}, (64, 64)),
    ],
)
def test_factors_have_the_sizes_of_the_design(
    shape: tuple[int, ...], options: dict[str, Any], ranks: tuple[int, int]
) -> None:
    gen = Generator(shape, GeneratorConfig(**{"order": "blocked", **options}), device="meta")
    assert gen.ranks == ranks


def with_other_bounds(gen: Generator) -> Generator:
    other = Generator(gen.shape, gen.config, dtype=gen.dtype)
    other.load_state_dict(gen.state_dict())
    return other


@pytest.mark.parametrize("outputs", [1, 8, 1 << 20])
def test_where_a_circuit_is_cut_changes_nothing(plan_with_bounds: Callable[[int], None], outputs: int) -> None:
    before = {name: case.build() for name, case in list(CASES.items())[::5]}
    plan_with_bounds(outputs)
    for name, gen in before.items():
        other = with_other_bounds(gen)
        assert relative_error(other(), gen()) < 1e-12, name
        for memory in memories(gen):
            with torch.no_grad():
                other.generate(out=memory)
            assert relative_error(memory, gen()) < 1e-12, name


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_cuts_inside_large_hidden_levels_change_nothing(
    plan_with_bounds: Callable[[int], None], topology: str, order: str
) -> None:
    # Q = 21: the hidden state has 11 modes, so that its levels too are more than one segment.
    gen = Case((256, 130, 3, 3), {"order": order, **TOPOLOGIES[topology]}).build()
    hidden, weight, factors = gen.hidden(), gen(), gen.factors()
    assert len(plan.plan_level(gen.blueprint.levels[-2])[0].segments) > 1
    plan_with_bounds(4)
    other = with_other_bounds(gen)
    assert relative_error(other.hidden(), hidden) < 1e-12
    assert relative_error(other(), weight) < 1e-12
    for ours, theirs in zip(factors or (), other.factors() or (), strict=True):
        assert relative_error(theirs, ours) < 1e-12


@every_tree
def test_parameters_are_named_and_shaped_as_documented(case: Case) -> None:
    gen = case.build()
    config, modes, trees = gen.config, gen.schedule, gen.config.groups * gen.config.terms
    physical = [mode.size for mode in gen.blueprint.tensorization.modes]
    expected: dict[str, tuple[int, ...]] = {"root": (trees, config.chi ** modes[0])}
    for number, (parents, children) in enumerate(itertools.pairwise(modes), start=1):
        last = number == len(modes) - 1
        usual = config.radix if last else config.chi
        sizes = physical if last else [config.chi] * children
        doubling = children - parents
        pairs = [(f"expand.{number}", config.chi, tuple(sizes[2 * k : 2 * k + 2])) for k in range(doubling)]
        pairs += [(f"carry.{number}", config.chi, (size,)) for size in sizes[2 * doubling :]]
        for j in range({"ttn": 0, "mera": 1, "attn": config.boundary_layers if last else 0}[config.topology]):
            neighbours = zip(sizes[1 - j :: 2], sizes[2 - j :: 2], strict=False)
            pairs += [(f"mix.{number}.{j}", a * b, (a, b)) for a, b in neighbours]
        for name, rows, legs in pairs:
            full = name if set(legs) == {usual} else f"{name}_{'x'.join(map(str, legs))}"
            for key, shape in ((full, (rows, math.prod(legs))), (f"gate.{full}", (1,))):
                if key == full or (config.gate and name.startswith("mix")):
                    before = expected.get(key, (0,))[0]
                    expected[key] = (before + trees, *shape)
        if not last and config.gate:
            expected[f"gate.level.{number}"] = (trees, 1)
        if not last:
            learned = ACTIVATIONS.get(config.activation, {})
            expected |= {f"activation.{number}.{key}": (trees, size) for key, size in learned.items()}
    if config.gate and config.terms > 1:
        expected["gate.term"] = (trees, 1)
    assert {name: tuple(tensor.shape) for name, tensor in gen.state_dict().items()} == expected


# --- derivatives of generators --------------------------------------------------------------------

differentiated = pytest.mark.parametrize("case", DIFFERENTIATED.values(), ids=DIFFERENTIATED)


def as_function(gen: nn.Module) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """A module without inputs as a function of its parameters."""
    names = [name for name, _ in gen.named_parameters()]

    def function(*values: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(gen, dict(zip(names, values, strict=True)), ())
        return result

    return function, tuple(p.detach().clone().requires_grad_() for p in gen.parameters())


@differentiated
def test_gradients_of_the_weight_are_those_of_finite_differences(case: Case) -> None:
    function, values = as_function(case.build())
    assert torch.autograd.gradcheck(function, values, fast_mode=True)


@differentiated
def test_forward_mode_agrees_with_reverse_mode(case: Case) -> None:
    function, values = as_function(case.build())
    tangents = tuple(torch.randn_like(v) for v in values)
    weight, forward = torch.func.jvp(function, values, tangents)
    probe = torch.randn_like(weight)
    gradients = torch.autograd.grad((function(*values) * probe).sum(), values)
    reverse = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    assert_equal((forward * probe).sum(), reverse)


@differentiated
def test_jacfwd_agrees_with_jacrev(case: Case) -> None:
    function, values = as_function(case.build())
    assert_equal(torch.func.jacfwd(function)(*values), torch.func.jacrev(function)(*values))


@pytest.mark.parametrize(
    "name", ["bridge", "prelu, centred", "groups", "norm, gate, terms, kernel radix", "brickwall", "tt", "lowrank"]
)
def test_gradients_through_the_factors_are_those_through_the_weight(name: str) -> None:
    gen = DIFFERENTIATED[name].build()
    factors = gen.factors()
    assert factors is not None
    a, c, b = factors
    weight = torch.einsum("gor,grs...,gis->goi...", a, c, b).reshape(gen.shape)
    probe = torch.randn_like(weight)
    through_factors = torch.autograd.grad((weight * probe).sum(), list(gen.parameters()))
    through_weight = torch.autograd.grad((gen() * probe).sum(), list(gen.parameters()))
    for ours, theirs in zip(through_factors, through_weight, strict=True):
        assert_equal(ours, theirs)


@differentiated
def test_a_second_call_gives_the_same(case: Case) -> None:
    gen = case.build()
    assert torch.equal(gen(), gen())


@pytest.fixture
def _nothing_kept() -> Iterator[None]:
    """Empty what is kept between calls, before for the test's sake and after for the others'."""
    kept = getattr(run, "_INDICES", {})
    kept.clear()
    yield
    kept.clear()


@pytest.mark.usefixtures("_nothing_kept")
def test_calls_in_inference_mode_leave_nothing_that_training_trips_over() -> None:
    gen = Generator((8, 8), GeneratorConfig(order="paired"), device="meta").to_empty(device="cpu")
    with torch.inference_mode():
        gen()
    gen.reset_parameters()
    gen().sum().backward()
    assert gen.root.grad is not None


@pytest.mark.usefixtures("_nothing_kept")
@pytest.mark.parametrize("fake_first", [True, False])
def test_fake_and_real_tensors_leave_nothing_for_each_other(fake_first: bool) -> None:
    for fake in (fake_first, not fake_first):
        with FakeTensorMode() if fake else contextlib.nullcontext():
            for options in ({"order": "paired"}, {"latent_order": 1, "activation": "relu"}, {"topology": "frozen"}):
                weight = Generator((8, 8), GeneratorConfig(**options))()
                assert isinstance(weight, FakeTensor) == fake


@differentiated
def test_vmap_over_parameters_gives_the_weights_one_by_one(case: Case) -> None:
    function, values = as_function(case.build())
    stacks = tuple(torch.stack([v, 2 * v]) for v in values)
    both = torch.func.vmap(function)(*stacks)
    assert_equal(both[0], function(*values))
    assert_equal(both[1], function(*(2 * v for v in values)))


# --- how large the arrays are ---------------------------------------------------------------------


class LargestDimension(TorchDispatchMode):
    """Records the greatest number of dimensions of anything that an operation takes or gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        dims = [t.ndim for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        self.seen = max([self.seen, *dims])
        return result


LARGE: list[tuple[tuple[int, ...], dict[str, Any], int]] = [
    ((4096, 4096), {}, 24),
    ((1000, 1024, 3, 5), {}, 24),
    ((1000, 1024, 3, 3), {"kernel_radix": 3, "terms": 2, "gate": True}, 22),
]


@pytest.mark.parametrize("topology", EVERYTHING)
@pytest.mark.parametrize("order", [*ORDERS, "shuffled"])
def test_no_array_has_more_than_seven_dimensions(topology: str, order: str) -> None:
    turn = list(EVERYTHING).index(topology) + [*ORDERS, "shuffled"].index(order)
    shape, options, modes = LARGE[turn % 3]
    if topology in BASELINES:
        options = {name: value for name, value in options.items() if name == "kernel_radix"}
    permutation = tuple(torch.randperm(modes).tolist()) if order == "shuffled" else order
    config = GeneratorConfig(order=permutation, **options, **EVERYTHING[topology])
    gen = Generator(shape, config, device="meta")
    assert gen.num_modes == modes
    with LargestDimension() as largest:
        gen().sum().backward()
        factors = gen.factors()
        if factors is not None:
            sum(f.sum() for f in factors).backward()
    # An explicit order can interleave the three axes of a convolution, each of which then stands for two dimensions,
    # beside what enters the last product.
    assert 1 < largest.seen <= (9 if order == "shuffled" else 7)
