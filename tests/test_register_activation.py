"""Activations of the user's: what can be registered, what is refused, and that they go through everything."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import pair
from torch import Tensor, nn

import adntn
from adntn import Generator, GeneratorConfig, register_activation
from adntn.activations import ACTIVATIONS, canonical, gain, make_activation, parameter_shapes, registry
from adntn.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.usefixtures("own_registry")


class Bump(nn.Module):
    """``height * z * exp(-(width * z)^2)``, learned in every group, with all that the library may ask for."""

    offset: Tensor

    def __init__(self, groups: int, a: float = 1, k: int = 1) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.full((groups, 1), float(a)))
        self.width = nn.Parameter(torch.rand(groups, k) + 0.5)
        self.register_buffer("offset", torch.tensor([0.5, 0.25]), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        return self.height * z * torch.exp(-(self.width.mean(1, keepdim=True) * z).square()) + self.offset.sum()


class Plain(nn.Module):
    """``z / (1 + |z|)``."""

    def forward(self, z: Tensor) -> Tensor:
        return z / (1 + z.abs())


def build(text: str = "bump", dtype: torch.dtype = torch.float64, **options: Any) -> Generator:
    torch.manual_seed(0)
    config = GeneratorConfig(activation=text, latent_order=1, **options)
    return Generator((16, 12), config, dtype=dtype)


# --- what works -----------------------------------------------------------------------------------


def test_a_class_without_arguments() -> None:
    register_activation("plain", Plain)
    gen = build("plain")
    assert set(gen.state_dict()) == set(build("tanh").state_dict())
    assert all(type(module) is Plain for module in gen.activation.values())
    assert gen().isfinite().all()


def test_what_it_learns_is_counted_named_and_drawn_for_each_level() -> None:
    register_activation("bump", Bump)
    gen = build("bump(k=3)", groups=2)
    levels = len(gen.schedule) - 2
    assert levels > 1
    for level in range(1, levels + 1):
        state = gen.state_dict()
        assert state[f"activation.{level}.height"].shape == (2, 1)
        assert state[f"activation.{level}.width"].shape == (2, 3)
    assert sum(p.numel() for p in gen.parameters()) == gen.num_parameters
    assert {n: tuple(t.shape) for n, t in gen.state_dict().items()} == gen.blueprint.parameter_shapes
    assert not torch.equal(state["activation.1.width"], state["activation.2.width"])


def test_a_seed_decides_the_start_also_after_the_meta_device() -> None:
    register_activation("bump", Bump)
    first = build()
    gen = Generator(first.shape, first.config, dtype=torch.float64, device="meta")
    assert gen().is_meta
    gen.to_empty(device="cpu")
    for tensor in (*gen.parameters(), *gen.buffers()):
        tensor.data.fill_(7.0)
    torch.manual_seed(0)
    gen.reset_parameters()
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in gen.state_dict().items())
    assert torch.equal(gen(), first())


def test_its_own_reset_is_used_where_it_has_one() -> None:
    class Resets(nn.PReLU):
        def reset_parameters(self) -> None:
            nn.init.constant_(self.weight, 0.125)

    register_activation("resets", Resets)
    assert build("resets").activation["1"].weight.item() == 0.125


@pytest.mark.parametrize("gain_given, expected", [(1.5, 1.5), (lambda a, k: 2 * a, 6.0)], ids=["number", "function"])
def test_the_gain_is_the_one_given(gain_given: Any, expected: float) -> None:
    register_activation("bump", Bump, gain=gain_given)
    assert gain("bump(a=3)") == expected


def test_options_are_the_numeric_defaults() -> None:
    register_activation("bump", Bump)
    assert dict(ACTIVATIONS["bump"].options) == {"a": 1.0, "k": 1}
    assert canonical("bump( a = 2.50, k=1)") == "bump(a=2.5)"
    assert make_activation("bump(a=2.5)", 2).height.tolist() == [[2.5], [2.5]]
    with pytest.raises(ConfigError, match=r"bump has no option 'b'; it takes a, k"):
        canonical("bump(b=1)")
    with pytest.raises(ConfigError, match=r"k=1.5 is not a whole number"):
        canonical("bump(k=1.5)")


@pytest.mark.parametrize(
    "name, factory",
    [
        ("softplus", nn.Softplus),
        ("torchs_prelu", nn.PReLU),  # does not promote types by itself
        ("threshold", functools.partial(nn.Threshold, threshold=0.1, value=20.0)),
        ("two", lambda: nn.Sequential(nn.Tanh(), nn.PReLU())),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_modules_of_torch_in_every_dtype(name: str, factory: Callable[..., nn.Module], dtype: torch.dtype) -> None:
    register_activation(name, factory)
    gen = build(name, dtype)
    weight = gen()
    assert weight.dtype == dtype
    exact = copy.deepcopy(gen).double()().to(dtype)
    torch.testing.assert_close(weight, exact, rtol=1e-2, atol=1e-2)
    weight.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in gen.parameters())


def test_derivatives_run_through_in_both_modes() -> None:
    register_activation("bump", Bump)
    gen = build(groups=2)
    named = {name: p.detach() for name, p in gen.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in named.items()}
    weight, moved = torch.func.jvp(lambda p: torch.func.functional_call(gen, p, ()), (named,), (tangents,))
    probe = torch.randn_like(weight)
    (gen() * probe).sum().backward()
    expected = sum((p.grad * tangents[name]).sum() for name, p in gen.named_parameters() if p.grad is not None)
    torch.testing.assert_close((moved * probe).sum(), expected)


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_generator_is_one_graph(dtype: torch.dtype) -> None:
    register_activation("bump", Bump)
    gen = build(dtype=dtype)
    compiled = torch.compile(gen, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), gen())


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    register_activation("bump", Bump)
    model = pair(16)
    adntn.compress_(model, GeneratorConfig(activation="bump(a=2)", latent_order=1))
    path = adntn.save(model, tmp_path / "model.safetensors")
    x = torch.randn(3, 16)
    assert torch.equal(adntn.load(pair(16), path)(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))

    del registry._REGISTRY["bump"]
    with pytest.raises(CheckpointError, match=r"model.safetensors: activation='bump' is not known.*registered first"):
        adntn.load(pair(16), path)
    register_activation("bump", Plain)  # another one under its name
    with pytest.raises(CheckpointError, match=r"bump has no option 'a'"):
        adntn.load(pair(16), path)


def test_one_of_other_parameters_does_not_fit_the_file(tmp_path: Path) -> None:
    register_activation("bump", Bump)
    model = pair(16)
    adntn.compress_(model, GeneratorConfig(activation="bump", latent_order=1))
    path = adntn.save(model, tmp_path / "model.safetensors")
    del registry._REGISTRY["bump"]
    register_activation("bump", Plain)
    with pytest.raises(CheckpointError, match=r"0.activation.1.height is not in the model"):
        adntn.load(pair(16), path)


# --- registering again ----------------------------------------------------------------------------

CELL = """
from torch import nn
class Mine(nn.Module):
    def forward(self, z):
        return {formula}
by_lambda = lambda: Mine()
"""


def run_cell(formula: str) -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(CELL.format(formula=formula), "<cell>", "exec"), scope)
    return scope


@pytest.mark.parametrize("which", ["Mine", "by_lambda"])
def test_a_cell_that_is_run_again_replaces_the_activation(which: str) -> None:
    z = torch.tensor([[2.0]])
    for formula, expected in (("z", 2.0), ("-z", -2.0)):
        register_activation("mine", run_cell(formula)[which])
        assert make_activation("mine")(z).item() == expected


def test_what_is_known_of_it_is_read_anew() -> None:
    register_activation("mine", functools.partial(nn.PReLU, 1))
    assert parameter_shapes("mine") == {"weight": (1,)}
    register_activation("mine", functools.partial(nn.PReLU, 1))
    del registry._REGISTRY["mine"]
    register_activation("mine", nn.Tanh)
    assert parameter_shapes("mine") == {}


@pytest.mark.parametrize(
    "one, other",
    [
        (Plain, Bump),
        (Plain, lambda: Plain()),
        (lambda: nn.Tanh(), lambda: nn.Mish()),
        (functools.partial(nn.PReLU, init=0.1), functools.partial(nn.PReLU, init=0.2)),
    ],
)
def test_a_name_that_is_taken_is_refused(one: Any, other: Any) -> None:
    register_activation("mine", one)
    with pytest.raises(ConfigError, match=r"'mine' is registered already, for .*choose another name"):
        register_activation("mine", other)
    register_activation("mine", one)


# --- what is refused ------------------------------------------------------------------------------


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(1, 1, 1, 1))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = self.two = nn.Parameter(torch.ones(1))


class Single(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.float()


class Sum(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.sum(dim=1)


class Logarithm(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.log()


ONE = nn.Tanh()


@pytest.mark.parametrize(
    "factory, message",
    [
        (ONE, r"Tanh\(\) is not a factory; every level needs a module of its own, so give the class"),
        (3, r"3 is not a factory"),
        (lambda: ONE, r"gives one module again and again"),
        (lambda: torch.tanh, r"its factory makes .*tanh.*not a torch.nn.Module"),
        (nn.Threshold, r"'threshold' has no default; .*functools.partial\(factory, threshold="),
        (lambda: nn.PReLU(-1), r"cannot be made with no options: "),
        (Large, r"'table' has shape \(1, 1, 1, 1\); .*at most three dimensions"),
        (lambda: nn.LazyLinear(3), r"'weight' has no shape yet"),
        (Counting, r"saves calls beside its parameters.*persistent=False"),
        (Shared, r"saves two beside its parameters"),
        (Single, r"of an input of \(1, 8\), torch.float64, its module makes \(1, 8\), torch.float32"),
        (Sum, r"makes \(1,\), torch.float64"),
        (lambda: nn.Linear(3, 3), r"fails on an input of shape \(groups, entries\) = \(1, 8\)"),
        (Logarithm, r"NaN or infinity between -3 and 3"),
        (lambda: nn.Softmax(dim=1), r"depends on other entries or on chance"),
        (nn.Dropout, r"depends on other entries or on chance"),
        (nn.RReLU, r"depends on other entries or on chance"),
        (lambda: nn.PReLU(2), r"fails on an input of shape"),
    ],
)
def test_what_cannot_be_an_activation_is_refused(factory: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register_activation("mine", factory)
    assert "mine" not in ACTIVATIONS


@pytest.mark.parametrize("name", ["", "Mine", "my-own", "mine(a=1)", "2fast", None, 3])
def test_names_that_cannot_be_written_are_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be named"):
        register_activation(name, Plain)


def test_the_librarys_own_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="'elu' is one of the library's own"):
        register_activation("elu", Plain)


@pytest.mark.parametrize("given", [0, -1.0, float("nan"), float("inf"), "large", lambda: None])
def test_an_impossible_gain_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"gain=.* is not possible; give a positive number"):
        register_activation("mine", Plain, gain=given)


def test_options_that_the_factory_refuses_are_refused_by_the_config() -> None:
    class Positive(nn.Module):
        def __init__(self, a: float = 1.0) -> None:
            super().__init__()
            if a <= 0:
                raise ValueError("a must be positive")

        def forward(self, z: Tensor) -> Tensor:
            return z

    register_activation("positive", Positive)
    with pytest.raises(ConfigError, match=r"'positive' cannot be made with a=-1: a must be positive"):
        GeneratorConfig(activation="positive(a=-1)")


def test_registering_leaves_the_random_state() -> None:
    expected = torch.random.get_rng_state()
    register_activation("bump", Bump)
    GeneratorConfig(activation="bump")
    assert torch.equal(torch.random.get_rng_state(), expected)


def test_the_default_device_and_inference_mode_change_nothing() -> None:
    with torch.device("meta"), torch.inference_mode():
        register_activation("bump", Bump)
        assert canonical("bump(k=2)") == "bump(k=2)"
    with torch.device("meta"):
        assert build("bump(k=2)")().is_meta
    gen = build("bump(k=2)")
    gen().sum().backward()
    assert all(p.grad is not None for p in gen.parameters())
