"""The two sides of the split, A and B, applied in stages: a 64 x 4096 side of a tree is 8 x 64 after 8 x 64.

A side is a Kronecker product of the readout's cores, with disentanglers between neighbours. A state goes through it in
one or two small matrix products, and neither the side nor anything else of the size of ``out * r`` is ever made
(see :func:`adntn.contraction.plan.plan_split` for where it is cut; FastKron, arXiv:2401.10187, does the same for
Kronecker products alone). What is kept of a layer between calls is then some kilobytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.contraction.segments import Cores, segment_matrices
from adntn.contraction.steps import Plan

__all__ = ["Side", "multiply"]

# Columns from which on each row of a batch has a product of its own.
_WIDE = 16


class Side:
    """One side of a tree's split, or some of its rows.

    Several trees, of a generator's groups and terms, are :class:`adntn.contraction.forest.Forest` 's.

    Args:
        plan: the circuit from the cut to the axis, one segment a stage.
        rows: the first row of the axis that is wanted, and the one behind the last; None for all.

    Attributes:
        rank: size of the cut, r.
        size: rows that come out of it.
        made: rows that the last stage makes; what is behind ``size`` is cropped.
        stages: from the cut to the axis: products of a row, rows and columns of their matrix, columns of their state.
    """

    def __init__(self, plan: Plan, rows: tuple[int, int] | None = None) -> None:
        assert plan.crop is not None
        self.plan, self.rank = plan, plan.size_in
        self.steps = plan.steps
        stages = [(step.left, step.size_out, step.segment.size_in, step.right) for step in self.steps]
        left, _, columns, right = stages[-1]
        self._rows = (0, plan.crop[0]) if rows is None else rows
        self._chosen: tuple[int, int] | None = None
        self.size = self._rows[1] - self._rows[0]
        if rows is not None:
            self._chosen = rows[0] // right, rows[1] // right
            stages[-1] = (left, self._chosen[1] - self._chosen[0], columns, right)
        self.stages = tuple(stages)
        self.made = self.stages[-1][1] * right
        self._cuts: dict[tuple[int, int], Side | None] = {}

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one row."""
        return sum(left * rows * columns * right for left, rows, columns, right in self.stages)

    @property
    def states(self) -> int:
        """Numbers of the states between its stages, for one row."""
        return sum(left * rows * right for left, rows, _, right in self.stages[:-1])

    def cut(self, start: int, stop: int) -> Side | None:
        """Return the side of some of its rows; None where they cut through what the last stage makes at once."""
        if (start, stop) not in self._cuts:
            *_, (_, _, _, right) = self.stages
            rows = self._rows[0] + start, self._rows[0] + stop
            self._cuts[start, stop] = Side(self.plan, rows) if rows[0] % right == rows[1] % right == 0 else None
        return self._cuts[start, stop]

    def chosen(self, matrices: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the matrices of the rows that are wanted, from those of all."""
        if self._chosen is None:
            return matrices
        *before, last = matrices
        return (*before, last[slice(*self._chosen)])

    def matrices(self, cores: Cores, like: Tensor) -> tuple[Tensor, ...]:
        """Return the matrix of each stage for all rows of the axis.

        Args:
            cores: of the last level.
            like: of the dtype and on the device of the cores; its first dimension is the trees.

        Returns:
            Shape ``(trees, rows, columns)`` each, without the first dimension where there is one tree.
        """
        made = segment_matrices(self.plan, cores, like)
        sizes = (step.size_out for step in self.steps)
        matrices = (
            torch.eye(size, dtype=like.dtype, device=like.device) if matrix is None else matrix.mT
            for matrix, size in zip(made, sizes, strict=True)
        )
        trees = len(like)
        return tuple(m.expand(trees, -1, -1) if trees > 1 else m.squeeze(0) if m.ndim == 3 else m for m in matrices)

    def expand(
        self,
        matrices: Sequence[Tensor],
        state: Tensor,  # shape: (batch, r, right) entries, contiguous
        batch: int,
        right: int,
        bias: Tensor | None = None,  # shape: (axis,)
    ) -> Tensor:  # shape: (batch, axis, right) entries, contiguous
        """Return A applied to each row of a state, ``y[b, :, k] = A h[b, :, k] + bias``."""
        *before, last = zip(self.chosen(matrices), self.stages, strict=True)
        for matrix, (left, _, columns, done) in before:
            state = multiply(matrix, state, batch * left, columns, done * right)
        matrix, (_, rows, columns, done) = last
        if self.made == self.size:
            if bias is not None and right > 1 and batch == 1:  # cheaper behind the product than to spread it before
                y = multiply(matrix, state, batch, columns, done * right).view(batch, self.size, right)
                return y + bias.to(y.dtype).unsqueeze(1)
            if bias is not None and done * right > 1:
                bias = bias.view(rows, done)
                bias = bias if right == 1 else bias.unsqueeze(2).expand(-1, -1, right).flatten(1)
            return multiply(matrix, state, batch, columns, done * right, bias)
        y = multiply(matrix, state, batch, columns, done * right).view(batch, self.made, right)
        y = y.narrow(1, 0, self.size)
        return y.contiguous() if bias is None else y + bias.to(y.dtype).unsqueeze(1)

    def contract(
        self,
        matrices: Sequence[Tensor],
        state: Tensor,  # shape: (batch, axis, right) entries, contiguous
        batch: int,
        right: int,
    ) -> Tensor:  # shape: (batch, r, right) entries, contiguous
        """Return B^T applied to each row of a state, ``h[b, :, k] = B^T x[b, :, k]``."""
        if self.made != self.size:
            state = F.pad(state.view(batch, self.size, right), (0, 0, 0, self.made - self.size))
        for matrix, (left, rows, _, done) in zip(reversed(self.chosen(matrices)), reversed(self.stages), strict=True):
            state = multiply(matrix.mT, state, batch * left, rows, done * right)
        return state

    def contract_sub_vectors(
        self,
        matrices: Sequence[Tensor],
        state: Tensor,  # shape: (batch, axis) entries, contiguous
        batch: int,
        product: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor | None:  # shape: (batch, r) entries
        """Return B^T applied to each row, by a first product whose rows are sub-vectors as they lie in the input.

        :meth:`contract` begins with the leading digits, which is faster. This is for a ``product`` that gains from
        equal rows (paper, Section 8.4). None where there are no two stages, or a gate joins them.
        """
        if self.made != self.size or len(self.stages) == 1:
            return None
        (left, trailing, _, _), (_, leading, columns, _) = self.stages
        if columns != left:
            return None
        first, last = self.chosen(matrices)
        state = product(state.view(batch * leading, trailing), first)
        return multiply(last.mT, state, batch, leading, first.shape[1])


def multiply(
    matrix: Tensor,  # shape: (rows, k)
    state: Tensor,  # shape: (batch, k, n) entries, contiguous
    batch: int,
    k: int,
    n: int,
    bias: Tensor | None = None,  # shape: (rows, n), or (rows,) where n is 1
) -> Tensor:  # shape: (batch, rows, n) entries, contiguous
    """Return ``matrix @ state + bias``: a batch of products, or one where there is but one to make."""
    if n == 1:
        return F.linear(state.view(batch, k), matrix, bias)
    if batch == 1:
        state = state.view(k, n)
        return torch.mm(matrix, state) if bias is None else torch.addmm(bias, matrix, state)
    if n < _WIDE:  # a batch of products of few columns is slow; side by side they are one of many
        beside = state.view(batch, k, n).transpose(0, 1).reshape(k, batch * n)
        y = torch.mm(matrix, beside).view(len(matrix), batch, n).transpose(0, 1).contiguous()
        return y if bias is None else y + bias.to(y.dtype)
    each, state = matrix.expand(batch, -1, -1), state.view(batch, k, n)
    return torch.bmm(each, state) if bias is None else torch.baddbmm(bias, each, state)
