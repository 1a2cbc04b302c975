"""The report of ``adntn reproduce table3``: the paper's Table 3 beside ours, with the controls that it lacks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adntn.checkpoint import writing
from adntn.experiments.reproduce.rows import Result
from adntn.experiments.reproduce.table3 import PAPER, Published
from adntn.report.figures import NONE, whole
from adntn.report.pages import Table, markdown_table
from adntn.report.reproduce.drawings import Mark, accuracies_figure, ratios_figure
from adntn.report.reproduce.lines import Difference, Line, conditions, counted, judged_by, listed, machines, write_csv
from adntn.report.reproduce.sections import CONTROLS, JUDGES, Section, read_sections

__all__ = ["table3_text", "write_table3"]


def write_table3(folder: Path) -> str:
    """Write ``table.md``, ``table.csv``, ``figure4.png`` and ``figure5.png`` of what is finished into its folder.

    Returns:
        What it came to, in two or three sentences.

    Raises:
        RunFolderError: the folder holds no such experiment, or nothing of it is finished.
        CheckpointError: a file cannot be written.
    """
    settings, results, sections, _ = read_sections(folder)
    title = conditions(settings, results)
    write_csv([_record(section, line) for section in sections for line in section.lines], folder / "table.csv")
    marks = {section.title: [_mark(section, line) for line in section.lines] for section in sections}
    ratios_figure(marks, f"The paper's Figure 4, with the whole model and controls · {title}", folder / "figure4.png")
    accuracies_figure(marks, f"The paper's Figure 5, with controls · {title}", folder / "figure5.png")
    text = "\n\n".join(
        [
            f"# Table 3, with controls: {title}",
            table3_text(folder),
            "![Compression ratios of the layers and of the whole model](figure4.png)",
            "![Accuracies of all rows and controls](figure5.png)",
        ]
    )
    with writing(folder / "table.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return _headline(title, results, sections)


def table3_text(folder: Path, level: int = 2) -> str:
    """Return the tables of what is finished, with verdicts and notes, in Markdown.

    Args:
        folder: of the experiment.
        level: of the headings.

    Raises:
        RunFolderError: as :func:`write_table3`.
    """
    settings, results, sections, timings = read_sections(folder)
    blocks = []
    for section in sections:
        blocks += [
            f"{'#' * level} {section.title}",
            markdown_table(_accuracy_table(section)),
            _verdict(section),
            markdown_table(_size_table(section)),
        ]
    return "\n\n".join([*blocks, _notes(settings, results, sections, timings)])


# --- the table ------------------------------------------------------------------------------------------------------


def _accuracy_table(section: Section) -> Table:
    titles = ("network", "is", "accuracy, % (seeds)", "Δ dense", "Δ deleted", "Δ frozen-dense", "paper, %", "paper Δ")
    rows = []
    for line in section.lines:
        paper = section.published(line)
        rows.append(
            (
                line.variant,
                section.kind(line),
                line.written(),
                *(_points(section.delta(line, other)) for other in ("dense", *JUDGES)),
                NONE if paper is None else _published(paper),
                NONE if paper is None else f"{paper.delta:+.2f}".replace("-", "−"),
            )
        )
    return Table(titles, tuple(rows), words=("is",))


def _size_table(section: Section) -> Table:
    titles = (
        "network",
        "layers stored",
        "paper stored",
        "layers trained",
        "layers ratio",
        "model stored",
        "model trained",
        "model ratio",
        "time per step",
        "stable rank, start → end",
        "rank ≤",
    )
    rows = []
    for line in section.lines:
        paper = section.published(line)
        start, end = (_one_decimal(section.stable_rank(line, when)) for when in ("start", "end"))
        rows.append(
            (
                line.variant,
                whole(section.layer_stored(line)),
                whole(_papers_dense(section) if line is section.dense else paper.stored if paper else None),
                whole(section.layer_trained(line)),
                _ratio(section.layer_ratio(line)),
                whole(line.first.model_stored),
                whole(line.first.model_trained),
                _ratio(section.model_ratio(line)),
                _step(section, line),
                NONE if start == end == NONE else f"{start} → {end}",
                section.rank_bound(line),
            )
        )
    return Table(titles, tuple(rows))


def _papers_dense(section: Section) -> int | None:
    return next((paper.dense for (group, _), paper in PAPER.items() if group == section.group), None)


def _published(paper: Published) -> str:
    return f"{paper.accuracy:.2f}" + ("" if paper.deviation is None else f" ± {paper.deviation:.2f}")


def _points(difference: Difference | None) -> str:
    return NONE if difference is None else difference.written()


def _one_decimal(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _ratio(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:,.0f}x" if value >= 99.95 else f"{value:.3g}x"


def _step(section: Section, line: Line) -> str:
    milliseconds, ratio = section.step(line, "milliseconds"), section.step(line, "dense_ratio")
    if milliseconds is None:
        return NONE
    return f"{milliseconds:,.1f} ms" + ("" if ratio is None else f" ({ratio:.2f}x)")


# --- verdicts and notes ---------------------------------------------------------------------------------------------


def _verdict(section: Section) -> str:
    """Say which generated rows beat both, one or none of the two controls by more than the spread."""
    deleted = section.own.get("deleted")
    said = []
    away = None if deleted is None else section.delta(deleted)
    if away is not None:
        said.append(f"Deleting the layers changes the accuracy by {away.written()} points.")
        if away.sign in (0, 1):
            said.append("That is no loss beyond the spread: accuracy here cannot tell a good generator from none.")
    if not section.generated:
        return " ".join(["**Verdict.**", *said, "No generated row is finished."])
    missing = [name for name in JUDGES if name not in section.own]
    if missing:
        said.append(f"Not finished: {listed(missing)}.")
    places: dict[str, list[str]] = {}
    for line in section.generated:
        places.setdefault(_place(section, line), []).append(line.variant)
    said += [f"{place}: {listed(places[place])}." for place in _PLACES if place in places]
    return " ".join(["**Verdict.**", *said])


_BOTH, _NEITHER = "Above both controls", "Above neither"
_EITHER = tuple(f"Above `{name}`, not above `{other}`" for name, other in (JUDGES, JUDGES[::-1]))
_JUDGED = (_BOTH, *_EITHER, _NEITHER)
_ONE_SEED = "One seed, which says nothing about the spread, so not judged"
_UNKNOWN = "Nothing to compare with"
_PLACES = (*_JUDGED, *(f"{how} `{name}`" for name in JUDGES for how in ("Above", "Not above")), _ONE_SEED, _UNKNOWN)


def _place(section: Section, line: Line) -> str:
    """Return where a generated row stands, one of ``_PLACES``; a control that is not finished is left out."""
    differences = {name: section.delta(line, name) for name in JUDGES}
    known = {name: difference.sign for name, difference in differences.items() if difference is not None}
    if not known:
        return _UNKNOWN
    judged = {name: sign == 1 for name, sign in known.items() if sign is not None}
    if not judged:
        return _ONE_SEED
    above = [name for name, is_above in judged.items() if is_above]
    if len(judged) == 1:
        (name,) = judged
        return f"Above `{name}`" if above else f"Not above `{name}`"
    if len(above) == 1:
        return f"Above `{above[0]}`, not above `{next(name for name in judged if name not in above)}`"
    return _BOTH if above else _NEITHER


def _notes(
    settings: Mapping[str, Any], results: Sequence[Result], sections: Sequence[Section], timings: Mapping[str, Any]
) -> str:
    width = settings.get("width")
    shown = {line.variant for section in sections for line in section.lines}
    controls = [f"`{name}`: {says}" for name, says in CONTROLS.items() if name in shown]
    trained = machines(result.environment for result in results)
    counts = "" if width == 1 else f" Its counts belong to width 1, ours to width {width}."
    notes = [
        (
            f"{conditions(settings, results)}; batches of {settings.get('batch_size', NONE)}, "
            f"{settings.get('precision', 'unknown precision')}. {_recipes(sections)} The accuracy is that of the last "
            f"epoch on {judged_by(settings)}. Trained on: {trained}."
        ),
        (
            "Accuracy: mean ± sample deviation over the seeds, their number in brackets. Δ: difference in points to "
            "the dense network, to `deleted` and to `frozen-dense`, paired by seed, mean ± sample deviation. *Above* "
            "means that the mean difference is greater than its deviation; of two seeds a deviation is a rough guess."
        ),
        f"The paper's columns are its Table 3: its own recipe, full width, validation accuracy.{counts}",
        (
            "Layers stored, layers trained: numbers for the layers' weights; in the dense row they are P, which the "
            "paper pads for AlexNet. Ratio: dense over stored numbers, of the layers and of the whole model. Stable "
            "rank: ‖W‖_F² / ‖W‖₂², mean over layers and seeds. Rank ≤: the greatest rank that each weight can have."
        ),
    ]
    if controls:
        notes.append(f"Controls. {'; '.join(controls)}.")
    notes.append(_timing_note(timings))
    return "\n\n".join(filter(None, notes))


def _recipes(sections: Sequence[Section]) -> str:
    """Say whether the rows that are compared were trained in one way."""
    ways: dict[str, set[str]] = {}
    for section in sections:
        for result in (result for line in section.lines for result in line.results):
            ways.setdefault(section.network, set()).add(json.dumps(result.optimization, sort_keys=True))
    return (
        "One recipe for all rows of a network."
        if all(len(found) == 1 for found in ways.values())
        else "Not all rows of a network have the same recipe: see `optimization` in their files."
    )


def _timing_note(timings: Mapping[str, Any]) -> str:
    known = [part for part in timings.values() if part.get("rows")]
    if not known:
        return ""
    batches = sorted({part["batch"] for part in known if "batch" in part})
    rounds = sorted({part["rounds"] for part in known if "rounds" in part})
    where = machines(part.get("environment", {}) for part in known)
    return (
        f"Time per step: forward, backward and optimiser on one batch of {_either(batches)}, median of "
        f"{_either(rounds)} rounds in turns with the dense network; in brackets its ratio to that one's. Measured on: "
        f"{where}."
    )


def _either(values: Iterable[Any]) -> str:
    return " or ".join(map(str, values)) or NONE


def _headline(title: str, results: Sequence[Result], sections: Sequence[Section]) -> str:
    rows = counted(len({result.name for result in results}), "row")
    said = [f"Table 3 ({title}): {rows}, {counted(len(results), 'training')} finished."]
    clauses = []
    for section in sections:
        places = [_place(section, line) for line in section.generated]
        judged = [place for place in places if place in _JUDGED]
        deleted = section.own.get("deleted")
        away = None if deleted is None else section.delta(deleted)
        clause = [] if away is None else [f"without these layers {away.written()} points"]
        best = max(section.generated, key=lambda line: line.mean, default=None)
        gained = None if best is None else section.delta(best)
        if best is not None and gained is not None:
            clause.append(f"with the best generator, {best.variant}, {gained.written()}")
        if judged:
            clause.append(
                f"{judged.count(_BOTH)} of {counted(len(judged), 'generated row')} above both deleted and frozen-dense"
            )
        if clause:
            clauses.append(f"{section.title}: {', '.join(clause)}")
    if clauses:
        said.append("; ".join(clauses) + ".")
    if all(len(line.results) == 1 for section in sections for line in section.lines):
        said.append("One seed says nothing about the spread.")
    return " ".join(said)


# --- files ----------------------------------------------------------------------------------------------------------


def _record(section: Section, line: Line) -> dict[str, Any]:
    paper = section.published(line)
    deltas = {name: section.delta(line, name) for name in ("dense", *JUDGES)}
    record: dict[str, Any] = {
        "group": section.group,
        "variant": line.variant,
        "kind": section.kind(line),
        "seeds": len(line.results),
        "accuracy": line.mean,
        "accuracy_deviation": line.deviation,
    }
    for name, delta in deltas.items():
        key = f"delta_{name.replace('-', '_')}"
        record |= {key: delta and delta.mean, f"{key}_deviation": delta and delta.deviation}
    return record | {
        "layer_dense": section.dense_numbers,
        "layer_stored": section.layer_stored(line),
        "layer_trained": section.layer_trained(line),
        "layer_ratio": section.layer_ratio(line),
        "model_stored": line.first.model_stored,
        "model_trained": line.first.model_trained,
        "model_ratio": section.model_ratio(line),
        "step_milliseconds": section.step(line, "milliseconds"),
        "step_dense_ratio": section.step(line, "dense_ratio"),
        "stable_rank_start": section.stable_rank(line, "start"),
        "stable_rank_end": section.stable_rank(line, "end"),
        "rank_bound_least": min(line.first.rank_bound.values(), default=None),
        "rank_bound_greatest": max(line.first.rank_bound.values(), default=None),
        "paper_dense": paper and paper.dense,
        "paper_stored": paper and paper.stored,
        "paper_accuracy": paper and paper.accuracy,
        "paper_deviation": paper and paper.deviation,
        "paper_delta": paper and paper.delta,
    }


def _mark(section: Section, line: Line) -> Mark:
    paper = section.published(line)
    return Mark(
        name=line.variant,
        kind=section.kind(line),
        accuracies=tuple(line.accuracies),
        layer_ratio=section.layer_ratio(line),
        model_ratio=section.model_ratio(line),
        paper_ratio=None if paper is None else paper.dense / paper.stored,
        paper_delta=None if paper is None else paper.delta / 100,
    )
