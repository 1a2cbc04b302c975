"""What the results say: seconds, ratios to dense, and how well ``auto`` chose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = [
    "CHANNELS_LAST",
    "LIMIT",
    "dense_wins",
    "faster_format",
    "measured",
    "over_dense",
    "peer",
    "ratio",
    "regrets",
    "rows_of",
    "spread",
]

Row = dict[str, Any]
Rows = Mapping[str, Row]

TOPOLOGIES = ("ttn", "attn", "mera")
_WAYS = ("factored", "dense")
#: Behind the name of a model that runs in torch's other memory format.
CHANNELS_LAST = ", channels last"
#: What auto may take of the time of dense.
LIMIT = 1.05


def rows_of(rows: Rows, **wanted: Any) -> list[Row]:
    """Return the rows whose fields are as given; a tuple stands for any of its values."""
    return [
        row
        for row in rows.values()
        if all(row[k] in v if isinstance(v, tuple) else row[k] == v for k, v in wanted.items())
    ]


def measured(row: Row | None, variant: str, field: str = "median") -> float | None:
    """Return a number of a variant, or None where it was not measured."""
    value = None if row is None else row["results"].get(variant, {}).get(field)
    return None if value is None else float(value)


def ratio(row: Row | None, slow: str, fast: str, field: str = "median") -> float | None:
    """Return one variant's time over another's."""
    over, under = measured(row, slow, field), measured(row, fast, field)
    return None if over is None or not under else over / under


def peer(row: Row | None, family: str) -> tuple[str, float] | None:
    """Return the fastest variant whose name begins so, and its time; None where none was measured."""
    found = [] if row is None else [(n, measured(row, n)) for n in row["results"] if n.startswith(family)]
    times = [(seconds, name) for name, seconds in found if seconds is not None]
    return (min(times)[1], min(times)[0]) if times else None


def faster_format(row: Row | None, name: str) -> str:
    """Return the name of a model's variant in the memory format in which it is faster."""
    found = peer(row, name + CHANNELS_LAST)
    time = measured(row, name)
    return name if found is None or (time is not None and time <= found[1]) else found[0]


def spread(row: Row | None, names: Iterable[str]) -> float | None:
    """Return half the distance of the quartiles over the median, of the named variant where it is largest."""
    results = [] if row is None else [row["results"].get(name, {}) for name in names]
    return max(((r["high"] - r["low"]) / 2 / r["median"] for r in results if "median" in r), default=None)


def regrets(rows: Rows) -> Iterator[tuple[Row, str, float]]:
    """Yield a layer's case, a topology, and ``auto``'s time over the fastest of all ways measured, itself among them.

    A way that was left after its first call stands with that one.
    """
    for row in rows.values():
        for topology in TOPOLOGIES:
            chosen = measured(row, f"{topology} auto")
            ways = [measured(row, f"{topology} {way}") or measured(row, f"{topology} {way}", "first") for way in _WAYS]
            others = [seconds for seconds in ways if seconds is not None]
            if chosen is not None and others:
                yield row, topology, chosen / min(chosen, *others)


def over_dense(rows: Rows, mode: str, dtype: str = "float32") -> Iterator[tuple[Row, str, float]]:
    """Yield what ``auto`` takes over dense beyond the spread: its first quartile over dense's third."""
    for row in rows_of(rows, mode=mode, dtype=dtype):
        for name in row["results"]:
            if name.endswith(" auto") or (row["kind"] == "model" and not name.startswith("dense")):
                mine, dense = measured(row, name, "low"), measured(row, "dense", "high")
                if mine is not None and dense is not None:
                    yield row, name, mine / dense


def dense_wins(rows: Rows, mode: str = "training", dtype: str = "float32") -> list[tuple[Row, str, float]]:
    """Return where dense torch is faster by more than 5 % beyond the spread, with how many times, the worst first."""
    wins = [
        (row, name, ratio(row, name, "dense") or share)
        for row, name, share in over_dense(rows, mode, dtype)
        if share > LIMIT
    ]
    return sorted(wins, key=lambda found: -found[2])
