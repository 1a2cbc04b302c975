"""What a generator does with a level's module, one of the library's own or of the user's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adntn.errors import ConfigError

__all__ = ["derivative", "parameter_gradients", "run"]


def run(module: nn.Module, z: Tensor, strength: float = 1.0) -> Tensor:  # shape: (groups, entries) -> the same
    """Apply a level's module in z's dtype, whatever that of its parameters.

    Args:
        module: of one level.
        z: pre-activation.
        strength: t of ``(1 - t) z + t phi(z)``, between the identity at 0 and the module alone at 1.
    """
    state = _run(module, z)
    return state if strength == 1.0 else z + strength * (state - z)


def _run(module: nn.Module, z: Tensor) -> Tensor:
    if not (module._parameters or module._buffers or module._modules):
        plain: Tensor = module(z)
        return plain
    named = [*module.named_parameters(), *module.named_buffers()]
    cast = {name: t.to(z.dtype) for name, t in named if t.is_floating_point() and t.dtype != z.dtype}
    # Not every module promotes by itself, torch's own PReLU for one.
    result: Tensor = torch.func.functional_call(module, cast, (z,)) if cast else module(z)
    return result


def derivative(module: nn.Module, z: Tensor, strength: float = 1.0) -> Tensor:
    """Return the derivative of what :func:`run` returns, elementwise, shape ``(groups, entries)`` as z.

    Raises:
        ConfigError: the module, one of the user's, does not say.
    """
    own = getattr(module, "derivative", None)
    if not callable(own):
        raise ConfigError(_needs(module, "derivative(z)"))
    result: Tensor = own(z)
    return result if strength == 1.0 else 1.0 + strength * (result - 1.0)


def parameter_gradients(module: nn.Module, z: Tensor, upstream: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
    """Return the gradients of ``sum(upstream * run(z))`` by the module's parameters, by name and shaped as they are.

    Args:
        module: of one level.
        z: pre-activation, shape ``(groups, entries)``.
        upstream: adjoint of what :func:`run` returned, of the same shape.
        strength: as there.

    Raises:
        ConfigError: the module, one of the user's, learns something and does not say.
    """
    shapes = {name: p.shape for name, p in module.named_parameters()}
    if not shapes:
        return {}
    own = getattr(module, "parameter_gradients", None)
    if not callable(own):
        raise ConfigError(_needs(module, "parameter_gradients(z, upstream)"))
    result: dict[str, Tensor] = own(z, upstream if strength == 1.0 else strength * upstream)
    got = {name: gradient.shape for name, gradient in result.items()}
    if got != shapes:
        raise ConfigError(
            f"parameter_gradients of activation {type(module).__name__} gives {_listed(got)}; its parameters are "
            f"{_listed(shapes)}."
        )
    return result


def _needs(module: nn.Module, method: str) -> str:
    return (
        f"activation {type(module).__name__} has no {method}, which backward='adjoint' needs; define it on the "
        "module, or use backward='autograd'."
    )


def _listed(shapes: Mapping[str, torch.Size]) -> str:
    return ", ".join(f"{name} of shape {tuple(shape)}" for name, shape in shapes.items())
