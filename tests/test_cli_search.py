"""``adntn search`` as a user meets it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from search_fakes import RECIPE, SPACE, Fake
from typer.testing import CliRunner, Result

from adntn.cli import app
from adntn.experiments.search.toml import to_toml

SEARCH = {"trials": 6, "budget": [250, 700], "space": SPACE}


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, ["search", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(recipe: Any, folder: Path, **options: Any) -> Fake:
        return Fake(tmp_path)

    monkeypatch.setattr("adntn.experiments.search.evaluator.TrainingEvaluator", fake)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(RECIPE | {"search": SEARCH}))
    return path


def test_a_search_tells_each_trial_and_ends_with_the_front(recipe: Path) -> None:
    result = run(recipe, "--out", "mine")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines if "/6 " in line] == [f"{n}/6" for n in range(1, 7)]
    front = json.loads(Path("mine/pareto.json").read_text())
    rows = [line.split()[0] for line in lines if line.split()[1:2] and line.split()[1].replace(",", "").isdigit()]
    assert rows[: len(front)] == [point["name"] for point in front]
    assert "…" not in result.stdout
    assert any("Within 700 parameters" in line for line in lines)
    files = {path.relative_to("mine").as_posix() for path in Path("mine").iterdir()}
    assert files >= {"summary.md", "points.json", "points.csv", "pareto.json", "pareto.png", "recipes", "search.json"}


def test_json_is_all_that_stands_on_stdout_and_options_win_over_the_recipe(recipe: Path) -> None:
    result = run(recipe, "--out", "mine", "--trials", "3", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["folder"] == "mine"
    assert len(content["points"]) == 3
    more = run("--resume", "mine", "--trials", "5", "--json")
    assert len(json.loads(more.stdout)["points"]) == 5


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "give a recipe, or with --resume"),
        (("recipe.toml", "--resume", "mine"), "one of the two"),
        (("--resume", "nowhere"), "no search folder"),
        (("--resume", "nowhere", "--out", "mine"), "leave --out away"),
        (("nothing.toml",), "cannot read nothing.toml"),
        (("recipe.toml", "--trials", "0"), "trials=0"),
        (("bad.toml",), "is not TOML"),
        (("bare.toml",), "no 'select'"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(recipe: Path, arguments: tuple[str, ...], words: str) -> None:
    Path("bad.toml").write_text("a = ")
    Path("bare.toml").write_text('model = "small-cnn"\n')
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
