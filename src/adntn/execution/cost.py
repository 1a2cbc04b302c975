"""The time that a count of operations takes on a machine.

An operation takes its call, and the longer of its arithmetic and its way through memory. The rate of the arithmetic
depends on how thin a product is, that of memory on how large an array is: one that fits into a cache is read faster,
and a new large one costs its pages as well.
"""

from __future__ import annotations

import bisect
import math

import torch

from adntn.execution.counting import Count, Op
from adntn.execution.machine import BYTES, CHANNELS, IMAGES, POSITIONS, SIDES, Profile, Rates, Table

__all__ = ["applying_seconds", "making_seconds"]


# A backward pass does each product twice, once for each of its two inputs.
_WITH_BACKWARD = 3

# A convolution of every channel by itself puts channels side by side, as many as a vector has, and back at the end.
_SIDE_BY_SIDE = 16
_CHANNELWISE_CALLS = 4


def applying_seconds(count: Count, profile: Profile, dtype: torch.dtype, *, training: bool) -> float:
    """Return the seconds of a layer's own operations, without the making of factors or weight.

    Args:
        count: of the operations without gradients.
        profile: of the machine.
        dtype: of the arithmetic.
        training: whether a backward pass follows.
    """
    calls, works = (profile.autograd, _WITH_BACKWARD) if training else (1.0, 1)
    return sum(times * (calls * _call(op, profile) + works * _work(op, profile, dtype)) for op, times in count.ops)


def making_seconds(count: Count, profile: Profile, *, training: bool) -> float:
    """Return the seconds of making factors or a weight, which is done in float32.

    Args:
        count: of the operations without gradients.
        profile: of the machine.
        training: whether a backward pass follows.
    """
    call, works = (profile.making_training, _WITH_BACKWARD) if training else (profile.making, 1)
    return count.calls * call + works * sum(times * _work(op, profile, torch.float32) for op, times in count.ops)


def _call(op: Op, profile: Profile) -> float:
    match op.kind:
        case "view":
            return profile.view
        case "move":
            return profile.move
        case "product":
            return profile.product + (op.sizes[0] - 1) * profile.item
        case _:
            call = profile.convolution if op.images < IMAGES else profile.convolutions
            return _CHANNELWISE_CALLS * call if _is_channelwise(op) else call


def _work(op: Op, profile: Profile, dtype: torch.dtype) -> float:
    memory = 0.0
    if op.read:
        memory += op.read / _rate(profile.read, BYTES, op.read)
    if op.written:
        memory += op.written / _rate(profile.write, BYTES, op.written)
    return max(memory, op.flops / _speed(op, profile, dtype)) if op.flops else memory


def _speed(op: Op, profile: Profile, dtype: torch.dtype) -> float:
    rates: Rates = profile.bfloat16 if dtype in (torch.bfloat16, torch.float16) else profile.float32
    share = 0.5 if dtype == torch.float64 else 1.0
    _, m, k, n = op.sizes
    if op.kind == "product":
        small, middle, large = sorted((m, k, n))
        return share * _rate2(rates.tall if m == large else rates.wide, (SIDES, SIDES), (small, middle))
    table = rates.kernel if op.kind == "kernel" else rates.pointwise
    channels = min(op.sizes[0], _SIDE_BY_SIDE) if _is_channelwise(op) else min(k, n)
    return share * _rate2(table, (CHANNELS, POSITIONS), (channels, m))


def _is_channelwise(op: Op) -> bool:
    groups, _, k, n = op.sizes
    return op.kind == "kernel" and groups > 1 and k == n == 1


def _rate2(table: Table, grids: tuple[tuple[int, ...], tuple[int, ...]], at: tuple[int, int]) -> float:
    low, share = _place(grids[0], at[0])
    one = _rate(table[low], grids[1], at[1])
    if not share:
        return one
    return math.exp((1 - share) * math.log(one) + share * math.log(_rate(table[low + 1], grids[1], at[1])))


def _rate(values: tuple[float, ...], grid: tuple[int, ...], at: int) -> float:
    """Return a measured rate at a size, between two sizes by their logarithms."""
    low, share = _place(grid, at)
    if not share:
        return values[low]
    return math.exp((1 - share) * math.log(values[low]) + share * math.log(values[low + 1]))


def _place(grid: tuple[int, ...], at: int) -> tuple[int, float]:
    if at <= grid[0]:
        return 0, 0.0
    if at >= grid[-1]:
        return len(grid) - 1, 0.0
    low = bisect.bisect_right(grid, at) - 1
    return low, math.log(at / grid[low]) / math.log(grid[low + 1] / grid[low])
