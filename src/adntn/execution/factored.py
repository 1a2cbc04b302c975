"""Layers run through the factors of their weight, W = A C B^T in every group; the weight is never made.

A convolution with groups of its own sees, in each block of rows that is of one generator group and of one
convolution group, a split of its own: the rows of A, and C and B of that generator group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.execution.reuse import first_stage

__all__ = ["CONV", "CONV_TRANSPOSE", "Factors", "conv", "conv_transpose", "embedding", "linear"]

Factors = tuple[Tensor, Tensor, Tensor]

CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def linear(
    x: Tensor,  # shape: (*batch, in)
    factors: Factors,  # shapes: A (groups, out / groups, r), C (groups, r, r'), B (groups, in, r')
    bias: Tensor | None,  # shape: (out,)
    reuse: str = "off",
) -> Tensor:  # shape: (*batch, out)
    """Return ``x W^T + bias``; ``reuse`` as :func:`adntn.execution.reuse.first_stage` has it, of whole rows."""
    a, c, b = factors
    groups, _, inner = b.shape
    first = b.mT.reshape(groups * inner, -1)
    if reuse == "off":
        hidden = F.linear(x, first)
    else:
        hidden = first_stage(x.reshape(-1, x.shape[-1]), first.mT, reuse).view(*x.shape[:-1], groups * inner)
    if groups == 1:
        return F.linear(F.linear(hidden, c[0]), a[0], bias)
    rows = hidden.reshape(math.prod(x.shape[:-1]), groups, inner).transpose(0, 1)
    y = (rows @ c.mT @ a.mT).transpose(0, 1).reshape(*x.shape[:-1], groups * a.shape[1])
    return y if bias is None else y + bias.to(y.dtype)


def conv(
    x: Tensor,  # shape: ([batch,] in, *size), padded already where the padding is not zeros
    factors: Factors,  # A (g, out / g, r), C (g, r, r', *kernel), B (g, in / groups, r')
    bias: Tensor | None,  # shape: (out,)
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: int = 1,
) -> Tensor:  # shape: ([batch,] out, *size')
    """Return the convolution as 1x1, kernel, 1x1, in as many dimensions as the kernel has."""
    a, c, b = _blocks(factors, groups)
    run, dims, blocks = CONV[c.ndim - 3], c.ndim - 3, len(c)
    hidden = run(x, _pointwise(b.mT.flatten(0, 1), dims), groups=groups)
    hidden = run(hidden, c.flatten(0, 1), None, stride, padding, dilation, blocks)
    return run(hidden, _pointwise(a.flatten(0, 1), dims), bias, groups=blocks)


def conv_transpose(
    x: Tensor,  # shape: ([batch,] in, *size)
    factors: Factors,  # A (g, in / g, r), C (g, r, r', *kernel), B (g, out / groups, r')
    bias: Tensor | None,  # shape: (out,)
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    output_padding: tuple[int, ...],
    groups: int,
    dilation: tuple[int, ...],
) -> Tensor:  # shape: ([batch,] out, *size')
    """Return the transposed convolution with the weight ``(in, out / groups, *kernel)`` as 1x1, kernel, 1x1."""
    a, c, b = _blocks(factors, groups)
    dims, blocks = c.ndim - 3, len(c)
    hidden = CONV[dims](x, _pointwise(a.mT.flatten(0, 1), dims), groups=blocks)
    hidden = CONV_TRANSPOSE[dims](hidden, c.flatten(0, 1), None, stride, padding, output_padding, blocks, dilation)
    # All blocks of input channels in one convolution group add up in its output.
    last = b.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2).flatten(0, 1)
    return CONV[dims](hidden, _pointwise(last, dims), bias, groups=groups)


def embedding(
    rows: Tensor,  # shape: (*index, r), of A
    index: Tensor,  # shape: (*index)
    rest: Sequence[Tensor],  # shapes: C (groups, r, r'), B (groups, in, r')
    size: int,
) -> Tensor:  # shape: (*index, in)
    """Return the rows of W at an index, from those of A; ``size`` is the number of rows of a group."""
    c, b = rest
    groups = len(c)
    if groups == 1:
        return F.linear(F.linear(rows, c[0].mT), b[0])
    hidden = F.linear(rows, c.mT.flatten(0, 1)).unflatten(-1, (groups, -1))
    # Sorting rows by group would give each its own product, but shapes that depend on the data.
    own = index.div(size, rounding_mode="floor").unsqueeze(-1) == torch.arange(groups, device=index.device)
    hidden = hidden.masked_fill(~own.unsqueeze(-1), 0.0).flatten(-2)
    return F.linear(hidden, b.transpose(0, 1).flatten(1))


def _blocks(factors: Factors, groups: int) -> Factors:
    """Return the factors of each block of rows that is of one generator group and of one convolution group."""
    a, c, b = factors
    count = math.lcm(groups, len(a))
    return a.reshape(count, -1, a.shape[-1]), _repeated(c, count // len(a)), _repeated(b, count // len(a))


def _repeated(stack: Tensor, times: int) -> Tensor:
    if times == 1:
        return stack
    return stack.unsqueeze(1).expand(-1, times, *stack.shape[1:]).flatten(0, 1)


def _pointwise(matrix: Tensor, dims: int) -> Tensor:  # shape: (out, in) -> (out, in, 1, ..., 1)
    return matrix.reshape(*matrix.shape, *(1,) * dims)
