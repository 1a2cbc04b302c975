"""One segment of a plan on tensors: its matrix, a product of Kronecker products, and how that meets a state."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from adntn.contraction.steps import Axes, Piece, Plan, Segment, Stage, Step

__all__ = [
    "Cores",
    "act",
    "act_at",
    "chosen_outputs",
    "cropped",
    "digits",
    "kron",
    "kron_stack",
    "piece_matrix",
    "row_blocks",
    "rows_times",
    "segment_matrices",
    "segment_matrix",
    "shaped",
    "stage_matrix",
    "table",
]

Cores = Mapping[str, Tensor]
Runs = Mapping[tuple[str, int], Tensor]

# Outputs of a segment up to which a stage of gates is made as one matrix.
_LARGEST_STAGE = 256

# Entries of one block of a product with many rows: a megabyte in float32, what a core's own cache holds.
_BLOCK = 1 << 18


def act(step: Step, matrix: Tensor | None, state: Tensor) -> Tensor:
    """Apply a segment's matrix to a state of ``(groups, left, size_in, right)`` entries.

    Returns:
        As many dimensions as it takes: ``(groups, left, held * kept, right)`` entries, axis by axis behind ``held``.
    """
    groups, size_in, right = state.shape[0], step.segment.size_in, step.right
    if matrix is not None:
        left = state.numel() // (groups * size_in * right)
        if right == 1:
            state = rows_times(shaped(state, groups, left, size_in), matrix)
        elif left == 1:
            state = torch.bmm(matrix.mT, shaped(state, groups, size_in, right))
        elif groups == 1:
            made = torch.bmm(matrix.mT.expand(left, -1, -1), state.reshape(left, size_in, right))
            state = made.reshape(1, -1)
        else:
            state = matrix.mT.unsqueeze(1) @ shaped(state, groups, left, size_in, right)
    if step.arranged is not None:
        sizes, order = step.arranged
        state = state.reshape(groups, -1, *sizes).permute(0, 1, *(2 + place for place in order))
    if step.is_cropped:
        state = cropped(state.reshape(groups, -1, *step.made), step.kept, 2)
    return state


def shaped(state: Tensor, *sizes: int) -> Tensor:
    """Return the state in this shape; that which it has costs no call."""
    return state if state.shape == sizes else state.reshape(sizes)


def rows_times(rows: Tensor, matrix: Tensor) -> Tensor:  # shapes: (groups, n, k), (groups, k, m) -> (groups, n, m)
    """Return a product of many short rows with a small matrix."""
    if rows.shape[0] > 1:
        return torch.bmm(rows, matrix)
    parts = row_blocks(rows.shape[1], matrix.shape[2])
    if parts == 1:
        return torch.bmm(rows, matrix)
    made = torch.bmm(rows.reshape(parts, -1, rows.shape[2]), matrix.expand(parts, -1, -1))
    return made.reshape(1, -1, matrix.shape[2])


def row_blocks(rows: int, columns: int) -> int:
    """Return into how many blocks rows are best cut: one that fits into a core's cache is made twice as fast."""
    most = min(rows * columns // _BLOCK, rows)
    return next((parts for parts in range(most, most // 2, -1) if rows % parts == 0), 1)


def cropped(state: Tensor, sizes: Axes, first_dim: int) -> Tensor:
    """Return the leading indices of the dimensions from ``first_dim`` on."""
    for dim, size in enumerate(sizes, start=first_dim):
        state = state.narrow(dim, 0, size) if state.shape[dim] != size else state
    return state


def digits(plan: Plan, group: Tensor, index: Tensor) -> Iterator[tuple[Segment, Tensor]]:
    """Yield each segment of a plan with one axis, and the row of its :func:`table` that belongs to an index."""
    for segment in plan.segments:
        (size,) = segment.released
        yield segment, group * size + index % size
        index = index.div(size, rounding_mode="floor")


def table(segment: Segment, matrix: Tensor | None, like: Tensor) -> Tensor:
    """Return a segment's matrix with a row for each group and finished output, ``(groups * released, size_in * held)``.

    Args:
        segment: with one axis.
        matrix: its own, from :func:`segment_matrix`.
        like: its first dimension is the groups.
    """
    (size,), groups = segment.released, len(like)
    if matrix is None:
        matrix = torch.eye(segment.size_in, dtype=like.dtype, device=like.device)
    whole = matrix.expand(groups, -1, -1).reshape(groups, -1, segment.held, size)
    return whole.permute(0, 3, 1, 2).reshape(groups * size, -1)


def act_at(state: Tensor, rows: Tensor, segment: Segment) -> Tensor:
    """Apply one row of a segment's :func:`table` to each state.

    Args:
        state: shape ``(n, inputs met so far, held before)``.
        rows: shape ``(n, size_in * held)``.
        segment: whose they are.

    Returns:
        Shape ``(n, inputs met, held)``.
    """
    held = state.shape[2]
    each = rows.reshape(len(rows), segment.size_in // held, held, segment.held)
    return (state.unsqueeze(1) @ each).flatten(1, 2)


# --- a segment's matrix ---------------------------------------------------------------------------------------------


def segment_matrices(plan: Plan, cores: Cores, like: Tensor) -> list[Tensor | None]:
    """Return the matrices of a plan's segments; those that are each as many cores of a stack are made at once."""
    runs = _runs(plan, cores)
    made: dict[int, Tensor] = {}
    for piece, numbers in plan.alike:
        stack = runs[piece.name, piece.start]
        groups, _, rows, columns = stack.shape
        whole = kron_stack(stack.reshape(groups * len(numbers), piece.count, rows, columns))
        whole = whole.mT if piece.kind == "mix" else whole
        apart = whole.reshape(groups, len(numbers), *whole.shape[1:]).unbind(1)
        made.update(zip(numbers, apart, strict=True))
    return [
        made[number] if number in made else segment_matrix(step.segment, cores, step.wanted, like, runs)
        for number, step in enumerate(plan.steps)
    ]


def _runs(plan: Plan, cores: Cores) -> Runs:
    """Return each run of cores that a plan takes, by its stack and first core.

    A stack is split at once: on the way back its runs' gradients are then put together at once.
    """
    runs: dict[tuple[str, int], Tensor] = {}
    for name, starts, counts in plan.runs:
        stack = cores[name]
        behind = stack.shape[1] - starts[-1] - counts[-1]
        whole = len(counts) == 1 and not behind
        parts = (stack,) if whole else stack.split([*counts, behind] if behind else list(counts), dim=1)
        runs.update(((name, start), part) for start, part in zip(starts, parts, strict=False))
    return runs


def segment_matrix(
    segment: Segment, cores: Cores, wanted: Axes, like: Tensor, runs: Runs | None = None
) -> Tensor | None:
    """Return a segment's matrix, shape ``(groups, size_in, held * wanted)``; None for the identity."""
    if segment.stages:
        first, *others = segment.stages
        matrix = stage_matrix(first, cores, like, runs)
        for stage in others:
            if matrix.shape[2] > _LARGEST_STAGE:
                matrix = _by_pieces(matrix, stage, cores, like, runs)
            else:
                matrix = matrix @ stage_matrix(stage, cores, like, runs)
        return chosen_outputs(segment, wanted, matrix)
    if segment.columns is None and wanted == segment.released:
        return None
    identity = torch.eye(segment.held * math.prod(segment.released), dtype=like.dtype, device=like.device)
    return chosen_outputs(segment, wanted, identity.expand(like.shape[0], -1, -1))


def _by_pieces(matrix: Tensor, stage: Stage, cores: Cores, like: Tensor, runs: Runs | None) -> Tensor:
    """Return a matrix times that of a stage of gates, which is not made: square, it may be larger than a weight."""
    groups, rows, columns = max(len(matrix), len(like)), matrix.shape[1], matrix.shape[2]
    matrix, rest = matrix.expand(groups, -1, -1), columns
    for piece in stage:
        if piece.kind == "pass":
            rest //= piece.size
            continue
        stack = _stack(piece, cores, runs)
        most = max(1, int(math.log(_LARGEST_STAGE, stack.shape[2])))  # cores whose matrix is small still
        for some in stack.split(most, dim=1):
            own = kron_stack(some)
            own = own.mT if piece.kind == "mix" else own
            rest //= own.shape[1]
            last = matrix.reshape(groups, -1, own.shape[1], rest).mT
            made = last.reshape(groups, -1, own.shape[1]) @ own
            matrix = made.reshape(groups, -1, rest, own.shape[2]).mT
    return matrix.reshape(groups, rows, columns)


def chosen_outputs(segment: Segment, wanted: Axes, matrix: Tensor) -> Tensor:
    """Return a matrix with its finished outputs axis by axis, of each axis the wanted ones."""
    if segment.columns is not None:
        matrix = matrix.index_select(2, torch.tensor(segment.columns, device=matrix.device))
    if wanted != segment.released:
        shaped = matrix.reshape(*matrix.shape[:2], segment.held, *segment.released)
        for axis, size in enumerate(wanted):
            shaped = shaped.narrow(3 + axis, 0, size)
        matrix = shaped.reshape(*matrix.shape[:2], -1)
    return matrix


def stage_matrix(stage: Stage, cores: Cores, like: Tensor, runs: Runs | None = None) -> Tensor:
    """Return the Kronecker product of a stage's pieces, shape ``(groups or 1, rows, columns)``."""
    return functools.reduce(kron, (piece_matrix(piece, cores, like, runs) for piece in stage))


def piece_matrix(piece: Piece, cores: Cores, like: Tensor, runs: Runs | None = None) -> Tensor:
    """Return the Kronecker product of a run of cores, as they act on a state from the right."""
    if piece.kind == "pass":
        return torch.eye(piece.size, dtype=like.dtype, device=like.device).unsqueeze(0)
    whole = kron_stack(_stack(piece, cores, runs))
    return whole.mT if piece.kind == "mix" else whole


def _stack(piece: Piece, cores: Cores, runs: Runs | None) -> Tensor:
    return runs[piece.name, piece.start] if runs else cores[piece.name][:, piece.start : piece.start + piece.count]


def kron_stack(stack: Tensor) -> Tensor:  # shape: (groups, n, a, b) -> (groups, a**n, b**n)
    """Return the Kronecker product of a stack."""
    groups, count, rows, columns = stack.shape
    if count == 1:
        return stack.squeeze(1)
    whole, *others = stack.reshape(groups, count, 1, rows, 1, columns).unbind(1)
    for power, other in enumerate(others, start=1):
        whole = whole.reshape(groups, rows**power, 1, columns**power, 1) * other
    return whole.reshape(groups, rows**count, columns**count)


def kron(x: Tensor, y: Tensor) -> Tensor:  # shapes: (*batch, a, b), (*batch, c, d) -> (*batch, a*c, b*d)
    """Return the Kronecker product of two batches of matrices."""
    (a, b), (c, d) = x.shape[-2:], y.shape[-2:]
    product = x.reshape(*x.shape[:-2], a, 1, b, 1) * y.reshape(*y.shape[:-2], 1, c, 1, d)
    return product.reshape(*product.shape[:-4], a * c, b * d)
