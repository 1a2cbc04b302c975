"""`adntn inspect` with a budget: the plan that the library makes of it."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import adntn
from adntn.cli import app
from adntn.experiments.models import model_builder, small_cnn


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


@pytest.mark.parametrize("share_cores", [False, True])
def test_kronecker_products_are_planned_for_a_budget(share_cores: bool) -> None:
    flags = ["--share-cores"] * share_cores
    made = CliRunner().invoke(
        app, ["inspect", "vgg16-quarter", "--parameters", "60000", "--topology", "kronecker", "--json", *flags]
    )
    assert made.exit_code == 0, made.output
    with torch.device("meta"):
        model = model_builder("vgg16-quarter", None, None)()
        plan = adntn.kronecker_budget(model, parameters=60_000, share_cores=share_cores)
    assert json.loads(made.output) == json.loads(plan.to_json())


@pytest.mark.parametrize(
    "options, message",
    [
        (["--topology", "kronecker"], "--parameters"),
        (["--share-cores"], "--parameters"),
        (["--parameters", "4000", "--share-cores"], "--topology kronecker"),
        (["--parameters", "4000", "--topology", "kronecker", "--radix", "3"], "radix has no meaning"),
    ],
    ids=str,
)
def test_what_products_do_not_go_with_is_one_line(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["inspect", "small-cnn", *options])
    assert result.exit_code == 2
    assert message in result.output
