"""What a plan consists of: pieces, segments and the steps in which they act. Plain Python, without tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

__all__ = ["Axes", "Piece", "Plan", "Segment", "Stage", "Step", "Walk", "arrangement"]

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """A run of neighbouring cores of one kind, or of wires that pass through untouched.

    Attributes:
        kind: which stack of cores, or ``"pass"``.
        name: of the parameter that holds the stack; empty for ``"pass"``.
        start: first core of the run.
        count: cores in the run.
        size: entries of the wires that pass through; unused for cores.
    """

    kind: Literal["expand", "mix", "pass"]
    name: str = ""
    start: int = 0
    count: int = 0
    size: int = 1


Stage = tuple[Piece, ...]


@dataclass(frozen=True)
class Segment:
    """One matrix on neighbouring wires, and what becomes of its outputs.

    Attributes:
        stages: Kronecker products, applied one after the other.
        size_in: entries of its inputs.
        held: entries of the leading outputs that a later segment, further left, still needs.
        released: entries of the finished outputs, an entry an axis.
        columns: order of the outputs that puts the finished ones axis by axis; None if they stand so.
    """

    stages: tuple[Stage, ...]
    size_in: int
    held: int
    released: Axes
    columns: tuple[int, ...] | None


def arrangement(new: Axes, old: Axes) -> tuple[list[int], list[int]] | None:
    """Return how finished outputs ``(*new, *old)`` come to one index an axis: their sizes, and their new order."""
    sizes = [(n, o) for n, o in zip(new, old, strict=True) if n * o > 1]
    order = [(part, axis) for part in (0, 1) for axis in range(len(sizes)) if sizes[axis][part] > 1]
    target = sorted(order, key=lambda item: (item[1], item[0]))
    if order == target:
        return None
    return [sizes[axis][part] for part, axis in order], [order.index(item) for item in target]


@dataclass(frozen=True)
class Step:
    """A segment where a plan has it act: on the third dimension of ``(groups, left, size_in, right)``.

    Attributes:
        segment: what acts.
        wanted: of the outputs it releases, how many of each axis are not wholly in the padding.
        left: entries before its inputs, for one state.
        done: what the segments before it released and was kept, an entry an axis.
        kept: of every axis, what is kept once this segment has acted: all of it until its last digit stands.
    """

    segment: Segment
    wanted: Axes
    left: int
    done: Axes
    kept: Axes

    def __post_init__(self) -> None:
        # Once, not at every call: for a small layer these sums would be a good part of the time.
        _ = self.right, self.made, self.arranged, self.is_cropped

    @cached_property
    def right(self) -> int:
        return math.prod(self.done)

    @cached_property
    def made(self) -> Axes:
        """Of every axis, what there is before it is cropped."""
        return tuple(new * old for new, old in zip(self.wanted, self.done, strict=True))

    @cached_property
    def arranged(self) -> tuple[list[int], list[int]] | None:
        """See :func:`arrangement`."""
        return arrangement(self.wanted, self.done)

    @cached_property
    def is_cropped(self) -> bool:
        return self.kept != self.made

    @property
    def size_out(self) -> int:
        return self.segment.held * math.prod(self.wanted)


@dataclass(frozen=True)
class Plan:
    """A circuit as segments, the last wires first.

    Attributes:
        segments: in the order in which they act.
        size_in: entries of the incoming state.
        size_out: entries of the outgoing state, an entry an axis.
        crop: how many indices of each axis are wanted, or None for all of them.
    """

    segments: tuple[Segment, ...]
    size_in: int
    size_out: Axes
    crop: Axes | None = None

    def __post_init__(self) -> None:
        _ = (
            self.steps,
            self.alike,
            self.runs,
        )  # now, since a compiler cannot trace a property that is kept at its first use

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The segments with what they meet. Each axis is cropped where it is whole, while the state is still small."""
        last = [
            max((n for n, s in enumerate(self.segments) if s.released[axis] > 1), default=-1)
            for axis in range(len(self.size_out))
        ]
        found: list[Step] = []
        left, done = self.size_in, (1,) * len(self.size_out)
        for number, segment in enumerate(self.segments):
            left //= segment.size_in
            wanted, kept = list(segment.released), [new * old for new, old in zip(segment.released, done, strict=True)]
            for axis, size in enumerate(self.crop or ()):
                if last[axis] == number:
                    wanted[axis] = min(wanted[axis], -(-size // done[axis]))
                    kept[axis] = min(kept[axis], size)
            found.append(Step(segment, tuple(wanted), left, done, tuple(kept)))
            left, done = left * segment.held, tuple(kept)
        return tuple(found)

    @cached_property
    def alike(self) -> tuple[tuple[Piece, tuple[int, ...]], ...]:
        """Segments that are each a run of as many cores of a stack, the runs one behind the other.

        The first run, and the numbers of the segments in the order of the runs.
        """
        runs: dict[tuple[str, int], dict[int, int]] = {}
        for number, step in enumerate(self.steps):
            segment = step.segment
            if len(segment.stages) == 1 and segment.columns is None and step.wanted == segment.released:
                piece, *more = segment.stages[0]
                if not more and piece.kind != "pass":
                    runs.setdefault((piece.name, piece.count), {})[piece.start] = number
        found = []
        for (name, count), places in runs.items():
            starts = sorted(places)
            if len(starts) > 1 and starts[-1] - starts[0] == (len(starts) - 1) * count:
                piece = self.segments[places[starts[0]]].stages[0][0]
                found.append((piece, tuple(places[start] for start in starts)))
                assert piece.name == name
        return tuple(found)

    @cached_property
    def runs(self) -> tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]:
        """How each stack is cut into the runs that its segments take: name, where each begins, cores of each.

        The runs of :attr:`alike` segments are one. Cores that no segment takes are runs too.
        """
        pieces = {p for segment in self.segments for stage in segment.stages for p in stage if p.kind != "pass"}
        for piece, numbers in self.alike:
            mine = {self.segments[number].stages[0][0] for number in numbers}
            pieces = (pieces - mine) | {replace(piece, count=len(numbers) * piece.count)}
        found = []
        for name in sorted({piece.name for piece in pieces}):
            starts, counts, end = list[int](), list[int](), 0
            for piece in sorted((p for p in pieces if p.name == name), key=lambda p: p.start):
                for start, stop in ((end, piece.start), (piece.start, piece.start + piece.count)):
                    if stop > start:
                        starts.append(start)
                        counts.append(stop - start)
                end = piece.start + piece.count
            found.append((name, tuple(starts), tuple(counts)))
        return tuple(found)

    @property
    def axes(self) -> Axes:
        """The axes of its outcome, cropped."""
        return self.steps[-1].kept if self.steps else self.size_out

    @property
    def stacks(self) -> frozenset[str]:
        """The stacks of which it has cores."""
        pieces = (piece for segment in self.segments for stage in segment.stages for piece in stage)
        return frozenset(piece.name for piece in pieces if piece.kind != "pass")


@dataclass(frozen=True)
class Walk:
    """The last level's circuit for entries and rows on demand; see :mod:`adntn.contraction.on_demand`.

    Attributes:
        whole: the circuit that makes everything.
    """

    whole: Plan

    def __post_init__(self) -> None:
        _ = self.entries, self.rows  # now, as a plan's steps

    @cached_property
    def entries(self) -> Plan:
        """The same with one index on every axis."""
        return self._of_one(range(len(self.whole.size_out)))

    @cached_property
    def rows(self) -> Plan:
        """The same with one index on the first axis."""
        return self._of_one(range(1))

    def _of_one(self, axes: range) -> Plan:
        def only(sizes: Axes) -> Axes:
            return tuple(1 if axis in axes else size for axis, size in enumerate(sizes))

        plan = self.whole
        # Their columns are of all outputs, and so do not count.
        segments = tuple(replace(segment, released=only(segment.released)) for segment in plan.segments)
        return Plan(segments, plan.size_in, only(plan.size_out), plan.crop and only(plan.crop))
