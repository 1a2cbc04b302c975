"""Levels: which cores stand between one state and the next, in stacks of one shape each.

A level turns the modes of a state into those of the next. Its first parents have two children each, then come *carries*
with one child, then modes that *pass* as they are. On the children act layers of two-site gates, the disentanglers.
Cores of one shape are stacked in one parameter; where modes differ in size (a kernel with a radix of its own), the name
of a stack says its shape: ``expand.3`` and ``expand.3_2x3``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from adntn.errors import ShapeError

__all__ = ["Core", "Level", "Mixer", "Stack", "brickwall_levels", "chain_stacks", "schedule", "tree_levels"]

Kind = Literal["expand", "carry", "mix", "chain"]


@dataclass(frozen=True)
class Stack:
    """Cores of one shape, kept as one parameter.

    Attributes:
        name: of the parameter.
        kind: ``"expand"`` and ``"carry"`` have parents as rows and children as columns; of ``"mix"`` the rows are the
            new pair of indices and the columns the old; ``"chain"`` is a core of a tensor train.
        shape: of one core.
        count: cores in each tree.
    """

    name: str
    kind: Kind
    shape: tuple[int, int]
    count: int


@dataclass(frozen=True)
class Core:
    """Where a core lies: in which stack, and at which place of it."""

    stack: str
    place: int


@dataclass(frozen=True)
class Mixer:
    """One layer of two-site gates: gate k acts on the neighbours ``first + 2k`` and ``first + 2k + 1``.

    Attributes:
        first: the first mode that is acted on.
        gates: how many there are.
        name: of the parameter.
    """

    first: int
    gates: int
    name: str


@dataclass(frozen=True)
class Level:
    """One level.

    Attributes:
        number: counted from 1.
        sizes_in: sizes of the modes that come in, the parents.
        sizes_out: sizes of the modes that go out, the children.
        expansions: parents with two children, the first ones.
        carries: parents with one child, the next ones; the others pass.
        mixers: layers of gates, in the order in which they act.
        names: of the parameters of expansions and carries.
        usual: the size of a child after which a stack is not named.
    """

    number: int
    sizes_in: tuple[int, ...]
    sizes_out: tuple[int, ...]
    expansions: int
    carries: int
    mixers: tuple[Mixer, ...] = ()
    names: tuple[str, str] = ("expand", "carry")
    usual: int = 2

    @property
    def parents(self) -> int:
        return len(self.sizes_in)

    @property
    def children(self) -> int:
        return len(self.sizes_out)

    @property
    def entries_in(self) -> int:
        """Entries of the state that comes in."""
        return math.prod(self.sizes_in)

    @property
    def scaled(self) -> tuple[str, ...]:
        """The stacks that carry the level's scale: expansions and carries, or where there are none the first gates."""
        own = tuple(stack.name for stack in self.stacks if stack.kind != "mix")
        first = self.mixers[0].name if self.mixers else ""
        return own or tuple(s.name for s in self.stacks if s.name == first or s.name.startswith(f"{first}_"))

    def children_of(self, parent: int) -> tuple[int, ...]:
        """Return the places of a parent's children."""
        if parent < self.expansions:
            return (2 * parent, 2 * parent + 1)
        return (parent + self.expansions,)

    @cached_property
    def _layout(self) -> tuple[tuple[Core | None, ...], tuple[tuple[Core, ...], ...], tuple[Stack, ...]]:
        counts: dict[tuple[str, Kind, tuple[int, int]], int] = {}

        def place(name: str, kind: Kind, sizes: tuple[int, ...], rows: int) -> Core:
            named = name if set(sizes) == {self.usual} else f"{name}_{'x'.join(map(str, sizes))}"
            key = (named, kind, (rows, math.prod(sizes)))
            counts[key] = counts.get(key, 0) + 1
            return Core(named, counts[key] - 1)

        above: list[Core | None] = []
        for parent, size in enumerate(self.sizes_in):
            children = tuple(self.sizes_out[child] for child in self.children_of(parent))
            if parent < self.expansions:
                above.append(place(self.names[0], "expand", children, size))
            elif parent < self.expansions + self.carries:
                above.append(place(self.names[1], "carry", children, size))
            else:
                above.append(None)
        gates = []
        for mixer in self.mixers:
            pairs = [(mixer.first + 2 * k, mixer.first + 2 * k + 1) for k in range(mixer.gates)]
            sizes = [(self.sizes_out[left], self.sizes_out[right]) for left, right in pairs]
            gates.append(tuple(place(mixer.name, "mix", pair, math.prod(pair)) for pair in sizes))
        stacks = tuple(Stack(name, kind, shape, count) for (name, kind, shape), count in counts.items())
        return tuple(above), tuple(gates), stacks

    @property
    def cores(self) -> tuple[Core | None, ...]:
        """The core of each parent, None for one that passes."""
        return self._layout[0]

    @property
    def gates(self) -> tuple[tuple[Core, ...], ...]:
        """The gates of each mixing layer."""
        return self._layout[1]

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """All stacks of the level."""
        return self._layout[2]


def schedule(num_modes: int, latent_order: int) -> tuple[int, ...]:
    """Return the number of modes after each level of a tree, ``(N_0, ..., N_L)``; N_L = 2 * ceil(num_modes / 2).

    Every level doubles, but for one *bridge* level where that would overshoot. The paper gives counts and no
    rule; this rule reproduces all nine tree counts of its Table 3.
    """
    hidden = max(1, (num_modes + 1) // 2)
    modes = [min(latent_order, hidden)]
    while modes[-1] < hidden:
        modes.append(min(2 * modes[-1], hidden))
    return (*modes, 2 * hidden)


def tree_levels(
    topology: str,
    sizes: tuple[int, ...],  # of the physical modes, an even number of them
    modes: tuple[int, ...],  # the schedule
    chi: int,
    radix: int,
    boundary_layers: int,
) -> tuple[Level, ...]:
    """Return the levels of a ttn, an attn or a mera (Sections 7.2-7.4)."""
    last = len(modes) - 1
    levels = []
    for number in range(1, last + 1):
        parents, children = modes[number - 1], modes[number]
        count = 0
        if topology == "mera":
            count = 1
        elif topology == "attn" and number == last:
            count = boundary_layers
        both = (Mixer(1, (children - 1) // 2, f"mix.{number}.0"), Mixer(0, children // 2, f"mix.{number}.1"))
        levels.append(
            Level(
                number=number,
                sizes_in=(chi,) * parents,
                sizes_out=sizes if number == last else (chi,) * children,
                expansions=children - parents,
                carries=2 * parents - children,
                mixers=tuple(mixer for mixer in both[:count] if mixer.gates),
                names=(f"expand.{number}", f"carry.{number}"),
                usual=radix if number == last else chi,
            )
        )
    return tuple(levels)


def brickwall_levels(sizes: tuple[int, ...], columns: int, blocks: int, radix: int) -> tuple[Level, ...]:
    """Return the blocks of a brick wall (Qing et al., arXiv:2305.06058) as levels.

    Columns alternate between the pairs (1,2), (3,4) ... and (2,3), (4,5) ...; an odd last column is a shifted one, but
    for two modes, which have no shifted pair. The first column meets a fixed product vector, so that each of its gates
    is one vector: they are the expansions of modes of size one. The last mode of an odd number enters as the uniform
    vector.
    """
    count = len(sizes)
    if count < 2:
        raise ShapeError("a weight of a single mode has no pair for a brick wall's gates; it needs two modes.")
    halves = count // 2
    per_block = [columns // blocks + (b < columns % blocks) for b in range(blocks)]
    if blocks == math.ceil(columns / 2):
        per_block = [2] * (columns // 2) + [1] * (columns % 2)
    levels: list[Level] = []
    column = 0
    for block, width in enumerate(per_block, start=1):
        first = block == 1
        mixers = []
        for c in range(1, width + 1):
            column += 1
            shifted = column % 2 == 0 or (column == columns > 1 and count > 2)
            if not (first and c == 1):
                mixers.append(Mixer(int(shifted), (count - shifted) // 2, f"gate.{block}.{c}"))
        levels.append(
            Level(
                number=block,
                sizes_in=((1,) * halves + sizes[2 * halves :]) if first else sizes,
                sizes_out=sizes,
                expansions=halves if first else 0,
                carries=0,
                mixers=tuple(mixer for mixer in mixers if mixer.gates),
                names=(f"gate.{block}.1", ""),
                usual=radix,
            )
        )
    return tuple(levels)


def chain_stacks(sizes: list[int], rank: int) -> tuple[Stack, ...]:
    """Return the cores of a tensor train in order (Eq. 7), neighbours of one shape in one stack.

    A core is kept as the matrix (left bond, mode * right bond); the bonds at both ends have size one.
    """
    shapes = [
        (1 if place == 0 else rank, size * (1 if place == len(sizes) - 1 else rank)) for place, size in enumerate(sizes)
    ]
    stacks: list[Stack] = []
    for shape in shapes:
        if stacks and stacks[-1].shape == shape:
            stacks[-1] = Stack(stacks[-1].name, "chain", shape, stacks[-1].count + 1)
        else:
            stacks.append(Stack(f"chain.{len(stacks)}", "chain", shape, 1))
    return tuple(stacks)
