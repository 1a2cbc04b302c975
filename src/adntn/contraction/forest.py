"""The sides of several trees at once, of a generator's groups and of its terms, applied in stages.

Groups cut the rows of the weight into blocks, terms add up. All trees have one shape, so that a stage of all of them is
one product: of matrices on top of each other where all trees take the same state, or of a batch of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.contraction.segments import Cores
from adntn.contraction.sides import Side, multiply

__all__ = ["Forest"]

# Columns from which on a matrix product of each row of a batch is worth its call.
_WIDE = 32


class Forest:
    """One side of the splits of several trees, with the interface of :class:`adntn.contraction.sides.Side`.

    Args:
        side: that of each tree.
        groups: blocks of the axis, for the side of the rows; 1 for the other, whose axis all trees share.
        terms: trees that add up in a block.

    Attributes:
        rank: sizes of the trees' cuts together.
        size: rows that come out.
    """

    def __init__(self, side: Side, groups: int, terms: int) -> None:
        self.side, self.groups, self.terms = side, groups, terms
        self.trees = groups * terms
        self.rank, self.size = self.trees * side.rank, groups * side.size
        self.stages, self.made = side.stages, groups * side.made

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one row."""
        return self.trees * self.side.multiply_adds

    @property
    def states(self) -> int:
        """Numbers of the states between its stages, for one row."""
        return self.trees * self.side.states

    def cut(self, start: int, stop: int) -> None:
        """Some rows of several trees are not run in stages."""

    def matrices(self, cores: Cores, like: Tensor) -> tuple[Tensor, ...]:
        """Return the matrix of each stage, shape ``(trees, rows, columns)``."""
        return self.side.matrices(cores, like)

    def contract(
        self,
        matrices: Sequence[Tensor],
        state: Tensor,  # shape: (batch, axis, right) entries, contiguous; all trees take it
        batch: int,
        right: int,
    ) -> Tensor:  # shape: (batch, trees, r, right) entries, contiguous
        """Return each tree's B^T applied to each row of a state."""
        side, trees = self.side, self.trees
        if side.made != side.size:
            state = F.pad(state.view(batch, side.size, right), (0, 0, 0, side.made - side.size))
        _, rows, columns, done = side.stages[-1]
        if len(side.stages) == 1:
            return multiply(matrices[0].mT.reshape(trees * columns, rows), state, batch, rows, right)
        first, last = matrices
        left, first_rows, first_columns, _ = side.stages[0]
        held = columns // left
        stacked = last.reshape(trees, rows, left, held).permute(2, 0, 3, 1).reshape(left * trees * held, rows)
        state = multiply(stacked, state, batch, rows, done * right)
        state = _each(first.mT, state, batch * left, first_rows, right)
        return state.reshape(batch, left, trees, first_columns * right).transpose(1, 2).contiguous()

    def expand(
        self,
        matrices: Sequence[Tensor],
        state: Tensor,  # shape: (batch, trees, r, right) entries, contiguous
        batch: int,
        right: int,
        bias: Tensor | None = None,  # shape: (axis,)
    ) -> Tensor:  # shape: (batch, axis, right) entries, contiguous
        """Return the trees' A applied to their own rows of a state: groups one below the other, terms added up."""
        side, trees, groups = self.side, self.trees, self.groups
        _, rows, columns, done = side.stages[-1]
        left = 1
        if len(side.stages) > 1:
            left, _, first_columns, _ = side.stages[0]
            state = state.view(batch, trees, left, first_columns * right).transpose(1, 2).contiguous()
            state = _each(matrices[0], state, batch * left, first_columns, right)
        # Of what is added up, the part that is first in a tree's own state comes first, then the tree.
        last = matrices[-1].reshape(groups, self.terms, rows, left, columns // left).permute(0, 2, 3, 1, 4)
        last = last.reshape(groups, rows, self.terms * columns)
        sizes = batch, self.terms * columns, done * right
        state = state.view(batch, left, groups, sizes[1] // left * sizes[2]).transpose(1, 2).contiguous()
        y = multiply(last[0], state, *sizes) if groups == 1 else _each(last, state, *sizes)
        y = y.view(batch, groups, side.made, right).narrow(2, 0, side.size).reshape(batch, self.size, right)
        return y if bias is None else y + bias.to(y.dtype).unsqueeze(1)


def _each(
    matrices: Tensor,  # shape: (trees, rows, k)
    state: Tensor,  # shape: (batch, trees, k, right) entries, contiguous
    batch: int,
    k: int,
    right: int,
) -> Tensor:  # shape: (batch, trees, rows, right) entries, contiguous
    """Return every tree's matrix applied to its own part of the state."""
    trees, rows, _ = matrices.shape
    state = state.view(batch, trees, k, right)
    if right >= _WIDE:
        return torch.matmul(matrices, state)
    # A batch of small products for every row would be slower than to put the rows of each tree side by side.
    beside = state.permute(1, 2, 0, 3).reshape(trees, k, batch * right)
    return torch.bmm(matrices, beside).view(trees, rows, batch, right).permute(2, 0, 1, 3).contiguous()
