"""The report of a run: its schema, its tables, and the files that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_makers import report

from adntn import ConfigError
from adntn.checkpoint import CheckpointError
from adntn.report.schema import ControlRow, RunReport, StageRow
from adntn.report.training import controls_table, details_table, headline, read_report, stages_table, write_report


def least() -> dict[str, Any]:
    stage = {"kind": "select", "numbers": 10, "file_bytes": 40, "validation": 0.5}
    return {"title": "A run", "data": "digits", "model": "small-cnn", "stages": [stage]}


# --- the schema -----------------------------------------------------------------------------------------------------


def test_values_come_back_as_they_were() -> None:
    run = RunReport.from_dict(report())
    assert RunReport.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    assert run.stages[3] == StageRow.from_dict(report()["stages"][3])
    assert run.controls[0].test == (0.861, 0.859, 0.8635)
    assert run.result.kind == "finish"
    assert RunReport.from_dict(least()).dense is None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"stages": []}, "at least one stage"),
        ({"titel": "x"}, "no option 'titel'.*Did you mean 'title'"),
        ({"stages": [{**least()["stages"][0], "validation": 91.0}]}, "validation=91.0"),
        ({"stages": [{**least()["stages"][0], "validation": float("nan")}]}, "validation=nan"),
        ({"stages": [{**least()["stages"][0], "numbers": 1.5}]}, "numbers=1.5"),
        ({"stages": [{**least()["stages"][0], "acuracy": 1}]}, "no option 'acuracy'"),
        ({"stages": [{"kind": "select"}]}, "lacks something.*numbers"),
        ({"controls": [{"name": "a", "numbers": 1, "file_bytes": 1, "test": []}]}, r"test=\(\)"),
        ({"details": {"grow": {"layer": "a"}}}, "details of 'grow'"),
        ({"version": 2}, "version 2"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunReport.from_dict({**least(), **change})


def test_one_accuracy_is_as_good_as_a_list() -> None:
    assert ControlRow.from_dict({"name": "a", "numbers": 1, "file_bytes": 1, "test": 0.5}).test == (0.5,)


# --- tables ---------------------------------------------------------------------------------------------------------


def test_a_row_a_stage_the_dense_network_first() -> None:
    table = stages_table(RunReport.from_dict(report()))
    assert table.rows[0] == ("dense", "80,098", "–", "–", "323,760", "92.30", "91.71", "–", "")
    assert table.rows[1][:8] == ("select", "2,354", "34x", "592", "13,416", "10.21", "9.81", "0.4 s")
    assert table.strong == (8,)
    alone = stages_table(RunReport.from_dict(least()))
    assert "note" not in alone.titles
    assert alone.rows == (("select", "10", "–", "–", "40", "50.00", "–", "0.0 s"),)


def test_controls_stand_beside_the_result() -> None:
    table = controls_table(RunReport.from_dict(report()))
    assert [row[0] for row in table.rows] == ["this run", "from scratch", "low rank", "narrow dense"]
    assert table.rows[0][:6] == ("this run", "4,120", "7,410", "87.15", "–", "34 min 12 s")
    assert table.rows[2][3:] == ("87.97 ± 0.16", "+0.82", "34 min 11 s", "66", "rank 2")


def test_the_headline_names_the_best_control_of_its_size() -> None:
    values = report()
    assert "19x fewer numbers, 44x fewer bytes" in headline(RunReport.from_dict(values))
    assert "from 91.71 to 87.15 % (−4.56 points)" in headline(RunReport.from_dict(values))
    assert "low rank, has 87.97 ± 0.16 % (+0.82 points)" in headline(RunReport.from_dict(values))
    values["controls"][1]["numbers"] = 5000
    assert "narrow dense, has 87.00 ± 0.12 % (−0.15 points)" in headline(RunReport.from_dict(values))
    assert headline(RunReport.from_dict(least())) == (
        "small-cnn on digits: 10 numbers, 40 bytes, validation accuracy 50.00 %. The stages took 0.0 s."
    )


def test_details_are_written_by_what_they_are() -> None:
    rows = [
        {"layer": "a", "numbers": 1234, "gain": 0.0031, "seconds": 75.2, "kept": True, "error": 0.91234},
        {"layer": "b", "accuracy_before": 0.5, "shape": [3, 4], "error": None, "gain": -0.01},
    ]
    table = details_table(rows)
    assert table.titles == (
        "layer",
        "numbers",
        "gain, points",
        "seconds",
        "kept",
        "error",
        "accuracy before %",
        "shape",
    )
    assert table.rows[0] == ("a", "1,234", "+0.31", "1 min 15 s", "yes", "0.912", "–", "–")
    assert table.rows[1] == ("b", "–", "−1.00", "–", "–", "–", "50.00", "3, 4")
    assert table.words == ("layer",)


# --- files ----------------------------------------------------------------------------------------------------------


def test_all_files_are_written_and_say_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    files = write_report(report(), folder)
    assert {name: path.relative_to(folder).as_posix() for name, path in files.items()} == {
        "json": "report.json",
        "markdown": "report.md",
        "html": "report.html",
        "stages": "plots/stages.png",
        "time": "plots/time.png",
    }
    assert sum(path.is_file() for path in folder.rglob("*")) == 5  # nothing temporary stays
    markdown, page = files["markdown"].read_text(), files["html"].read_text()
    for words in (
        "After each stage",
        "Faithful to the dense network?",
        "Warm start, layer by layer",
        "hierarchical SVD",
        "Growth",
        "Quantisation",
        "Where it ran",
        "87.97 ± 0.16",
    ):
        assert words in markdown, words
        assert words in page, words
    assert "http" not in page
    assert page.count("data:image/png;base64,") == 2
    assert read_report(folder) == RunReport.from_dict(report())


def test_a_run_with_nothing_but_a_stage_has_a_report(tmp_path: Path) -> None:
    text = write_report(least(), tmp_path)["markdown"].read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# A run", "## After each stage"]


def test_stages_of_the_same_kind_and_unknown_ones_have_their_own_sections(tmp_path: Path) -> None:
    values = {**least(), "details": {"5 grow": [{"a": 1}], "7 grow": [{"a": 2}], "my-stage": [{"a": 3}], "prune": []}}
    text = write_report(values, tmp_path)["markdown"].read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")][1:] == [
        "## Growth (stage 5)",
        "## Growth (stage 7)",
        "## my-stage",
    ]


def test_a_folder_without_a_report_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_report(tmp_path)
    (tmp_path / "report.md").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*report\.md"):
        write_report(least(), tmp_path)
