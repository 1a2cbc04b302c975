"""From the results to what is read: one line on the screen, tables, plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adntn.checkpoint import writing
from benchmarks.speed import plots
from benchmarks.speed.reading import measured, peer, ratio
from benchmarks.speed.results import Results
from benchmarks.speed.tables import TABLES, machine_table, number, seconds

__all__ = ["line", "write"]


def line(row: dict[str, Any]) -> str:
    """Return what a case came to, for the screen."""
    if row["kind"] == "weight":
        shown = [f"{name} {seconds(measured(row, name))}" for name in row["results"]]
    else:
        names = [name for name in row["results"] if name.endswith(" auto") or row["kind"] == "model"]
        best = peer(row, "tensorly")
        names += [best[0]] if best else []
        shown = [f"dense {seconds(measured(row, 'dense'))}"]
        shown += [f"{name} {number(ratio(row, 'dense', name))}x" for name in names if name != "dense"]
    return f"{row['key']}: {', '.join(shown)} ({row['took']} s)"


def write(results: Results, folder: Path) -> list[Path]:
    """Write ``speed.md`` and the plots beside the results, and return their paths."""
    if not results.rows:
        return []
    path = folder / "speed.md"
    parts = ["# Speed\n", machine_table(results.sessions)]
    parts += [f"\n## {name}\n\n{table(results.rows)}" for name, table in TABLES.items()]
    with writing(path) as temporary:
        temporary.write_text("\n".join(parts) + "\n")
    return [path, *plots.write(results.rows, folder)]
