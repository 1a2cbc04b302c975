"""Activations: their formulas, the way they are written, and the numbers that initial values take from them."""

from __future__ import annotations

import math

import pytest
import torch
from reference import ACTIVATIONS as FORMULAS
from torch import nn

from adntn.activations import ACTIVATIONS, PReLU, Sine, canonical, gain, make_activation, parameters_per_level
from adntn.errors import ConfigError

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
    ],
)
def test_options_change_the_formula(text: str, expected: torch.Tensor) -> None:
    activation = make_activation(canonical(text)).double()
    torch.testing.assert_close(activation(Z), expected, rtol=1e-12, atol=1e-12)


def test_every_known_activation_can_be_made() -> None:
    for name in ACTIVATIONS:
        assert make_activation(name)(Z).shape == Z.shape


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


@pytest.mark.parametrize("text, count", [("prelu", 1), ("prelu(slope=0)", 1), ("elu", 0), ("sine(omega=3)", 0)])
def test_what_is_learned_a_level(text: str, count: int) -> None:
    assert parameters_per_level(text) == count
    assert sum(p.numel() for p in make_activation(text, groups=3).parameters()) == 3 * count


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
        ("wavelet", r"'wavelet'.*choose one of"),
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
