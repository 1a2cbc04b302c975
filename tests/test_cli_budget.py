"""`adntn inspect` with a budget: the plan that the library makes of it."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import adntn
from adntn.cli import app
from adntn.experiments.models import small_cnn


def inspect(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["inspect", "small-cnn", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_budget_of_numbers_is_the_librarys_plan() -> None:
    with torch.device("meta"):
        plan = adntn.fit_budget(small_cnn((1, 28, 28), 10), parameters=4000)
    assert inspect("--parameters", "4000").strip() == str(plan).strip()
    assert json.loads(inspect("--parameters", "4000", "--json")) == json.loads(plan.to_json())
    assert plan.after <= 4000


def test_a_budget_of_bytes_topologies_and_targets_are_passed_on() -> None:
    plan = json.loads(inspect("--bytes", "40000", "--topology", "lowrank", "--targets", "conv3", "--json"))
    (layer,) = plan["layers"]
    assert layer["name"] == "conv3"
    assert layer["config"]["topology"] == "lowrank"


@pytest.mark.parametrize("budget", [("--parameters", "100"), ("--parameters", "4000", "--bytes", "16000")])
def test_an_impossible_budget_is_one_line(budget: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["inspect", "small-cnn", *budget])
    assert result.exit_code == 2
