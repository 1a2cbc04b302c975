"""The library's own activations, and their derivatives in closed form (paper, Section 4.1, Eqs. 22-27).

Every module has ``derivative(z)``, elementwise; a learnable one also has ``parameter_gradients(z, upstream)``, the sums
over entries. The adjoint equations need them (paper, Eqs. 51, 63).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adntn.errors import ConfigError

__all__ = ["ELU", "GELU", "SIREN", "Identity", "PReLU", "Rational", "ReLU", "SiLU", "Sine", "Swish", "Tanh"]

MAX_DEGREE = 16  # float32 overflows in z**16 at z = 256 already


class Identity(nn.Identity):
    """``z``."""

    def derivative(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        return torch.ones_like(z)


class ReLU(nn.ReLU):
    """``max(z, 0)``; its derivative at 0 is 0, as torch's."""

    def derivative(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        return (z > 0).to(z.dtype)


class ELU(nn.ELU):
    """``z`` where positive, ``alpha * (exp(z) - 1)`` elsewhere (paper, Eq. 23)."""

    def derivative(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        # The side that is not taken is computed too, and exp of a large z is infinite.
        return torch.where(z > 0, torch.ones_like(z), self.alpha * z.clamp(max=0).exp())


class GELU(nn.GELU):
    """``z * Phi(z)`` with the normal distribution function Phi (paper, Eq. 22)."""

    def derivative(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        density = (-0.5 * z.square()).exp() / math.sqrt(2.0 * math.pi)
        return 0.5 * torch.erfc(-z / math.sqrt(2.0)) + z * density


class SiLU(nn.SiLU):
    """``z * sigmoid(z)``."""

    def derivative(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        gate = z.sigmoid()
        return gate + z * (gate * (-z).sigmoid())


class Tanh(nn.Tanh):
    """``tanh(z)``."""

    def derivative(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        return 1.0 - z.tanh().square()


class Sine(nn.Module):
    """``sin(omega * z)`` (paper, Eq. 24)."""

    def __init__(self, omega: float = 1.0) -> None:
        super().__init__()
        if omega == 0:
            raise ConfigError("omega=0 makes a sine that is zero everywhere; give another frequency.")
        self.omega = omega

    def forward(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        return torch.sin(self.omega * z)

    def derivative(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        return self.omega * torch.cos(self.omega * z)

    def extra_repr(self) -> str:
        return f"omega={self.omega:g}"


class SIREN(Sine):
    """``sin(omega * z)`` with the initial values of Sitzmann et al. (2020), see :func:`hidden_bound`."""

    def __init__(self, omega: float = 30.0) -> None:
        super().__init__(omega)


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

    def derivative(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        return torch.where(z >= 0, torch.ones_like(z), self.slope.to(z.dtype))

    def parameter_gradients(self, z: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        # shapes: (groups, entries) twice -> that of each parameter
        return {"slope": (upstream * z.clamp(max=0)).sum(dim=1, keepdim=True)}


class Swish(nn.Module):
    """``z * sigmoid(beta * z)``, one learned beta a group (paper, Eq. 26); :class:`SiLU` where beta is 1."""

    def __init__(self, groups: int, beta: float = 1.0) -> None:
        super().__init__()
        self.initial_beta = beta
        self.beta = nn.Parameter(torch.full((groups, 1), beta))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.beta, self.initial_beta)

    def forward(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        return z * torch.sigmoid(self.beta.to(z.dtype) * z)

    def derivative(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        gate, bend = self._gate(z)
        return gate + self.beta.to(z.dtype) * (z * bend)

    def parameter_gradients(self, z: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        # shapes: (groups, entries) twice -> that of each parameter
        _, bend = self._gate(z)
        return {"beta": (upstream * z * (z * bend)).sum(dim=1, keepdim=True)}

    def _gate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        scaled = self.beta.to(z.dtype) * z
        gate = scaled.sigmoid()
        return gate, gate * (-scaled).sigmoid()


class Rational(nn.Module):
    """``P(z) / Q(z)`` of degrees m and n with learned coefficients in every group (paper, Eq. 25).

    Q is ``1 + (b_1 z + ... + b_k z^k)^2`` with k = n / 2. So it is at least 1 whatever is learned: the quotient is
    rational and has no pole, which Eq. 25 with free coefficients cannot promise. It starts as ``2z / (1 + z^2)``,
    which is a sine's arch, odd and between -1 and 1. Finite as long as ``z**max(m, n)`` is.

    Args:
        groups: of the generator; parameters are ``a`` of shape (groups, m + 1) and ``b`` of shape (groups, n / 2).
        m: degree of P, at least 1.
        n: degree of Q, even and at least 2.

    Raises:
        ConfigError: a degree is not possible.
    """

    def __init__(self, groups: int, m: int = 3, n: int = 2) -> None:
        super().__init__()
        if not 1 <= m <= MAX_DEGREE:
            raise ConfigError(f"m={m} is no possible degree of a rational's numerator; give 1 to {MAX_DEGREE}.")
        if n % 2:
            raise ConfigError(
                f"n={n} is odd, and a real polynomial of odd degree has a real root, where the rational would have a "
                f"pole; give an even n from 2 to {MAX_DEGREE}."
            )
        if not 2 <= n <= MAX_DEGREE:
            raise ConfigError(f"n={n} is no possible degree of a rational's denominator; give 2 to {MAX_DEGREE}.")
        self.a = nn.Parameter(torch.empty(groups, m + 1))
        self.b = nn.Parameter(torch.empty(groups, n // 2))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.a.zero_()[:, 1] = 2.0
        self.b.zero_()[:, 0] = 1.0

    def forward(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        p, _, q = self._parts(z)
        return p / q

    def derivative(self, z: Tensor) -> Tensor:  # shape: (groups, entries) -> the same
        p, root, q = self._parts(z)
        # Divided one by one, since q**2 would overflow long before the quotients do.
        return _slope(self.a[:, 1:], z) / q - (p / q) * (2.0 * root * _slope(self.b, z) / q)

    def parameter_gradients(self, z: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        # shapes: (groups, entries) twice -> that of each parameter
        p, root, q = self._parts(z)
        of_p, of_root = upstream / q, -2.0 * upstream * (p / q) * (root / q)
        a, b = [of_p.sum(dim=1)], []
        for _ in range(self.a.shape[1] - 1):
            of_p = of_p * z
            a.append(of_p.sum(dim=1))
        for _ in range(self.b.shape[1]):
            of_root = of_root * z
            b.append(of_root.sum(dim=1))
        return {"a": torch.stack(a, dim=1), "b": torch.stack(b, dim=1)}

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        root = z * _polynomial(self.b, z)
        return _polynomial(self.a, z), root, 1.0 + root.square()

    def extra_repr(self) -> str:
        return f"m={self.a.shape[1] - 1}, n={2 * self.b.shape[1]}"


def _polynomial(coefficients: Tensor, z: Tensor) -> Tensor:  # shapes: (groups, k), (groups, entries) -> that of z
    *lower, value = coefficients.to(z.dtype).unsqueeze(2).unbind(1)
    for coefficient in reversed(lower):
        value = value * z + coefficient
    return value.expand_as(z)


def _slope(coefficients: Tensor, z: Tensor) -> Tensor:
    """Return the derivative of ``c_1 z + ... + c_k z^k``."""
    powers = torch.arange(1, coefficients.shape[1] + 1, dtype=z.dtype, device=z.device)
    return _polynomial(coefficients.to(z.dtype) * powers, z)
