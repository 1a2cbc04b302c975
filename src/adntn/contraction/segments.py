"""One segment of a plan on tensors: its matrix, a product of Kronecker products, and how that meets a state."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adntn.contraction.plan import Axes, Piece, Plan, Segment, Stage

__all__ = [
    "Cores",
    "Step",
    "act",
    "act_at",
    "arrangement",
    "chosen_outputs",
    "digits",
    "kron",
    "kron_stack",
    "made_axes",
    "piece_matrix",
    "segment_matrix",
    "stage_matrix",
    "steps",
    "table",
]

Cores = Mapping[str, Tensor]


@dataclass(frozen=True)
class Step:
    """A segment where a plan has it act: on the third dimension of ``(groups, left, size_in, right)``.

    Attributes:
        segment: what acts.
        wanted: of the outputs it releases, how many of each axis are not wholly in the padding.
        left: entries before its inputs, the batch among them.
        done: what the segments before it released, an entry an axis.
    """

    segment: Segment
    wanted: Axes
    left: int
    done: Axes

    @property
    def right(self) -> int:
        return math.prod(self.done)

    @property
    def size_out(self) -> int:
        return self.segment.held * math.prod(self.wanted)


def steps(plan: Plan, batch: int) -> list[Step]:
    """Return a plan's segments with the sizes of the states that they meet."""
    found: list[Step] = []
    done: Axes = (1,) * len(plan.size_out)
    left = batch * plan.size_in
    for number, segment in enumerate(plan.segments, start=1):
        left //= segment.size_in
        wanted = segment.released
        if plan.crop is not None and number == len(plan.segments):
            # Indices of the leading digits that lie wholly in the padding are never made.
            wanted = tuple(min(new, -(-crop // old)) for new, crop, old in zip(wanted, plan.crop, done, strict=True))
        found.append(Step(segment, wanted, left, done))
        left *= segment.held
        done = tuple(new * old for new, old in zip(wanted, done, strict=True))
    return found


def made_axes(plan: Plan) -> Axes:
    """Return the axes that the last step of a plan leaves, before they are cropped."""
    if not plan.segments:
        return plan.size_out
    *_, last = steps(plan, 1)
    return tuple(new * old for new, old in zip(last.wanted, last.done, strict=True))


def act(step: Step, matrix: Tensor | None, state: Tensor) -> Tensor:
    """Apply a segment's matrix, from :func:`segment_matrix`, to a state of ``(groups, left, size_in, right)`` entries.

    Returns:
        As many dimensions as it takes: ``(groups, left, held * wanted, right)`` entries, axis by axis behind ``held``.
    """
    groups = state.shape[0]
    if matrix is not None:
        if step.right == 1:
            state = state.reshape(groups, step.left, step.segment.size_in) @ matrix
        else:
            state = matrix.mT.unsqueeze(1) @ state.reshape(groups, step.left, step.segment.size_in, step.right)
    arranged = arrangement(step.wanted, step.done)
    if arranged is None:
        return state
    sizes, order = arranged
    shaped = state.reshape(groups, step.left * step.segment.held, *sizes)
    moved = shaped.permute(0, 1, *(2 + place for place in order))
    return moved.reshape(groups, step.left * step.segment.held, -1)


def arrangement(new: Axes, old: Axes) -> tuple[list[int], list[int]] | None:
    """Return how finished outputs ``(*new, *old)`` come to one index an axis: their sizes, and their new order."""
    sizes = [(n, o) for n, o in zip(new, old, strict=True) if n * o > 1]
    order = [(part, axis) for part in (0, 1) for axis in range(len(sizes)) if sizes[axis][part] > 1]
    target = sorted(order, key=lambda item: (item[1], item[0]))
    if order == target:
        return None
    return [sizes[axis][part] for part, axis in order], [order.index(item) for item in target]


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


def segment_matrix(segment: Segment, cores: Cores, wanted: Axes, like: Tensor) -> Tensor | None:
    """Return a segment's matrix, shape ``(groups, size_in, held * wanted)``; None for the identity."""
    stages = [stage_matrix(stage, cores, like) for stage in segment.stages]
    if stages:
        return chosen_outputs(segment, wanted, functools.reduce(torch.matmul, stages))
    if segment.columns is None and wanted == segment.released:
        return None
    identity = torch.eye(segment.held * math.prod(segment.released), dtype=like.dtype, device=like.device)
    return chosen_outputs(segment, wanted, identity.expand(like.shape[0], -1, -1))


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


def stage_matrix(stage: Stage, cores: Cores, like: Tensor) -> Tensor:
    """Return the Kronecker product of a stage's pieces, shape ``(groups or 1, rows, columns)``."""
    return functools.reduce(kron, (piece_matrix(piece, cores, like) for piece in stage))


def piece_matrix(piece: Piece, cores: Cores, like: Tensor) -> Tensor:
    """Return the Kronecker product of a run of cores, as they act on a state from the right."""
    if piece.kind == "pass":
        return torch.eye(piece.size, dtype=like.dtype, device=like.device).unsqueeze(0)
    stack = cores[piece.name][:, piece.start : piece.start + piece.count]
    return kron_stack(stack.mT if piece.kind == "mix" else stack)


def kron_stack(stack: Tensor) -> Tensor:  # shape: (groups, n, a, b) -> (groups, a**n, b**n)
    """Return the Kronecker product of a stack, by batched pairs."""
    rest: Tensor | None = None
    while stack.shape[1] > 1:
        if stack.shape[1] % 2:
            last = stack[:, -1]
            rest = last if rest is None else kron(last, rest)
            stack = stack[:, :-1]
        stack = kron(stack[:, 0::2], stack[:, 1::2])
    whole = stack[:, 0]
    return whole if rest is None else kron(whole, rest)


def kron(x: Tensor, y: Tensor) -> Tensor:  # shapes: (*batch, a, b), (*batch, c, d) -> (*batch, a*c, b*d)
    """Return the Kronecker product of two batches of matrices."""
    product = x[..., :, None, :, None] * y[..., None, :, None, :]
    return product.reshape(*product.shape[:-4], x.shape[-2] * y.shape[-2], x.shape[-1] * y.shape[-1])
