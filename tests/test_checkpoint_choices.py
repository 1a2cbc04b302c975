"""The ways that were chosen are saved, so that a resumed run takes the same on any machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CONFIG, Net, X, compressed, header, rewrite, state
from profiles import DEAR_CALLS, FREE_CALLS
from torch import Tensor, nn

import adntn
from adntn import CheckpointError, compress_
from adntn.describe import generated_weights
from adntn.execution.choices import Choices
from adntn.execution.machine import shipped, using

pytestmark = pytest.mark.usefixtures("few_objects")

SOME = Choices(((1, "dense"), (3, "factored")), ((1, "factored"),), ((1, "dense"),))


def chosen(model: nn.Module) -> dict[str, Choices]:
    return {name: weight.choices for name, weight in generated_weights(model).items()}


class Several(nn.Module):
    """An attention, layers that share a generator, and a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4)
        self.q, self.k = nn.Linear(32, 16), nn.Linear(32, 16)
        self.rnn = nn.GRU(32, 32)

    def compress(self, **options: Any) -> Several:
        targets = ["attention", "q", "k", "rnn.weight_hh_l0"]
        compress_(self, CONFIG, targets, shared=[("q", "k")], **options)
        return self


@pytest.mark.parametrize("already", [False, True], ids=["into a plain model", "into a compressed one"])
@pytest.mark.parametrize("build", [Net, Several], ids=["net", "several"])
def test_a_model_takes_the_ways_of_the_file_on_another_machine(
    tmp_path: Path, build: type[nn.Module], already: bool
) -> None:
    def made() -> nn.Module:
        return compressed() if build is Net else Several().compress()

    with using(FREE_CALLS):
        model = made()
    path = adntn.save(model, tmp_path / "model.safetensors")
    with using(DEAR_CALLS):
        other = made() if already else build()
        if already:
            assert chosen(other) != chosen(model)
        adntn.load(other, path)
        assert chosen(other) == chosen(model)
        assert {name: weight.way for name, weight in generated_weights(other).items()} == {
            name: weight.way for name, weight in generated_weights(model).items()
        }
        other.bfloat16()
    assert chosen(other) == chosen(model)
    assert header(path)["format"] == 3


def test_a_resumed_run_adds_up_the_same_numbers(tmp_path: Path) -> None:
    def step(model: nn.Module) -> dict[str, Tensor]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train()
        model(X).square().sum().backward()
        optimizer.step()
        return state(model)

    with using(replace(shipped(), making=1e-9, making_training=1e-9)):
        model = compressed()
    assert any(len(set(c.training)) > 1 or c.training[0][1] == "factored" for c in chosen(model).values())
    path = adntn.save(model, tmp_path / "model.safetensors")
    with using(DEAR_CALLS):
        resumed = adntn.load(Net(), path)
    one, other = step(model), step(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_was_asked_for_has_no_choices_in_the_file(tmp_path: Path) -> None:
    path = adntn.save(compressed(execution="factored"), tmp_path / "model.safetensors")
    assert header(path)["format"] == 1
    assert all("choices" not in layer for layer in header(path)["layers"].values())
    path = adntn.save(Several().compress(execution="dense"), path)
    assert header(path)["format"] == 2


def test_a_file_without_choices_lets_the_machine_choose(tmp_path: Path) -> None:
    with using(FREE_CALLS):
        path = adntn.save(compressed(), tmp_path / "model.safetensors")
    rewrite(path, lambda values, _: [layer.pop("choices") for layer in values["layers"].values()])
    with using(DEAR_CALLS):
        model = adntn.load(Net(), path)
    assert set(chosen(model).values()) == {Choices.only("dense")}


@pytest.mark.parametrize(
    "damage",
    [
        lambda layer: layer.update(choices=[]),
        lambda layer: layer.update(choices={}),
        lambda layer: layer["choices"].pop("kept"),
        lambda layer: layer["choices"].update(kept=[[2, "dense"]]),
        lambda layer: layer["choices"].update(kept=[[1, "sideways"]]),
        lambda layer: layer["choices"].update(kept=[[1, "dense"], [1, "dense"]]),
        lambda layer: layer["choices"].update(kept=[[1, None]]),
        lambda layer: layer.update(execution="dense"),
        lambda layer: layer["config"].update(order="paired"),
    ],
)
@pytest.mark.parametrize("already", [False, True], ids=["plain", "compressed"])
def test_a_damaged_choice_is_refused_and_nothing_is_changed(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], already: bool
) -> None:
    with using(FREE_CALLS):
        path = adntn.save(compressed(), tmp_path / "model.safetensors")
    rewrite(path, lambda values, _: damage(values["layers"]["head.0"]))
    model = compressed() if already else Net()
    before, ways = state(model), chosen(model)
    with pytest.raises(CheckpointError):
        adntn.load(model, path)
    assert chosen(model) == ways
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


# --- for loops of one's own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", ["auto", "factored", "dense"])
def test_the_execution_state_goes_through_json(execution: str) -> None:
    with using(FREE_CALLS):
        model = compressed(execution=execution)
    text = json.dumps(adntn.execution_state(model))
    with using(DEAR_CALLS):
        other = compressed()
        adntn.load_execution_state(other, json.loads(text))
    assert chosen(other) == chosen(model)
    assert {w.execution for w in generated_weights(other).values()} == {execution}


def test_the_execution_state_of_all_kinds_of_layers_comes_back() -> None:
    with using(FREE_CALLS):
        found = adntn.execution_state(Several().compress())
    assert set(found) == {"attention.in_proj_weight", "attention.out_proj", "q", "k", "rnn.weight_hh_l0"}
    with using(DEAR_CALLS):
        other = Several().compress()
        adntn.load_execution_state(other, found)
    assert adntn.execution_state(other) == found


def test_a_compiled_models_state_has_the_names_of_the_plain_one() -> None:
    model = compressed()
    assert adntn.execution_state(torch.compile(model)) == adntn.execution_state(model)


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda s: None, "a NoneType is no execution state"),
        (lambda s: {}, "conv, head.0 missing in it"),
        (lambda s: {**s, "more": s["conv"]}, "more not generated in the model"),
        (lambda s: {**s, "conv": None}, "state of 'conv' is not possible"),
        (lambda s: {**s, "conv": {}}, "state of 'conv' is not possible"),
        (lambda s: {**s, "conv": {**s["conv"], "execution": "sideways"}}, "execution='sideways' is not known"),
        (lambda s: {**s, "conv": {**s["conv"], "choices": []}}, "choices have one entry"),
        (lambda s: {**s, "head.0": {"execution": "dense", "choices": SOME.to_dict()}}, "it runs dense, asked for"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_changed(damage: Any, says: str) -> None:
    with using(FREE_CALLS):
        model = compressed()
    damaged = damage(adntn.execution_state(model))
    with using(DEAR_CALLS):
        other = compressed()
    ways = chosen(other)
    with pytest.raises(CheckpointError, match=says):
        adntn.load_execution_state(other, damaged)
    assert chosen(other) == ways
