"""The last level on tensors: what its last product takes, and that product, into memory of its own or given memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adntn.contraction.plan import Plan, Readout
from adntn.contraction.segments import (
    Cores,
    act,
    arrangement,
    cropped,
    row_blocks,
    rows_times,
    segment_matrices,
)

__all__ = ["apply", "finished", "summed", "unfinished", "write"]

# Entries that are made at a time where they cannot be made in place: they stay in a core's cache until they are copied.
_PIECE = 1 << 18


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
    for step, matrix in zip(plan.steps, segment_matrices(plan, cores, state), strict=True):
        state = act(step, matrix, state)
    # Held wires are counted on the left until they are released, so that only the batch is left here.
    return state.reshape(groups, batch, *plan.axes)


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
    rows = apply(plan.head, cores, hidden.unsqueeze(1)).squeeze(1)
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
    """Write what :func:`finished` returns, cropped, into ``out``, shape ``(groups, *axes)``, its kernel in one axis or more.

    Straight where every entry of the product is one of ``out``; in pieces otherwise.
    """
    if matrix is None:
        out.copy_(rows.reshape(out.shape))
        return
    leading, trailing = tuple(rows.shape[1:-1]), tuple(matrix.shape[2:])
    if plan.made == plan.crop and out.is_contiguous() and out.dtype == rows.dtype:
        if arrangement(leading, trailing) is None:
            _write_rows(rows.flatten(1, -2), matrix.flatten(2), out.view(len(rows), -1, math.prod(trailing)))
            return
        if arrangement(leading[1:], trailing[1:]) is None:
            _write_strided(rows.flatten(2, -2), matrix.flatten(3), out)
            return
    each = len(rows) * math.prod(leading[1:]) * math.prod(trailing)
    step = max(1, _PIECE // each)
    for start in range(0, leading[0], step):
        place = out[:, start * trailing[0] : (start + step) * trailing[0]]
        made = finished(rows[:, start : start + step], matrix)
        place.copy_(cropped(made, (place.shape[1], *plan.crop[1:]), 1).reshape(place.shape))


def _write_rows(rows: Tensor, matrix: Tensor, out: Tensor) -> None:  # shapes: (g, n, k), (g, k, m), (g, n, m)
    parts = row_blocks(rows.shape[1], matrix.shape[2])
    for own, mine, place in zip(rows, matrix, out, strict=True) if parts > 1 else ():
        shape = (parts, -1, place.shape[1])
        torch.bmm(own.reshape(parts, -1, own.shape[1]), mine.expand(parts, -1, -1), out=place.view(shape))
    if parts == 1:
        torch.bmm(rows, matrix, out=out)


def _write_strided(rows: Tensor, matrix: Tensor, out: Tensor) -> None:
    # shapes: rows (g, leading, n, k), matrix (g, k, trailing, m), out (g, leading * trailing, n * m)
    places = out.view(len(rows), rows.shape[1], matrix.shape[2], rows.shape[2], matrix.shape[3])
    for own, mine, place in zip(rows, matrix, places, strict=True):
        for digit in range(matrix.shape[2]):
            torch.bmm(own, mine[:, digit].expand(len(own), -1, -1), out=place[:, digit])
