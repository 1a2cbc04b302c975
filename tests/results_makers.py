"""Made-up results of the speed benchmark, in which dense takes a second and every goal's aim is reached."""

from __future__ import annotations

from typing import Any

from benchmarks.speed.cases import Case, full_grid
from benchmarks.speed.results import Results
from benchmarks.speed.variants import TARGETS


def result(median: float, low: float | None = None, high: float | None = None, peak: int = 1000) -> dict[str, Any]:
    return {"median": median, "low": low or median, "high": high or median, "rounds": 3, "calls": 1, "peak": peak}


def row(case: Case, results: dict[str, Any]) -> dict[str, Any]:
    return {**Results.describe(case), "session": 0, "took": 1.0, "results": results}


def made_rows() -> dict[str, dict[str, Any]]:
    rows = {}
    for case in full_grid():
        if case.kind == "weight":
            results = {"fill new": result(1.0), "fill buffer": result(1.0), "einsum loop": result(30.0)}
            results |= {f"ttn {how}": result(1.0) for how in ("new", "into a buffer")}
        elif case.kind == "model":
            results = {"dense": result(1.0)} | {f"ttn: {what}": result(0.05) for what in TARGETS[case.model]}
        else:
            results = {"dense": result(1.0, peak=200_000), "low rank": result(0.01), "tensorly a": result(0.2)}
            for topology in ("ttn", "attn", "mera"):
                results |= {f"{topology} {way}": result(0.01) for way in ("auto", "factored")}
                results |= {f"{topology} dense": result(1.1)}
                results[f"{topology} auto"]["way"] = "factored"
        rows[case.key] = row(case, results)
    return rows
