"""A prune stage takes out what does little, trains on, and says what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_runs import small_model, two_classes

import adntn
from adntn.errors import ConfigError
from adntn.training.optimization import Optimization
from adntn.training.stages import STAGES
from adntn.training.stages.base import State
from adntn.training.stages.prune import Prune

HOW = Optimization(epochs=3, batch_size=15, schedule="constant")


def state(folder: Path) -> State:
    """Return a model with a mera whose disentanglers are near the identity, and one with theirs far from it."""
    model = small_model()
    adntn.compress_(model, adntn.GeneratorConfig(topology="mera"), targets=["1", "3"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mix" in name and name.startswith("3."):
                parameter.copy_(torch.randn_like(parameter))
    return State(model, None, two_classes(), folder)


def test_a_recipe_names_it_with_its_options() -> None:
    stage = STAGES["prune"].from_dict({"threshold": 0.1, "tolerance": 0.2, "optimization": {"epochs": 2}})
    assert stage == Prune(threshold=0.1, tolerance=0.2, optimization=Optimization(epochs=2))
    assert Prune.from_dict(stage.to_dict()) == stage
    with pytest.raises(ConfigError, match="threshold=-1"):
        Prune(threshold=-1.0)
    with pytest.raises(ConfigError, match="tolerance=-1"):
        Prune(tolerance=-1.0)


def test_it_prunes_and_trains_and_says_what_came_of_it(tmp_path: Path) -> None:
    here = state(tmp_path)
    outcome = Prune(threshold=0.1, optimization=HOW, tolerance=None).run(here)
    json.dumps(outcome)
    assert here.model[1].config.topology == "ttn"
    assert here.model[3].config.topology == "mera"
    assert outcome["weights"]["1"]["found"]["mixing layers"] > 0
    assert 0 < outcome["weights"]["1"]["relative_change"] < 1
    assert outcome["weights"]["3"]["relative_change"] == 0
    assert outcome["numbers"]["after"] == sum(here.model[k].num_parameters for k in (1, 3))
    assert outcome["numbers"]["after"] < outcome["numbers"]["before"]
    assert outcome["model_bytes"]["after"] < outcome["model_bytes"]["before"]
    assert outcome["validation_loss"]["trained"] < outcome["validation_loss"]["pruned"]


def test_what_would_change_too_much_is_left(tmp_path: Path) -> None:
    here = state(tmp_path)
    before = {name: p.detach().clone() for name, p in here.model.named_parameters()}
    outcome = Prune(threshold=0.1, tolerance=1e-6).run(here)
    assert outcome["training"] is None
    assert not outcome["weights"]["1"]["accepted"]
    assert outcome["numbers"]["after"] == outcome["numbers"]["before"]
    after = dict(here.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
