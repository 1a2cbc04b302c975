"""A readout of bond 1 as a sum of Kronecker products, one for each tree.

With bond 1 the hidden state of a tree is a single number, and nothing but products joins its cores. Where no core lies
across a cut of the digits of ``out`` and ``in`` into leading and trailing ones, the weight is

    W[(o o'), (i i'), k] = sum_t L_t[o, i] R_t[o', i'] C_t[k]

exactly, with L of the leading digits and R of the trailing ones. This is what ``"paired"`` has with a bond of 1: each
of its cores makes a digit of ``out`` and one of ``in``. A core that makes a digit of the kernel beside a trailing one
joins the two, R_t[o', i', k]. :mod:`adntn.execution.kronecker` has how a layer runs through them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from adntn.contraction.circuit import Circuit, Input, Wire, parents_of
from adntn.contraction.readout import apply
from adntn.contraction.segments import Cores
from adntn.contraction.steps import Plan
from adntn.levels import Level
from adntn.tensorize import IN, KERNEL, OUT, Tensorization

__all__ = ["KroneckerPlan", "plan_kronecker"]

Sizes = tuple[int, int]


@dataclass(frozen=True)
class KroneckerPlan:
    """The readout's cores as those of L, R and C.

    Attributes:
        leading: circuit of L.
        trailing: circuit of R, with the kernel as a third axis where C is not apart.
        kernel: circuit of C; None where there is no kernel, or where its digits are in R.
        high: entries of the leading digits of a group's ``out`` and of ``in``; what is wholly padding is left out.
        low: entries of the trailing digits.
        axes: sizes of ``out``, in one group, and of ``in``.
        taps: entries of the kernel.
        leads: whether L is met first, and then R. What stands between the two is smaller one way or the other.
    """

    leading: Plan
    trailing: Plan
    kernel: Plan | None
    high: Sizes
    low: Sizes
    axes: Sizes
    taps: int
    leads: bool

    @property
    def between(self) -> int:
        """Numbers between the two products, for one tree and one position."""
        return self.high[OUT] * self.low[IN] if self.leads else self.high[IN] * self.low[OUT]

    def multiply_adds(self, rows: int, stride: int) -> int:
        """Return the multiply-adds of one tree and one position.

        Args:
            rows: how many of a group's are wanted.
            stride: positions before a strided kernel for one behind it.
        """
        high = (-(-rows // self.low[OUT]), self.high[IN])
        return _multiply_adds(high, self.low, self.taps, self.leads, apart=self.kernel is not None, stride=stride)

    def matrices(self, cores: Cores, hidden: Tensor, groups: int, *, merged: bool) -> tuple[Tensor, ...]:
        """Return what meets the input, in that order, of all terms side by side.

        Args:
            cores: of the last level.
            hidden: the state before it, shape ``(trees, 1)``.
            groups: of the generator.
            merged: whether R is to have the kernel too where C is apart.

        Returns:
            If L leads, L of shape ``(groups, o * terms, i)`` and R of shape ``(groups, o', terms * i')``; otherwise R
            of shape ``(groups, terms * o', i')`` and L of shape ``(groups, o, i * terms)``. R has the kernel as its
            last dimension where it has it. And C of shape ``(groups, terms, kernel)`` where it is apart.
        """
        ones = hidden.new_ones(hidden.shape)

        def made(plan: Plan, state: Tensor) -> Tensor:  # shape: (groups, terms, *axes)
            each = apply(plan, cores, state.unsqueeze(1)).squeeze(1)
            return each.reshape(groups, -1, *each.shape[1:])

        leading, trailing = made(self.leading, hidden), made(self.trailing, ones)
        kernel = None if self.kernel is None else made(self.kernel, ones)
        if kernel is not None and merged:
            trailing, kernel = trailing.unsqueeze(-1) * kernel[:, :, None, None], None
        both: tuple[Tensor, Tensor]
        if self.leads:
            both = leading.transpose(1, 2).flatten(1, 2), trailing.transpose(1, 2).flatten(2, 3)
        else:
            both = trailing.flatten(1, 2), leading.permute(0, 2, 3, 1).flatten(2)
        return both if kernel is None else (*both, kernel)


@functools.lru_cache(maxsize=1024)
def plan_kronecker(level: Level, tensorization: Tensorization) -> KroneckerPlan | None:
    """Plan the last level as Kronecker products, cut where a layer has the least work; None where it is no such sum."""
    axes = range(len(tensorization.axes))
    if not tensorization.splits_axes or level.mixers or level.entries_in > 1:
        return None
    if any(tensorization.digit_permutation(axis) is not None for axis in axes):
        return None
    digits = [[p for p, mode in enumerate(tensorization.modes) if mode.axis == axis] for axis in (OUT, IN)]
    cuts = itertools.product(*(range(len(mine) + 1) for mine in digits))
    plans = [_cut(level, tensorization, {*digits[OUT][:out], *digits[IN][:inner]}) for out, inner in cuts]
    possible = [plan for plan in plans if plan is not None]
    return min(possible, key=lambda plan: plan.multiply_adds(plan.axes[OUT], 1), default=None)


def _cut(level: Level, tensorization: Tensorization, wires: set[int]) -> KroneckerPlan | None:
    """Return the plan with these wires as the leading digits; None where a core lies across, or a side is a number."""
    modes, crop = tensorization.modes, tensorization.axes
    sides: dict[str, list[Input]] = {"leading": [], "trailing": [], "kernel": []}
    apart = True
    for entry in parents_of(level):
        channels = {wire for wire in entry.wires if modes[wire].axis != KERNEL}
        if not channels:
            sides["kernel"].append(entry)
        elif wires.issuperset(entry.wires):
            sides["leading"].append(entry)
        elif wires.isdisjoint(channels):
            sides["trailing"].append(entry)
            apart &= len(channels) == len(entry.wires)
        else:
            return None
    low, high = [1, 1], [1, 1]
    for axis in (OUT, IN):
        trailing = [mode.size for wire, mode in enumerate(modes) if mode.axis == axis and wire not in wires]
        low[axis] = math.prod(trailing)
        high[axis] = -(-crop[axis] // low[axis])
        low[axis] = min(low[axis], crop[axis])
    if max(high) == 1 or max(low) == 1:
        return None
    apart &= bool(sides["kernel"])
    taps = crop[KERNEL] if len(crop) > KERNEL else 1

    def plan(inputs: Sequence[Input], sizes: tuple[int, ...], first: int = OUT) -> Plan:
        own = {p: Wire(modes[p].size, modes[p].axis - first) for entry in inputs for p in entry.wires}
        return replace(Circuit(level, own, len(sizes)).plan(inputs), crop=sizes)

    joined = [] if apart else sides["kernel"]
    with_kernel = () if apart or taps == 1 else (taps,)
    costs = [_multiply_adds((high[0], high[1]), (low[0], low[1]), taps, leads, apart=apart) for leads in (True, False)]
    return KroneckerPlan(
        leading=plan(sides["leading"], (high[OUT], high[IN])),
        trailing=plan([*sides["trailing"], *joined], (low[OUT], low[IN], *with_kernel)),
        kernel=plan(sides["kernel"], (taps,), KERNEL) if apart else None,
        high=(high[OUT], high[IN]),
        low=(low[OUT], low[IN]),
        axes=(crop[OUT], crop[IN]),
        taps=taps,
        leads=costs[0] <= costs[1],
    )


def _multiply_adds(high: Sizes, low: Sizes, taps: int, leads: bool, *, apart: bool, stride: int = 1) -> int:
    stride = stride if taps > 1 else 1  # a kernel of one entry meets none but the positions that are wanted
    between = high[OUT] * low[IN] if leads else high[IN] * low[OUT]
    first, last = (high[IN], low[OUT]) if leads else (low[IN], high[OUT])
    if apart:
        return between * (stride * first + taps + last)
    return between * (stride * first + taps * last if leads else taps * first + last)
