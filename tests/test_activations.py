"""Activations: their formulas, the way they are written, and the numbers that initial values take from them."""

from __future__ import annotations

import copy
import io
import math
import statistics

import pytest
import torch
from conformance_cases import ACTIVATIONS as LEARNED
from reference import ACTIVATIONS as FORMULAS
from torch import Tensor, nn

from adntn import Generator, GeneratorConfig, diagnose
from adntn.activations import (
    ACTIVATIONS,
    PReLU,
    Rational,
    Sine,
    canonical,
    derivative,
    gain,
    hidden_bound,
    make_activation,
    parameter_gradients,
    parameter_shapes,
    run,
)
from adntn.errors import ConfigError
from adntn.initialize import draw
from adntn.topology import Blueprint

Z = torch.linspace(-4, 4, 101, dtype=torch.float64).unsqueeze(0)  # shape: (groups, entries)


@pytest.mark.parametrize("name", FORMULAS)
def test_an_activation_is_its_formula(name: str) -> None:
    expected = torch.as_tensor(FORMULAS[name](Z.numpy()))
    torch.testing.assert_close(make_activation(name)(Z), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("elu(alpha=2)", torch.where(Z > 0, Z, 2 * torch.expm1(Z))),
        ("sine(omega=30)", torch.sin(30 * Z)),
        ("sine(omega=3.14159265358979)", torch.sin(3.14159265358979 * Z)),
        ("prelu", torch.where(Z > 0, Z, 0.25 * Z)),
        ("prelu(slope=-0.5)", torch.where(Z > 0, Z, -0.5 * Z)),
        ("swish", Z / (1 + torch.exp(-Z))),
        ("swish(beta=-0.5)", Z / (1 + torch.exp(0.5 * Z))),
        ("siren(omega=7)", torch.sin(7 * Z)),
        ("rational", 2 * Z / (1 + Z**2)),
        ("rational(m=1, n=6)", 2 * Z / (1 + Z**2)),
    ],
)
def test_options_change_the_formula(text: str, expected: torch.Tensor) -> None:
    activation = make_activation(canonical(text)).double()
    torch.testing.assert_close(activation(Z), expected, rtol=1e-12, atol=1e-12)


def test_every_known_activation_can_be_made_and_has_its_row_of_conformance() -> None:
    for name in ACTIVATIONS:
        assert make_activation(name)(Z).shape == Z.shape
        assert name in LEARNED


# --- PReLU ----------------------------------------------------------------------------------------


def test_prelu_has_a_slope_for_each_group() -> None:
    activation = PReLU(groups=3)
    with torch.no_grad():
        activation.slope.copy_(torch.tensor([[0.0], [0.5], [2.0]]))
    z = torch.tensor([[-2.0, 3.0]]).expand(3, -1)
    assert activation(z).tolist() == [[0.0, 3.0], [-1.0, 3.0], [-4.0, 3.0]]


def test_prelu_learns_in_every_group() -> None:
    activation = make_activation("prelu", groups=2)
    activation(torch.tensor([[-1.0, 2.0], [-3.0, -1.0]])).sum().backward()
    assert isinstance(activation, PReLU)
    assert activation.slope.grad is not None
    assert activation.slope.grad.tolist() == [[-1.0], [-4.0]]


def test_prelu_starts_again_at_its_slope() -> None:
    activation = make_activation("prelu(slope=0.1)", groups=2)
    assert isinstance(activation, PReLU)
    with torch.no_grad():
        activation.slope.fill_(7.0)
    activation.reset_parameters()
    assert activation.slope.flatten().tolist() == pytest.approx([0.1, 0.1])


def test_prelu_keeps_the_dtype_of_its_input() -> None:
    assert PReLU(1).to(torch.bfloat16)(Z).dtype == torch.float64


@pytest.mark.parametrize("text", LEARNED)
def test_what_is_learned_a_level(text: str) -> None:
    expected = {name: (3, size) for name, size in LEARNED[text].items()}
    assert dict(parameter_shapes(text, 3)) == expected
    assert {name: tuple(p.shape) for name, p in make_activation(text, groups=3).named_parameters()} == expected
    # bond 2, modes (2, 4, 8, 16): two hidden levels
    blueprint = Blueprint((48, 16), GeneratorConfig(activation=text, groups=3, latent_order=1))
    plain = Blueprint((48, 16), GeneratorConfig(groups=3, latent_order=1))
    hidden = len(plain.levels) - 1
    assert hidden > 1
    assert blueprint.num_parameters - plain.num_parameters == 3 * hidden * sum(LEARNED[text].values())


# --- rational -------------------------------------------------------------------------------------


@pytest.mark.parametrize("m, n", [(1, 2), (3, 2), (5, 4), (16, 16)])
def test_a_rational_has_no_pole_whatever_it_learns(m: int, n: int) -> None:
    activation = Rational(200, m, n).double()
    z = torch.linspace(-20, 20, 4001, dtype=torch.float64).expand(200, -1)
    for _ in range(5):
        with torch.no_grad():
            activation.a.copy_(torch.randn_like(activation.a))
            activation.b.copy_(3 * torch.randn_like(activation.b))
            # The denominator is at least 1, so that the numerator bounds the quotient.
            bound = sum(c.abs() * z.abs() ** i for i, c in enumerate(activation.a.unsqueeze(2).unbind(1)))
            assert (activation(z).abs() <= bound * (1 + 1e-12)).all()


def test_a_rational_with_a_dead_denominator_is_a_polynomial() -> None:
    activation = Rational(1, 2, 2).double()
    with torch.no_grad():
        activation.b.zero_()
        activation.a.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    torch.testing.assert_close(activation(Z), 1 - 2 * Z + Z**2 / 2)


@pytest.mark.parametrize(
    "text, message",
    [
        ("rational(n=3)", r"n=3 is odd, and .*root.*pole; give an even n"),
        ("rational(n=-1)", r"n=-1 is odd"),
        ("rational(n=0)", r"n=0 is no possible degree.*2 to 16"),
        ("rational(n=1e12)", r"n=1000000000000 is no possible degree"),
        ("rational(m=0)", r"m=0 is no possible degree.*1 to 16"),
        ("rational(m=2.5)", r"m=2.5 is not a whole number"),
        ("rational(m=inf)", r"m must be finite"),
        ("sine(omega=0)", r"omega=0 makes a sine that is zero everywhere"),
        ("siren(omega=0)", r"omega=0"),
    ],
)
def test_impossible_options_are_refused_by_the_config(text: str, message: str) -> None:
    for function in (canonical, make_activation, lambda t: GeneratorConfig(activation=t)):
        with pytest.raises(ConfigError, match=message):
            function(text)


# --- SIREN (Sitzmann et al. 2020) -----------------------------------------------------------------


@pytest.mark.parametrize("n_in", [2, 3, 16])
def test_a_level_of_one_core_follows_sitzmanns_rule(n_in: int) -> None:
    assert hidden_bound("siren(omega=-20)", n_in, 1, first=True) == pytest.approx(1 / n_in)
    assert hidden_bound("siren(omega=-20)", n_in, 1, first=False) == pytest.approx(math.sqrt(6 / n_in) / 20)
    assert hidden_bound("sine(omega=20)", n_in, 1, first=False) is None


@pytest.mark.parametrize("cores", [2, 5, 20])
def test_a_levels_matrix_has_the_variance_of_sitzmanns_rule(cores: int) -> None:
    fan_in = 2.0**cores
    for first, bound in ((True, 1 / fan_in), (False, math.sqrt(6 / fan_in) / 30)):
        each = hidden_bound("siren", 2, cores, first=first)
        assert each is not None
        # An entry of the Kronecker product is a product of one entry of each core, each of variance bound^2 / 3.
        assert (each**2 / 3) ** cores == pytest.approx(bound**2 / 3)


@pytest.mark.parametrize("initialization", ["paper", "isometric"])
def test_siren_draws_hidden_cores_by_its_rule(initialization: str) -> None:
    config = GeneratorConfig(activation="siren", initialization=initialization, radix=16, latent_order=1)
    blueprint = Blueprint((4096, 4096, 4, 4), config)
    drawn = draw(blueprint)
    for number, cores in ((1, 1), (2, 2)):
        bound = hidden_bound("siren", 16, cores, first=number == 1)
        assert bound is not None
        stack = drawn[f"expand.{number}"]
        assert float(stack.abs().max()) == pytest.approx(bound, rel=1e-2)
        assert float(stack.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("initialization", ["paper", "isometric"])
def test_siren_leaves_hidden_cores_uncalibrated_and_calibrates_the_readout(initialization: str) -> None:
    config = GeneratorConfig(
        topology="mera", activation="siren", initialization=initialization, latent_order=3, groups=2
    )
    torch.manual_seed(5)
    drawn = draw(Blueprint((128, 100), config))
    torch.manual_seed(5)
    gen = Generator((128, 100), config, dtype=torch.float64)
    assert len(gen.blueprint.levels) == 3
    changed = {name for name, value in gen.state_dict().items() if not torch.equal(value, drawn[name])}
    assert changed == {"expand.3"}
    assert float(gen().detach().std(correction=0)) == pytest.approx(300**-0.5, rel=1e-10)


def siren_deviations(initialization: str) -> list[float]:
    """Medians over seeds of the deviation of omega * z on each hidden level of a 4096 x 4096 ttn."""
    measured: list[list[float]] = []
    config = GeneratorConfig(activation="siren", initialization=initialization)
    for seed in range(5):
        torch.manual_seed(seed)
        gen = Generator((4096, 4096), config)
        seen: list[float] = []
        for activation in gen.activation.values():
            activation.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(float(m.omega * args[0].std())))
        with torch.no_grad():
            gen.hidden()
        measured.append(seen)
    return [statistics.median(level) for level in zip(*measured, strict=True)]


@pytest.mark.slow
def test_what_siren_starts_as() -> None:
    # These are the numbers in the documentation of hidden_bound.
    assert siren_deviations("isometric") == pytest.approx([1.6, 0.66], rel=0.05)
    assert siren_deviations("paper") == pytest.approx([0.08, 0.05], rel=0.1)
    for shape, rank in (((4096, 4096), 1.6), ((512, 512, 3, 3), 1.5)):
        assert diagnose(GeneratorConfig(activation="siren"), shape).stable_rank == pytest.approx(rank, rel=0.05)


@pytest.mark.parametrize("shape", [(64, 64), (17, 333), (12, 10, 3, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("options", [{}, {"topology": "mera", "groups": 1, "norm": "center"}, {"bond_dim": 3}], ids=str)
def test_siren_starts_finite_and_not_constant(shape: tuple[int, ...], options: dict[str, object]) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        weight = Generator(shape, GeneratorConfig(activation="siren", latent_order=2, **options))().detach()
        assert weight.isfinite().all()
        assert weight.numel() == 1 or weight.std() > 0


# --- derivatives ----------------------------------------------------------------------------------

EVERY = sorted({*LEARNED, "elu(alpha=-2)", "elu(alpha=0)", "sine(omega=-7)", "rational(m=5, n=6)", "swish(beta=-3)"})
#: Where the others are smooth; 0 is not a point of these.
KINKED = ("relu", "prelu", "elu(alpha=-2)", "elu(alpha=0)")


def far_from_start(text: str, groups: int = 2) -> nn.Module:
    module = make_activation(text, groups).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


def points(text: str) -> Tensor:  # shape: (2, entries)
    z = torch.cat([torch.linspace(-6, 6, 41), torch.tensor([-1e3, -800.0, -40.0, -1e-9, 1e-9, 40.0, 800.0, 1e3])])
    z = z.to(torch.float64)
    return torch.stack([z[z != 0] if text in KINKED else z, -(z[z != 0] if text in KINKED else z)])


@pytest.mark.parametrize("text", EVERY)
def test_a_derivative_is_autograds(text: str) -> None:
    module, z = far_from_start(text), points(text).requires_grad_()
    (expected,) = torch.autograd.grad(module(z).sum(), z)
    torch.testing.assert_close(derivative(module, z.detach()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("text", EVERY)
def test_parameter_gradients_are_autograds(text: str) -> None:
    module, z = far_from_start(text), points(text)
    upstream = torch.randn_like(z)
    gradients = parameter_gradients(module, z, upstream)
    named = dict(module.named_parameters())
    assert gradients.keys() == named.keys()
    if named:
        expected = torch.autograd.grad((upstream * module(z)).sum(), list(named.values()))
        for name, gradient in zip(named, expected, strict=True):
            # Sums of terms of either sign: what rounds is the largest of them.
            scale = float(gradient.abs().max())
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-12, atol=1e-12 * max(scale, 1.0))


@pytest.mark.parametrize("text", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_derivatives_stay_finite_far_out(text: str, dtype: torch.dtype) -> None:
    # exp overflows here, and z squared in single precision does for an activation that is not rational.
    far = 1e3 if text.startswith("rational") else 1e25
    module = make_activation(text).to(dtype)
    z = torch.tensor([[-far, -1e2, 0.0, 1e2, far]], dtype=dtype, requires_grad=True)
    module(z).sum().backward()
    assert z.grad is not None
    for gradient in (z.grad, derivative(module, z.detach())):
        assert gradient.isfinite().all()
        assert gradient.dtype == dtype
    for gradient in parameter_gradients(module, z.detach(), torch.ones_like(z).detach()).values():
        assert gradient.isfinite().all()


@pytest.mark.parametrize("text", EVERY)
def test_derivatives_take_the_dtype_of_what_they_are_given(text: str) -> None:
    module, z = far_from_start(text).to(torch.bfloat16), points(text)[:, :9].float()
    assert run(module, z).dtype == derivative(module, z).dtype == torch.float32
    assert {g.dtype for g in parameter_gradients(module, z, z).values()} <= {torch.float32}


def test_who_has_no_derivative_is_told() -> None:
    z = torch.zeros(1, 2)
    with pytest.raises(ConfigError, match=r"Mish has no derivative\(z\), which backward='adjoint' needs"):
        derivative(nn.Mish(), z)
    with pytest.raises(ConfigError, match=r"PReLU has no parameter_gradients\(z, upstream\)"):
        parameter_gradients(nn.PReLU(), z, z)
    assert parameter_gradients(nn.Mish(), z, z) == {}


def test_parameter_gradients_of_other_names_or_shapes_are_refused() -> None:
    class Wrong(PReLU):
        def parameter_gradients(self, z: Tensor, upstream: Tensor) -> dict[str, Tensor]:
            return {"slope": (upstream * z).sum(dim=1)}

    with pytest.raises(
        ConfigError, match=r"Wrong gives slope of shape \(2,\); its parameters are slope of shape \(2, 1\)"
    ):
        parameter_gradients(Wrong(2), torch.zeros(2, 3), torch.zeros(2, 3))


# --- what torch does with them --------------------------------------------------------------------


@pytest.mark.parametrize("text", LEARNED)
def test_forward_mode_gives_the_derivative(text: str) -> None:
    module, z = far_from_start(text), points("relu")
    tangent = torch.randn_like(z)
    _, moved = torch.func.jvp(module, (z,), (tangent,))
    torch.testing.assert_close(moved, derivative(module, z) * tangent, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("text", [text for text in LEARNED if LEARNED[text]])
def test_forward_mode_runs_through_what_is_learned(text: str) -> None:
    module, z = far_from_start(text), points(text)[:, :41]
    named = {name: p.detach() for name, p in module.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in named.items()}
    probe = torch.randn_like(z)
    _, moved = torch.func.jvp(lambda p: torch.func.functional_call(module, p, (z,)), (named,), (tangents,))
    gradients = parameter_gradients(module, z, probe)
    expected = sum((gradients[name] * tangents[name]).sum() for name in named)
    torch.testing.assert_close((moved * probe).sum(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("text", LEARNED)
def test_vmap_gives_one_by_one(text: str) -> None:
    module = far_from_start(text)
    z = torch.randn(3, 2, 7, dtype=torch.float64)
    for function in (module, lambda each: derivative(module, each)):
        torch.testing.assert_close(torch.func.vmap(function)(z), torch.stack([function(each) for each in z]))


@pytest.mark.parametrize("text", LEARNED)
def test_copies_and_states_keep_what_was_learned(text: str) -> None:
    module = far_from_start(text)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other = make_activation(text, 2).double()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (copy.deepcopy(module), other):
        assert torch.equal(twin(points(text)), module(points(text)))
    assert repr(twin) == repr(module)


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_all_are_one_graph(dtype: torch.dtype) -> None:
    modules = nn.ModuleList([far_from_start(text) for text in LEARNED]).to(dtype)

    def all_of_them(z: Tensor) -> Tensor:
        return torch.stack([run(module, z) for module in modules])

    z = points("relu")[:, :20].requires_grad_()
    actual = torch.compile(all_of_them, fullgraph=True, backend="aot_eager")(z)
    torch.testing.assert_close(actual, all_of_them(z), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(actual.sum(), z)
    expected = sum(derivative(module, z.detach()) for module in modules)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("text", LEARNED)
def test_a_generator_goes_over_the_meta_device_to_the_same_start(text: str) -> None:
    config = GeneratorConfig(activation=text, latent_order=1, groups=2)
    torch.manual_seed(1)
    expected = Generator((16, 16), config).state_dict()
    gen = Generator((16, 16), config, device="meta")
    assert gen().is_meta
    gen.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.fill_(math.nan)
    torch.manual_seed(1)
    gen.reset_parameters()
    assert all(torch.equal(value, expected[name]) for name, value in gen.state_dict().items())


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("elu", "elu"),
        ("  elu ", "elu"),
        ("elu()", "elu"),
        ("elu(alpha=1.0)", "elu"),
        ("sine( omega = 3.0 )", "sine(omega=3)"),
        ("sine(omega=1)", "sine"),
        ("sine(omega=-0.5)", "sine(omega=-0.5)"),
        ("prelu(slope=2.5e-1)", "prelu"),
        ("rational(m=3.0, n=2)", "rational"),
        ("rational(n = 4)", "rational(n=4)"),
        ("siren(omega=30)", "siren"),
        ("swish(beta=1.5)", "swish(beta=1.5)"),
    ],
)
def test_an_activation_has_one_spelling(text: str, expected: str) -> None:
    assert canonical(text) == expected
    assert canonical(expected) == expected


@pytest.mark.parametrize("omega", [3.14159265358979, 1e-9, 12345678.0, 0.1 + 0.2, 1e300])
def test_the_spelling_keeps_every_digit(omega: float) -> None:
    activation = make_activation(canonical(f"sine(omega={omega!r})"))
    assert isinstance(activation, Sine)
    assert activation.omega == omega


@pytest.mark.parametrize(
    "text, message",
    [
        ("rleu", r"'rleu'.*identity, relu, .*Did you mean 'relu'\?"),
        ("wavelet", r"'wavelet'.*choose one of.*registered first: adntn.register_activation"),
        ("sine(omga=3)", r"no option 'omga'; it takes omega.*Did you mean 'omega'\?"),
        ("tanh(omega=3)", r"tanh has no option 'omega'; it takes none"),
        ("sine(omega=fast)", r"omega='fast' is not a number"),
        ("sine(omega=)", r"not a number"),
        ("sine(3)", r"no option '3'"),
        ("sine(omega=nan)", r"must be finite"),
        ("sine(omega=-inf)", r"must be finite"),
        ("", r"cannot be read"),
        ("sine(omega=3", r"cannot be read"),
        ("sine omega=3", r"cannot be read"),
        ("elu; import os", r"cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    for function in (canonical, gain, make_activation):
        with pytest.raises(ConfigError, match=message):
            function(text)


@pytest.mark.parametrize("given", [None, 3, nn.ReLU(), ["elu"]])
def test_what_is_no_text_is_refused(given: object) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        canonical(given)  # type: ignore[arg-type]


# --- gain (Eq. 14) --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("relu", math.sqrt(2)),
        ("elu", math.sqrt(2)),
        ("gelu", math.sqrt(2)),
        ("silu", math.sqrt(2)),
        ("swish", math.sqrt(2)),
        ("siren", 1.0),
        ("rational", 1.0),
        ("identity", 1.0),
        ("tanh", 1.0),
        ("sine(omega=3)", 1.0),
        ("prelu(slope=1)", 1.0),
        ("prelu(slope=0)", math.sqrt(2)),
        ("prelu", math.sqrt(2 / (1 + 0.25**2))),
    ],
)
def test_gain(text: str, expected: float) -> None:
    assert gain(text) == pytest.approx(expected)
