"""The report of a training run: what each stage did to size and accuracy, beside the controls."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adntn.errors import ConfigError
from adntn.report.curves import stages_plot, time_plot
from adntn.report.faithfulness import faithfulness_table
from adntn.report.figures import NONE, duration, mean_and_deviation, percent, points, times, whole
from adntn.report.pages import Code, Page, Picture, Section, Table, to_html, to_markdown
from adntn.report.schema import ControlRow, RunReport, StageRow
from adntn.savefile import writing

__all__ = ["controls_table", "details_table", "headline", "read_report", "stages_table", "write_report"]

#: What the tables of single stages are called, and how they are read.
_DETAILS: Mapping[str, tuple[str, str]] = {
    "select": (
        "Layers that were chosen",
        "Numbers of each layer's weight, dense and generated, and the rank it can have.",
    ),
    "warm-start": (
        "Warm start, layer by layer",
        "Errors are ‖W − W̃‖ / ‖W‖ of each layer's weight against the teacher's; 0 is exact, 1 is what zero has.",
    ),
    "blocks": ("Block by block", "How far each block was from the teacher's before and after it was fitted alone."),
    "grow": ("Growth", "What each step cost in numbers, and what it brought on the validation images."),
    "prune": ("Pruning", "What was cut, and how far that changed the function."),
    "quantize": (
        "Quantisation",
        "Accuracy on the validation images and bytes: before, rounded, and trained on the grid.",
    ),
    "finish": (
        "Files read back",
        "The largest difference to the model's own outputs, as a share of the largest logit.",
    ),
}
_STAGES = (
    "Numbers are the parameters of the whole model, ratio is the dense network's over these, and generated are those "
    "that generated layers store. Validation images are held out of the training images, and all choices are made "
    "by them; no choice is made by the test images."
)
_SEEDS = "Test accuracy is the mean ± standard deviation over the seeds"
_ONE_SEED = "Test accuracy is that of one seed"
_CONTROLS = "Δ is its distance in points to this run's result: a control with + did better."
_SHARES = ("accuracy", "validation", "test", "gain", "agreement")


def write_report(report: RunReport | Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write ``report.json``, ``report.md``, ``report.html`` and two plots into a run's folder.

    The HTML is one file with its pictures inside; nothing is fetched when it is opened.

    Args:
        report: or the plain values that :meth:`adntn.report.schema.RunReport.from_dict` takes.
        folder: is made if it is not there.

    Returns:
        The files' paths: ``"json"``, ``"markdown"``, ``"html"``, ``"stages"``, ``"time"``.

    Raises:
        ConfigError: the values are not a report.
        CheckpointError: a file cannot be written.

    Example:
        >>> files = write_report(values, run_folder)
    """
    run = report if isinstance(report, RunReport) else RunReport.from_dict(report)
    folder.mkdir(parents=True, exist_ok=True)
    plots = {"stages": folder / "plots" / "stages.png", "time": folder / "plots" / "time.png"}
    stages_plot(run, plots["stages"])
    time_plot(run, plots["time"])
    page = run_page(run, plots["stages"], plots["time"])
    texts = {
        "json": (folder / "report.json", json.dumps(run.to_dict(), indent=1) + "\n"),
        "markdown": (folder / "report.md", to_markdown(page, folder)),
        "html": (folder / "report.html", to_html(page)),
    }
    for path, text in texts.values():
        with writing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return {name: path for name, (path, _) in texts.items()} | plots


def read_report(folder: Path) -> RunReport:
    """Read the ``report.json`` of a folder.

    Raises:
        ConfigError: there is none, or it is not one.
    """
    path = folder / "report.json"
    try:
        return RunReport.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a report: {error}") from None


def run_page(run: RunReport, stages: Path, time: Path) -> Page:
    """Return the report as a page with the two plots."""
    seed = "" if run.seed is None else f" Seed {run.seed}."
    sections = [
        Section(
            "After each stage",
            (
                stages_table(run),
                _STAGES + seed,
                Picture(stages, "accuracy, and numbers and bytes, after each stage, with the controls"),
                Picture(time, "validation accuracy over the time of the run, stage by stage"),
            ),
        )
    ]
    if run.controls:
        sections.append(
            Section(
                "Beside it",
                (
                    controls_table(run),
                    f"{_SEEDS if any(len(row.test) > 1 for row in run.controls) else _ONE_SEED}; {_CONTROLS}",
                ),
            )
        )
    if run.faithfulness is not None:
        sections.append(Section("Faithful to the dense network?", _faithful(run)))
    sections += [_details(kind, rows) for kind, rows in run.details.items() if rows]
    if run.files:
        named = tuple((name, says) for name, says in run.files.items())
        sections.append(Section("Files", (Table(("file", "holds"), named, words=("holds",)),)))
    asked: list[str | Table | Picture | Code] = []
    if run.recipe:
        asked.append(Code("The recipe", run.recipe, "json" if run.recipe.lstrip().startswith("{") else "toml"))
    if run.environment:
        asked.append(Code("Where it ran", _lines(run.environment)))
    if asked:
        sections.append(Section("What was run, and where", tuple(asked)))
    return Page(run.title, headline(run), tuple(sections))


def headline(run: RunReport) -> str:
    """Say in some sentences what the run came to, and what the best control of its size came to."""
    end, start = run.result, run.dense
    about = f"{run.model} on {run.data}"
    spent = f" The stages took {duration(sum(stage.seconds for stage in run.stages))}."
    if start is None:
        text = f"{about}: {whole(end.numbers)} numbers, {whole(end.file_bytes)} bytes, {_accuracy(end)}."
    else:
        smaller = f"{times(start.numbers / max(1, end.numbers))} fewer numbers"
        lighter = f"{times(start.file_bytes / max(1, end.file_bytes))} fewer bytes"
        text = (
            f"{about}: from {whole(start.numbers)} to {whole(end.numbers)} numbers ({smaller}, {lighter}), "
            f"{_accuracies(start, end)}."
        )
    return text + spent + _best_control(run)


def _accuracy(row: StageRow) -> str:
    if row.test is None:
        return f"validation accuracy {percent(row.validation)} %"
    return f"test accuracy {percent(row.test)} %"


def _accuracies(start: StageRow, end: StageRow) -> str:
    if start.test is None or end.test is None:
        name, one, other = "validation", start.validation, end.validation
    else:
        name, one, other = "test", start.test, end.test
    return f"{name} accuracy from {percent(one)} to {percent(other)} % ({points(other - one)} points)"


def _best_control(run: RunReport) -> str:
    end = run.result
    # What is a tenth larger still counts as of equal size.
    equal = [control for control in run.controls if control.numbers <= 1.1 * end.numbers]
    if not equal or end.test is None:
        return ""
    best = max(equal, key=lambda control: statistics.mean(control.test))
    difference = statistics.mean(best.test) - end.test
    return (
        f" The best control of its size or smaller, {best.name}, has {mean_and_deviation(best.test)} % "
        f"({points(difference)} points)."
    )


def stages_table(run: RunReport) -> Table:
    """Return a row a stage, the dense network first."""
    rows = ([run.dense] if run.dense is not None else []) + list(run.stages)
    base = run.dense.numbers if run.dense is not None else None

    def cells(row: StageRow) -> tuple[str, ...]:
        smaller = NONE if base is None or row is run.dense or not row.numbers else times(base / row.numbers)
        return (
            row.kind,
            whole(row.numbers),
            smaller,
            whole(row.generated),
            whole(row.file_bytes),
            percent(row.validation),
            percent(row.test),
            NONE if row is run.dense and not row.seconds else duration(row.seconds),
            row.note,
        )

    titles = ("stage", "numbers", "ratio", "generated", "file bytes", "validation %", "test %", "time", "note")
    table = Table(titles, tuple(map(cells, rows)), words=("note",), strong=(len(rows) - 1,))
    return table if any(row.note for row in rows) else _without(table, "note")


def controls_table(run: RunReport) -> Table:
    """Return this run's result and each control."""
    end = run.result
    spent = sum(stage.seconds for stage in run.stages)
    own = ("this run", whole(end.numbers), whole(end.file_bytes), percent(end.test), NONE, duration(spent), NONE, "")

    def cells(control: ControlRow) -> tuple[str, ...]:
        difference = None if end.test is None else statistics.mean(control.test) - end.test
        return (
            control.name,
            whole(control.numbers),
            whole(control.file_bytes),
            mean_and_deviation(control.test),
            points(difference),
            duration(control.seconds),
            NONE if control.epochs is None else f"{control.epochs:g}",
            control.note,
        )

    titles = ("network", "numbers", "file bytes", "test %", "Δ points", "time", "epochs", "note")
    table = Table(titles, (own, *map(cells, run.controls)), words=("note",), strong=(0,))
    return table if any(control.note for control in run.controls) else _without(table, "note")


def _without(table: Table, title: str) -> Table:
    at = table.titles.index(title)
    rows = tuple(row[:at] + row[at + 1 :] for row in table.rows)
    return Table(table.titles[:at] + table.titles[at + 1 :], rows, table.words, table.strong)


def details_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return plain rows as a table: a column a key, in the order in which keys first come.

    Whole numbers get commas, shares (floats under keys that end in ``accuracy``, ``validation``, ``test``, ``gain`` or
    ``agreement``) are written in per cent, keys that end in ``seconds`` as durations, other floats in three figures.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    words = tuple(_title(key) for key in keys if any(isinstance(row.get(key), str) for row in rows))
    cells = tuple(tuple(_cell(key, row.get(key)) for key in keys) for row in rows)
    return Table(tuple(map(_title, keys)), cells, words)


def _is_share(key: str) -> bool:
    return key.replace("-", "_").split("_")[-1] in _SHARES or any(f"{name}_" in key for name in _SHARES)


def _title(key: str) -> str:
    unit = ", points" if key.endswith("gain") else " %" if _is_share(key) else ""
    return key.replace("_", " ") + unit


def _cell(key: str, value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return whole(value)
    if isinstance(value, float):
        if key.endswith("seconds"):
            return duration(value)
        return (points(value) if key.endswith("gain") else percent(value)) if _is_share(key) else f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell("", each) for each in value)
    return str(value) if isinstance(value, str) else json.dumps(value)


def _details(kind: str, rows: Sequence[Mapping[str, Any]]) -> Section:
    # A recipe may have stages of one kind more than once: "grow 2", or by their places, "4 grow".
    known = next((word for word in kind.split() if word in _DETAILS), None)
    title, says = _DETAILS[known] if known is not None else (kind, "")
    number = "" if known is None else " ".join(word for word in kind.split() if word != known)
    heading = f"{title} (stage {number})" if number else title
    table = details_table(rows)
    return Section(heading, (says, table) if says else (table,))


def _faithful(run: RunReport) -> tuple[str | Table, ...]:
    assert run.faithfulness is not None
    values = run.faithfulness
    text = f"Both on {whole(values['images'])} test images. Calibration error over 15 bins of confidence. "
    if values["model"]["corrupted"]:
        text += "Corruptions by Hendrycks & Dietterich, the number is the severity, 1 to 5. "
    if values["similarity"]:
        text += (
            "Similarity is the linear CKA of the features after a layer, on "
            f"{whole(values['similarity_images'])} of the images; 1 is equal up to a rotation."
        )
    return (faithfulness_table(values, run.classes), text.strip())


def _lines(values: Mapping[str, Any]) -> str:
    width = max(map(len, values))
    return "\n".join(
        f"{name:<{width}}  {value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()
    )
