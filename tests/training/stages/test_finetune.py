"""The stage that trains the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_cases import DATA, generated, linear, same

from adntn.errors import ConfigError, TrainingStopped
from adntn.training.objective import Losses
from adntn.training.optimization import Optimization
from adntn.training.stages.base import State
from adntn.training.stages.finetune import FineTune

STAGE = FineTune.from_dict(
    {
        "optimization": {"epochs": 2, "batch-size": 32},
        "losses": {"distillation": {"weight": 0.5, "temperature": 2.0}, "isometry": 1e-2},
    }
)


def state(folder: Path, **options: Any) -> State:
    torch.manual_seed(1)
    return State(generated(), linear().eval().requires_grad_(False), DATA, folder, seed=4, **options)


def test_its_tables_become_options_and_go_through_json() -> None:
    assert STAGE.optimization == Optimization(epochs=2, batch_size=32)
    assert STAGE.losses is not None
    assert STAGE.losses.isometry is not None
    assert STAGE.losses.isometry.weight == 1e-2
    assert FineTune.from_dict(json.loads(json.dumps(STAGE.to_dict()))) == STAGE
    assert FineTune.from_dict({}) == FineTune()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"optimization": 3}, "an optimization: a table of options is needed, not 3"),
        ({"optimization": {"epoch": 3}}, "Did you mean 'epochs'"),
        ({"losses": "kl"}, "a table of losses: a table of options is needed"),
        ({"losses": {"isometry": "much"}}, "isometry='much' is not possible"),
    ],
)
def test_an_impossible_table_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FineTune.from_dict(options)


def test_it_trains_by_its_losses_and_leaves_the_teacher_alone(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    given = state(tmp_path, log=lambda step, row: rows.append(dict(row)))
    assert given.teacher is not None
    before = {name: t.clone() for name, t in given.teacher.state_dict().items()}
    start = {name: t.clone() for name, t in given.model.state_dict().items()}
    outcome = STAGE.run(given)
    assert json.loads(json.dumps(outcome))["epochs"] == 2
    assert same(given.teacher.state_dict(), before)
    assert not given.teacher.training
    assert not same(given.model.state_dict(), start)
    for row in rows:
        parts = row["cross_entropy"] + 0.5 * row["distillation"] + 1e-2 * row["isometry"]
        assert row["loss"] == pytest.approx(parts, rel=1e-4)
    assert not any(module._forward_hooks for module in given.model.modules())


@pytest.mark.slow
def test_an_interrupted_stage_comes_to_the_same(tmp_path: Path) -> None:
    stage = FineTune(
        optimization=STAGE.optimization, losses=Losses.from_dict({"distillation": 1.0, "sampled_frobenius": 0.1})
    )

    def teacher() -> nn.Module:
        torch.manual_seed(1)
        return linear().eval()

    whole = State(generated(), teacher(), DATA, tmp_path / "whole", seed=4)
    stage.run(whole)
    for _ in range(20):
        again = State(generated(), teacher(), DATA, tmp_path / "pieces", seed=4, deadline=0.0)
        try:
            stage.run(again)
            break
        except TrainingStopped:
            pass
    assert same(whole.model.state_dict(), again.model.state_dict())
