"""One suite of checks for every row of the tables in ``conformance_cases``.

Generators are compared with a literal reference, layers with torch's own on the generated weight; every layer is
checked in every way that it can run, and each check says which way that was.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conformance_cases import (
    ACTIVATIONS,
    BASELINES,
    DIFFERENTIATED,
    EVERYTHING,
    LAYER_WAYS,
    LAYERS,
    ORDERS,
    TOPOLOGIES,
    Case,
    LayerCase,
    generator_cases,
)
from reference import generate
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import adntn
from adntn import Generator, GeneratorConfig
from adntn.contraction import plan, run
from adntn.errors import ConfigError
from adntn.topology import TREES

CASES = generator_cases()
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
TREE_CASES = {name: c for name, c in CASES.items() if c.options.get("topology", "ttn") in TREES}
every_tree = pytest.mark.parametrize("case", TREE_CASES.values(), ids=TREE_CASES)
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
every_layer_and_way = pytest.mark.parametrize(
    "layer, way", [(LAYERS[name], way) for name, way in LAYER_WAYS], ids=[f"{n}-{w}" for n, w in LAYER_WAYS]
)


def some_layers(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("layer", [LAYERS[n] for n in names], ids=names)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm().detach() / expected.norm().detach())


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


@pytest.fixture
def plan_with_bounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Let plans be cut into segments of other sizes."""

    def clear() -> None:
        for kept in (plan.plan_level, plan.plan_readout, plan.plan_split):
            kept.cache_clear()

    def bound(outputs: int) -> None:
        monkeypatch.setattr(plan, "_MAX_OUTPUTS", outputs)
        clear()

    yield bound
    clear()


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


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_cuts_inside_large_hidden_levels_change_nothing(
    plan_with_bounds: Callable[[int], None], topology: str, order: str
) -> None:
    # Q = 21: the hidden state has 11 modes, so that its levels too are more than one segment.
    gen = Case((256, 130, 3, 3), {"order": order, **TOPOLOGIES[topology]}).build()
    hidden, weight, factors = gen.hidden(), gen(), gen.factors()
    assert len(plan.plan_level(gen.blueprint.levels[-2]).segments) > 1
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
    # An explicit order can interleave the three axes of a convolution, each of which then stands for two dimensions.
    assert 1 < largest.seen <= (8 if order == "shuffled" else 7)


# --- layers against torch's -----------------------------------------------------------------------


CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def torchs_own(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """What torch's layer does with a weight."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    if isinstance(layer, nn.Embedding):
        return F.embedding(x, weight, layer.padding_idx)
    stride, padding, dilation, dims = layer.stride, layer.padding, layer.dilation, len(layer.kernel_size)
    if layer.transposed:
        extra = layer.output_padding
        return CONV_TRANSPOSE[dims](x, weight, layer.bias, stride, padding, extra, layer.groups, dilation)
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    return CONV[dims](x, weight, layer.bias, stride, padding, dilation, layer.groups)


def differentiable(x: Tensor) -> Tensor:
    """Ask for the gradient by an input that has one."""
    return x.requires_grad_() if x.is_floating_point() else x


@every_layer
def test_a_layer_takes_the_cheaper_way_by_itself(layer: LayerCase) -> None:
    module = layer.build()
    assert module.execution == "auto"
    assert module.way.name == layer.way


@every_layer_and_way
def test_forward_is_torchs_with_the_generated_weight(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    assert module.way.name == way
    y, expected = module(x), torchs_own(module, x, module.generate())
    assert y.shape == expected.shape
    assert relative_error(y, expected) < 1e-12


@every_layer_and_way
def test_forward_takes_other_batches(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    whole = module(x)
    assert_equal(module(x[0]), whole[0])
    assert module(x[:0]).shape == (0, *whole.shape[1:])
    if isinstance(module, nn.Linear):
        assert_equal(module(x.reshape(1, 3, 1, -1)), whole.reshape(1, 3, 1, -1))


@pytest.mark.parametrize(
    "layer", [c for c in LAYERS.values() if c.splits], ids=[n for n, c in LAYERS.items() if c.splits]
)
def test_gradients_are_the_same_in_both_ways(layer: LayerCase) -> None:
    gradients = {}
    for way in ("dense", "factored"):
        module, x = layer.build(way), differentiable(layer.make_input())
        y = module(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        gradients[way] = {"input": x.grad} | {name: p.grad for name, p in module.named_parameters()}
    if layer.rows is not None:
        for found in gradients.values():
            assert found.pop("input") is None
    assert all(g is not None for g in gradients["dense"].values())
    for name, gradient in gradients["dense"].items():
        assert_equal(gradients["factored"][name], gradient)


@pytest.mark.parametrize("way", ["dense", "factored"])
@some_layers(
    "linear, mera, padded",
    "linear, 3 groups",
    "conv, reflect",
    "conv, generator of 2 groups",
    "conv, 2 groups, generator of 3",
    "conv1d",
    "transposed, 2 groups, generator of 4",
    "embedding, 2 groups, padding",
)
def test_gradients_of_a_layer_are_those_of_finite_differences(layer: LayerCase, way: str) -> None:
    module = layer.build(way)
    assert module.way.name == way
    names = [name for name, _ in module.named_parameters()]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
        return result

    values = tuple(p.detach().clone().requires_grad_() for p in module.parameters())
    x = differentiable(layer.make_input(batch=1))
    assert torch.autograd.gradcheck(function, (x, *values), fast_mode=True)


@every_layer_and_way
def test_forward_mode_runs_through_a_layer(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    names, values = zip(*module.named_parameters(), strict=True)

    def function(*values: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
        return result

    tangents = tuple(torch.randn_like(v) for v in values)
    y, forward = torch.func.jvp(function, values, tangents)
    probe = torch.randn_like(y)
    gradients = torch.autograd.grad((function(*values) * probe).sum(), values)
    assert_equal((forward * probe).sum(), sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True)))
    if layer.rows is None:
        tangent = torch.randn_like(x)
        _, moved = torch.func.jvp(module, (x,), (tangent,))
        # A layer is affine in its input.
        assert_equal(moved, module(x + tangent) - module(x), tolerance=1e-8)


# --- copies, files, devices, dtypes ---------------------------------------------------------------


def through_deepcopy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module)


def through_pickle(module: nn.Module) -> nn.Module:
    loaded: nn.Module = pickle.loads(pickle.dumps(module))
    return loaded


def through_torch_save(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("duplicate", [through_deepcopy, through_pickle, through_torch_save])
@every_layer
def test_a_copy_is_equal_and_independent(layer: LayerCase, duplicate: Callable[[nn.Module], nn.Module]) -> None:
    module, x = layer.build().eval(), layer.make_input()
    before = module(x)
    other = duplicate(module)
    assert type(other) is type(module)
    assert not other.training
    assert other.way == module.way
    assert torch.equal(other(x), before)
    with torch.no_grad():
        next(other.generator_parameters())[1].mul_(1.5)
    assert not torch.equal(other(x), before)
    assert torch.equal(module(x), before)


@every_layer
def test_a_state_dict_goes_through_a_file(layer: LayerCase) -> None:
    module, x = layer.build(), layer.make_input()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    torch.manual_seed(99)
    other = layer.make(dtype=torch.float64)
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(state, strict=True)
    assert torch.equal(other(x), module(x))


@every_layer
def test_a_layers_state_is_its_generators_and_the_bias(layer: LayerCase) -> None:
    module = layer.build()
    gen = Generator(module.blueprint.shape, module.config)
    expected, trained = set(gen.state_dict()), {name for name, _ in gen.named_parameters()}
    if module.bias is not None:
        expected.add("bias")
        trained.add("bias")
    assert set(module.state_dict()) == expected
    assert {name for name, _ in module.named_parameters()} == trained
    assert expected - trained == ({"seed"} if module.config.topology in ("subspace", "frozen") else set())
    assert all(p.ndim <= 3 for p in module.parameters())


one_of_each = some_layers(
    "linear, 3 groups",
    "conv, 4 groups, generator of 2",
    "conv1d, reflect, no bias",
    "conv3d",
    "transposed, output_padding, mera",
    "transposed 1d",
    "transposed 3d",
    "embedding, mera",
)


@one_of_each
def test_a_model_of_it_is_saved_loaded_kept_and_made_plain(layer: LayerCase, tmp_path: Path) -> None:
    module, x = layer.build(), layer.make_input()
    model = nn.Sequential(module)
    expected = model(x).detach()
    path = adntn.save(model, tmp_path / "model.safetensors")
    # Into a plain model, into one that is generated already, and the plain one that it becomes.
    for fresh in (nn.Sequential(module.to_dense()), nn.Sequential(layer.make(dtype=torch.float64))):
        loaded = adntn.load(fresh, path)
        assert type(loaded[0]) is type(module)
        assert loaded[0].way == module.way
        assert torch.equal(loaded(x), expected)
    with adntn.cached(model):
        for _ in range(2):
            assert relative_error(model(x), expected) < 1e-12
    plain = adntn.materialize(model)
    assert type(plain[0]) is module.dense_type
    assert relative_error(plain(x), expected) < 1e-12
    (row,) = adntn.describe(model).layers
    assert (row.kind, row.shape, row.way) == (module.dense_type.__name__, module.blueprint.shape, layer.way)


@pytest.mark.parametrize("way", ["dense", "factored"])
@one_of_each
def test_a_layer_runs_on_the_meta_device(layer: LayerCase, way: str) -> None:
    module = layer.make(execution=way, device="meta")
    y = module(layer.make_input(torch.float32).to("meta"))
    assert y.is_meta
    assert y.shape == layer.build(way)(layer.make_input()).shape


@pytest.mark.parametrize("way", ["dense", "factored"])
@one_of_each
def test_an_ensemble_runs_under_vmap(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    stacks = {name: torch.stack([p, 1.5 * p]).detach() for name, p in module.named_parameters()}

    def run(parameters: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(module, parameters, (x,))
        return result

    both = torch.func.vmap(run)(stacks)
    for place in (0, 1):
        assert relative_error(both[place], run({name: stack[place] for name, stack in stacks.items()})) < 1e-12


@one_of_each
def test_compress_makes_it_of_torchs_own(layer: LayerCase) -> None:
    module, x = layer.build(), layer.make_input()
    model = nn.Sequential(module.to_dense())
    report = adntn.compress_(model, module.config)
    assert [row.kind for row in report.layers] == [module.dense_type.__name__]
    assert type(model[0]) is type(module)
    assert model[0].way == module.way
    assert model[0].extra_repr() == module.extra_repr()
    assert relative_error(model(x), torchs_own(model[0], x, model[0].weight)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@every_layer_and_way
def test_a_layer_moves_to_another_dtype(layer: LayerCase, way: str, dtype: torch.dtype) -> None:
    module = layer.build(way, dtype=torch.float32).to(dtype)
    x = layer.make_input(dtype)
    assert {p.dtype for p in module.parameters()} == {dtype}
    # The weight is made in at least float32 from the rounded parameters, and rounded once.
    work = torch.promote_types(dtype, torch.float32)
    exact = copy.deepcopy(module).to(work).weight.detach()
    assert torch.equal(module.weight, exact.to(dtype))
    y = module(x)
    assert y.dtype == dtype
    expected = torchs_own(
        copy.deepcopy(module).to(torch.float64), x.double() if x.is_floating_point() else x, exact.double()
    )
    # In the factored way the rounding errors of three products add up.
    tolerance = {torch.float64: 1e-14, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    assert relative_error(y.double(), expected) < tolerance


@every_layer_and_way
def test_channels_last_changes_nothing(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    before = module(x)
    # On a whole model, as a user calls it.
    for dims, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        model = nn.Sequential(module).to(memory_format=layout)
        if x.ndim != dims:
            assert_equal(model(x), before)
            continue
        y, torchs = model(x.to(memory_format=layout)), torchs_own(module, x.to(memory_format=layout), module.generate())
        assert_equal(y, before)
        # torch too gives the layout up here and there.
        assert y.is_contiguous(memory_format=layout) or not torchs.is_contiguous(memory_format=layout)


@every_layer_and_way
def test_autocast_leaves_the_generator_in_float32(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way, dtype=torch.float32), layer.make_input(torch.float32)
    weight, factors = module.generate(), module.factors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.weight, weight)
        for inside, outside in zip(module.factors() or (), factors or (), strict=True):
            assert torch.equal(inside, outside)
        y = module(x)
        expected = torchs_own(module, x, weight)
        # torch's own lookup is not cast.
        assert y.dtype == expected.dtype == (torch.bfloat16 if layer.rows is None else torch.float32)
        if way == "dense":
            assert torch.equal(y, expected)
    assert relative_error(y.float(), module(x)) < 2e-2


@every_layer_and_way
def test_gradients_under_autocast_are_finite_and_in_the_parameters_dtype(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way, dtype=torch.float32), layer.make_input(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(x).float().square().mean()
    loss.backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


# --- torch.compile --------------------------------------------------------------------------------


def check_compiled(layer: LayerCase, way: str, backend: str) -> None:
    torch._dynamo.reset()
    eager, module = layer.build(way), layer.build(way)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for batch in (3, 5):
        x = layer.make_input(batch=batch)
        for each in (eager, compiled):
            each.zero_grad()
            each(x).square().sum().backward()
        assert_equal(compiled(x), eager(x), tolerance=1e-9)
        for (name, ours), theirs in zip(module.named_parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "layer, way",
    [(LAYERS["linear, mera, padded"], "dense"), (LAYERS["conv, generator of 2 groups"], "factored")],
    ids=["linear, mera, padded-dense", "conv, generator of 2 groups-factored"],
)
def test_a_layer_is_one_graph(layer: LayerCase, way: str) -> None:
    check_compiled(layer, way, backend="aot_eager")


@pytest.mark.slow
@some_layers(
    "linear, attn of two layers",
    "linear, paired",
    "linear, block_paired",
    "linear, 3 groups",
    "linear, prelu, centred",
    "linear, rational, 2 groups",
    "conv, same",
    "conv, reflect",
    "conv, 4 groups, generator of 2",
    "conv, flat and padded",
    "conv1d",
    "conv3d, replicate, 2 groups",
    "transposed, output_padding, mera",
    "transposed, 2 groups, generator of 4",
    "transposed 3d",
    "embedding, 2 groups, padding",
    "embedding, paired, padding",
    "linear, gate, two terms, layer norm",
    "linear, tt",
    "linear, lowrank, 2 groups",
    "conv, brickwall",
    "conv, subspace, 4 groups",
)
def test_every_kind_of_layer_is_one_graph(layer: LayerCase) -> None:
    check_compiled(layer, layer.way, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["dense", "factored"])
@some_layers(
    "linear, mera, padded",
    "linear, prelu, centred",
    "conv, generator of 2 groups",
    "conv, reflect",
    "transposed 1d",
    "embedding, radix 3",
)
def test_a_layer_compiles_to_machine_code(layer: LayerCase, way: str) -> None:
    check_compiled(layer, way, backend="inductor")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["dense", "factored"])
@one_of_each
def test_a_layer_is_exported(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    exported = torch.export.export(module, (x,), strict=False)
    assert relative_error(exported.module()(x), module(x)) < 1e-12
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    assert relative_error(torch.export.load(file).module()(x), module(x)) < 1e-12


@pytest.mark.slow
@some_layers("linear, subspace")
def test_a_hash_is_the_same_in_machine_code(layer: LayerCase) -> None:
    # A product over 64 bits let the compiler drop a loop's end: it wrote past the weight.
    check_compiled(layer, "dense", backend="inductor")


def test_a_compiled_layer_follows_its_parameters() -> None:
    torch._dynamo.reset()
    layer = LAYERS["linear"]
    module, x = layer.build(), layer.make_input()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    before = compiled(x)
    with torch.no_grad():
        module.root.mul_(1.5)
    assert not torch.allclose(compiled(x), before)
    assert_equal(compiled(x), module(x))


# --- learning -------------------------------------------------------------------------------------


@every_layer_and_way
def test_every_parameter_learns(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
    assert [name for name, p in module.named_parameters() if torch.equal(p, before[name])] == []
