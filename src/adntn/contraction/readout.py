"""The last level on tensors: what its last product takes, and that product, into memory of its own or given memory."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from adntn.contraction.plan import Readout
from adntn.contraction.segments import (
    Cores,
    act,
    cropped,
    row_blocks,
    rows_times,
    segment_matrices,
    shaped,
)
from adntn.contraction.steps import Plan, arrangement

__all__ = ["apply", "finished", "run", "summed", "unfinished", "write"]

# Entries that are made at a time where they cannot be made in place: they stay in a core's cache until they are copied.
_PIECE = 1 << 19


def apply(plan: Plan, cores: Cores, state: Tensor) -> Tensor:
    """Run a plan on a batch of states.

    Args:
        plan: from :func:`plan_level`, :func:`plan_readout` or :func:`plan_split`.
        cores: the level's stacks by parameter name, each of shape ``(groups, cores, size_in, size_out)``; a gate's
            rows are the new pair of indices, its columns the old.
        state: shape ``(groups, batch, plan.size_in)``.

    Returns:
        Shape ``(groups, batch, *axes)``, each axis cropped as the plan says.
    """
    groups, batch = state.shape[:2]
    # Held wires are counted on the left until they are released, so that only the batch is left there.
    return shaped(run(plan, cores, state), groups, batch, *plan.axes)


def run(plan: Plan, cores: Cores, state: Tensor) -> Tensor:
    """Run a plan, as :func:`apply`, on states whose shape begins with the groups; so does that of the outcome."""
    for step, matrix in zip(plan.steps, segment_matrices(plan, cores, state), strict=True):
        state = act(step, matrix, state)
    return state


def unfinished(plan: Readout, cores: Cores, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what the last product of a readout takes.

    Args:
        plan: of the readout.
        cores: the last level's stacks by parameter name.
        hidden: shape ``(trees, entries)``.

    Returns:
        Rows of shape ``(trees, *leading digits, k)`` and a matrix of shape ``(trees, k, *trailing digits)``; where
        there is no such product, the outcome of shape ``(trees, *axes)`` and None.
    """
    rows = shaped(run(plan.head, cores, hidden), len(hidden), *plan.head.axes)
    if plan.tail is None:
        return rows, None
    (matrix,) = segment_matrices(plan.tail, cores, hidden)
    assert matrix is not None
    return rows, matrix.reshape(*matrix.shape[:2], *plan.tail.axes)


def summed(rows: Tensor, matrix: Tensor | None, terms: int) -> tuple[Tensor, Tensor | None]:
    """Return the same of sums of trees, whose last products become one."""
    if terms == 1:
        return rows, matrix
    apart = rows.unflatten(0, (-1, terms))
    if matrix is None:
        return apart.sum(1), None
    return apart.movedim(1, -2).flatten(-2), matrix.unflatten(0, (-1, terms)).flatten(1, 2)


def finished(rows: Tensor, matrix: Tensor | None) -> Tensor:
    """Return the last product of :func:`unfinished`, shape ``(trees, *axes)``, axes not cropped where it cuts them."""
    if matrix is None:
        return rows
    leading, trailing = tuple(rows.shape[1:-1]), tuple(matrix.shape[2:])
    made = rows_times(rows.reshape(len(rows), -1, rows.shape[-1]), matrix.flatten(2))
    arranged = arrangement(leading, trailing)
    if arranged is not None:
        sizes, order = arranged
        made = made.reshape(len(rows), *sizes).permute(0, *(1 + place for place in order))
    return made.reshape(len(rows), *(a * b for a, b in zip(leading, trailing, strict=True)))


def write(plan: Readout, rows: Tensor, matrix: Tensor | None, out: Tensor) -> None:
    """Write what :func:`finished` returns, cropped, into ``out`` of shape ``(groups, *axes)``.

    Straight where the product's entries stand as those of ``out``; by pieces, from a cache, otherwise.

    Args:
        plan: of the readout.
        rows: as from :func:`summed`, as is ``matrix``.
        matrix: the last product's.
        out: its kernel may be several axes.
    """
    if matrix is None:
        out.copy_(rows.reshape(out.shape))
        return
    groups, leading, trailing = len(rows), rows.shape[1:-1], matrix.shape[2:]
    whole = plan.made == plan.crop and out.is_contiguous()
    if whole and out.dtype == rows.dtype and arrangement(tuple(leading), tuple(trailing)) is None:
        _write_rows(rows.flatten(1, -2), matrix.flatten(2), out.view(groups, -1, math.prod(trailing)))
        return
    step = max(1, _PIECE // (groups * math.prod(leading[1:]) * math.prod(trailing)))
    if whole:
        places = out.view(groups, *itertools.chain.from_iterable(zip(leading, trailing, strict=True)))
        dims = range(1, places.ndim)
        places = places.permute(0, *dims[::2], *dims[1::2])  # shape: (groups, *leading, *trailing)
        for start in range(0, leading[0], step):
            place, some = places[:, start : start + step], rows[:, start : start + step]
            made = rows_times(some.reshape(groups, -1, rows.shape[-1]), matrix.flatten(2))
            place.copy_(made.view(place.shape))
        return
    for start in range(0, leading[0], step):
        place = out[:, start * trailing[0] : (start + step) * trailing[0]]
        made = finished(rows[:, start : start + step], matrix)
        place.copy_(cropped(made, (place.shape[1], *plan.crop[1:]), 1).reshape(place.shape))


def _write_rows(rows: Tensor, matrix: Tensor, out: Tensor) -> None:  # shapes: (g, n, k), (g, k, m), (g, n, m)
    parts = row_blocks(rows.shape[1], matrix.shape[2])
    if parts == 1:
        torch.bmm(rows, matrix, out=out)
        return
    for own, mine, place in zip(rows, matrix, out, strict=True):
        blocks = own.reshape(parts, -1, own.shape[1])
        torch.bmm(blocks, mine.expand(parts, -1, -1), out=place.view(parts, -1, place.shape[1]))
