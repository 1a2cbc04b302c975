"""Two pieces of work timed in turns, for the small benchmarks here; :mod:`benchmarks.speed` has many at a time."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch.utils import benchmark

__all__ = ["ratio", "seconds"]


def seconds(work: Callable[[], object]) -> float:
    """Return the time of one call."""
    return benchmark.Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads()).timeit(1).median


def ratio(one: Callable[[], object], other: Callable[[], object], rounds: int = 9) -> dict[str, float]:
    """Return the median over the rounds of one's time over the other's, after a warm-up, and the least and the most."""
    pairs = [(seconds(one), seconds(other)) for _ in range(rounds + 2)][2:]
    ratios = sorted(a / b for a, b in pairs)
    return {"ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
