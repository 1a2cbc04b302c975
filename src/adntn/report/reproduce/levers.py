"""The report of ``adntn reproduce levers``: what one change does to a network of generated convolutions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adntn.checkpoint import writing
from adntn.experiments.reproduce.levers import LEVERS
from adntn.experiments.reproduce.rows import Result
from adntn.report.figures import NONE
from adntn.report.pages import Table, markdown_table
from adntn.report.reproduce.lines import (
    Line,
    compare,
    conditions,
    counted,
    gather,
    judged_by,
    machines,
    read_finished,
    write_csv,
)

__all__ = ["levers_text", "write_levers"]

#: What every lever is compared with.
_REFERENCE = "ttn"


def write_levers(folder: Path) -> str:
    """Write ``table.md`` and ``table.csv`` of what is finished into its folder.

    The CSV has a line a row and seed.

    Returns:
        What it came to, in a sentence or two.

    Raises:
        RunFolderError: the folder holds no such experiment, or nothing of it is finished.
        CheckpointError: a file cannot be written.
    """
    settings, results = read_finished(folder, "levers")
    title = conditions(settings, results)
    write_csv([_record(result) for result in results], folder / "table.csv")
    with writing(folder / "table.md") as temporary:
        temporary.write_text(f"# Levers: {title}\n\n{levers_text(folder)}\n", encoding="utf-8")
    lines = _lines(results)
    said = [f"Levers ({title}): {counted(len(lines), 'row')}, {counted(len(results), 'training')} finished."]
    for size in _sizes(lines):
        of_size = _of_size(lines, size)
        ours, rivals = ([line for line in of_size if _ours(line) is which] for which in (True, False))
        if ours and rivals:
            best, rival = (max(each, key=lambda line: line.mean) for each in (ours, rivals))
            said.append(f"{size}: `{_name(best)}` {best.written()}, best rival `{_name(rival)}` {rival.written()}.")
    return " ".join(said)


def levers_text(folder: Path, level: int = 2) -> str:
    """Return the tables of what is finished, a size each, best first, in Markdown.

    Args:
        folder: of the experiment.
        level: of the headings.

    Raises:
        RunFolderError: as :func:`write_levers`.
    """
    settings, results = read_finished(folder, "levers")
    lines = _lines(results)
    blocks = []
    fixed = [line for line in lines if _size(line) is None]
    if fixed:
        blocks += [f"{'#' * level} Of one size", markdown_table(_table(fixed, None))]
    for size in _sizes(lines):
        of_size = sorted(_of_size(lines, size), key=lambda line: -line.mean)
        reference = next((line for line in of_size if _name(line) == _REFERENCE), None)
        blocks += [f"{'#' * level} {size.capitalize()}", markdown_table(_table(of_size, reference))]
    notes = (
        f"{conditions(settings, results)}; batches of {settings.get('batch_size', NONE)}, "
        f"{settings.get('precision', 'unknown precision')}. Accuracy: on {judged_by(settings)} after the last epoch, "
        f"mean ± sample deviation (seeds). Δ: to `{_REFERENCE}` of the same size, paired by seed. Ours in bold. Stable "
        "rank: mean over the generated weights, before and after training. Trained on: "
        f"{machines(result.environment for result in results)}."
    )
    return "\n\n".join([*blocks, notes])


def _lines(results: Sequence[Result]) -> list[Line]:
    return [line for group in gather(results).values() for line in group.values()]


def _size(line: Line) -> str | None:
    size = line.first.about.get("size")
    return None if size is None else str(size)


def _sizes(lines: Sequence[Line]) -> list[str]:
    """Return the sizes by their smallest networks."""
    sizes = {size for line in lines if (size := _size(line)) is not None}
    return sorted(sizes, key=lambda size: min(line.first.model_trained for line in _of_size(lines, size)))


def _of_size(lines: Sequence[Line], size: str) -> list[Line]:
    return [line for line in lines if _size(line) == size]


def _name(line: Line) -> str:
    return line.variant.removesuffix(f"-{_size(line)}")


def _says(line: Line) -> str:
    lever = LEVERS.get(_name(line))
    return lever.says if lever is not None else str(line.first.about.get("says", ""))


def _ours(line: Line) -> bool:
    return bool(line.first.about.get("ours"))


def _table(lines: Sequence[Line], reference: Line | None) -> Table:
    rows = []
    for line in lines:
        difference = None if line is reference else compare(line, reference)
        name = _name(line)
        rows.append(
            (
                f"**{name}**" if _ours(line) else name,
                _says(line),
                f"{line.first.model_trained:,}",
                line.written(),
                NONE if difference is None else difference.written(),
                _rank(line, "start"),
                _rank(line, "end"),
            )
        )
    titles = ("network", "what is changed", "trained", "accuracy %", "Δ points", "stable rank at start", "at end")
    return Table(titles, tuple(rows), words=("what is changed",))


def _rank(line: Line, when: str) -> str:
    values = [rank for result in line.results for rank in _ranks(result, when).values()]
    return f"{statistics.mean(values):.1f}" if values else NONE


def _ranks(result: Result, when: str) -> Mapping[str, float]:
    ranks: Mapping[str, float] = getattr(result, f"stable_rank_{when}")
    return ranks


def _record(result: Result) -> dict[str, Any]:
    ranks = {when: list(_ranks(result, when).values()) for when in ("start", "end")}
    return {
        "network": result.variant,
        "size": result.about.get("size"),
        "ours": bool(result.about.get("ours")),
        "seed": result.seed,
        "accuracy": result.accuracy,
        "loss": result.loss,
        "model_trained": result.model_trained,
        "model_stored": result.model_stored,
        "stable_rank_start": statistics.mean(ranks["start"]) if ranks["start"] else None,
        "stable_rank_end": statistics.mean(ranks["end"]) if ranks["end"] else None,
        "train_seconds": result.train_seconds,
    }
