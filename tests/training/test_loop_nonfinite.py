"""Runs that come to NaN or infinity."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_cases import DATA, fitted, generated, in_pieces, same, table

from adntn.errors import NonFiniteError
from adntn.training.checkpoints import EPOCH
from adntn.training.loop import MOST_LOWERED
from adntn.training.optimization import Optimization
from adntn.training.stages.base import Event
from adntn.training.watching import find_nonfinite

HOW = Optimization(epochs=3, batch_size=20)  # five steps an epoch


class Spoils(nn.Module):
    """Passes on what comes in, or spoils it where a condition holds."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.spoil = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.spoil or not self.training:
            return x
        if self.where == "output":
            return x * math.nan
        return (x * 0).sqrt() + x  # the derivative of the root at 0 is infinite, times 0


def spoiled(where: str) -> nn.Sequential:
    model = generated()
    model.insert(3, Spoils(where))
    return model


def spoiling(model: nn.Sequential, at: int) -> Any:
    """Spoil the output or the gradient of a step."""

    def on_step(step: int, total: int) -> None:
        model[3].spoil = step == at

    return on_step


@pytest.mark.parametrize(
    "where, said", [("output", "the loss is NaN"), ("gradient", "the gradient is NaN")], ids=["output", "gradient"]
)
def test_the_layer_the_step_and_the_last_good_state_are_named(tmp_path: Path, where: str, said: str) -> None:
    model = spoiled(where)
    with pytest.raises(NonFiniteError) as caught:
        fitted(model, HOW, folder=tmp_path, on_step=spoiling(model, 7))
    text = str(caught.value)
    assert said in text
    assert "step 8, epoch 2" in text
    assert "the output of layer '3'" in text if where == "output" else "gradient at the output of layer '2'" in text
    assert str(tmp_path / EPOCH) in text
    assert all(p.isfinite().all() for p in model.parameters())  # the step was not taken


def test_a_run_that_was_stopped_by_nan_goes_on_from_the_last_good_state(tmp_path: Path) -> None:
    whole, model = spoiled("output"), spoiled("output")
    fitted(whole, HOW)
    with pytest.raises(NonFiniteError):
        fitted(model, HOW, folder=tmp_path, on_step=spoiling(model, 7))
    again = spoiled("output")
    fitted(again, HOW, folder=tmp_path)
    assert same(whole.state_dict(), again.state_dict())


def test_without_a_folder_it_says_that_nothing_was_kept() -> None:
    model = spoiled("output")
    with pytest.raises(NonFiniteError, match="No state was kept"):
        fitted(model, HOW, on_step=spoiling(model, 0))


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = generated()
    with torch.no_grad():
        model[5].weight[1, 2] = math.inf
    with pytest.raises(NonFiniteError, match=r"the stored '5\.weight'"):
        fitted(model, HOW)


class TooFast(nn.Module):
    """Comes to infinity when its scale has gone a long way."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale / ((self.scale - 1).abs() < 0.1)


def fast() -> nn.Sequential:
    model = generated()
    model.insert(3, TooFast())
    return model


LOWER = Optimization(epochs=4, batch_size=20, lr=0.3, schedule="constant", on_nonfinite="lower-rate", ema=0.9)


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "in a folder"])
def test_the_rate_is_lowered_and_the_run_goes_on(tmp_path: Path, kept: bool) -> None:
    told: list[Event] = []
    rows: list[dict[str, float]] = []
    result = fitted(
        fast(), LOWER, folder=tmp_path if kept else None, tell=told.append, log=lambda step, row: rows.append(dict(row))
    )
    assert result.lowered >= 1
    assert result.steps == 20
    assert rows[-1]["rate"] == pytest.approx(0.3 * 0.1**result.lowered)
    assert sum("rate lowered" in event.text for event in told) == result.lowered


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_lowered_run_is_the_same_with_interruptions(tmp_path: Path, every: int) -> None:
    whole = fast()
    result = fitted(whole, LOWER, folder=tmp_path / "whole")
    pieces, resumed = in_pieces(fast, LOWER, tmp_path / "pieces", every)
    assert pieces.curve == result.curve
    assert pieces.lowered == result.lowered
    assert same(whole.state_dict(), resumed.state_dict())
    assert table(tmp_path / "whole") == table(tmp_path / "pieces")


def test_it_is_lowered_so_many_times_and_no_more() -> None:
    model = spoiled("output")
    with pytest.raises(NonFiniteError, match=f"lowered {MOST_LOWERED} times"):
        fitted(model, Optimization(on_nonfinite="lower-rate", batch_size=20), on_step=spoiling(model, 2))


def test_where_everything_is_finite_nothing_is_found() -> None:
    model = generated()
    inputs = DATA.normalized(DATA.train.images)
    assert find_nonfinite(model, lambda: model(inputs).square().mean()) is None
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_that_is_none_though_all_layers_are_fine_is_the_loss() -> None:
    model = generated()
    inputs = DATA.normalized(DATA.train.images)
    assert find_nonfinite(model, lambda: model(inputs).mean() * math.nan) == "the loss"
