"""Layers run through the factors of their weight, W = A C B^T in every group; the weight is never made."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

__all__ = ["Factors", "conv2d", "linear"]

Factors = tuple[Tensor, Tensor, Tensor]


def linear(
    x: Tensor,  # shape: (*batch, in)
    factors: Factors,  # shapes: A (groups, out / groups, r), C (groups, r, r'), B (groups, in, r')
    bias: Tensor | None,  # shape: (out,)
) -> Tensor:  # shape: (*batch, out)
    """Return ``x W^T + bias``."""
    a, c, b = factors
    groups, _, inner = b.shape
    hidden = F.linear(x, b.mT.reshape(groups * inner, -1))
    if groups == 1:
        return F.linear(F.linear(hidden, c[0]), a[0], bias)
    rows = hidden.reshape(math.prod(x.shape[:-1]), groups, inner).transpose(0, 1)
    y = (rows @ c.mT @ a.mT).transpose(0, 1).reshape(*x.shape[:-1], groups * a.shape[1])
    return y if bias is None else y + bias.to(y.dtype)


def conv2d(
    x: Tensor,  # shape: (batch, in, height, width), padded already where the padding is not zeros
    factors: Factors,  # shapes: A (groups, out / groups, r), C (groups, r, r', kH, kW), B (groups, in, r')
    bias: Tensor | None,  # shape: (out,)
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
) -> Tensor:  # shape: (batch, out, height', width')
    """Return the convolution as 1x1, kernel, 1x1."""
    a, c, b = factors
    groups, _, inner = b.shape
    hidden = F.conv2d(x, b.mT.reshape(groups * inner, -1, 1, 1))
    hidden = F.conv2d(hidden, c.flatten(0, 1), None, stride, padding, dilation, groups)
    return F.conv2d(hidden, a.flatten(0, 1)[:, :, None, None], bias, groups=groups)
