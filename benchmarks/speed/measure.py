"""Seconds and bytes: variants timed in turns, and the most memory that one call has at a time."""

from __future__ import annotations

import functools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils import benchmark

__all__ = ["Clock", "Step", "Timing", "in_turns", "peak_bytes", "stored_bytes"]

Work = Callable[[], Any]

LEAST_ROUNDS, MOST_ROUNDS = 3, 25
_BLOCK = 2e-3  # seconds: what takes less is timed several calls at once
_WARM = 5e-2  # what takes less gets a call of its own before each block, since the others' data are in the caches


@dataclass(frozen=True)
class Timing:
    """Seconds a call.

    Attributes:
        median: over the rounds.
        low: the first quartile.
        high: the third quartile.
        rounds: how often it was its turn.
        calls: in each turn.
    """

    median: float
    low: float
    high: float
    rounds: int
    calls: int


class Clock(benchmark.Timer):
    """torch's timer, for which a turn is exactly as many calls as asked for: a dense training step may take seconds."""

    def __init__(self, work: Work) -> None:
        super().__init__("work()", globals={"work": work}, num_threads=torch.get_num_threads())
        self.work = work

    def turn(self, calls: int) -> float:
        """Return the seconds a call."""
        return float(self._timeit(calls)) / calls

    def estimate(self) -> float:
        """Return roughly the seconds a call, of a few if they are short."""
        self.work()
        first = self.turn(1)
        return first if first > 10 * _BLOCK else min(first, *(self.turn(3) for _ in range(3)))


def in_turns(clocks: Mapping[str, Clock], estimates: Mapping[str, float], budget: float) -> dict[str, Timing]:
    """Time every variant once a round, so that what disturbs the machine disturbs all alike.

    Args:
        clocks: by the variants' names.
        estimates: seconds a call of each, roughly.
        budget: seconds for all of it; three rounds are made in any case.
    """
    calls = {name: max(1, math.ceil(_BLOCK / max(estimates[name], 1e-6))) for name in clocks}
    calls = {name: min(count, 200) for name, count in calls.items()}
    a_round = sum(estimates[name] * (calls[name] + (estimates[name] < _WARM)) for name in clocks)
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(budget / max(a_round, 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in clocks}
    order, shuffler = list(clocks), random.Random(0)
    for _ in range(rounds):
        # In an order of its own, so that none always comes after the one that leaves the caches worst.
        shuffler.shuffle(order)
        for name in order:
            if estimates[name] < _WARM:
                clocks[name].work()
            seconds[name].append(clocks[name].turn(calls[name]))
    return {name: timing(times, calls[name]) for name, times in seconds.items()}


def timing(seconds: list[float], calls: int) -> Timing:
    """Sum up the turns of one variant."""
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(statistics.median(seconds), low, high, len(seconds), calls)


class Step:
    """One whole training step: forward, backward to the input too, AdamW.

    The gradient of the output is given, so that no loss is part of it.
    """

    def __init__(self, model: nn.Module, x: Tensor, upstream: Tensor) -> None:
        self.model, self.x, self.upstream = model, x, upstream
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        # The optimiser makes its state in its first step; a step on zeros makes it without a pass through the model.
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.forget()

    def forget(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        self.x.grad = None

    def __call__(self) -> tuple[Tensor, Tensor]:
        self.forget()
        y = self.model(self.x)
        y.backward(self.upstream)
        self.optimizer.step()
        assert self.x.grad is not None
        return y, self.x.grad

    def state(self) -> list[Tensor]:
        """Return what the optimiser keeps between steps."""
        values = [value for state in self.optimizer.state.values() for value in state.values()]
        return [value for value in values if isinstance(value, Tensor)]


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of some tensors, each memory once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@functools.cache
def _start_profiler() -> None:
    # The first of a process takes seconds, which are not to be taken for those of the call inside.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True):
        pass


def peak_bytes(work: Callable[[], Iterable[Tensor]]) -> tuple[int, float]:
    """Return the most bytes that one call has from torch's allocator at a time, without those of what it returns.

    Input and parameters were there before and do not count; what a library takes elsewhere, as oneDNN its scratch pads,
    is not seen.

    Returns:
        The bytes, and the seconds that the call took under the profiler.
    """
    _start_profiler()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        started = time.perf_counter()
        tensors = list(work())
        seconds = time.perf_counter() - started
    returned = {t.untyped_storage().data_ptr() for t in tensors}
    results: Any = profiler.profiler
    events: list[tuple[int, int, int]] = []  # when, where, how many bytes
    pending = list(results.kineto_results.experimental_event_tree())
    while pending:
        event = pending.pop()
        pending += event.children
        if event.name == "[memory]":
            events.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    events.sort()
    # An address may serve several times; what is returned is its last allocation, which is not freed any more.
    last = {place: number for number, (_, place, size) in enumerate(events) if size > 0 and place in returned}
    now = peak = 0
    for number, (_, place, size) in enumerate(events):
        if last.get(place) != number:
            now += size
        peak = max(peak, now)
    return peak, seconds
