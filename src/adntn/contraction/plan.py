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
from dataclasses import dataclass, replace
from functools import cached_property

from adntn.contraction import circuit
from adntn.contraction.circuit import Circuit, Input, Wire, gates_of, parents_of
from adntn.contraction.steps import Axes, Plan
from adntn.levels import Level
from adntn.tensorize import IN, KERNEL, OUT, Tensorization

__all__ = ["Readout", "Split", "plan_level", "plan_readout", "plan_split", "stage_work"]

# A state of at most so many entries is passed over once for the expansion and once for each mixing layer: merging gates
# into the expansions' matrices saves passes, and costs more calls than a pass over a small state does.
_SMALL_STATE = 1 << 14

# Outputs of the readout's last product. It is the one that costs: of the shapes that could be taken, (rows, 8) @
# (8, 64) runs nearest to the speed at which memory can be written. For a small weight calls count, not arithmetic.
_TAIL_OUTPUTS = 64
_SMALL_WEIGHT = 1 << 20


@functools.lru_cache(maxsize=1024)
def plan_level(level: Level) -> tuple[Plan, ...]:
    """Plan a level between two hidden states, as one circuit or several; each outcome has one axis, the raveled state.

    A large state is passed over once. A small one is first expanded, then mixed layer by layer.
    """
    gates = gates_of(level)
    if math.prod(level.sizes_out) > _SMALL_STATE or not level.mixers:
        wires = {p: Wire(level.sizes_out[p], 0, gates[p]) for p in gates}
        return (Circuit(level, wires, num_axes=1).plan(parents_of(level)),)
    layers = [parents_of(level)] if any(level.cores) else []
    for mixer, cores in zip(level.mixers, level.gates, strict=True):
        single = {p: Input((p,), None, size) for p, size in enumerate(level.sizes_out)}
        for gate, core in enumerate(cores):
            left = mixer.first + 2 * gate
            single[left] = Input((left, left + 1), core, single[left].size * single.pop(left + 1).size, "mix")
        layers.append(list(single.values()))
    wires = {p: Wire(size, 0) for p, size in enumerate(level.sizes_out)}
    return tuple(Circuit(level, wires, num_axes=1).plan(layer) for layer in layers)


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


@functools.lru_cache(maxsize=1024)
def plan_walk(level: Level, tensorization: Tensorization) -> Plan:
    """Plan the last level as one circuit, from the last wire to the first."""
    crop, gates = _crop(tensorization), gates_of(level)
    wires = {p: Wire(mode.size, mode.axis, gates[p]) for p, mode in enumerate(tensorization.modes)}
    return replace(Circuit(level, wires, len(crop)).plan(parents_of(level)), crop=crop)


@functools.lru_cache(maxsize=1024)
def plan_readout(level: Level, tensorization: Tensorization) -> Readout:
    """Plan the last level so that its outcome has the weight's axes, padded axes cropped on the way."""
    crop = _crop(tensorization)
    parents = range(level.parents)
    tails = [found for first in parents if (found := _Tail.of(level, tensorization, first)) is not None]
    bound = _TAIL_OUTPUTS if tensorization.size > _SMALL_WEIGHT else circuit.MAX_OUTPUTS
    fitting = [tail for tail in tails if math.prod(tail.cropped(crop).axes) <= bound]
    if not fitting:
        return Readout(plan_walk(level, tensorization), None, crop)
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
        parents, modes, axes = parents_of(level), tensorization.modes, len(tensorization.axes)
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
        inputs = [Input((p,), None, modes[p].size) for p in sorted(wires - above)]
        inputs += [entry for entry, late in zip(parents, whole, strict=True) if late]
        size_in, size_out = math.prod(i.size for i in inputs), math.prod(modes[p].size for p in wires)
        if 2 * size_in > size_out or size_in * size_out > circuit.MAX_ENTRIES:
            return None
        plan = Circuit(level, {p: Wire(modes[p].size, modes[p].axis, mine[p]) for p in wires}, axes).plan(
            inputs, [len(inputs)]
        )
        before = {p: Wire(m.size, axes if p in wires else m.axis, others[p]) for p, m in enumerate(modes)}
        before |= {-1 - n: Wire(parents[n].size, axes) for n, late in enumerate(whole) if late}
        passing = [Input((-1 - n,), None, e.size) if whole[n] else e for n, e in enumerate(parents)]
        return cls(Circuit(level, before, axes + 1).plan(passing), plan)


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

    inputs: list[Input] = []  # of the centre
    sides: dict[int, list[Input]] = {OUT: [], IN: []}
    wires: dict[int, Wire] = {}
    for parent, entry in enumerate(parents_of(level)):
        union = frozenset().union(*(below[p] for p in entry.wires))
        if union in mine:
            (axis,) = union
            # A parent of one axis passes through the centre as it is; its core belongs to that axis' circuit.
            key = -1 - parent
            wires[key] = Wire(entry.size, axis)
            inputs.append(Input((key,), None, entry.size))
            sides[axis].append(entry)
            continue
        inputs.append(entry)
        for position in entry.wires:
            # Behind the centre's gates each of these wires leads to one axis only.
            leads_to = tensorization.modes[position].axis
            size = level.sizes_out[position]
            wires[position] = Wire(size, leads_to, centre_gates[position])
            if leads_to in sides:
                sides[leads_to].append(Input((position,), None, size))

    axes = [mode.axis for mode in tensorization.modes]
    crop = _crop(tensorization)

    def side(axis: int, takes: Sequence[int] = ()) -> Plan:
        gates = mine[frozenset([axis])]
        own = {p: Wire(level.sizes_out[p], 0, list(gates[p])) for i in sides[axis] for p in i.wires}
        return replace(Circuit(level, own, num_axes=1).plan(sides[axis], takes), crop=crop[axis : axis + 1])

    outer, inner = side(OUT), side(IN)
    if axes != sorted(axes) and (outer.size_in >= tensorization.axes[OUT] or inner.size_in >= tensorization.axes[IN]):
        return None
    centre = Circuit(level, wires, num_axes=len(tensorization.axes)).plan(inputs)
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
