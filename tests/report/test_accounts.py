"""What stages say of themselves becomes rows, notes and curves, and a run's own account its report."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from small_models import CONFIG, Net

import adntn
from adntn.report.accounts import curve_of, note_of, rows_of
from adntn.report.from_run import report_of
from adntn.report.training import details_table

LEGS: dict[str, Any] = {
    "legs": [
        {"leg": 0, "parameters": 100, "accuracy": 0.8, "epochs": 3, "steps": 9, "seconds": 1.0, "stopped_early": True},
        {
            "leg": 1,
            "layer": "conv2",
            "change": "bond",
            "cost": 52,
            "parameters": 152,
            "accuracy_before": 0.8,
            "accuracy": 0.82,
            "gain": 0.02,
            "epochs": 4,
            "seconds": 2.0,
        },
    ],
    "kept": 1,
    "ended": "the budget is spent",
}
QUANTIZED = {
    "bits": 8,
    "validation_accuracy": {"before": 0.9, "rounded": 0.85, "trained": 0.89},
    "generated_bytes": {"before": 4000, "after": 1100},
    "model_bytes": {"before": 9000, "after": 6100},
    "training": {"curve": [0.86, 0.89]},
}


def test_growth() -> None:
    first, second = rows_of("grow", LEGS)
    assert first == {
        "leg": 0,
        "layer": None,
        "change": None,
        "cost": None,
        "numbers": 100,
        "validation": 0.8,
        "gain": None,
        "epochs": 3,
        "seconds": 1.0,
        "kept": False,
    }
    assert (second["cost"], second["gain"], second["kept"]) == (52, 0.02, True)
    assert details_table([first, second]).rows[1][:7] == ("1", "conv2", "bond", "52", "152", "82.00", "+2.00")
    assert note_of("grow", LEGS) == "1 time; the budget is spent"


def test_quantisation() -> None:
    assert rows_of("quantize", QUANTIZED) == [
        {"when": "before", "validation": 0.9, "generated_bytes": 4000, "model_bytes": 9000},
        {"when": "rounded", "validation": 0.85, "generated_bytes": 1100, "model_bytes": 6100},
        {"when": "trained", "validation": 0.89, "generated_bytes": 1100, "model_bytes": 6100},
    ]
    assert note_of("quantize", QUANTIZED) == "8 bits"
    assert list(curve_of(QUANTIZED)) == [0.86, 0.89]
    assert list(curve_of({"curve": [0.1]})) == [0.1]
    assert list(curve_of({"training": None})) == []


def test_warm_start_blocks_and_files() -> None:
    warm = {"layers": {"conv2": {"relative_error": 0.95, "truncation_error": 0.9, "bound": 1.2, "seconds": 0.5}}}
    assert rows_of("warm-start", warm) == [
        {
            "layer": "conv2",
            "error_of_the_linear_tree": 0.9,
            "bound": 1.2,
            "error_with_the_activation": 0.95,
            "seconds": 0.5,
        }
    ]
    blocks = {"objective": "outputs", "blocks": [{"name": "conv2", "weights": ["conv2"], "before": 0.9, "after": 0.4}]}
    assert rows_of("blocks", blocks) == [{"block": "conv2", "before": 0.9, "after": 0.4}]
    assert note_of("blocks", blocks) == "by outputs"
    files = {"images": 5, "cores": {"file": "cores.safetensors", "bytes": 7, "difference": 0.0}}
    assert rows_of("finish", files) == [{"form": "cores", **files["cores"]}]  # type: ignore[dict-item]


@pytest.mark.parametrize("kind", ["select", "warm-start", "blocks", "fine-tune", "grow", "quantize", "finish", "other"])
def test_a_stage_that_says_nothing_has_no_rows_and_its_own_words_go_first(kind: str) -> None:
    assert rows_of(kind, {}) == []
    assert isinstance(note_of(kind, {}), str)
    assert rows_of(kind, {"rows": [{"a": 1}]}) == [{"a": 1}]
    assert note_of(kind, {"note": "done"}) == "done"


def test_what_select_says_is_what_it_did() -> None:
    from adntn.training.data import Part, TrainingData
    from adntn.training.stages.base import State
    from adntn.training.stages.select import Select

    part = Part(torch.zeros(4, 3, 4, 4), torch.arange(4))
    data = TrainingData(part, part, part, 4, torch.zeros(3), torch.ones(3))
    state = State(Net(), None, data, folder=None)  # type: ignore[arg-type]
    outcome = Select(targets=("head.0",), config=CONFIG.to_dict()).run(state)
    (row,) = rows_of("select", outcome)
    assert (row["layer"], row["weight"], row["topology"]) == ("head.0", "32x32", "ttn")
    assert row["generated"] == adntn.describe(state.model).generated
    assert note_of("select", outcome) == "1 layer: ttn"


def test_a_runs_own_account_becomes_its_report() -> None:
    measures = {
        "validation_accuracy": 0.9,
        "test_accuracy": 0.88,
        "numbers": 10,
        "generated": 4,
        "file_bytes": 400,
    }

    def stage(number: int, kind: str, outcome: dict[str, Any]) -> dict[str, Any]:
        return {"number": number, "kind": kind, "seconds": 8.0, "measures": measures, "outcome": outcome}

    run = {
        "recipe": {"model": "small-cnn", "seed": 3},
        "data": {"title": "Digits"},
        "environment": {"torch": "2", "data": {"train": 5}},
        "stages": [
            stage(0, "teacher", {}),
            stage(1, "grow", LEGS),
            stage(2, "fine-tune", {"curve": [0.5, 0.6, 0.7, 0.8]}),
            stage(3, "grow", LEGS),
            stage(4, "quantize", QUANTIZED),
        ],
        "controls": [
            {"kind": "narrow-dense", "absent": "no width"},
            {
                "kind": "low-rank",
                "numbers": 10,
                "file_bytes": 40,
                "seconds": 9.0,
                "epochs": 2,
                "runs": [{"measures": measures}, {"measures": measures}],
            },
        ],
        "faithfulness": None,
    }
    report = report_of(run, "A run")
    assert [row.kind for row in report.stages] == ["grow", "fine-tune", "grow", "quantize"]
    assert report.dense is not None
    assert list(report.details) == ["1 grow", "3 grow", "quantize"]
    assert report.stages[1].curve == ((2.0, 0.5), (4.0, 0.6), (6.0, 0.7), (8.0, 0.8))
    assert report.stages[3].note == "8 bits"
    assert [(row.name, row.test) for row in report.controls] == [("low rank", (0.88, 0.88))]
    assert json.loads(report.recipe)["seed"] == 3
    assert {"00-teacher/", "04-quantize/", "controls/"} <= set(report.files)
    assert report.environment == {"torch": "2", "data train": 5}
