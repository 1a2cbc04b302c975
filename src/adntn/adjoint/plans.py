"""The equations of :mod:`adntn.adjoint.equations` as they are run: the adjoint of a plan of :mod:`adntn.contraction`.

A plan merges neighbouring cores and the gates behind them into the matrix of a *segment*, so only few, large products
meet a state. Its adjoint is that of the same products, the last segment first: the state's is the transposed matrix
(Eqs. 52, 57, 64, 65), and state and adjoint contracted over everything beside the segment leave the adjoint of its
matrix. That matrix is a product of Kronecker products of cores; from there each core's gradient (Eqs. 53, 58) is a
contraction of small matrices with all other cores in place. The states in between are made anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.contraction import Cores, Plan, Segment, apply, kron
from adntn.contraction.plan import Readout
from adntn.contraction.segments import (
    act,
    act_at,
    chosen_outputs,
    digits,
    kron_stack,
    piece_matrix,
    table,
)
from adntn.contraction.steps import Axes, Piece, Stage, Step, arrangement
from adntn.levels import Stack
from adntn.tensorize import Tensorization

__all__ = [
    "Parts",
    "apply_adjoint",
    "apply_at_adjoint",
    "in_digit_order_adjoint",
    "level_adjoint",
    "readout_adjoint",
    "stacked",
]

#: Gradients of runs of cores: the stack's name, the first core's place, and shape ``(groups, cores, rows, columns)``.
Parts = list[tuple[str, int, Tensor]]


def apply_adjoint(plan: Plan, cores: Cores, state: Tensor, upstream: Tensor) -> tuple[Parts, Tensor]:
    """Return the adjoints of what :func:`adntn.contraction.apply` was given.

    Args:
        plan: as there, as are ``cores`` and ``state``.
        cores: the level's stacks by parameter name, each of shape ``(groups, cores, size_in, size_out)``.
        state: shape ``(groups, batch, plan.size_in)``.
        upstream: the adjoint of what it returned, shape ``(groups, batch, *axes)``.

    Returns:
        Gradients of the cores, to be put together by :func:`stacked`, and the adjoint of the state.
    """
    shape = state.shape
    if not plan.segments:
        return [], upstream.reshape(shape)
    *before, last = plan.steps
    # Of the last segment only the matrix: what it makes is as large as the outcome, and not needed.
    matrices = [_SegmentMatrix(step.segment, cores, step.wanted, state) for step in before]
    states = [state]
    for step, matrix in zip(before, matrices, strict=True):
        states.append(act(step, matrix.matrix, states[-1]))
    matrices.append(_SegmentMatrix(last.segment, cores, last.wanted, state))
    parts: Parts = []
    for step in (last, *reversed(before)):  # state and adjoint are let go as soon as they have been met
        matrix, state = matrices.pop(), states.pop()
        upstream = _as_made(step, upstream)
        if step.segment.stages:
            parts += matrix.adjoint(_environment(step, state, upstream))
        if matrix.matrix is not None:
            upstream = matrix.matrix.unsqueeze(1) @ upstream if step.right > 1 else upstream @ matrix.matrix.mT
    return parts, upstream.reshape(shape)


def level_adjoint(plans: Sequence[Plan], cores: Cores, state: Tensor, upstream: Tensor) -> tuple[Parts, Tensor]:
    """Return the adjoints of what a hidden level was given, as :func:`apply_adjoint`.

    Args:
        plans: of the level, one after the other.
        cores: the level's stacks by parameter name.
        state: shape ``(trees, entries)``.
        upstream: the adjoint of its pre-activation.
    """
    states = [state.unsqueeze(1)]
    for plan in plans[:-1]:
        states.append(apply(plan, cores, states[-1]))
    parts: Parts = []
    upstream = upstream.unsqueeze(1)
    for plan in reversed(plans):
        found, upstream = apply_adjoint(plan, cores, states.pop(), upstream)
        parts += found
    return parts, upstream.squeeze(1)


def readout_adjoint(plan: Readout, cores: Cores, hidden: Tensor, upstream: Tensor) -> tuple[Parts, Tensor]:
    """Return the adjoints of what a readout was given, as :func:`apply_adjoint`.

    Args:
        plan: of the readout.
        cores: the last level's stacks by parameter name.
        hidden: shape ``(trees, entries)``.
        upstream: the adjoint of what it makes, cropped, shape ``(trees, *axes)``.
    """
    state = hidden.unsqueeze(1)
    if plan.tail is None:
        parts, adjoint = apply_adjoint(plan.head, cores, state, upstream.unsqueeze(1))
        return parts, adjoint.squeeze(1)
    rows = apply(plan.head, cores, state)
    *leading, size_in = rows.shape[2:]
    upstream = _padded(upstream, 1, plan.made)
    arranged = arrangement(tuple(leading), plan.tail.axes)
    if arranged is not None:
        sizes, order = arranged
        shaped = upstream.reshape(len(upstream), *(sizes[place] for place in order))
        upstream = shaped.permute(0, *(1 + place for place in _inverse(order)))
    upstream = upstream.reshape(len(upstream), -1, *plan.tail.axes)
    parts, adjoint = apply_adjoint(plan.tail, cores, rows.reshape(len(rows), -1, size_in), upstream)
    more, adjoint = apply_adjoint(plan.head, cores, state, adjoint.reshape(rows.shape))
    return parts + more, adjoint.squeeze(1)


def apply_at_adjoint(plan: Plan, cores: Cores, group: Tensor, index: Tensor, like: Tensor, upstream: Tensor) -> Parts:
    """Return the gradients of the cores of :func:`adntn.contraction.apply_at`, whose arguments it takes.

    Args:
        plan: with one axis.
        cores: the level's stacks by name.
        group: shape ``(n,)``.
        index: shape ``(n,)``.
        like: its first dimension is the groups.
        upstream: the adjoint of what it returned, shape ``(n, plan.size_in)``.
    """
    state = like.new_ones(len(index), 1, 1)
    met = []
    for segment, digit in digits(plan, group, index):
        matrix = _SegmentMatrix(segment, cores, segment.released, like)
        rows = F.embedding(digit, table(segment, matrix.matrix, like))
        met.append((segment, digit, matrix, rows, state))
        state = act_at(state, rows, segment)
    parts: Parts = []
    upstream = upstream.unsqueeze(2)  # shape: (n, inputs met, held)
    while met:
        segment, digit, matrix, rows, state = met.pop()
        (size,), held = segment.released, state.shape[2]
        upstream = upstream.unflatten(1, (segment.size_in // held, -1))
        ours = state.mT.unsqueeze(1) @ upstream  # shape: (n, inputs, held before, held)
        upstream = (upstream @ rows.unflatten(1, (-1, held, segment.held)).mT).sum(1)
        if segment.stages:
            whole = ours.new_zeros(len(like) * size, rows.shape[1]).index_add(0, digit, ours.flatten(1))
            shaped = whole.reshape(len(like), size, segment.size_in, segment.held)
            parts += matrix.adjoint(shaped.permute(0, 2, 3, 1).flatten(2))
    return parts


def stacked(parts: Parts, stack: Stack, trees: int) -> Tensor | None:
    """Return the gradient of a stack's parameter, zero where there is no part of it; None if there is none at all."""
    mine = sorted(((start, part) for name, start, part in parts if name == stack.name), key=lambda item: item[0])
    if not mine:
        return None
    whole: list[Tensor] = []
    place = 0
    for start, part in [*mine, (stack.count, None)]:
        if start > place:
            whole.append(mine[0][1].new_zeros(trees, start - place, *stack.shape))
        if part is not None:
            whole.append(part)
            place = start + part.shape[1]
    return torch.cat(whole, dim=1).flatten(0, 1)


def in_digit_order_adjoint(upstream: Tensor, tensorization: Tensorization, axes: Sequence[int], first: int) -> Tensor:
    """Return the adjoint of what :func:`adntn.contraction.in_digit_order` was given."""
    for dim, axis in enumerate(axes, start=first):
        permutation = tensorization.digit_permutation(axis)
        if permutation is not None:
            index = torch.tensor(_inverse(permutation), device=upstream.device)
            upstream = _padded(upstream, dim, (len(permutation),)).index_select(dim, index)
    return upstream


def _as_made(step: Step, upstream: Tensor) -> Tensor:
    """Return the adjoint of the matrix product in :func:`adntn.contraction.segments.act`, of the product's shape."""
    if step.is_cropped:
        upstream = _padded(upstream.reshape(len(upstream), -1, *step.kept), 2, step.made)
    if step.arranged is not None:
        sizes, order = step.arranged
        shaped = upstream.reshape(len(upstream), -1, *(sizes[place] for place in order))
        upstream = shaped.permute(0, 1, *(2 + place for place in _inverse(order)))
    behind = (step.right,) if step.right > 1 else ()
    return upstream.reshape(len(upstream), -1, step.size_out, *behind)


def _environment(step: Step, state: Tensor, upstream: Tensor) -> Tensor:
    """Return the adjoint of a segment's matrix: the state it meets against the adjoint of what it makes of it."""
    state = state.reshape(len(state), -1, step.segment.size_in, *upstream.shape[3:])
    if step.right == 1:
        return state.mT @ upstream
    if step.segment.size_in <= step.right:  # a product for each entry on the left, where these make less than a copy
        return (state @ upstream.mT).sum(1)
    return state.transpose(1, 2).flatten(2) @ upstream.transpose(1, 2).flatten(2).mT


class _SegmentMatrix:
    """A segment's matrix, with what its adjoint needs: its stages, and the product of all stages up to each."""

    def __init__(self, segment: Segment, cores: Cores, wanted: Axes, like: Tensor) -> None:
        self.segment, self.wanted = segment, wanted
        self.stages = [_StageMatrix(stage, cores, like) for stage in segment.stages]
        self.products = list(itertools.accumulate((stage.matrix for stage in self.stages), torch.matmul))
        self.matrix: Tensor | None = None  # the identity
        if self.products or segment.columns is not None or wanted != segment.released:
            size_out = segment.held * math.prod(segment.released)
            product = self.products[-1] if self.products else torch.eye(size_out, dtype=like.dtype, device=like.device)
            self.matrix = chosen_outputs(segment, wanted, product.expand(len(like), -1, -1))

    def adjoint(self, upstream: Tensor) -> Parts:
        """Return the gradients of its cores, given its own adjoint."""
        segment = self.segment
        if self.wanted != segment.released:
            shaped = upstream.reshape(*upstream.shape[:2], segment.held, *self.wanted)
            upstream = _padded(shaped, 3, segment.released).flatten(2)
        if segment.columns is not None:
            upstream = upstream.index_select(2, torch.tensor(_inverse(segment.columns), device=upstream.device))
        parts: Parts = []
        for number in range(len(self.stages) - 1, 0, -1):
            parts += self.stages[number].adjoint(self.products[number - 1].mT @ upstream)
            upstream = upstream @ self.stages[number].matrix.mT
        return parts + self.stages[0].adjoint(upstream)


class _StageMatrix:
    """A Kronecker product of runs of cores, with the product of all runs up to each."""

    def __init__(self, stage: Stage, cores: Cores, like: Tensor) -> None:
        self.stage, self.cores = stage, cores
        self.factors = [piece_matrix(piece, cores, like) for piece in stage]
        self.products = list(itertools.accumulate(self.factors, kron))
        self.matrix = self.products[-1]

    def adjoint(self, upstream: Tensor) -> Parts:
        """Return the gradients of its cores, given its own adjoint, shape ``(groups, rows, columns)``."""
        parts: Parts = []
        for number in range(len(self.stage) - 1, 0, -1):
            before, own = self.products[number - 1], self.factors[number]
            apart = _apart(upstream, before, own)
            if self.stage[number].kind != "pass":
                parts.append(_piece_adjoint(self.stage[number], self.cores, _right(apart, before, own)))
            upstream = _left(apart, before, own)
        if self.stage[0].kind != "pass":
            parts.append(_piece_adjoint(self.stage[0], self.cores, upstream))
        return parts


def _piece_adjoint(piece: Piece, cores: Cores, upstream: Tensor) -> tuple[str, int, Tensor]:
    stack = cores[piece.name][:, piece.start : piece.start + piece.count]
    if piece.kind == "mix":  # its rows are the new pair of indices
        return piece.name, piece.start, _kron_stack_adjoint(stack.mT, upstream).mT
    return piece.name, piece.start, _kron_stack_adjoint(stack, upstream)


def _kron_stack_adjoint(stack: Tensor, upstream: Tensor) -> Tensor:
    """Return the adjoint of a stack, ``(groups, n, a, b)``, given that of its product, ``(groups, a**n, b**n)``."""
    groups, count = stack.shape[:2]
    if count == 1:
        return upstream.unsqueeze(1)
    if count % 2:
        before, own = kron_stack(stack[:, :-1]), stack[:, -1]
        apart = _apart(upstream, before, own)
        first = _kron_stack_adjoint(stack[:, :-1], _left(apart, before, own))
        return torch.cat([first, _right(apart, before, own).unsqueeze(1)], dim=1)
    halves = stack.reshape(2 * groups, count // 2, *stack.shape[2:])
    left, right = kron_stack(halves).unflatten(0, (groups, 2)).unbind(1)
    apart = _apart(upstream, left, right)
    both = torch.stack([_left(apart, left, right), _right(apart, left, right)], dim=1)
    return _kron_stack_adjoint(halves, both.flatten(0, 1)).reshape(stack.shape)


# The adjoint of x (a, b) and of y (c, d), given that of their Kronecker product (a c, b d).


def _apart(upstream: Tensor, x: Tensor, y: Tensor) -> Tensor:  # shape: (groups, a c, b d) -> (groups, a b, c d)
    (a, b), (c, d) = x.shape[1:], y.shape[1:]
    return upstream.reshape(-1, a, c, b, d).transpose(2, 3).reshape(-1, a * b, c * d)


def _left(apart: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (apart @ y.reshape(len(y), -1, 1)).reshape(-1, *x.shape[1:])


def _right(apart: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (x.reshape(len(x), 1, -1) @ apart).reshape(-1, *y.shape[1:])


def _padded(tensor: Tensor, first: int, sizes: Sequence[int]) -> Tensor:
    """Return a tensor with zeros behind its entries, so that its dimensions from ``first`` on have these sizes."""
    behind = [size - has for size, has in zip(sizes, tensor.shape[first:], strict=False)]
    if not any(behind):
        return tensor
    pads = [0] * (2 * (tensor.ndim - first - len(behind)))
    return F.pad(tensor, [*pads, *(pad for missing in reversed(behind) for pad in (0, missing))])


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)
