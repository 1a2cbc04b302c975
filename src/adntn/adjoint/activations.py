"""Derivatives of the activations, without autograd: a stand-in until the modules bring their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adntn.activations import PReLU, Sine
from adntn.errors import ConfigError

__all__ = ["derivative", "parameter_gradients"]


def derivative(module: nn.Module, z: Tensor) -> Tensor:
    """Return the activation's derivative at every entry of ``z``, of the same shape."""
    match module:
        case nn.Identity():
            return torch.ones_like(z)
        case nn.ReLU():
            return (z > 0).to(z.dtype)
        case nn.ELU():
            # Clamped, so that the side not taken is never infinite: it would make a second derivative NaN.
            return torch.where(z > 0, 1.0, module.alpha * torch.exp(z.clamp(max=0)))
        case nn.GELU():
            return (1 + torch.erf(z / math.sqrt(2))) / 2 + z * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        case nn.SiLU():
            gate = torch.sigmoid(z)
            return gate * (1 + z * (1 - gate))
        case nn.Tanh():
            return 1 - torch.tanh(z).square()
        case Sine():
            return module.omega * torch.cos(module.omega * z)
        case PReLU():
            return torch.where(z >= 0, 1.0, module.slope.to(z.dtype))
    raise ConfigError(f"the derivative of {type(module).__name__} is not known, which backward='adjoint' needs.")


def parameter_gradients(module: nn.Module, z: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Return the gradients of the activation's own parameters, by name.

    Args:
        module: of one level.
        z: what it was given, shape ``(trees, entries)``.
        upstream: the adjoint of what it returned, of the same shape.
    """
    if isinstance(module, PReLU):
        return {"slope": torch.where(z >= 0, 0.0, z * upstream).sum(dim=1, keepdim=True)}
    return {}
