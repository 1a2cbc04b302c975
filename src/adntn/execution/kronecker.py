"""Layers run through a weight that is a sum of Kronecker products; it is never made.

With L of the leading digits of the channels, R of the trailing ones, and C on the kernel
(:mod:`adntn.contraction.kronecker`), a layer multiplies by one of L and R, which spreads the input over the terms, then
takes the kernel channel by channel, then multiplies by the other one, which sums over the terms. States lie so that
neither product needs its input moved. A kernel that is in R is met with R, as a convolution of some channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.contraction import KroneckerPlan
from adntn.contraction.sides import multiply
from adntn.errors import ShapeError
from adntn.execution.factored import CONV
from adntn.tensorize import IN, OUT

__all__ = ["Kronecker", "merges"]

# Numbers of what stands between the two products that are made at a time. Two megabytes stay in a processor's cache;
# what is larger is written to memory and read again, on pages that the system has to give anew.
_PIECE = 1 << 19

_HAS_CHANNELWISE = torch.backends.mkldnn.is_available()

# The memory formats beside the usual one, by the dimensions of a map.
_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}

Convolve = Callable[[Tensor, Tensor, int], Tensor]  # by a weight, in groups


def merges(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the kernel is to be met with R, since torch would call each channel's convolution by itself."""
    return device.type in ("cpu", "meta") and (dtype == torch.float64 or not _HAS_CHANNELWISE)


@dataclass(frozen=True)
class Kronecker:
    """W, or some rows of it, as a sum of Kronecker products.

    Attributes:
        plan: which entry stands where.
        matrices: what :meth:`adntn.contraction.KroneckerPlan.matrices` returned.
        kernel: sizes of the kernel.
        span: the first row of W that is wanted, and the one behind the last.
        in_pieces: whether a large batch goes through in pieces, as it does on processors.
    """

    plan: KroneckerPlan
    matrices: tuple[Tensor, ...]
    kernel: tuple[int, ...]
    span: tuple[int, int]
    in_pieces: bool

    def rows(self, start: int, stop: int) -> Self | None:
        """Return the same for some of its rows, or None where they cut through several groups of the generator."""
        size, (first, _) = self.plan.axes[OUT], self.span
        start, stop = first + start, first + stop
        if (stop - 1) // size != start // size and (start % size or stop % size):
            return None
        return replace(self, span=(start, stop))

    def linear(
        self, x: Tensor, bias: Tensor | None, reuse: str = "off"
    ) -> Tensor:  # shape: (*batch, in) -> (*batch, out)
        """Return ``x W^T + bias``. No product is long enough for ``reuse`` to pay, so that it makes no difference."""
        if x.shape[-1] != self.plan.axes[IN]:
            shape = (self.span[1] - self.span[0], self.plan.axes[IN])
            raise ShapeError(f"input and weight shapes cannot be multiplied: {tuple(x.shape)} and {shape}.")
        batch = x.shape[:-1]
        y = self._run(x.reshape(math.prod(batch), x.shape[-1]), bias, None)
        return y.view(*batch, self.span[1] - self.span[0])

    def conv(
        self,
        x: Tensor,  # shape: ([batch,] in, *size), padded already where the padding is not zeros
        bias: Tensor | None,  # shape: (out,)
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
    ) -> Tensor:  # shape: ([batch,] out, *size')
        """Return the convolution, in as many dimensions as the kernel has."""
        dims, (_, channels) = len(self.kernel), self.plan.axes
        if x.ndim == dims + 1:
            return self.conv(x.unsqueeze(0), bias, stride, padding, dilation).squeeze(0)
        if x.ndim != dims + 2 or x.shape[1] != channels:
            raise ShapeError(f"an input of shape {tuple(x.shape)} does not fit a convolution of {channels} channels.")
        layout = torch.contiguous_format
        if dims in _LAST and not x.is_contiguous() and x.is_contiguous(memory_format=_LAST[dims]):
            layout = _LAST[dims]
        convolve: Convolve | None = None
        if self.plan.taps > 1:

            def convolve(state: Tensor, weight: Tensor, groups: int) -> Tensor:
                return CONV[dims](state, weight, None, stride, padding, dilation, groups).contiguous()

        else:  # no more than a choice of positions
            if not isinstance(padding, str) and any(padding):
                x = F.pad(x, [size for size in reversed(padding) for _ in range(2)])
            for axis, step in enumerate(stride, start=2):
                x = x[(slice(None),) * axis + (slice(None, None, step),)] if step > 1 else x
        return self._run(x.contiguous(), bias, convolve).contiguous(memory_format=layout)

    def _run(self, x: Tensor, bias: Tensor | None, convolve: Convolve | None) -> Tensor:
        plan = self.plan
        missing = plan.high[IN] * plan.low[IN] - plan.axes[IN]
        if missing:
            x = F.pad(x, [0, 0] * (x.ndim - 2) + [0, missing])
        parts = [self._of_piece(part, convolve) for part in self._pieces(x)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        return y.contiguous() if bias is None else y + bias.to(y.dtype).view(-1, *(1,) * (x.ndim - 2))

    def _pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        # A compiler fuses what it can, and would take the batch's size for a constant.
        if not self.in_pieces or torch.compiler.is_compiling():
            return (x,)
        each = self._terms * self.plan.between * math.prod(x.shape[2:])
        pieces = -(-len(x) * each // _PIECE)
        return x.split(-(-len(x) // pieces)) if pieces > 1 and len(x) > 1 else (x,)

    @property
    def _terms(self) -> int:
        return self.matrices[0].shape[1] // (self.plan.high if self.plan.leads else self.plan.low)[OUT]

    def _of_piece(self, x: Tensor, convolve: Convolve | None) -> Tensor:
        """Return the product without a bias, group by group."""
        size, (start, stop) = self.plan.axes[OUT], self.span
        made = []
        for group in range(start // size, -(-stop // size)):
            first, last = max(start - group * size, 0), min(stop - group * size, size)
            made.append(self._of_group(group, first, last, x, convolve))
        return made[0] if len(made) == 1 else torch.cat(made, dim=1)

    def _of_group(self, group: int, start: int, stop: int, x: Tensor, convolve: Convolve | None) -> Tensor:
        """Return the product with some rows of a group, of those that the leading digits of these have."""
        plan, (batch, _, *size) = self.plan, x.shape
        first, last, *kernel = (matrix[group] for matrix in self.matrices)
        high, low = plan.high, plan.low
        begin, end = start // low[OUT], -(-stop // low[OUT])
        if end - begin < high[OUT]:  # of L
            terms = self._terms if plan.leads else 1
            rows = slice(begin * terms, end * terms)
            first, last = (first[rows], last) if plan.leads else (first, last[rows])
        if plan.leads:
            state = multiply(first, x, batch, high[IN], low[IN] * math.prod(size))
            state = state.view(batch, len(first) * low[IN], *size)
            if kernel:
                state = self._channelwise(kernel[0], state, low[IN], convolve)
            y = self._trailing(last, state, batch * (end - begin), [*state.shape[2:]], convolve)
            size = [*y.shape[2:]]
        else:
            state = self._trailing(first, x, batch * high[IN], size, convolve)
            state = state.view(batch, high[IN] * len(first), *state.shape[2:])
            if kernel:
                state = self._channelwise(kernel[0], state, low[OUT], convolve)
            size = [*state.shape[2:]]
            y = multiply(last, state, batch, last.shape[1], low[OUT] * math.prod(size))
        y = y.view(batch, (end - begin) * low[OUT], *size)
        return y.narrow(1, start - begin * low[OUT], stop - start) if stop - start < y.shape[1] else y

    def _trailing(
        self, matrix: Tensor, state: Tensor, images: int, size: list[int], convolve: Convolve | None
    ) -> Tensor:  # shape: (images, rows of the matrix, *size')
        """Return R applied to each image's channels, with the kernel where R has it."""
        rows, columns = matrix.shape[:2]
        if matrix.ndim == 2:
            return multiply(matrix, state, images, columns, math.prod(size)).view(images, rows, *size)
        assert convolve is not None
        return convolve(state.view(images, columns, *size), matrix.unflatten(-1, self.kernel), 1)

    def _channelwise(
        self,
        kernel: Tensor,  # shape: (terms, taps)
        state: Tensor,  # shape: (batch, blocks * terms * inner, *size)
        inner: int,
        convolve: Convolve | None,
    ) -> Tensor:
        """Return each channel's convolution with the kernel of its term."""
        assert convolve is not None
        terms, taps = kernel.shape
        channels = state.shape[1]
        weight = kernel.view(1, terms, 1, taps).expand(channels // (terms * inner), -1, inner, -1)
        return convolve(state, weight.reshape(channels, 1, *self.kernel), channels)
