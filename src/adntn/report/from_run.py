"""From what a run has written down (``run.json``) to its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from adntn.report.accounts import curve_of, note_of, rows_of
from adntn.report.schema import ControlRow, RunReport, StageRow

__all__ = ["report_of"]

_FILES = {
    "report.html, report.md, report.json": "this report",
    "run.json": "every number of it, and each stage's own account",
    "recipe.json, environment.json": "what was run, and where",
}
_CONTROLS = {"controls/": "the networks beside it, each with its metrics"}


def report_of(run: Mapping[str, Any], title: str) -> RunReport:
    """Return the report of a run.

    Args:
        run: as :func:`adntn.experiments.train.train` returns it.
        title: of the report.
    """
    stages = [stage for stage in run["stages"] if stage["number"]]
    teachers = [stage for stage in run["stages"] if not stage["number"]]
    kinds = [stage["kind"] for stage in stages]
    details = {
        stage["kind"] if kinds.count(stage["kind"]) == 1 else f"{stage['number']} {stage['kind']}": rows
        for stage in stages
        if (rows := rows_of(stage["kind"], stage["outcome"]))
    }
    folders = {f"{s['number']:02}-{s['kind']}/": _folder(s["kind"]) for s in run["stages"]}
    return RunReport(
        title=title,
        data=run["data"]["title"],
        model=run["recipe"]["model"],
        seed=run["recipe"]["seed"],
        dense=_stage(teachers[0], "dense") if teachers else None,
        stages=tuple(_stage(stage, stage["kind"]) for stage in stages),
        controls=tuple(_control(row) for row in run["controls"] if "absent" not in row),
        faithfulness=run["faithfulness"],
        details=details,
        environment=_flat(run["environment"]),
        recipe=json.dumps(run["recipe"], indent=1),
        files={**_FILES, **folders, **(_CONTROLS if run["controls"] else {})},
    )


def _folder(kind: str) -> str:
    if kind == "finish":
        return "cores.safetensors for adntn.load, dense.safetensors for torch alone"
    return f"model.safetensors, the model after {kind}; its checkpoints and metrics"


def _stage(stage: Mapping[str, Any], kind: str) -> StageRow:
    measures, outcome = stage["measures"], stage["outcome"]
    curve = curve_of(outcome)
    # Epochs are of about one length.
    step = stage["seconds"] / max(1, len(curve))
    return StageRow(
        kind=kind,
        numbers=measures["numbers"],
        generated=measures["generated"],
        file_bytes=measures["file_bytes"],
        validation=measures["validation_accuracy"],
        test=measures["test_accuracy"],
        seconds=stage["seconds"],
        note=note_of(stage["kind"], outcome),
        curve=tuple((step * number, value) for number, value in enumerate(curve, 1)),
    )


def _control(row: Mapping[str, Any]) -> ControlRow:
    return ControlRow(
        name=row["kind"].replace("-", " "),
        numbers=row["numbers"],
        file_bytes=row["file_bytes"],
        test=tuple(run["measures"]["test_accuracy"] for run in row["runs"]),
        seconds=row["seconds"],
        epochs=row["epochs"],
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name} ")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
