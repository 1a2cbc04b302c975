"""Circuits of cores and gates on wires, and how one is cut into segments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from adntn.contraction.steps import Piece, Plan, Segment, Stage
from adntn.levels import Core, Level

__all__ = ["MAX_ENTRIES", "MAX_OUTPUTS", "Circuit", "Input", "Wire", "gates_of", "parents_of"]

# Bounds on one segment's matrix. Larger ones cost arithmetic (a product with a merged matrix of b inputs costs b
# multiply-adds an output), smaller ones cost calls. 256 outputs of 16 inputs are four readout cores of radix 2.
MAX_OUTPUTS = 256
MAX_ENTRIES = 1 << 13

# A last mode of at most so many entries does not merely pass where several segments act on the others: a product for
# each entry on the left, of so few columns, takes longer than one with a matrix that has the identity in it.
_NARROW = 4


@dataclass
class Wire:
    """A wire as the walk sees it: finished when no gate is waiting for it."""

    size: int
    axis: int
    gates: list[tuple[int, int]] = field(default_factory=list)  # (layer, gate) still to act, in order


@dataclass(frozen=True)
class Input:
    """What enters a circuit: what a core acts on, or a wire that passes through."""

    wires: tuple[int, ...]  # keys of what it becomes: positions, or below zero a parent left as it is
    core: Core | None
    size: int
    kind: Literal["expand", "mix"] = "expand"

    @property
    def stack(self) -> str:
        return self.core.stack if self.core is not None else ""


def _runs(cores: Sequence[Core | None], sizes: Sequence[int], kind: Literal["expand", "mix"]) -> Stage:
    """Group neighbouring cores of one stack, and neighbouring untouched wires, into pieces."""
    pieces: list[Piece] = []
    for core, size in zip(cores, sizes, strict=True):
        last = pieces[-1] if pieces else None
        if core is None:
            if last is not None and last.kind == "pass":
                pieces[-1] = Piece("pass", size=last.size * size)
            else:
                pieces.append(Piece("pass", size=size))
        elif last is not None and last.name == core.stack and last.start + last.count == core.place:
            pieces[-1] = Piece(kind, last.name, last.start, last.count + 1)
        else:
            pieces.append(Piece(kind, core.stack, core.place, 1))
    return tuple(pieces)


def _does_nothing(stage: Stage) -> bool:
    return all(piece.kind == "pass" for piece in stage)


class Circuit:
    """Walks a circuit from the last wire to the first and cuts it into segments."""

    def __init__(self, level: Level, wires: dict[int, Wire], num_axes: int) -> None:
        self.level = level
        self.wires = wires
        self.num_axes = num_axes

    def plan(self, inputs: Sequence[Input], takes: Sequence[int] = ()) -> Plan:
        """Cut the circuit into segments, of ``takes`` inputs each where that is given, the last inputs first."""
        if takes:
            return self._planned(inputs, self._taken(inputs, takes))
        busy = [i.core is not None or any(self.wires[w].gates for w in i.wires) for i in inputs]
        segments = self._cut(inputs, busy, len(inputs))
        cuts = sum(bool(segment.stages) for segment in segments)
        if cuts > 1 and busy[-2:] == [True, False] and inputs[-1].size <= _NARROW:
            busy[-1] = True
            segments = self._cut(inputs, busy, len(inputs))
            cuts = sum(bool(segment.stages) for segment in segments)
        if cuts > 1 and not any(wire.gates for wire in self.wires.values()):
            # As many segments, but of one length where that is possible: matrices of a kind are made together.
            even = self._cut(inputs, busy, -(-sum(busy) // cuts))
            segments = even if len(even) == len(segments) else segments
        return self._planned(inputs, segments)

    def _planned(self, inputs: Sequence[Input], segments: list[Segment]) -> Plan:
        size_out = tuple(math.prod(s.released[a] for s in segments) for a in range(self.num_axes))
        return Plan(tuple(segments), math.prod(i.size for i in inputs), size_out)

    def _taken(self, inputs: Sequence[Input], takes: Sequence[int]) -> list[Segment]:
        segments: list[Segment] = []
        stop, held = len(inputs), list[int]()
        for count in filter(None, takes):
            segment, held = self._segment(list(inputs[stop - count : stop]), held)
            segments.append(segment)
            stop -= count
        return segments

    def _cut(self, inputs: Sequence[Input], busy: Sequence[bool], most: int) -> list[Segment]:
        gates = {key: list(wire.gates) for key, wire in self.wires.items()}
        queue, held = list(zip(inputs, busy, strict=True)), list[int]()
        segments: list[Segment] = []
        while queue:
            segment, held = self._segment(self._take(queue, held, most), held)
            segments.append(segment)
        for key, wire in self.wires.items():
            wire.gates = gates[key]
        return segments

    def _take(self, queue: list[tuple[Input, bool]], held: list[int], most: int) -> list[Input]:
        """Take inputs off the right end until one more would make the segment's matrix too large.

        What merely passes is not taken together with what is acted on: it would have to be an identity there. And
        where there are no gates, cores of two kinds are not: two products of small matrices with the state are less
        than one with the large matrix that both would make.
        """
        taken: list[Input] = []
        size_in = size_out = math.prod(self.wires[w].size for w in held)
        first_busy = queue[-1][1]
        alone = not held and not any(wire.gates for wire in self.wires.values())
        while queue:
            candidate, busy = queue[-1]
            if alone and taken and candidate.stack != taken[0].stack != "":
                break
            size_in *= candidate.size
            size_out *= math.prod(self.wires[w].size for w in candidate.wires)
            large = busy and (len(taken) >= most or size_out > MAX_OUTPUTS or size_in * size_out > MAX_ENTRIES)
            if taken and (busy != first_busy or large):
                break
            taken.insert(0, queue.pop()[0])
        return taken

    def _segment(self, taken: list[Input], held: list[int]) -> tuple[Segment, list[int]]:
        size_of = {w: self.wires[w].size for i in taken for w in i.wires} | {w: self.wires[w].size for w in held}
        size_in = math.prod(i.size for i in taken) * math.prod(size_of[w] for w in held)
        stages: list[Stage] = []
        first = _runs(
            [i.core for i in taken] + [None] * len(held),
            [i.size for i in taken] + [size_of[w] for w in held],
            taken[0].kind,
        )
        if not _does_nothing(first):
            stages.append(first)
        run = [w for i in taken for w in i.wires] + held
        while fired := self._ready(run):
            cores: list[Core | None] = []
            sizes: list[int] = []
            place = 0
            while place < len(run):
                gate = fired.get(place)
                cores.append(None if gate is None else self.level.gates[gate[0]][gate[1]])
                sizes.append(size_of[run[place]])
                place += 1 if gate is None else 2
            stages.append(_runs(cores, sizes, "mix"))
        still_open = [place for place, w in enumerate(run) if self.wires[w].gates]
        cut = still_open[-1] + 1 if still_open else 0
        held, done = run[:cut], run[cut:]
        released = tuple(
            math.prod(size_of[w] for w in done if self.wires[w].axis == axis) for axis in range(self.num_axes)
        )
        columns = self._columns(math.prod(size_of[w] for w in held), done)
        segment = Segment(tuple(stages), size_in, math.prod(size_of[w] for w in held), released, columns)
        return segment, held

    def _ready(self, run: list[int]) -> dict[int, tuple[int, int]]:
        """Return the gates whose two wires are both here and wait for that gate next, by their first wire's place."""
        fired: dict[int, tuple[int, int]] = {}
        for place in range(len(run) - 1):
            left, right = self.wires[run[place]], self.wires[run[place + 1]]
            if place - 1 not in fired and left.gates and right.gates and left.gates[0] == right.gates[0]:
                fired[place] = left.gates[0]
        for place in fired:
            self.wires[run[place]].gates.pop(0)
            self.wires[run[place + 1]].gates.pop(0)
        return fired

    def _columns(self, held: int, done: list[int]) -> tuple[int, ...] | None:
        axes = [self.wires[w].axis for w in done]
        if axes == sorted(axes):
            return None
        sizes = [self.wires[w].size for w in done]
        strides = [math.prod(sizes[place + 1 :]) for place in range(len(done))]
        index = [0]
        for place in sorted(range(len(done)), key=lambda p: axes[p]):
            index = [i + step * strides[place] for i in index for step in range(sizes[place])]
        total = math.prod(sizes)
        return tuple(h * total + i for h in range(held) for i in index)


def gates_of(level: Level) -> dict[int, list[tuple[int, int]]]:
    """Return, for every child position, the gates that act on it, in order."""
    gates: dict[int, list[tuple[int, int]]] = {position: [] for position in range(level.children)}
    for layer, mixer in enumerate(level.mixers):
        for gate in range(mixer.gates):
            for position in (mixer.first + 2 * gate, mixer.first + 2 * gate + 1):
                gates[position].append((layer, gate))
    return gates


def parents_of(level: Level) -> list[Input]:
    """Return a level's parents, each with its core and its children."""
    return [Input(level.children_of(parent), core, level.sizes_in[parent]) for parent, core in enumerate(level.cores)]
