"""Normalisation of a hidden state after its activation (paper, Definition 2), and its adjoint."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NORMS", "normalize", "normalize_adjoint"]

NORMS = ("center", "rms", "layer")
_EPSILON = 1e-6


def normalize(norm: str | None, state: Tensor) -> Tensor:  # shape: (trees, entries) -> the same
    """Return the state with mean 0 (``"center"``), mean square 1 (``"rms"``), or both (``"layer"``)."""
    if norm in ("center", "layer"):
        state = state - state.mean(dim=1, keepdim=True)
    return state * _scale(state) if norm in ("rms", "layer") else state


def normalize_adjoint(norm: str | None, state: Tensor, upstream: Tensor) -> Tensor:
    """Return the adjoint of what :func:`normalize` was given.

    Args:
        norm: as there.
        state: what it was given, shape ``(trees, entries)``.
        upstream: the adjoint of what it returned, of the same shape.
    """
    if norm in ("rms", "layer"):
        centred = state - state.mean(dim=1, keepdim=True) if norm == "layer" else state
        scale = _scale(centred)
        along = (upstream * centred).mean(dim=1, keepdim=True)
        upstream = scale * upstream - scale**3 * along * centred
    if norm in ("center", "layer"):
        upstream = upstream - upstream.mean(dim=1, keepdim=True)
    return upstream


def _scale(state: Tensor) -> Tensor:  # shape: (trees, entries) -> (trees, 1)
    return torch.rsqrt(state.square().mean(dim=1, keepdim=True) + _EPSILON)
