"""Configurations are counted without being made, and trained and measured as the recipe says."""

from __future__ import annotations

import pickle
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import adntn
from adntn.errors import ConfigError
from adntn.experiments.models import model_builder
from adntn.experiments.search.evaluator import TrainingEvaluator
from adntn.experiments.search.options import SearchOptions
from adntn.experiments.search.run import run_search
from adntn.experiments.search.space import config_of, with_settings

RECIPE: dict[str, Any] = {
    "model": "small-cnn",
    "data": "digits",
    "seed": 0,
    "threads": 1,
    "train_limit": 200,
    "test_limit": 60,
    "validation": 50,
    "teacher": {"optimization": {"epochs": 2}},
    "stage": [{"kind": "select", "targets": ["conv2"]}, {"kind": "fine-tune", "optimization": {"epochs": 2}}],
}


def evaluator(folder: Path) -> TrainingEvaluator:
    return TrainingEvaluator(RECIPE, folder, energy=False, threads=None)


@pytest.mark.parametrize(
    "settings",
    [{}, {"topology": "mera", "groups": 4}, {"terms": 2, "bond_dim": 3}, {"topology": "lowrank"}, {"gate": True}],
    ids=str,
)
def test_parameters_are_counted_without_a_model(tmp_path: Path, settings: dict[str, Any]) -> None:
    recipe = with_settings(RECIPE, settings)
    model = model_builder("small-cnn", (1, 8, 8), 10)()
    adntn.compress_(model, config_of(recipe), ["conv2"])
    assert evaluator(tmp_path).parameters(recipe) == sum(p.numel() for p in model.parameters())


def test_layers_that_share_a_weight_are_counted_once(tmp_path: Path) -> None:
    file = tmp_path / "tied.py"
    file.write_text(
        "from torch import nn\n\n\ndef build(image_shape, num_classes):\n"
        "    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))\n"
        "    model[2].weight = model[1].weight\n    return model\n"
    )
    stages = [{"kind": "select", "targets": ["1", "2"]}, {"kind": "fine-tune"}]
    recipe = RECIPE | {"model": f"{file}:build", "stage": stages}
    tied = TrainingEvaluator(recipe, tmp_path, energy=False, threads=None)
    model = model_builder(recipe["model"], (1, 8, 8), 10)()
    adntn.compress_(model, targets=["1", "2"])
    assert tied.parameters(recipe) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "settings, words",
    [({"groups": 5}, "conv2: groups=5 does not divide"), ({"bond_dim": 64}, "conv2: .*GiB are free")],
    ids=str,
)
def test_what_is_impossible_is_known_before_training(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        evaluator(tmp_path).parameters(with_settings(RECIPE, settings))


@pytest.mark.parametrize(
    "stage, words",
    [({"kind": "quantize", "bits": 4}, "bits of kind 'quantize'"), ({"kind": "fine-tune", "losses": {}}, "losses of")],
    ids=str,
)
def test_what_would_be_passed_over_is_refused(tmp_path: Path, stage: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainingEvaluator(RECIPE | {"stage": [*RECIPE["stage"], stage]}, tmp_path, energy=False, threads=None)


@pytest.mark.slow
def test_a_configuration_is_trained_saved_and_measured_the_same_each_time(tmp_path: Path) -> None:
    mine = evaluator(tmp_path)
    dense = mine.prepare()
    assert dense.agreement == 1.0
    assert dense.parameters == 80_098
    reported: list[tuple[int, int, float]] = []
    recipe = with_settings(RECIPE, {"lr": 0.05})
    found = mine.evaluate(recipe, 1, tmp_path / "a.safetensors", lambda *told: reported.append(told))
    assert [(epoch, epochs) for epoch, epochs, _ in reported] == [(1, 2), (2, 2)]
    assert found.validation_accuracy == reported[-1][2] == found.curve[-1]
    assert found.parameters == mine.parameters(recipe)
    assert found.file_bytes == (tmp_path / "a.safetensors").stat().st_size
    milliseconds, ratio = mine.latency(tmp_path / "a.safetensors")
    assert milliseconds > 0
    assert ratio > 0
    # Another process, which finds the teacher.
    other = pickle.loads(pickle.dumps(mine))
    assert other.prepare() == dense
    torch.randn(7)
    again = other.evaluate(recipe, 1, tmp_path / "b.safetensors", lambda *told: None)
    assert (again.curve, again.test_accuracy, again.calibration_error) == (
        found.curve,
        found.test_accuracy,
        found.calibration_error,
    )
    tensors, others = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


@pytest.mark.slow
def test_two_processes_search_on_digits(tmp_path: Path) -> None:
    space = {"topology": ["ttn", "mera"], "groups": [1, 2, 4, 5], "lr": [5e-3, 1e-1]}
    options = SearchOptions(trials=4, processes=2, budget=(79_000,), space=space, seeds=2, finalists=1, energy=False)
    outcome = run_search(RECIPE, options, tmp_path / "out")
    counts = outcome.counts[79_000]
    assert (counts.done + counts.pruned, counts.failed, counts.running) == (4, 0, 0)
    assert outcome.front
    (compared,) = outcome.comparisons
    assert len(compared.searched) == len(compared.default) == 2
    for point in outcome.points:
        model = adntn.load(model_builder("small-cnn", (1, 8, 8), 10)(), tmp_path / "out" / point.file)
        assert sum(p.numel() for p in model.parameters()) == point.parameters <= 79_000
        recipe = tomllib.loads((tmp_path / "out" / "recipes" / f"point-{point.name}.toml").read_text())
        found = evaluator(tmp_path / "out").evaluate(recipe, 0, tmp_path / "again.safetensors", lambda *told: None)
        assert found.curve == point.curve
        assert point.latency_ratio is not None
        assert point.latency_ratio > 0
