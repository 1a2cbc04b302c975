"""The warm-start stage. The training loop is a small stand-in; what is tested is what the stage asks of it."""

from __future__ import annotations

import copy
import json
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import adntn
from adntn import GeneratorConfig
from adntn.describe import generated_weights
from adntn.errors import CompressionError, ConfigError, ShapeError, TrainingStopped
from adntn.training.data import Part, TrainingData
from adntn.training.optimization import Optimization
from adntn.training.stages.base import State
from adntn.training.stages.warm_start import WarmStart

CONFIG = GeneratorConfig(latent_order=2, bond_dim=3)


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "q": nn.Linear(16, 8),
            "k": nn.Linear(16, 8),
            "conv": nn.Conv2d(4, 6, 3),
            "wall": nn.Linear(8, 8),
            "attention": nn.MultiheadAttention(16, 2),
            "rnn": nn.LSTM(8, 4),
        }
    )


def small(**options: Any) -> nn.Module:
    model = dense()
    torch.manual_seed(1)
    adntn.compress_(
        model,
        CONFIG.replace(**options),
        ["q", "k", "conv", "wall", "attention", "rnn.weight_ih_l0"],
        shared=[("q", "k")],
        overrides={"wall": GeneratorConfig(topology="brickwall")},
    )
    return model


def data() -> TrainingData:
    part = Part(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))
    return TrainingData(part, part, part, 2, torch.zeros(1), torch.ones(1))


def state(tmp_path: Path, **options: Any) -> State:
    given = {"model": small(), "teacher": dense().eval(), "data": data(), "folder": tmp_path}
    return State(**{**given, **options})


@dataclass(frozen=True)
class Fitted:
    steps: int


class Loop:
    """Stands for the training loop: makes its steps, and writes down how strong the activations were in each."""

    def __init__(self, steps: int = 8) -> None:
        self.steps = steps
        self.calls: list[dict[str, Any]] = []
        self.strengths: list[float] = []

    def fit(self, model: nn.Module, data: TrainingData, how: Optimization, **options: Any) -> Fitted:
        self.calls.append({"how": how, **options})
        for step in range(self.steps):
            options["on_step"](step, self.steps)
            self.strengths.append(model["q"].activation_strength)
            assert model["wall"].activation_strength == 1.0
        return Fitted(self.steps)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    made, module = Loop(), types.ModuleType("adntn.training.loop")
    module.fit = made.fit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "adntn.training.loop", module)
    return made


def test_every_generator_starts_from_the_teachers_weight(tmp_path: Path) -> None:
    here = state(tmp_path)
    outcome = WarmStart(sweeps=1).run(here)
    names = ["q", "conv", "attention.in_proj_weight", "attention.out_proj", "rnn.weight_ih_l0"]
    assert sorted(outcome["layers"]) == sorted(names)
    assert list(outcome["skipped"]) == ["wall"]
    assert "brickwall" in outcome["skipped"]["wall"]
    teacher = here.teacher
    expected = {
        "q": torch.cat([teacher["q"].weight, teacher["k"].weight]),
        "conv": teacher["conv"].weight,
        "attention.in_proj_weight": teacher["attention"].in_proj_weight,
        "attention.out_proj": teacher["attention"].out_proj.weight,
        "rnn.weight_ih_l0": teacher["rnn"].weight_ih_l0,
    }
    for name, report in outcome["layers"].items():
        layer = generated_weights(here.model)[name]
        made, wanted = layer.bare()().detach(), expected[name].detach()
        error = float((made - wanted).norm() / wanted.norm())
        assert error == pytest.approx(report["relative_error"], rel=1e-4)
        assert error < 1
        assert layer.activation_strength == 1.0
    assert json.dumps(outcome, allow_nan=False)
    adntn.save(here.model, tmp_path / "model.safetensors")


def test_it_comes_out_the_same_again(tmp_path: Path) -> None:
    models = []
    for seed in (0, 1):
        here = state(tmp_path)
        torch.manual_seed(seed)
        WarmStart(layers=("q",)).run(here)
        models.append(here.model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_only_the_layers_that_are_named(tmp_path: Path) -> None:
    here = state(tmp_path)
    before = copy.deepcopy(here.model)
    outcome = WarmStart(layers=("k", "re:attention.*")).run(here)
    assert sorted(outcome["layers"]) == ["attention.in_proj_weight", "attention.out_proj", "k"]
    assert torch.equal(here.model["conv"].weight, before["conv"].weight)
    assert not torch.equal(here.model["q"].weight, before["q"].weight)  # it shares k's generator


def test_the_homotopy_brings_the_activation_in_step_by_step(tmp_path: Path, loop: Loop) -> None:
    here = state(tmp_path, seed=5)
    stage = WarmStart(homotopy_epochs=2, optimization=Optimization(epochs=4, lr=0.1))
    outcome = stage.run(here)
    assert loop.strengths == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    assert here.model["q"].activation_strength == 1.0
    assert outcome["training"] == {"steps": 8}
    (call,) = loop.calls
    assert call["how"] == stage.optimization
    assert call["folder"] == tmp_path
    assert call["teacher"] is here.teacher


def test_with_the_training_loop_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    part = Part(torch.rand(12, 1, 4, 4), torch.arange(12) % 2)
    models = []
    for run in range(2):
        model = copy.deepcopy(teacher)
        torch.manual_seed(1)
        adntn.compress_(model, CONFIG, ["1"])
        folder = tmp_path / str(run)
        folder.mkdir()
        own = TrainingData(part, part, part, 2, torch.zeros(1), torch.ones(1))
        stage = WarmStart(homotopy_epochs=1, optimization=Optimization(epochs=2, batch_size=4))
        outcome = stage.run(State(model, teacher, own, folder))
        assert outcome["training"]["steps"] == 6
        assert model[1].activation_strength == 1.0
        models.append(model)
    again = models[1].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in models[0].state_dict().items())
    adntn.save(models[0], tmp_path / "model.safetensors")


def test_it_is_linear_when_the_homotopy_begins_and_exact_there(tmp_path: Path, loop: Loop) -> None:
    loop.steps = 0
    here = state(tmp_path)
    seen: dict[str, float] = {}
    fit = sys.modules["adntn.training.loop"].fit  # type: ignore[attr-defined]

    def looking(model: nn.Module, *args: Any, **options: Any) -> Fitted:
        seen["strength"] = model["conv"].activation_strength
        weight, wanted = model["conv"].weight.detach(), here.teacher["conv"].weight.detach()
        seen["error"] = float((weight - wanted).norm() / wanted.norm())
        return fit(model, *args, **options)  # type: ignore[no-any-return]

    sys.modules["adntn.training.loop"].fit = looking  # type: ignore[attr-defined]
    outcome = WarmStart(homotopy_epochs=3).run(here)
    assert seen["strength"] == 0.0
    assert seen["error"] == pytest.approx(outcome["layers"]["conv"]["truncation_error"], rel=1e-3)
    assert loop.calls[0]["how"] == Optimization(epochs=3)
    assert here.model["conv"].activation_strength == 1.0  # though no step was made


def test_polishing_comes_nearer(tmp_path: Path) -> None:
    outcome = WarmStart(layers=("conv",), polish=20).run(state(tmp_path))
    polished = outcome["polish"]["conv"]
    assert polished["start_error"] == pytest.approx(outcome["layers"]["conv"]["relative_error"], rel=1e-4)
    assert polished["relative_error"] < polished["start_error"]


def test_progress_is_told_and_time_kept(tmp_path: Path) -> None:
    told: list[str] = []
    WarmStart(layers=("conv",)).run(
        state(tmp_path, tell=lambda event: told.append(f"{event.step}/{event.total} {event.text}"))
    )
    assert told[0].startswith("1/1 conv: truncation error 0.")
    with pytest.raises(TrainingStopped, match="before 'q'"):
        WarmStart(layers=("q",)).run(state(tmp_path, deadline=time.monotonic()))


def test_options_go_to_plain_values_and_back() -> None:
    stage = WarmStart(layers=("q", "re:.*"), sweeps=2, homotopy_epochs=1, polish=3)
    assert WarmStart.from_dict(json.loads(json.dumps(stage.to_dict()))) == stage
    assert WarmStart.from_dict({"homotopy-epochs": 2}).homotopy_epochs == 2


@pytest.mark.parametrize(
    "options, words",
    [
        ({"layers": "q"}, "layers='q' is not a list"),
        ({"sweeps": -1}, "sweeps=-1"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"homotopy_epochs": -1}, "homotopy_epochs=-1"),
        ({"polish": 1.5}, "polish=1.5"),
        ({"optimization": Optimization()}, "no use with homotopy_epochs=0"),
        ({"homotopy_epochs": 3, "optimization": Optimization(epochs=2)}, "more than the 2 epochs"),
        ({"homotopy_epochs": 1, "optimization": Optimization(patience=3)}, "patience=3 might end"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        WarmStart(**options)


@pytest.mark.slow
def test_what_cannot_be_started_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dense teacher, and this run has none"):
        WarmStart().run(state(tmp_path, teacher=None))
    with pytest.raises(CompressionError, match="layers names 'p', which is not generated"):
        WarmStart(layers=("p",)).run(state(tmp_path))
    with pytest.raises(CompressionError, match="'wall' cannot be started from a weight: topology='brickwall'"):
        WarmStart(layers=("wall",)).run(state(tmp_path))
    with pytest.raises(CompressionError, match="matches nothing that can be started"):
        WarmStart(layers=("re:wall",)).run(state(tmp_path))
    teacher = dense()
    teacher["conv"] = nn.Conv2d(4, 7, 3)
    with pytest.raises(
        ShapeError, match=r"'conv' makes a weight of shape \(6, 4, 3, 3\), and has one of \(7, 4, 3, 3\)"
    ):
        WarmStart().run(state(tmp_path, teacher=teacher))
    del teacher["conv"]
    with pytest.raises(CompressionError, match="'conv' is generated in the model, and has no weight in the teacher"):
        WarmStart().run(state(tmp_path, teacher=teacher))
