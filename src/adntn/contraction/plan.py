"""The contraction of a level: how cores meet a state in few, large matrix products.

A level is a circuit on *wires*: parents come in, expansions and carries turn them into children, gates mix
neighbours. The circuit is walked once, from the last wire to the first, and cut into :class:`Segment` s. A segment is
a Kronecker product of some cores, with every gate that can already act merged into it: one small matrix that acts
on neighbouring wires. So the state is never an array of more than a handful of dimensions, whatever Q is, and a gate
never costs a pass of its own over a large state.

Plans are plain Python, made once for a blueprint; :mod:`adntn.contraction.run` runs one on tensors. The same walk,
restricted to the cores above one axis of the weight, gives the exact split W = A C B^T of the readout
(see :class:`Split`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from adntn.levels import Core, Level
from adntn.tensorize import IN, KERNEL, OUT, Tensorization

__all__ = ["Axes", "Plan", "Segment", "Split", "Stage", "plan_level", "plan_readout", "plan_split"]

# Bounds on one segment's matrix. Larger ones cost arithmetic (a product with a merged matrix of b inputs costs b
# multiply-adds an output), smaller ones cost calls. 256 outputs of 16 inputs are four readout cores of radix 2.
_MAX_OUTPUTS = 256
_MAX_ENTRIES = 1 << 13

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

    @property
    def stacks(self) -> frozenset[str]:
        """The stacks of which it has cores."""
        pieces = (piece for segment in self.segments for stage in segment.stages for piece in stage)
        return frozenset(piece.name for piece in pieces if piece.kind != "pass")


@dataclass
class _Wire:
    """A wire as the walk sees it: finished when no gate is waiting for it."""

    size: int
    axis: int
    gates: list[tuple[int, int]] = field(default_factory=list)  # (layer, gate) still to act, in order


@dataclass(frozen=True)
class _Input:
    """What enters a circuit: a parent with a core to expand it, or a wire that passes through."""

    wires: tuple[int, ...]  # keys of what it becomes: positions, or below zero a parent left as it is
    core: Core | None
    size: int


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


class _Circuit:
    """Walks a circuit from the last wire to the first and cuts it into segments."""

    def __init__(self, level: Level, wires: dict[int, _Wire], num_axes: int) -> None:
        self.level = level
        self.wires = wires
        self.num_axes = num_axes

    def plan(self, inputs: Sequence[_Input], takes: Sequence[int] = ()) -> Plan:
        """Cut the circuit into segments, of ``takes`` inputs each where that is given, the last inputs first."""
        queue, held = list(inputs), list[int]()
        segments: list[Segment] = []
        left = iter(takes)
        while queue:
            count = next(left, 0)
            taken = [queue.pop() for _ in range(count)][::-1] if count else self._take(queue, held)
            segment, held = self._segment(taken, held)
            segments.append(segment)
        size_out = tuple(math.prod(s.released[a] for s in segments) for a in range(self.num_axes))
        return Plan(tuple(segments), math.prod(i.size for i in inputs), size_out)

    def _take(self, queue: list[_Input], held: list[int]) -> list[_Input]:
        """Take inputs off the right end until one more would make the segment's matrix too large."""
        taken: list[_Input] = []
        size_in = size_out = math.prod(self.wires[w].size for w in held)
        while queue:
            candidate = queue[-1]
            size_in *= candidate.size
            size_out *= math.prod(self.wires[w].size for w in candidate.wires)
            if taken and (size_out > _MAX_OUTPUTS or size_in * size_out > _MAX_ENTRIES):
                break
            taken.insert(0, queue.pop())
        return taken

    def _segment(self, taken: list[_Input], held: list[int]) -> tuple[Segment, list[int]]:
        size_of = {w: self.wires[w].size for i in taken for w in i.wires} | {w: self.wires[w].size for w in held}
        size_in = math.prod(i.size for i in taken) * math.prod(size_of[w] for w in held)
        stages: list[Stage] = []
        first = _runs(
            [i.core for i in taken] + [None] * len(held),
            [i.size for i in taken] + [size_of[w] for w in held],
            "expand",
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


def _gates(level: Level) -> dict[int, list[tuple[int, int]]]:
    """Return, for every child position, the gates that act on it, in order."""
    gates: dict[int, list[tuple[int, int]]] = {position: [] for position in range(level.children)}
    for layer, mixer in enumerate(level.mixers):
        for gate in range(mixer.gates):
            for position in (mixer.first + 2 * gate, mixer.first + 2 * gate + 1):
                gates[position].append((layer, gate))
    return gates


def _parents(level: Level) -> list[_Input]:
    return [_Input(level.children_of(parent), core, level.sizes_in[parent]) for parent, core in enumerate(level.cores)]


@functools.lru_cache(maxsize=1024)
def plan_level(level: Level) -> Plan:
    """Plan a level between two hidden states; its outcome has one axis, the raveled state."""
    wires = {p: _Wire(level.sizes_out[p], 0, gates) for p, gates in _gates(level).items()}
    return _Circuit(level, wires, num_axes=1).plan(_parents(level))


@functools.lru_cache(maxsize=1024)
def plan_readout(level: Level, tensorization: Tensorization) -> Plan:
    """Plan the last level so that its outcome has the weight's axes, padded axes cropped on the way."""
    gates = _gates(level)
    wires = {p: _Wire(mode.size, mode.axis, gates[p]) for p, mode in enumerate(tensorization.modes)}
    plan = _Circuit(level, wires, num_axes=len(tensorization.axes)).plan(_parents(level))
    return replace(plan, crop=_crop(tensorization))


def _crop(tensorization: Tensorization) -> Axes:
    """Return how much of each axis to keep in tree order: all of it where its digits are out of order."""
    return tuple(
        size if tensorization.digit_permutation(axis) is None else tensorization.padded_axes[axis]
        for axis, size in enumerate(tensorization.axes)
    )


@dataclass(frozen=True)
class Split:
    """The readout as three circuits: W = A C B^T, exactly, since the readout is linear.

    A core or gate belongs to ``out`` if everything below it is an ``out`` mode, to ``in`` likewise; the rest, and
    the hidden state, are the centre.

    Attributes:
        outer: from the ``out`` cut to the ``out`` axis; run on the identity it gives A^T.
        inner: from the ``in`` cut to the ``in`` axis; run on the identity it gives B^T.
        centre: from the hidden state to (``out`` cut, ``in`` cut, kernel).
        staged_outer: ``outer`` in the segments that a state goes through with the least work.
        staged_inner: ``inner`` likewise.
    """

    outer: Plan
    inner: Plan
    centre: Plan
    staged_outer: Plan
    staged_inner: Plan

    def side(self, axis: int) -> Plan:
        """Return the circuit that leads to an axis."""
        return self.outer if axis == OUT else self.inner

    @property
    def ranks(self) -> tuple[int, int]:
        """The sizes r and r' of the two cuts."""
        return self.outer.size_in, self.inner.size_in


@functools.lru_cache(maxsize=1024)
def plan_split(level: Level, tensorization: Tensorization) -> Split | None:
    """Plan the split of the readout along the weight's axes; None where the order keeps the axes together."""
    if not tensorization.splits_axes:
        return None
    below: dict[int, frozenset[int]] = {p: frozenset([m.axis]) for p, m in enumerate(tensorization.modes)}
    mine: dict[frozenset[int], dict[int, list[tuple[int, int]]]] = {
        key: {p: [] for p in below} for key in (frozenset([OUT]), frozenset([IN]))
    }
    centre_gates: dict[int, list[tuple[int, int]]] = {p: [] for p in below}
    for layer in range(len(level.mixers) - 1, -1, -1):
        mixer = level.mixers[layer]
        for gate in range(mixer.gates):
            left = mixer.first + 2 * gate
            union = below[left] | below[left + 1]
            home = mine.get(union, centre_gates)
            for position in (left, left + 1):
                below[position] = union
                home[position].insert(0, (layer, gate))

    inputs: list[_Input] = []  # of the centre
    sides: dict[int, list[_Input]] = {OUT: [], IN: []}
    wires: dict[int, _Wire] = {}
    for parent, entry in enumerate(_parents(level)):
        union = frozenset().union(*(below[p] for p in entry.wires))
        if union in mine:
            (axis,) = union
            # A parent of one axis passes through the centre as it is; its core belongs to that axis' circuit.
            key = -1 - parent
            wires[key] = _Wire(entry.size, axis)
            inputs.append(_Input((key,), None, entry.size))
            sides[axis].append(entry)
            continue
        inputs.append(entry)
        for position in entry.wires:
            # Behind the centre's gates each of these wires leads to one axis only.
            leads_to = tensorization.modes[position].axis
            size = level.sizes_out[position]
            wires[position] = _Wire(size, leads_to, centre_gates[position])
            if leads_to in sides:
                sides[leads_to].append(_Input((position,), None, size))

    axes = [mode.axis for mode in tensorization.modes]
    crop = _crop(tensorization)

    def side(axis: int, takes: Sequence[int] = ()) -> Plan:
        gates = mine[frozenset([axis])]
        own = {p: _Wire(level.sizes_out[p], 0, list(gates[p])) for i in sides[axis] for p in i.wires}
        return replace(_Circuit(level, own, num_axes=1).plan(sides[axis], takes), crop=crop[axis : axis + 1])

    outer, inner = side(OUT), side(IN)
    if axes != sorted(axes) and (outer.size_in >= tensorization.axes[OUT] or inner.size_in >= tensorization.axes[IN]):
        return None
    centre = _Circuit(level, wires, num_axes=len(tensorization.axes)).plan(inputs)
    if len(tensorization.axes) > KERNEL:
        centre = replace(centre, crop=(outer.size_in, inner.size_in, crop[KERNEL]))
    columns = _MAP if len(tensorization.axes) > KERNEL else 1
    staged = (_cheapest(functools.partial(side, axis), len(sides[axis]), columns) for axis in (OUT, IN))
    return Split(outer, inner, centre, *staged)


# What else counts beside arithmetic, in multiply-adds, as seen on a processor: a number of a state is written and read,
# and a batch of small products costs a call for each of them. And what a second stage must save to be worth its calls.
_NUMBER = 32
_PRODUCT = 1000
_SECOND_STAGE = 0.72
_SECOND_STAGE_MAP = 0.9
# Positions of a map, where channels are concerned: 4 x 4, as in the deep layers that are worth generating.
_MAP = 16


def _cheapest(side: Callable[[Sequence[int]], Plan], inputs: int, columns: int) -> Plan:
    """Return the circuit of a side in one stage or in two, whichever a state goes through with the least work."""
    whole = side([inputs])
    halves = [(stage_work(plan, columns), plan) for plan in (side([n, inputs - n]) for n in range(1, inputs))]
    work, best = min(halves, key=lambda half: half[0], default=(math.inf, whole))
    worthwhile = _SECOND_STAGE if columns == 1 else _SECOND_STAGE_MAP
    return best if work < worthwhile * stage_work(whole, columns) else whole


def stage_work(plan: Plan, columns: int = 1) -> int:
    """Return what a state costs on its way through a plan, in multiply-adds and what compares with them.

    Args:
        plan: with one axis.
        columns: of the state; positions of a map, where the axis is one of channels.
    """
    work, right, left = 0, columns, plan.size_in
    for segment in plan.segments:
        left //= segment.size_in
        wanted = segment.released[0]
        if plan.crop is not None and segment is plan.segments[-1]:
            wanted = min(wanted, -(-plan.crop[0] * columns // right))
        work += left * (segment.held * wanted * right * (segment.size_in + _NUMBER) + _PRODUCT * (right > 1))
        left, right = left * segment.held, right * wanted
    cropped = plan.crop is not None and right != columns * plan.crop[0]
    return work + _NUMBER * right if cropped else work  # what is cropped is copied
