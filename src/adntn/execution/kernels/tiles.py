"""The cut of a readout into a state and one small matrix, from which every tile of the weight can be made.

The readout's plan (:mod:`adntn.contraction.plan`) begins with the segment that makes the last modes, the *low*
digits of the weight's axes. What comes after it makes the *high* digits. With *s* for the parents that the first
segment expands, and the wires that it hands on because a gate still waits for them, every entry of the weight is

    W[high, low] = sum_s state[high, s] matrix[s, low]

The matrix is a Kronecker product of a few cores, some thousand numbers. The state is what the other segments make of
the hidden state, with the identity on the wires that are handed on; of a 4096x4096 ttn it has a sixteenth of the
weight's entries. The trees of a sum stand side by side along *s*, so that the sum over *s* is the sum over them too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adntn.contraction import Contraction, Plan, apply, kron
from adntn.contraction.segments import segment_matrix

__all__ = ["Layout", "Tiles", "cut", "make"]

Tiles = tuple[Tensor, Tensor]
Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """Which entry of the weight stands where: index ``high * low_size + low`` of each axis, digits in tree order.

    Attributes:
        groups: row blocks with a generator each.
        inner: how many numbers of the state an entry depends on, the size of *s*.
        high: entries of the high digits of out, in and kernel; of a ravel all in the first.
        low: entries of the low digits.
        size: how many entries of each axis are kept.
        ravel: whether the weight is raveled to a single axis.
    """

    groups: int
    inner: int
    high: Sizes
    low: Sizes
    size: Sizes
    ravel: bool = False

    @property
    def state_entries(self) -> int:
        """Entries of the state."""
        return self.groups * math.prod(self.high) * self.inner

    @property
    def matrix_entries(self) -> int:
        """Entries of the matrix."""
        return self.groups * math.prod(self.low) * self.inner

    def numbers(self) -> list[int]:
        """Return what the operators of :mod:`.ops` take for a layout."""
        return [self.groups, self.inner, *self.high, *self.low, *self.size]


def cut(network: Contraction) -> Layout:
    """Return the layout of a network's tiles."""
    config, plan = network.blueprint.config, network.readout_plan
    first = plan.segments[0]
    held = first.held
    assert plan.crop is not None
    return Layout(
        config.groups,
        config.terms * first.size_in * held,
        _three(_high(plan)),
        _three(first.released),
        _three(plan.crop),
        ravel=len(plan.crop) == 1,
    )


def make(
    network: Contraction,
    parameters: dict[str, Tensor],
    hidden: Tensor,  # shape: (trees, bond_dim**H)
) -> Tiles:
    """Return the state ``(groups, high, s)`` and the matrix ``(groups, s, low)``."""
    plan, config = network.readout_plan, network.blueprint.config
    cores = network.cores(parameters, network.blueprint.levels[-1])
    first, trees = plan.segments[0], config.trees
    low = math.prod(first.released)

    matrix = segment_matrix(first, cores, first.released, hidden)
    if matrix is None:
        matrix = torch.eye(first.size_in, dtype=hidden.dtype, device=hidden.device).unsqueeze(0)
    matrix = matrix.expand(trees, -1, -1).reshape(config.groups, -1, low)  # rows: term, parents, wires handed on

    state = hidden.reshape(trees, -1, first.size_in).mT
    if first.held > 1:
        state = kron(state, torch.eye(first.held, dtype=hidden.dtype, device=hidden.device))
    high = _high(plan)
    rest = Plan(plan.segments[1:], state.shape[2], tuple(made // n for made, n in _made(plan)), high)
    state = apply(rest, cores, state).flatten(2)  # shape: (trees, parents and wires, high)
    state = state.reshape(config.groups, -1, state.shape[2]).mT
    return state.contiguous(), matrix.contiguous()


def _made(plan: Plan) -> list[tuple[int, int]]:
    return list(zip(plan.size_out, plan.segments[0].released, strict=True))


def _high(plan: Plan) -> tuple[int, ...]:
    """Return how many indices of each axis' high digits are not wholly in the padding."""
    assert plan.crop is not None
    return tuple(-(-kept // low) for kept, low in zip(plan.crop, plan.segments[0].released, strict=True))


def _three(sizes: tuple[int, ...]) -> Sizes:
    out, inner, kernel = (*sizes, 1, 1)[:3]
    return out, inner, kernel
