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

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Literal

from adntn.levels import Core, Level
from adntn.tensorize import IN, KERNEL, OUT, Tensorization

__all__ = [
    "Axes",
    "Plan",
    "Readout",
    "Segment",
    "Split",
    "Stage",
    "Step",
    "arrangement",
    "plan_level",
    "plan_readout",
    "plan_split",
]

# Bounds on one segment's matrix. Larger ones cost arithmetic (a product with a merged matrix of b inputs costs b
# multiply-adds an output), smaller ones cost calls. 256 outputs of 16 inputs are four readout cores of radix 2.
_MAX_OUTPUTS = 256
_MAX_ENTRIES = 1 << 13

# A state of at most so many entries is passed over once for the expansion and once for each mixing layer: merging gates
# into the expansions' matrices saves passes, and costs more calls than a pass over a small state does.
_SMALL_STATE = 1 << 14

# A last mode of at most so many entries does not merely pass where several segments act on the others: a product for
# each entry on the left, of so few columns, takes longer than one with a matrix that has the identity in it.
_NARROW = 4

# Outputs of the readout's last product. It is the one that costs: of the shapes that could be taken, (rows, 8) @
# (8, 64) runs nearest to the speed at which memory can be written. For a small weight calls count, not arithmetic.
_TAIL_OUTPUTS = 64
_SMALL_WEIGHT = 1 << 20

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
        done: what the segments before it released and was kept, an entry an axis.
        kept: of every axis, what is kept once this segment has acted: all of it until its last digit stands.
    """

    segment: Segment
    wanted: Axes
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
        _ = self.steps, self.alike  # now, since a compiler cannot trace a property that is kept at its first use

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The segments with what they meet. Each axis is cropped where it is whole, while the state is still small."""
        last = [
            max((n for n, s in enumerate(self.segments) if s.released[axis] > 1), default=-1)
            for axis in range(len(self.size_out))
        ]
        found: list[Step] = []
        done: Axes = (1,) * len(self.size_out)
        for number, segment in enumerate(self.segments):
            wanted, kept = list(segment.released), [new * old for new, old in zip(segment.released, done, strict=True)]
            for axis, size in enumerate(self.crop or ()):
                if last[axis] == number:
                    wanted[axis] = min(wanted[axis], -(-size // done[axis]))
                    kept[axis] = min(kept[axis], size)
            found.append(Step(segment, tuple(wanted), done, tuple(kept)))
            done = tuple(kept)
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

    @property
    def axes(self) -> Axes:
        """The axes of its outcome, cropped."""
        return self.steps[-1].kept if self.steps else self.size_out

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


class _Circuit:
    """Walks a circuit from the last wire to the first and cuts it into segments."""

    def __init__(self, level: Level, wires: dict[int, _Wire], num_axes: int) -> None:
        self.level = level
        self.wires = wires
        self.num_axes = num_axes

    def plan(self, inputs: Sequence[_Input]) -> Plan:
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
        size_out = tuple(math.prod(s.released[a] for s in segments) for a in range(self.num_axes))
        return Plan(tuple(segments), math.prod(i.size for i in inputs), size_out)

    def whole(self, inputs: list[_Input]) -> Plan:
        """Plan the circuit as one segment."""
        segment, _ = self._segment(inputs, [])
        return Plan((segment,), segment.size_in, segment.released)

    def _cut(self, inputs: Sequence[_Input], busy: Sequence[bool], most: int) -> list[Segment]:
        gates = {key: list(wire.gates) for key, wire in self.wires.items()}
        queue, held = list(zip(inputs, busy, strict=True)), list[int]()
        segments: list[Segment] = []
        while queue:
            segment, held = self._segment(self._take(queue, held, most), held)
            segments.append(segment)
        for key, wire in self.wires.items():
            wire.gates = gates[key]
        return segments

    def _take(self, queue: list[tuple[_Input, bool]], held: list[int], most: int) -> list[_Input]:
        """Take inputs off the right end until one more would make the segment's matrix too large.

        What merely passes is not taken together with what is acted on: it would have to be an identity there. And
        where there are no gates, cores of two kinds are not: two products of small matrices with the state are less
        than one with the large matrix that both would make.
        """
        taken: list[_Input] = []
        size_in = size_out = math.prod(self.wires[w].size for w in held)
        first_busy = queue[-1][1]
        alone = not held and not any(wire.gates for wire in self.wires.values())
        while queue:
            candidate, busy = queue[-1]
            if alone and taken and candidate.stack != taken[0].stack != "":
                break
            size_in *= candidate.size
            size_out *= math.prod(self.wires[w].size for w in candidate.wires)
            large = busy and (len(taken) >= most or size_out > _MAX_OUTPUTS or size_in * size_out > _MAX_ENTRIES)
            if taken and (busy != first_busy or large):
                break
            taken.insert(0, queue.pop()[0])
        return taken

    def _segment(self, taken: list[_Input], held: list[int]) -> tuple[Segment, list[int]]:
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


@lru_cache(maxsize=1024)
def plan_level(level: Level) -> tuple[Plan, ...]:
    """Plan a level between two hidden states, as one circuit or several; each outcome has one axis, the raveled state.

    A large state is passed over once. A small one is first expanded, then mixed layer by layer.
    """
    gates = _gates(level)
    if math.prod(level.sizes_out) > _SMALL_STATE or not level.mixers:
        wires = {p: _Wire(level.sizes_out[p], 0, gates[p]) for p in gates}
        return (_Circuit(level, wires, num_axes=1).plan(_parents(level)),)
    layers = [_parents(level)] if any(level.cores) else []
    for mixer, cores in zip(level.mixers, level.gates, strict=True):
        single = {p: _Input((p,), None, size) for p, size in enumerate(level.sizes_out)}
        for gate, core in enumerate(cores):
            left = mixer.first + 2 * gate
            single[left] = _Input((left, left + 1), core, single[left].size * single.pop(left + 1).size, "mix")
        layers.append(list(single.values()))
    wires = {p: _Wire(size, 0) for p, size in enumerate(level.sizes_out)}
    return tuple(_Circuit(level, wires, num_axes=1).plan(layer) for layer in layers)


@dataclass(frozen=True)
class Readout:
    """The last level, as two circuits. What is large is made by the second one, in one product.

    Attributes:
        head: from the hidden state to the axes' leading digits and, as an axis behind them, what enters the tail.
        tail: from there to the axes' trailing digits, one segment; None where the head makes everything.
        crop: how many indices of each axis are wanted.
    """

    head: Plan
    tail: Plan | None
    crop: Axes

    def __post_init__(self) -> None:
        _ = self.made, self.stacks  # as a plan's

    @cached_property
    def stacks(self) -> frozenset[str]:
        """The stacks of which it has cores."""
        return self.head.stacks | (self.tail.stacks if self.tail is not None else frozenset())

    @cached_property
    def made(self) -> Axes:
        """The axes that the two make, before they are cropped."""
        leading = self.head.axes[: len(self.crop)]
        if self.tail is None:
            return leading
        return tuple(a * b for a, b in zip(leading, self.tail.axes, strict=True))


@lru_cache(maxsize=1024)
def plan_readout(level: Level, tensorization: Tensorization) -> Readout:
    """Plan the last level so that its outcome has the weight's axes, padded axes cropped on the way."""
    crop = _crop(tensorization)
    parents = range(level.parents)
    tails = [found for first in parents if (found := _Tail.of(level, tensorization, first)) is not None]
    bound = _TAIL_OUTPUTS if tensorization.size > _SMALL_WEIGHT else _MAX_OUTPUTS
    fitting = [tail for tail in tails if math.prod(tail.cropped(crop).axes) <= bound]
    if not fitting:
        gates = _gates(level)
        wires = {p: _Wire(mode.size, mode.axis, gates[p]) for p, mode in enumerate(tensorization.modes)}
        plan = _Circuit(level, wires, len(crop)).plan(_parents(level))
        return Readout(replace(plan, crop=crop), None, crop)
    tail = fitting[0]  # the one with the most parents
    parts = tail.plan.size_out
    leading = tuple(-(-size // part) for size, part in zip(crop, parts, strict=True))
    head = replace(tail.head, crop=(*leading, tail.plan.size_in))
    return Readout(head, tail.cropped(crop), crop)


@dataclass(frozen=True)
class _Tail:
    """A readout cut in two before the children of some parent; see :class:`Readout`."""

    head: Plan
    plan: Plan

    def cropped(self, crop: Axes) -> Plan:
        """Return the tail's plan, cropped along the axes that it makes alone."""
        alone = (size == 1 for size in self.head.size_out)
        sizes = (size if mine else part for size, mine, part in zip(crop, alone, self.plan.size_out, strict=False))
        return replace(self.plan, crop=tuple(sizes))

    @classmethod
    def of(cls, level: Level, tensorization: Tensorization, first: int) -> _Tail | None:
        """Cut before the children of parent ``first``; None if that makes the tail no less work than the weight."""
        parents, modes, axes = _parents(level), tensorization.modes, len(tensorization.axes)
        # A gate that waits for a wire of the tail is of the tail, and so are both its wires from then on.
        mine: dict[int, list[tuple[int, int]]] = {p: [] for p in range(level.children)}
        others: dict[int, list[tuple[int, int]]] = {p: [] for p in range(level.children)}
        wires = {p for entry in parents[first:] for p in entry.wires}
        for layer, mixer in enumerate(level.mixers):
            for gate in range(mixer.gates):
                pair = (mixer.first + 2 * gate, mixer.first + 2 * gate + 1)
                late = not wires.isdisjoint(pair)
                wires |= set(pair) if late else set()
                for position in pair:
                    (mine if late else others)[position].append((layer, gate))
        # A parent above a gate of the head is expanded there, and its children enter the tail as they are.
        whole = [all(p in wires and not others[p] for p in entry.wires) for entry in parents]
        above = {p for entry, late in zip(parents, whole, strict=True) if late for p in entry.wires}
        inputs = [_Input((p,), None, modes[p].size) for p in sorted(wires - above)]
        inputs += [entry for entry, late in zip(parents, whole, strict=True) if late]
        size_in, size_out = math.prod(i.size for i in inputs), math.prod(modes[p].size for p in wires)
        if 2 * size_in > size_out or size_in * size_out > _MAX_ENTRIES:
            return None
        plan = _Circuit(level, {p: _Wire(modes[p].size, modes[p].axis, mine[p]) for p in wires}, axes).whole(inputs)
        before = {p: _Wire(m.size, axes if p in wires else m.axis, others[p]) for p, m in enumerate(modes)}
        before |= {-1 - n: _Wire(parents[n].size, axes) for n, late in enumerate(whole) if late}
        passing = [_Input((-1 - n,), None, e.size) if whole[n] else e for n, e in enumerate(parents)]
        return cls(_Circuit(level, before, axes + 1).plan(passing), plan)


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
    """

    outer: Plan
    inner: Plan
    centre: Plan

    def side(self, axis: int) -> Plan:
        """Return the circuit that leads to an axis."""
        return self.outer if axis == OUT else self.inner

    @property
    def ranks(self) -> tuple[int, int]:
        """The sizes r and r' of the two cuts."""
        return self.outer.size_in, self.inner.size_in


@lru_cache(maxsize=1024)
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

    outer, inner = (_side(level, mine[frozenset([axis])], sides[axis]) for axis in (OUT, IN))
    axes = [mode.axis for mode in tensorization.modes]
    if axes != sorted(axes) and (outer.size_in >= tensorization.axes[OUT] or inner.size_in >= tensorization.axes[IN]):
        return None
    centre = _Circuit(level, wires, num_axes=len(tensorization.axes)).plan(inputs)
    crop = _crop(tensorization)
    if len(tensorization.axes) > KERNEL:
        centre = replace(centre, crop=(outer.size_in, inner.size_in, crop[KERNEL]))
    return Split(replace(outer, crop=crop[:1]), replace(inner, crop=crop[1:2]), centre)


def _side(level: Level, gates: dict[int, list[tuple[int, int]]], inputs: list[_Input]) -> Plan:
    wires = {p: _Wire(level.sizes_out[p], 0, list(gates[p])) for i in inputs for p in i.wires}
    return _Circuit(level, wires, num_axes=1).plan(inputs)
