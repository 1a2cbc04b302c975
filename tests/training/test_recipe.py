"""Recipes: as objects, JSON and TOML, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_runs import Shift

from adntn.errors import ConfigError
from adntn.training.optimization import Optimization
from adntn.training.recipe import Controls, Recipe, Teacher
from adntn.training.stages import STAGES


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(model="a.py:build", data="folder", seed=3, threads=2, train_limit=10, test_limit=5, validation=0.2),
        Recipe(teacher=Teacher(optimization=Optimization(epochs=3, ema=0.9))),
        Recipe(teacher=Teacher(file="dense.safetensors"), controls=Controls(kinds=("low-rank",), seeds=3)),
    ],
    ids=["default", "all", "teacher", "controls"],
)
def test_a_recipe_goes_to_json_and_back(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("kind", STAGES)
def test_every_stage_goes_to_json_and_back(kind: str) -> None:
    needed = {"grow": {"steps": 1}}.get(kind, {})
    recipe = Recipe(stages=(STAGES[kind](**needed),))
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert again.stages[0].kind == kind


def test_a_recipe_is_read_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("""
        model = "small-cnn"
        data = "digits"
        train-limit = 100

        [teacher.optimization]
        epochs = 2
        lr = 0.01

        [controls]
        kinds = ["low-rank"]
    """)
    assert Recipe.from_toml(file) == Recipe(
        train_limit=100,
        teacher=Teacher(optimization=Optimization(epochs=2, lr=0.01)),
        controls=Controls(kinds=("low-rank",)),
    )


@pytest.mark.parametrize(
    "values, words",
    [
        ({"modle": "x"}, r"a recipe has no option 'modle'; it has .*Did you mean 'model'\?"),
        ({"teacher": {"fiel": "x"}}, r"a teacher has no option 'fiel'.*Did you mean 'file'\?"),
        ({"teacher": {"optimization": {"epoch": 3}}}, r"an optimization has no option 'epoch'.*'epochs'"),
        ({"teacher": {"file": "x", "as_built": True}}, "two sources of one teacher"),
        ({"controls": {"kinds": ["lowrank"]}}, r"control='lowrank' is not known.*'low-rank'"),
        ({"stage": [{"epochs": 3}]}, "stage 1 is .*; it needs a kind"),
        ({"stage": [{"kind": "grown"}]}, r"stage 1, grown: kind='grown' is not known"),
        ({"stage": {"kind": "grow"}}, r"is not a list; write each stage as a table under \[\[stage\]\]"),
        ({"validation": 1.5}, r"validation=1.5 is not possible; give a whole number"),
        ({"validation": 0.0}, r"validation=0.0 is not possible; give a number that is above 0"),
        ({"validation": math.nan}, "validation=nan is not possible"),
        ({"seed": -1}, "seed=-1 is not possible"),
        ({"device": "tpu"}, "device='tpu' is not known"),
        ({"threads": 0}, "threads=0 is not possible"),
        ({"model": ""}, "model='' is not a name"),
        ({"version": 2}, "version 2.*upgrade"),
    ],
    ids=str,
)
def test_mistakes_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Recipe.from_dict(values)


def test_mistakes_in_a_file_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    with pytest.raises(ConfigError, match=r"cannot read .*recipe\.toml"):
        Recipe.from_toml(file)
    file.write_text("model =")
    with pytest.raises(ConfigError, match=r"recipe\.toml is not TOML"):
        Recipe.from_toml(file)
    file.write_text("modle = 'x'")
    with pytest.raises(ConfigError, match=r"recipe\.toml: a recipe has no option 'modle'"):
        Recipe.from_toml(file)


def test_stages_are_stages() -> None:
    assert Recipe(stages=(Shift(),)).stages == (Shift(),)
    with pytest.raises(ConfigError, match="a stage is one of"):
        Recipe(stages=("grow",))  # type: ignore[arg-type]


ROOT = Path(__file__).parents[2]
FOUND = sorted((ROOT / "docs" / "results").rglob("point-*.toml"))
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))


@pytest.mark.parametrize("file", FOUND, ids=lambda file: file.name)
def test_what_a_search_has_found_is_a_recipe(file: Path) -> None:
    assert [stage.kind for stage in Recipe.from_toml(file).stages] == ["select", "fine-tune"]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_the_examples_are_recipes(file: Path) -> None:
    recipe = Recipe.from_toml(file)
    assert recipe.stages[-1].kind == "finish"
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
