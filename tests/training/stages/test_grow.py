"""The stage that grows where training has stalled."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_cases import DATA, bars, generated, same

import adntn
from adntn.errors import CheckpointError, CompressionError, ConfigError, TrainingStopped
from adntn.training import loop
from adntn.training.optimization import Optimization
from adntn.training.stages import grow
from adntn.training.stages.base import Outcome, State
from adntn.training.stages.grow import Grow

pytestmark = pytest.mark.usefixtures("few_objects")

HOW = Optimization(epochs=1, batch_size=32, lr=1e-2, schedule="constant")
STAGE = Grow(steps=2, least_gain=-1.0, images=64, optimization=HOW)
NOISY = replace(DATA, validation=replace(bars(30, 1), labels=torch.arange(30) % 2))


def run(stage: Grow, folder: Path, model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, Outcome]:
    folder.mkdir(exist_ok=True)
    state = State(model or generated(topology="ttn"), None, options.pop("data", DATA), folder, seed=7, **options)
    outcome = stage.run(state)
    return state.model, outcome


def accuracies(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let the legs come to these accuracies without training."""
    left = iter(values)

    def fit(model: nn.Module, *args: object, **options: object) -> loop.Fitted:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01  # as a leg would leave another model
        return loop.Fitted(next(left), 0.0, (), 1, 1, 0.0, True)

    monkeypatch.setattr(loop, "fit", fit)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_each_leg_trains_and_each_growth_is_told_with_its_cost_and_gain(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    texts: list[str] = []
    model, outcome = run(
        STAGE,
        tmp_path,
        data=NOISY,
        log=lambda step, values: seen.append((step, values.get("validation_accuracy", -1.0))),
        tell=lambda event: texts.append(event.text),
    )
    first, *grown = outcome["legs"]
    assert first["parameters"] == count(generated(topology="ttn"))
    assert first["epochs"] == 1
    for before, row in zip(outcome["legs"], grown, strict=False):
        assert row["layer"] == "1"
        assert row["cost"] == row["parameters"] - before["parameters"] > 0
        assert row["accuracy_before"] == before["accuracy"]
        assert row["gain"] == pytest.approx(row["accuracy"] - before["accuracy"])
        assert row["saliency"] > 0
        assert row["relative_change"] < 1e-5
    assert outcome["ended"] == "as many growths as were asked for"
    assert json.loads(json.dumps(outcome)) == outcome
    assert count(model) == outcome["parameters"] == outcome["legs"][outcome["kept"]]["parameters"]
    assert [step for step, _ in seen] == sorted(step for step, _ in seen)  # over all legs
    assert any(text.startswith("leg 2, ") for text in texts)
    assert any(text.startswith("1 with ") for text in texts)


def test_what_grows_is_what_has_the_most_gradient_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies(monkeypatch, [0.5] * 8)
    _, outcome = run(replace(STAGE, steps=1), tmp_path / "all")
    (_, row) = outcome["legs"]
    rates = {}
    for change in STAGE.candidates:
        _, alone = run(replace(STAGE, steps=1, candidates=(change,)), tmp_path / change)
        rates[change] = alone["legs"][1]["saliency"]
    assert row["change"] == max(rates, key=lambda change: rates[change])
    assert row["saliency"] == rates[row["change"]]


def test_the_best_leg_remains_and_of_equal_ones_the_smallest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (values, kept) in enumerate(
        [([0.5, 0.6, 0.7], 2), ([0.5, 0.7, 0.6], 1), ([0.7, 0.7, 0.7], 0), ([0.7, 0.5, 0.6], 0)]
    ):
        accuracies(monkeypatch, values)
        folder = tmp_path / str(number)
        model, outcome = run(STAGE, folder)
        assert outcome["kept"] == kept
        assert count(model) == outcome["legs"][kept]["parameters"]
        again = adntn.load(nn.Sequential(*adntn.materialize(model)), folder / f"leg-{kept}-end.safetensors")
        assert same(again.state_dict(), model.state_dict())


def test_it_ends_when_a_growth_gains_too_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies(monkeypatch, [0.5, 0.6, 0.609, 0.9])
    _, outcome = run(replace(STAGE, steps=9, least_gain=0.01), tmp_path)
    assert len(outcome["legs"]) == 3
    assert outcome["ended"] == "the last growth gained too little"
    assert outcome["kept"] == 2


def test_it_ends_at_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies(monkeypatch, [0.1 * n for n in range(10)])
    start = count(generated(topology="ttn"))
    model, outcome = run(Grow(parameters=start + 150, images=16, optimization=HOW), tmp_path)
    assert start < count(model) <= start + 150
    assert outcome["ended"] == "no growth fits into the budget"
    _, outcome = run(Grow(parameters=start, images=16, optimization=HOW), tmp_path / "none")
    assert len(outcome["legs"]) == 1


class Killed(BaseException):
    pass


def dies(owner: Any, name: str, when: int, *, after: bool) -> Callable[..., Any]:
    """Return a function in another's place that ends the run at its call of this number, before or after its work."""
    whole = getattr(owner, name)
    calls = iter(range(when + 1))

    def dying(*args: Any, **options: Any) -> Any:
        last = next(calls, None) == when
        if last and not after:
            raise Killed
        result = whole(*args, **options)
        if last:
            raise Killed
        return result

    return dying


POINTS = [
    *((loop, "fit", when, after) for when in range(3) for after in (False, True)),
    *((grow, "save", when, True) for when in range(6)),
    *((grow, "writing", when, False) for when in range(6)),
    *((grow, name, when, True) for when in range(2) for name in ("rank_growths", "grow_as_planned_")),
]
QUICK = [(loop, "fit", 1, True), (grow, "writing", 3, False)]


@pytest.mark.parametrize("points", [QUICK, pytest.param(POINTS, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_an_interrupted_run_ends_with_the_same_model(
    points: list[tuple[Any, str, int, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = run(STAGE, tmp_path / "whole", data=NOISY)
    for number, (owner, name, when, after) in enumerate(points):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dies(owner, name, when, after=after))
            with pytest.raises(Killed):
                run(STAGE, folder, data=NOISY)
        torch.manual_seed(number)  # of no consequence
        model, outcome = run(STAGE, folder, data=NOISY)
        assert same(model.state_dict(), whole.state_dict()), (name, when)
        for mine, theirs in zip(outcome["legs"], expected["legs"], strict=True):
            assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}, (name, when)


def test_a_finished_run_that_is_called_again_does_nothing_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, outcome = run(STAGE, tmp_path)
    accuracies(monkeypatch, [])
    again, same_outcome = run(STAGE, tmp_path)
    assert same_outcome == outcome
    assert same(again.state_dict(), model.state_dict())


def test_a_deadline_stops_it_between_legs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies(monkeypatch, [0.5, 0.6, 0.7])
    with pytest.raises(TrainingStopped, match="after 1 legs"):
        run(STAGE, tmp_path, deadline=0.0)
    _, outcome = run(STAGE, tmp_path)
    assert [row["accuracy"] for row in outcome["legs"]] == [0.5, 0.6, 0.7]


def test_losses_are_those_of_the_recipe_and_their_hooks_are_gone(tmp_path: Path) -> None:
    options = {"steps": 1, "optimization": HOW.to_dict(), "losses": {"features": {"weight": 0.1, "layers": ["1"]}}}
    stage = Grow.from_dict(options)
    assert Grow.from_dict(json.loads(json.dumps(stage.to_dict()))) == stage
    torch.manual_seed(0)
    teacher = adntn.materialize(generated())
    state = State(generated(topology="ttn"), teacher, DATA, tmp_path)
    stage.run(state)
    assert not any(module._forward_hooks for each in (state.model, teacher) for module in each.modules())
    with pytest.raises(ConfigError, match="a teacher is needed"):
        run(stage, tmp_path / "alone")


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    for options, said in (
        ({}, "growth needs an end"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1, "candidates": ()}, "candidates is empty"),
        ({"steps": 1, "candidates": "bonds"}, "Did you mean 'bond'"),
        ({"steps": 1, "patience": 0}, "patience=0"),
    ):
        with pytest.raises(ConfigError, match=said):
            Grow(**options)
    with pytest.raises(CompressionError, match="select first"):
        run(STAGE, tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
    (tmp_path / "legs.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(STAGE, tmp_path)
