"""Means, deviations and differences against values worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from adntn.experiments.runs import Row, Timing
from adntn.report.summary import NARROW, cells, markdown, summarize


def row(variant: str, seed: int, accuracy: float, **changes: Any) -> Row:
    values = Row(
        variant=variant,
        seed=seed,
        accuracy=accuracy,
        loss=1.0,
        curve=(accuracy,),
        layer_stored=1000,
        layer_trained=1000,
        model_stored=1200,
        model_trained=1200,
        file_bytes=5000,
        stable_rank_start=4.0 + seed,
        stable_rank_end=6.0 + seed,
        train_seconds=2.0 + seed,
        steps=10,
        file=f"models/{variant}-seed{seed}.safetensors",
    )
    return replace(values, **changes)


TTN: dict[str, Any] = {"layer_stored": 40, "layer_trained": 40, "model_stored": 240, "model_trained": 240}
ROWS = [
    row("dense", 0, 0.90),
    row("dense", 1, 0.94),
    row("dense", 2, 0.98),
    row("ttn", 0, 0.80, **TTN),
    row("ttn", 1, 0.90, **TTN),
    row("ttn", 2, 0.88, **TTN),
    row("deleted", 0, 0.5, layer_stored=0, layer_trained=0, stable_rank_start=None, stable_rank_end=None),
]
TIMINGS = [Timing("dense", 2.0, 1.0, 128, 7), Timing("ttn", 1.0, 0.5, 128, 7)]


def test_means_deviations_and_paired_differences_are_those_worked_out_by_hand() -> None:
    dense, ttn, _ = summarize(ROWS, TIMINGS)
    assert (dense.variant, dense.seeds, dense.layer_ratio, dense.model_ratio) == ("dense", 3, 1.0, 1.0)
    assert dense.accuracy == pytest.approx(0.94)
    assert dense.deviation == pytest.approx(0.04)  # sqrt((0.04^2 + 0 + 0.04^2) / 2)
    assert (dense.delta, dense.delta_deviation) == (0.0, 0.0)
    assert ttn.accuracy == pytest.approx(0.86)
    assert ttn.deviation == pytest.approx(math.sqrt((0.06**2 + 0.04**2 + 0.02**2) / 2))
    # Seed by seed: -0.10, -0.04, -0.10.
    assert ttn.delta == pytest.approx(-0.08)
    assert ttn.delta_deviation == pytest.approx(math.sqrt((0.02**2 + 0.04**2 + 0.02**2) / 2))
    assert (ttn.layer_ratio, ttn.model_ratio) == (25.0, 5.0)
    assert (ttn.stable_rank_start, ttn.stable_rank_end, ttn.train_seconds) == (5.0, 7.0, 3.0)
    assert (ttn.forward_ms, ttn.forward_ratio) == (1.0, 0.5)
    assert ttn.to_dict()["delta"] == ttn.delta


def test_one_seed_has_no_deviation() -> None:
    _, _, deleted = summarize(ROWS, TIMINGS)
    assert (deleted.seeds, deleted.deviation, deleted.delta_deviation) == (1, None, None)
    assert deleted.delta == pytest.approx(-0.4)
    assert (deleted.layer_ratio, deleted.stable_rank_start, deleted.stable_rank_end) == (None, None, None)
    assert (deleted.forward_ms, deleted.forward_ratio) == (None, None)


def test_the_order_of_rows_does_not_matter_beyond_which_variant_comes_first() -> None:
    again = summarize([*ROWS[3:6][::-1], *ROWS[:3], ROWS[6]], TIMINGS)
    assert [s.variant for s in again] == ["ttn", "dense", "deleted"]
    by_name = {s.variant: s for s in summarize(ROWS, TIMINGS)}
    for summary in again:
        assert summary.delta == pytest.approx(by_name[summary.variant].delta)
        assert summary.deviation == by_name[summary.variant].deviation


def test_a_network_without_parameters_has_no_ratio() -> None:
    empty = row("deleted", 0, 0.1, layer_stored=0, layer_trained=0, model_stored=0, model_trained=0)
    summary = summarize([row("dense", 0, 0.9), empty])[1]
    assert (summary.layer_ratio, summary.model_ratio) == (None, None)
    assert cells(summary)["ratio"] == "–"


def test_nothing_makes_nothing() -> None:
    assert summarize([]) == []


def test_the_cells_are_rounded_and_signed() -> None:
    dense, ttn, deleted = summarize(ROWS, TIMINGS)
    assert cells(dense) == {
        "network": "dense",
        "layers stored": "1,000",
        "layers trained": "1,000",
        "ratio": "–",
        "model stored": "1,200",
        "model trained": "1,200",
        "file bytes": "5,000",
        "accuracy %": "94.0 ± 4.0",
        "Δ points": "–",
        "stable rank": "5.0",
        "forward / dense": "1.00x",
    }
    assert cells(ttn)["accuracy %"] == "86.0 ± 5.3"
    assert cells(ttn)["Δ points"] == "-8.0 ± 3.5"
    assert (cells(ttn)["ratio"], cells(ttn)["forward / dense"]) == ("25x", "0.50x")
    assert cells(deleted)["Δ points"] == "-40.0"
    assert cells(summarize([row("dense", 0, 0.5), row("ttn", 0, 0.75, **TTN)])[1])["Δ points"] == "+25.0"
    assert (cells(deleted)["ratio"], cells(deleted)["stable rank"], cells(deleted)["forward / dense"]) == ("–",) * 3
    assert set(NARROW) <= set(cells(dense))


def test_the_markdown_has_as_many_cells_in_every_line() -> None:
    lines = markdown(summarize(ROWS, TIMINGS)).splitlines()
    assert len(lines) == 5
    assert {line.count("|") for line in lines} == {12}
    assert lines[0].startswith("| network | layers stored |")
    assert lines[1] == "|---|" + "---:|" * 10
    assert lines[3].startswith("| ttn | 40 | 40 | 25x | 240 | 240 | 5,000 | 86.0 ± 5.3 | -8.0 ± 3.5 |")
