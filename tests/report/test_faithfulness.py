"""The one table of faithfulness: every measure once, both models, in Markdown and in plain lines."""

from __future__ import annotations

import copy

from report_makers import report, scores

from adntn.experiments.faithfulness import Faithfulness, Scores
from adntn.report.faithfulness import faithfulness_markdown, faithfulness_table, faithfulness_text

VALUES = report()["faithfulness"]


def test_every_measure_has_its_row() -> None:
    rows = {row[0]: row[1:] for row in faithfulness_table(VALUES).rows}
    assert rows["accuracy, %"] == ("87.15", "91.71", "−4.56")
    assert rows["expected calibration error, %"] == ("2.10", "2.10", "+0.00")
    assert rows["worst class, %"] == ("70.15 (class 6)", "74.71 (class 6)", "–")
    assert rows["under corruptions, mean, %"] == ("81.15", "85.71", "−4.56")
    assert rows["under contrast 5, %"] == ("77.15", "81.71", "−4.56")
    assert rows["agreement, %"] == ("89.31", "", "")
    assert rows["KL(teacher ‖ model), nats"] == ("0.1432", "", "")
    assert rows["similarity of features, conv2"] == ("0.871", "", "")
    assert rows["similarity of features, head"] == ("–", "", "")
    assert len(rows) == 4 + 9 + 2 + 4


def test_classes_have_their_names() -> None:
    names = [f"thing {n}" for n in range(10)]
    assert "70.15 (thing 6)" in faithfulness_markdown(VALUES, names)


def test_a_measurement_and_its_plain_values_give_the_same_table() -> None:
    found = Faithfulness(
        5, Scores(0.5, 0.1, 1, 0.25, {"contrast 1": 0.5}), Scores(1.0, 0.0, 0, 1.0, {"contrast 1": 1.0}), 0.5, 0.7, {}
    )
    assert faithfulness_table(found) == faithfulness_table(found.to_dict())
    assert faithfulness_table(found).rows[0] == ("accuracy, %", "50.00", "100.00", "−50.00")


def test_without_a_teacher_there_is_one_column() -> None:
    alone = Faithfulness(5, Scores(**{**scores(0.9), "corrupted": {}}))
    table = faithfulness_table(alone)
    assert table.titles == ("measure", "model")
    assert [row[0] for row in table.rows] == ["accuracy, %", "expected calibration error, %", "worst class, %"]
    assert faithfulness_table(copy.deepcopy(alone).to_dict()) == table


def test_lines_of_text_are_in_line() -> None:
    head, rule, *lines = faithfulness_text(VALUES).splitlines()
    assert head.split() == ["measure", "model", "teacher", "Δ", "points"]
    assert set(rule) == {"-"}
    ends = {line.index(" 87.15") for line in lines if " 87.15" in line} | {
        line.index(" 81.15") for line in lines if " 81.15" in line
    }
    assert len(ends) == 1
