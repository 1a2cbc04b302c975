"""Layers run through the factors of their weight as :mod:`.factored` does, with A and B applied in stages.

States are batches of matrices ``(batch, channels, positions)``, contiguous; a linear layer's rows are a batch with one
position each.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.contraction import Forest, Side
from adntn.errors import ShapeError
from adntn.execution.factored import CONV, CONV_TRANSPOSE
from adntn.execution.reuse import first_stage

__all__ = ["FEW", "SMALL", "Staged"]

# For a few rows the time is that of the calls, and factors that are kept and this small (in numbers) need fewer.
FEW = 8
SMALL = 1 << 17


@dataclass(frozen=True)
class Staged:
    """W = A C B^T, with A and B as stages.

    Attributes:
        outer: A.
        inner: B.
        matrices: of A's stages, C of shape ``(trees * r, r', *kernel)``, and of B's stages.
    """

    outer: Side | Forest
    inner: Side | Forest
    matrices: tuple[Tensor, ...]

    @property
    def trees(self) -> int:
        """How many trees there are, each with its own C."""
        return self.inner.rank // self.centre.shape[1]

    @property
    def is_staged(self) -> bool:
        """Whether both sides have more than one stage."""
        return len(self.outer.stages) > 1 and len(self.inner.stages) > 1

    @property
    def centre(self) -> Tensor:
        """C, shape ``(trees * r, r', *kernel)``."""
        return self.matrices[len(self.outer.stages)]

    def rows(self, start: int, stop: int) -> Self | None:
        """Return the same for some rows of W, or None where the stages do not allow it."""
        outer = self.outer.cut(start, stop)
        return None if outer is None else type(self)(outer, self.inner, self.matrices)

    def _of(self, side: Side | Forest) -> tuple[Tensor, ...]:
        count = len(self.outer.stages)
        return self.matrices[:count] if side is self.outer else self.matrices[count + 1 :]

    def linear(
        self, x: Tensor, bias: Tensor | None, reuse: str = "off"
    ) -> Tensor:  # shape: (*batch, in) -> (*batch, out)
        """Return ``x W^T + bias``; ``reuse`` as :func:`adntn.execution.reuse.first_stage` has it."""
        if x.shape[-1] != self.inner.size:
            shape = (self.outer.size, self.inner.size)
            raise ShapeError(f"input and weight shapes cannot be multiplied: {tuple(x.shape)} and {shape}.")
        batch = x.shape[:-1]
        rows = math.prod(batch)
        hidden = self._reused(x, rows, reuse) if reuse != "off" else None
        if hidden is None:
            hidden = self.inner.contract(self._of(self.inner), x.contiguous(), rows, 1)
        if self.trees == 1:
            hidden = F.linear(hidden.view(rows, self.inner.rank), self.centre)
        else:
            each = hidden.view(rows, self.trees, self.inner.rank // self.trees).transpose(0, 1)
            hidden = torch.bmm(each, self.centre.unflatten(0, (self.trees, -1)).mT).transpose(0, 1).contiguous()
        return self.outer.expand(self._of(self.outer), hidden, rows, 1, bias).view(*batch, self.outer.size)

    def _reused(self, x: Tensor, rows: int, reuse: str) -> Tensor | None:
        # The matrices of two stages have so few columns that it pays for no input: benchmarks/reuse.py.
        if isinstance(self.inner, Forest) or reuse == "auto":
            return None
        product = functools.partial(first_stage, reuse=reuse)
        return self.inner.contract_sub_vectors(self._of(self.inner), x.contiguous(), rows, product)

    def conv(
        self,
        x: Tensor,  # shape: (batch, in, *size), contiguous, padded already where the padding is not zeros
        bias: Tensor | None,  # shape: (out,)
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
    ) -> Tensor:  # shape: (batch, out, *size')
        """Return the convolution as 1x1, kernel, 1x1."""
        hidden = self._first(self.inner, x)
        hidden = CONV[x.ndim - 2](hidden, self.centre, None, stride, padding, dilation, self.trees)
        return self._last(self.outer, hidden, bias)

    def conv_transpose(
        self,
        x: Tensor,  # shape: (batch, in, *size)
        bias: Tensor | None,  # shape: (out,)
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        output_padding: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> Tensor:  # shape: (batch, out, *size')
        """Return the transposed convolution with one tree's weight ``(in, out, *kernel)`` as 1x1, kernel, 1x1."""
        hidden = self._first(self.outer, x)
        hidden = CONV_TRANSPOSE[x.ndim - 2](hidden, self.centre, None, stride, padding, output_padding, 1, dilation)
        return self._last(self.inner, hidden, bias)

    def _first(self, side: Side | Forest, x: Tensor) -> Tensor:
        batch, channels, *size = x.shape
        if channels != side.size:
            raise ShapeError(f"an input of shape {tuple(x.shape)} has {channels} channels; expected are {side.size}.")
        return side.contract(self._of(side), x, batch, math.prod(size)).view(batch, side.rank, *size)

    def _last(self, side: Side | Forest, hidden: Tensor, bias: Tensor | None) -> Tensor:
        batch, _, *size = hidden.shape
        # A kernel of torch's may have chosen another memory format than that of its input.
        y = side.expand(self._of(side), hidden.contiguous(), batch, math.prod(size), bias)
        return y.view(batch, side.size, *size)
