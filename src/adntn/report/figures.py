"""How numbers are written in reports."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

__all__ = ["NONE", "duration", "mean_and_deviation", "percent", "points", "short", "times", "whole"]

NONE = "–"


def whole(value: int | None) -> str:
    """Return a whole number with commas."""
    return NONE if value is None else f"{value:,}"


def percent(share: float | None) -> str:
    """Return a share in per cent, without the sign."""
    return NONE if share is None else f"{100 * share:.2f}"


def points(difference: float | None) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return NONE if difference is None else f"{100 * difference:+.2f}".replace("-", "−")


def mean_and_deviation(shares: Sequence[float]) -> str:
    """Return mean and sample deviation of shares in per cent."""
    if not shares:
        return NONE
    mean = percent(statistics.mean(shares))
    return mean if len(shares) == 1 else f"{mean} ± {percent(statistics.stdev(shares))}"


def times(ratio: float) -> str:
    """Return a ratio, as ``"1.3x"`` or ``"420x"``."""
    return f"{ratio:,.0f}x" if ratio >= 9.95 else f"{ratio:.1f}x"


def duration(seconds: float | None) -> str:
    """Return a time, as ``"3.1 s"``, ``"4 min 05 s"`` or ``"1 h 02 min"``."""
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def short(value: float) -> str:
    """Return a count in three figures, as ``"80.1k"``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
