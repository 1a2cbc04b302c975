"""Budgets of Kronecker products: what the plan says is what the model stores, with cores in common and without."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
import torch
from torch import nn

import adntn
from adntn import BudgetPlan, GeneratorConfig
from adntn.describe import generated_weights
from adntn.errors import CompressionError, ConfigError
from adntn.products import most_within, spread_products


def deep(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Convolutions of three shapes, no side a power of two, norms, and a head."""
    sides = [(3, 20), (20, 20), (20, 20), (20, 36), (36, 36), (36, 36), (36, 36)]
    layers = [
        layer
        for ins, outs in sides
        for layer in (nn.Conv2d(ins, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(36, 10)).to(dtype)


CONVOLUTIONS = [str(3 * place) for place in range(1, 7)]


def numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def plan_of(model: nn.Module, limit: int = 4_000, **options: Any) -> BudgetPlan:
    return adntn.kronecker_budget(model, parameters=limit, targets=CONVOLUTIONS, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share_cores", [False, True])
@pytest.mark.parametrize("limit", [2_600, 4_001, 9_000])
def test_the_model_stores_what_the_plan_says_and_most_of_the_budget(
    limit: int, share_cores: bool, dtype: torch.dtype
) -> None:
    model = deep(dtype)
    before = copy.deepcopy(model.state_dict())
    plan = plan_of(model, limit, share_cores=share_cores)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report = plan.apply_(model)
    assert 0.95 * limit < numbers(model) == plan.after == report.model_after <= limit
    assert [row.generated for row in report.layers] == [layer.generated for layer in plan.layers]
    assert sum(layer.generated for layer in plan.layers) + sum(each.numbers for each in plan.kept) == plan.after
    assert all(layer.quality == layer.config.terms >= 1 for layer in plan.layers)
    assert model(torch.randn(2, 3, 9, 9, dtype=dtype)).shape == (2, 10)


def test_cores_in_common_buy_more_products_and_stand_with_the_first() -> None:
    apart, common = plan_of(deep()), plan_of(deep(), share_cores=True)
    for one, other in zip(apart.layers, common.layers, strict=True):
        alike = sum(other.shapes == layer.shapes for layer in common.layers)
        assert other.config.terms - one.config.terms >= (alike > 1), one.name
        assert ("cores in common" in other.why) == (alike > 1)
        assert "cores in common" not in one.why
    first, second = (next(x for x in common.layers if x.name == name) for name in ("3", "6"))
    assert second.generated == second.config.terms < first.generated  # a number a product
    model = deep()
    common.apply_(model)
    assert generated_weights(model)["3"].get_core("expand.1") is generated_weights(model)["6"].get_core("expand.1")
    assert not torch.equal(model[3].weight, model[6].weight)


def test_layers_have_about_as_many_numbers_each() -> None:
    shares = [layer.generated for layer in plan_of(deep(), 9_000).layers]
    assert max(shares) < 1.3 * min(shares)


def test_no_layer_gets_more_than_half_of_what_it_had_and_others_have_the_rest() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(12)), nn.Linear(8, 900), nn.Linear(900, 900))
    plan = adntn.kronecker_budget(model, parameters=300_000, targets=["re:.*"], ignore=["12"])
    *small, large = plan.layers
    assert all(layer.generated <= layer.dense // 2 + 10 for layer in small)
    assert large.generated > 250_000
    assert plan.after > 290_000


def test_where_numbers_are_few_there_are_more_digits() -> None:
    def radix(limit: int, **options: Any) -> int:
        return plan_of(deep(), limit, **options).layers[-1].config.radix

    assert radix(9_000) == radix(9_000, share_cores=True) == 6  # two digits of 36
    assert radix(1_700) == 4  # three: of two not even one product of each is possible
    assert radix(2_000, share_cores=True) < radix(2_000)
    assert radix(9_000, digits=3) == 4


@pytest.mark.parametrize("share_cores", [False, True])
def test_a_budget_of_bytes_is_kept_in_any_type(share_cores: bool) -> None:
    for dtype in (torch.float32, torch.float16):
        model = deep(dtype)
        plan = adntn.kronecker_budget(model, bytes=20_000, targets=CONVOLUTIONS, share_cores=share_cores)
        plan.apply_(model)
        tensors = [*model.parameters(), *model.buffers()]
        assert sum(each.numel() * each.element_size() for each in tensors) == plan.after <= 20_000
        assert plan.after > 19_000
        assert plan.unit == "bytes"


def test_attention_and_tied_layers_are_planned_as_one() -> None:
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(40, 4, kdim=24, vdim=24),
            "one": nn.Linear(40, 70),
            "two": nn.Linear(40, 70),
            "tied": nn.Linear(40, 70),
        }
    )
    model["tied"].weight = model["one"].weight
    for share_cores in (False, True):
        made = copy.deepcopy(model)
        plan = adntn.kronecker_budget(made, parameters=4_500, share_cores=share_cores)
        assert [(layer.name, layer.tied) for layer in plan.layers] == [
            ("attention", ("attention.out_proj",)),
            ("one", ("tied",)),
            ("two", ()),
        ]
        plan.apply_(made)
        assert numbers(made) == plan.after <= 4_500


def test_a_plan_is_kept_as_json_and_an_older_one_has_no_cores_in_common() -> None:
    plan = plan_of(deep(), share_cores=True)
    assert BudgetPlan.from_json(plan.to_json()) == plan
    values = json.loads(plan.to_json())
    del values["share_cores"]
    assert BudgetPlan.from_dict(values).share_cores is False
    assert "products" in str(plan)
    assert "cores in common with 2 more" in str(plan)


def test_it_plans_on_the_meta_device_and_for_another_model_of_the_same_layers() -> None:
    with torch.device("meta"):
        plan = plan_of(deep(), share_cores=True)
    assert plan == plan_of(deep(), share_cores=True)
    model = deep()
    report = plan.apply_(model, init="fit", fit=adntn.FitOptions(steps=5, polish=0))
    assert all(row.fit is not None for row in report.layers)


def test_a_target_that_no_product_is_smaller_than_stays_dense() -> None:
    plan = adntn.kronecker_budget(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 60), nn.Linear(60, 60)), parameters=1_500, share_cores=False
    )
    assert [layer.name for layer in plan.layers] == ["2"]
    assert {(each.name, each.why) for each in plan.kept} >= {("0", "no product is smaller")}


def test_what_is_impossible_says_what_would_do() -> None:
    with pytest.raises(
        CompressionError, match=r"at most 1,000 numbers is not possible: the least is [\d,]+, .* digits"
    ):
        plan_of(deep(), 1_000)
    with pytest.raises(CompressionError, match="nothing need be generated"):
        plan_of(deep(), 10**6)
    with pytest.raises(CompressionError, match=r"no two targets are of one shape: '0' \(60, 50\), '1' \(40, 60\)"):
        adntn.kronecker_budget(nn.Sequential(nn.Linear(50, 60), nn.Linear(60, 40)), parameters=2_000, share_cores=True)
    with pytest.raises(CompressionError, match="smaller than its dense weight"):
        adntn.kronecker_budget(nn.Sequential(nn.Linear(2, 2)), parameters=3)
    with pytest.raises(ConfigError, match="give one budget"):
        adntn.kronecker_budget(deep())
    with pytest.raises(ConfigError, match="digits=1 is not possible"):
        plan_of(deep(), digits=1)
    with pytest.raises(ConfigError, match="share_cores"):
        plan_of(deep(), share_cores="yes")
    with pytest.raises(CompressionError, match="no module 'nothing'"):
        adntn.kronecker_budget(deep(), parameters=4_000, targets=["nothing"])


def test_the_least_is_one_product_of_each_and_the_limit_is_kept_as_nearly_as_can_be() -> None:
    weights = {"a": (36, 36, 3, 3), "b": (36, 36, 3, 3), "c": (20, 20)}
    assert {config.terms for config in spread_products(weights, 1, 2).values()} == {1}
    for limit, common in itertools.product((2_000, 5_000), (False, True)):
        configs = spread_products(weights, limit, 2, share_cores=common)
        assert configs["a"] == configs["b"] == GeneratorConfig.kronecker((36, 36, 3, 3), terms=configs["a"].terms)
    assert most_within(lambda scale: scale, lambda scale: scale, 5.0) == pytest.approx(5.0, rel=1e-2)
    assert most_within(lambda scale: scale, lambda scale: scale, 900.0) == pytest.approx(900.0, rel=1e-2)
    assert most_within(lambda scale: 7.0 + scale, lambda scale: scale, 1.0) == 7.0
