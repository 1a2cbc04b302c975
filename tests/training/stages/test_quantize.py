"""A quantise stage rounds, trains on the grid, and says what both came to."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from small_runs import small_model, two_classes

import adntn
from adntn.errors import ConfigError
from adntn.training.folder import RunFolder
from adntn.training.objective import Losses
from adntn.training.optimization import Optimization
from adntn.training.recipe import Recipe, Teacher
from adntn.training.run import run_stages
from adntn.training.stages import STAGES
from adntn.training.stages.base import Event, State
from adntn.training.stages.finish import Finish
from adntn.training.stages.quantize import Quantize
from adntn.training.stages.select import Select

HOW = Optimization(epochs=3, batch_size=15, schedule="constant")


def state(folder: Path) -> State:
    model = small_model()
    adntn.compress_(model, targets=["1"])
    return State(model, None, two_classes(), folder)


def test_a_recipe_names_it_with_its_options() -> None:
    table = {"bits": 4, "optimization": {"epochs": 2}, "losses": {"isometry": {"weight": 1e-3}}, "ignore": ["2"]}
    stage = STAGES["quantize"].from_dict(table)
    assert stage == Quantize(bits=4, optimization=Optimization(epochs=2), losses=Losses(isometry=1e-3), ignore=("2",))
    assert Quantize.from_dict(stage.to_dict()) == stage
    with pytest.raises(ConfigError, match="8 or 4 bits"):
        Quantize(bits=5)
    with pytest.raises(ConfigError, match=r"Did you mean .bits."):
        Quantize.from_dict({"bit": 4})


@pytest.mark.parametrize("losses", [None, Losses(isometry=1e-2)])
def test_it_rounds_and_trains_and_says_what_came_of_it(tmp_path: Path, losses: Losses | None) -> None:
    told: list[Event] = []
    here = replace(state(tmp_path), tell=told.append)
    floats = {name: p.detach().clone() for name, p in here.model.named_parameters()}
    outcome = Quantize(bits=4, optimization=HOW, losses=losses).run(here)
    json.dumps(outcome)
    assert here.model[1].quantization == adntn.Quantization(4)
    assert told
    assert outcome["validation_accuracy"].keys() == {"before", "rounded", "trained"}
    assert outcome["validation_loss"]["trained"] < outcome["validation_loss"]["rounded"]
    assert outcome["training"]["epochs"] == 3
    assert not torch.equal(here.model[1].root, floats["1.root"])
    saved = adntn.save(here.model, tmp_path / "model.safetensors")
    with safe_open(saved, framework="pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert outcome["model_bytes"]["after"] == stored
    plain = sum(value.nbytes for value in floats.values())
    assert outcome["model_bytes"]["before"] == plain
    assert plain - stored == outcome["generated_bytes"]["before"] - outcome["generated_bytes"]["after"] > 0


def test_without_an_optimization_it_only_rounds(tmp_path: Path) -> None:
    here = state(tmp_path)
    before = {name: p.detach().clone() for name, p in here.model.named_parameters()}
    outcome = Quantize(bits=8).run(here)
    assert outcome["training"] is None
    assert "trained" not in outcome["validation_accuracy"]
    assert all(torch.equal(p, before[name]) for name, p in here.model.named_parameters())
    assert outcome["weights"]["1"]["relative_change"] > 0


def test_a_second_run_comes_to_the_same(tmp_path: Path) -> None:
    outcomes, models = [], []
    for name in "ab":
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        here = state(tmp_path / name)
        outcome = Quantize(bits=8, optimization=HOW).run(here)
        outcome["training"].pop("seconds")
        outcomes.append(outcome)
        models.append(here.model.state_dict())
    assert outcomes[0] == outcomes[1]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


@pytest.mark.slow
def test_a_run_keeps_what_is_quantised_packed_and_goes_on_from_there(tmp_path: Path) -> None:
    stages = (Select(targets=("1",)), Quantize(bits=4, optimization=HOW), Finish(images=5))
    recipe, folder = Recipe(teacher=Teacher(as_built=True), stages=stages), RunFolder(tmp_path)
    *_, rounded, finished = run_stages(recipe, small_model, two_classes(), folder)
    model = adntn.load(small_model(), rounded.file)
    assert model[1].quantization == adntn.Quantization(4)
    assert finished.outcome["cores"]["difference"] == 0.0
    assert torch.equal(adntn.load(small_model(), finished.file)[1].weight, model[1].weight)
    accuracy = rounded.outcome["validation_accuracy"]["trained"]
    assert rounded.measures["validation_accuracy"] == pytest.approx(accuracy)
    # The same run, of which the last stage is done again, comes to the same.
    shutil.rmtree(finished.file.parent)
    again = run_stages(recipe, small_model, two_classes(), folder)[-1]
    assert again.outcome == finished.outcome
