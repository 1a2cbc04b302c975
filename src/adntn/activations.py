"""The nonlinearities between the levels of a generator (paper, Section 4.1, Eqs. 22-27).

An activation is named by a short text, so that a config stays a plain value: ``"elu"``, ``"tanh"``, or with
options ``"sine(omega=3)"``. Every level has its own module, so that a learnable one learns *per level*, and
per group where a generator has groups.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn

from adntn.errors import ConfigError, check_choice, nearest

__all__ = ["ACTIVATIONS", "ActivationKind", "PReLU", "Sine", "canonical", "gain", "make_activation"]


class Sine(nn.Module):
    """``sin(omega * z)`` (paper, Eq. 24)."""

    def __init__(self, omega: float = 1.0) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        return torch.sin(self.omega * z)

    def extra_repr(self) -> str:
        return f"omega={self.omega:g}"


class PReLU(nn.Module):
    """``z`` where positive, ``slope * z`` elsewhere, one slope a group (paper, Eq. 27)."""

    def __init__(self, groups: int, slope: float = 0.25) -> None:
        super().__init__()
        self.initial_slope = slope
        self.slope = nn.Parameter(torch.full((groups, 1), slope))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.slope, self.initial_slope)

    def forward(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        return torch.where(z >= 0, z, self.slope.to(z.dtype) * z)


@dataclass(frozen=True)
class ActivationKind:
    """What the library knows of one activation before it builds any module.

    Attributes:
        options: the options it takes, with their defaults.
        parameters: learned numbers a level and a group.
        relu_like: whether He's gain applies (paper, Eq. 14) rather than 1.
    """

    options: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    parameters: int = 0
    relu_like: bool = True


ACTIVATIONS: Mapping[str, ActivationKind] = MappingProxyType(
    {
        "identity": ActivationKind(relu_like=False),
        "relu": ActivationKind(),
        "elu": ActivationKind(options={"alpha": 1.0}),
        "gelu": ActivationKind(),
        "silu": ActivationKind(),
        "tanh": ActivationKind(relu_like=False),
        "sine": ActivationKind(options={"omega": 1.0}, relu_like=False),
        "prelu": ActivationKind(options={"slope": 0.25}, parameters=1),
    }
)

_SPELLING = re.compile(r"\s*(?P<name>[a-z_0-9]+)\s*(?:\((?P<options>[^()]*)\))?\s*")


def _parse(text: str) -> tuple[str, dict[str, float]]:
    match = _SPELLING.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(f"activation={text!r} cannot be read; write a name, as 'elu', or 'sine(omega=3)'.")
    name = check_choice("activation", match["name"], ACTIVATIONS)
    options = dict(ACTIVATIONS[name].options)
    for part in filter(None, (p.strip() for p in (match["options"] or "").split(","))):
        key, _, value = (p.strip() for p in part.partition("="))
        if key not in options:
            known = ", ".join(options) or "none"
            raise ConfigError(
                f"activation={text!r}: {name} has no option {key!r}; it takes {known}.{nearest(key, options)}"
            )
        try:
            options[key] = float(value)
        except ValueError:
            raise ConfigError(f"activation={text!r}: {key}={value!r} is not a number.") from None
        if not math.isfinite(options[key]):
            raise ConfigError(f"activation={text!r}: {key} must be finite.")
    return name, options


def canonical(text: str) -> str:
    """Return the one spelling of an activation: options at their default are left out.

    Raises:
        ConfigError: the activation or one of its options is not known.
    """
    name, options = _parse(text)
    defaults = ACTIVATIONS[name].options
    changed = ", ".join(f"{k}={_shortest(v)}" for k, v in options.items() if v != defaults[k])
    return f"{name}({changed})" if changed else name


def _shortest(number: float) -> str:
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def parameters_per_level(text: str) -> int:
    """Return how many numbers the activation learns on each level and in each group."""
    return ACTIVATIONS[_parse(text)[0]].parameters


def gain(text: str) -> float:
    """Return the factor g of Eq. 14: sqrt(2) for the ReLU family, sqrt(2 / (1 + a^2)) for PReLU, else 1."""
    name, options = _parse(text)
    if name == "prelu":
        return math.sqrt(2.0 / (1.0 + options["slope"] ** 2))
    return math.sqrt(2.0) if ACTIVATIONS[name].relu_like else 1.0


def make_activation(text: str, groups: int = 1) -> nn.Module:
    """Build the module of one level.

    Args:
        text: the activation's name, with options if it has any.
        groups: groups of the generator; a learnable activation has its own numbers in each.

    Raises:
        ConfigError: the activation or one of its options is not known.
    """
    name, options = _parse(text)
    match name:
        case "identity":
            return nn.Identity()
        case "relu":
            return nn.ReLU()
        case "elu":
            return nn.ELU(alpha=options["alpha"])
        case "gelu":
            return nn.GELU()
        case "silu":
            return nn.SiLU()
        case "tanh":
            return nn.Tanh()
        case "sine":
            return Sine(omega=options["omega"])
        case _:
            return PReLU(groups, slope=options["slope"])
