"""One row a variant: means and deviations over the seeds of a run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adntn.experiments.runs import Row, Timing

__all__ = ["NARROW", "Summary", "cells", "markdown", "summarize"]


@dataclass(frozen=True)
class Summary:
    """A variant over all its seeds.

    Accuracies are shares, 0 ... 1; deviations are of a sample (n - 1), None for one seed.

    Attributes:
        variant: its name.
        seeds: how many.
        layer_stored: numbers stored for the chosen layers' weights.
        layer_trained: how many of them are trained.
        layer_ratio: the dense layers' numbers over the stored ones; None where nothing is stored.
        model_stored: parameters of the whole model.
        model_trained: how many of them are trained.
        model_ratio: the dense model's parameters over the stored ones; None where nothing is stored.
        file_bytes: of the safetensors file.
        accuracy: mean over the seeds.
        deviation: over the seeds.
        delta: mean over the seeds of the difference to the dense network of the same seed.
        delta_deviation: of that difference.
        stable_rank_start: mean over layers and seeds; None for deleted layers.
        stable_rank_end: the same after training.
        forward_ms: median forward time of a batch.
        forward_ratio: forward time over the dense network's; below 1 is faster.
        train_seconds: mean.
    """

    variant: str
    seeds: int
    layer_stored: int
    layer_trained: int
    layer_ratio: float | None
    model_stored: int
    model_trained: int
    model_ratio: float | None
    file_bytes: int
    accuracy: float
    deviation: float | None
    delta: float
    delta_deviation: float | None
    stable_rank_start: float | None
    stable_rank_end: float | None
    forward_ms: float | None
    forward_ratio: float | None
    train_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarize(rows: Sequence[Row], timings: Sequence[Timing] = ()) -> list[Summary]:
    """Bring a run's rows together, one summary a variant, in the order in which variants first come."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.variant, []).append(row)
    dense = {row.seed: row for row in grouped.get("dense", [])}
    times = {timing.variant: timing for timing in timings}
    return [_one(variant, group, dense, times.get(variant)) for variant, group in grouped.items()]


def _one(variant: str, group: Sequence[Row], dense: dict[int, Row], timing: Timing | None) -> Summary:
    first = group[0]
    reference = next(iter(dense.values()), first)
    accuracies = [row.accuracy for row in group]
    deltas = [row.accuracy - dense[row.seed].accuracy for row in group if row.seed in dense] or [0.0]
    return Summary(
        variant=variant,
        seeds=len(group),
        layer_stored=first.layer_stored,
        layer_trained=first.layer_trained,
        layer_ratio=reference.layer_stored / first.layer_stored if first.layer_stored else None,
        model_stored=first.model_stored,
        model_trained=first.model_trained,
        model_ratio=reference.model_stored / first.model_stored if first.model_stored else None,
        file_bytes=first.file_bytes,
        accuracy=statistics.mean(accuracies),
        deviation=_deviation(accuracies),
        delta=statistics.mean(deltas),
        delta_deviation=_deviation(deltas),
        stable_rank_start=_mean(row.stable_rank_start for row in group),
        stable_rank_end=_mean(row.stable_rank_end for row in group),
        forward_ms=None if timing is None else timing.milliseconds,
        forward_ratio=None if timing is None else timing.dense_ratio,
        train_seconds=statistics.mean(row.train_seconds for row in group),
    )


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _mean(values: Any) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.mean(present) if present else None


def cells(summary: Summary) -> dict[str, str]:
    """Return a summary's row of the full table, column by title."""
    s = summary
    return {
        "network": s.variant,
        "layers stored": f"{s.layer_stored:,}",
        "layers trained": f"{s.layer_trained:,}",
        "ratio": "–" if s.layer_ratio is None or s.layer_ratio == 1 else f"{s.layer_ratio:,.0f}x",
        "model stored": f"{s.model_stored:,}",
        "model trained": f"{s.model_trained:,}",
        "file bytes": f"{s.file_bytes:,}",
        "accuracy %": _percent(s.accuracy, s.deviation),
        "Δ points": "–" if s.variant == "dense" else _percent(s.delta, s.delta_deviation, sign="+"),
        "stable rank": "–" if s.stable_rank_start is None else f"{s.stable_rank_start:.1f}",
        "forward / dense": "–" if s.forward_ratio is None else f"{s.forward_ratio:.2f}x",
    }


#: The columns for a screen of 80 characters, and their titles there.
NARROW = {
    "network": "network",
    "layers stored": "layers",
    "ratio": "ratio",
    "model stored": "model",
    "file bytes": "bytes",
    "accuracy %": "accuracy %",
    "Δ points": "Δ dense",
    "stable rank": "rank",
    "forward / dense": "time",
}


def _percent(value: float, deviation: float | None, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def markdown(summaries: Sequence[Summary]) -> str:
    """Return the full table in Markdown."""
    rows = [cells(s) for s in summaries]
    titles = list(rows[0]) if rows else []
    rule = "|---|" + "---:|" * (len(titles) - 1)
    return "\n".join(
        ["| " + " | ".join(titles) + " |", rule, *("| " + " | ".join(row.values()) + " |" for row in rows)]
    )
