"""The stage that makes layers generated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from training_cases import DATA, same

import adntn
from adntn import BudgetPlan
from adntn.errors import CompressionError, ConfigError
from adntn.training.stages.base import Outcome, State
from adntn.training.stages.select import Select


def model() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 50), nn.ReLU(), nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 3))


def run(stage: Select, folder: Path, seed: int = 0) -> tuple[nn.Module, Outcome]:
    state = State(model(), None, DATA, folder, seed=seed)
    stage.check(state.model)
    outcome = stage.run(state)
    return state.model, outcome


def count(made: nn.Module) -> int:
    return sum(p.numel() for p in made.parameters())


def test_a_budget_is_met_and_the_outcome_is_plain(tmp_path: Path) -> None:
    made, outcome = run(Select(parameters=900), tmp_path)
    assert count(made) == outcome["parameters"] <= 900
    assert outcome["parameters_before"] == count(model())
    assert json.loads(json.dumps(outcome)) == outcome
    plan = BudgetPlan.from_dict(outcome["plan"])
    assert plan == Select(parameters=900).plan(model())
    assert [row["name"] for row in outcome["layers"]] == sorted(layer.name for layer in plan.layers)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {"bytes": 4000, "rank_by": "time", "images": 8},
        {"parameters": 3500, "count": 1, "rank_by": "named", "targets": ("3", "1")},
        {"parameters": 900, "topologies": ("lowrank",), "measure": "rank-bound"},
    ],
    ids=str,
)
def test_budgets_take_all_that_a_plan_takes(options: dict[str, object], tmp_path: Path) -> None:
    made, outcome = run(Select(**options), tmp_path)
    if "bytes" in options:
        assert sum(t.numel() * t.element_size() for t in made.state_dict().values()) <= 4000
    else:
        assert count(made) <= options["parameters"]
    if options.get("count") == 1:
        assert [row["name"] for row in outcome["layers"]] == ["3"]


def test_named_layers_get_the_config_and_their_own(tmp_path: Path) -> None:
    stage = Select(
        targets=("re:.*",),
        ignore=("5",),
        config={"groups": 2, "latent-order": 4},
        overrides={"3": {"topology": "mera"}},
    )
    made, outcome = run(stage, tmp_path)
    config = adntn.GeneratorConfig(groups=2, latent_order=4)
    assert (made[1].config, made[3].config) == (config, config.replace(topology="mera"))
    assert type(made[5]) is nn.Linear
    assert outcome["plan"] is None
    assert [row["relative_error"] for row in outcome["layers"]] == [None, None]


def test_the_draw_depends_on_the_seed_alone(tmp_path: Path) -> None:
    first, _ = run(Select(targets=("1",)), tmp_path, seed=1)
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    second, _ = run(Select(targets=("1",)), tmp_path, seed=1)
    other, _ = run(Select(targets=("1",)), tmp_path, seed=2)
    assert same(first.state_dict(), second.state_dict())
    assert not same(first.state_dict(), other.state_dict())
    torch.manual_seed(5)
    model()
    expected = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    run(Select(targets=("1",)), tmp_path)  # seeds, builds the model, and leaves the rest as it is
    assert torch.equal(torch.random.get_rng_state(), expected)


def test_a_fit_says_how_near_it_came(tmp_path: Path) -> None:
    _, outcome = run(Select(targets=("1",), init="fit", fit={"steps": 3, "polish": 0}), tmp_path)
    assert 0 < outcome["layers"][0]["relative_error"] < 2


def test_from_a_recipe_and_back() -> None:
    values = {
        "targets": "re:.*",
        "rank-by": "time",
        "parameters": 900,
        "config": {"order": [0, 1, 2]},
        "orders": ["paired"],
    }
    stage = Select.from_dict(values)
    assert (stage.targets, stage.rank_by, stage.orders) == (("re:.*",), "time", ("paired",))
    assert Select.from_dict(json.loads(json.dumps(stage.to_dict()))).to_dict() == stage.to_dict()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"parameters": 1, "bytes": 1}, "two budgets"),
        ({"parameters": 0}, "parameters=0"),
        ({"parameters": 9, "overrides": {"1": {}}}, "not possible with a budget"),
        ({"count": 2}, "need a budget"),
        ({"rank_by": "time"}, "need a budget"),
        ({"parameters": 9, "count": 0}, "count=0"),
        ({"parameters": 9, "rank_by": "size"}, "rank_by='size' is not known"),
        ({"topologies": ("tt", "tnt")}, "topologies='tnt' is not known"),
        ({"orders": "pared"}, "Did you mean 'paired'"),
        ({"config": {"group": 2}}, "Did you mean 'groups'"),
        ({"overrides": {"1": {"terms": 0}}}, "terms=0"),
        ({"init": "svdd"}, "init='svdd' is not known.*'svd'"),
        ({"fit": {"steps": 1}}, "need init='fit'"),
        ({"init": "fit", "fit": {"step": 1}}, "Did you mean 'steps'"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Select(**options)


def test_names_and_budgets_are_checked_before_anything_runs() -> None:
    with pytest.raises(CompressionError, match="no module 'fc'"):
        Select(targets=("fc",)).check(model())
    with pytest.raises(CompressionError, match="overrides"):
        Select(overrides={"fc": {}}).check(model())
    with pytest.raises(CompressionError, match="not possible"):
        Select(parameters=20).check(model())
    with pytest.raises(CompressionError, match="not possible"):
        Select(parameters=20, rank_by="time", count="all").check(model())


def deep() -> nn.Sequential:
    torch.manual_seed(6)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 30), *(nn.Linear(30, 30) for _ in range(3)), nn.Linear(30, 3))


def run_deep(stage: Select, folder: Path) -> tuple[nn.Module, Outcome]:
    state = State(deep(), None, DATA, folder, seed=0)
    stage.check(state.model)
    return state.model, stage.run(state)


@pytest.mark.parametrize("init", ["random", "fit"])
@pytest.mark.parametrize("share_cores", [False, True])
def test_a_budget_of_products_is_spread_over_all_targets(share_cores: bool, init: str, tmp_path: Path) -> None:
    stage = Select(
        parameters=1_600,
        topologies="kronecker",  # type: ignore[arg-type]
        ignore=("5",),
        share_cores=share_cores,
        init=init,
        fit={"steps": 5, "polish": 0} if init == "fit" else {},
    )
    made, outcome = run_deep(stage, tmp_path)
    assert 1_400 < count(made) == outcome["parameters"] <= 1_600
    assert [row["name"] for row in outcome["layers"]] == ["1", "2", "3", "4"]
    assert all((row["relative_error"] is not None) == (init == "fit") for row in outcome["layers"])
    assert (made[2].get_core("expand.1") is made[3].get_core("expand.1")) == share_cores
    plan = BudgetPlan.from_dict(outcome["plan"])
    assert plan == adntn.kronecker_budget(deep(), parameters=1_600, ignore=["5"], share_cores=share_cores)
    again, _ = run_deep(stage, tmp_path)
    assert same(made.state_dict(), again.state_dict())


def test_named_layers_may_have_their_cores_in_common(tmp_path: Path) -> None:
    made, outcome = run_deep(Select(targets=("2", "3", "4"), share_cores=True), tmp_path)
    assert made[2].get_core("expand.1") is made[4].get_core("expand.1")
    first, *others = [row["generated"] for row in outcome["layers"]]
    assert others == [made[3].root.numel()] * 2
    assert first > others[0]


def test_what_goes_with_products_and_common_cores_is_checked_before_anything_is_trained() -> None:
    for options, message in (
        ({"topologies": ("kronecker",)}, "needs a budget"),
        ({"topologies": ("kronecker", "ttn"), "parameters": 900}, "stands alone"),
        ({"topologies": ("kronecker",), "parameters": 900, "measure": "numbers"}, "measure has no meaning"),
        ({"topologies": ("kronecker",), "parameters": 900, "config": {"radix": 4}}, "config has no meaning"),
        ({"topologies": ("kroneker",), "parameters": 900}, "Did you mean 'kronecker'"),
        ({"share_cores": True, "parameters": 900}, "needs topologies='kronecker'"),
        ({"share_cores": True, "init": "svd"}, "use 'random' or 'fit'"),
        ({"share_cores": 1}, "share_cores"),
    ):
        with pytest.raises(ConfigError, match=message):
            Select(**options)
    with pytest.raises(CompressionError, match="no two of the targets"):
        Select(share_cores=True).check(model())
    with pytest.raises(CompressionError, match="no two targets are of one shape"):
        Select(share_cores=True, topologies=("kronecker",), parameters=900).check(model())
    untouched = deep()
    Select(share_cores=True).check(untouched)
    assert all(type(layer) is nn.Linear for layer in untouched[1:])
    assert not untouched[1].weight.is_meta
