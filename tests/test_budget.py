"""Plans that meet a budget."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import adntn
from adntn import BudgetPlan, GeneratorConfig
from adntn.candidates import quality
from adntn.errors import CompressionError, ConfigError


class Net(nn.Module):
    """Linear layers of several sizes, none of them a power of two, with norms, biases, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Linear(50, 60)
        self.norm = nn.BatchNorm1d(60)
        self.large = nn.Linear(60, 200, bias=False)
        self.middle = nn.Linear(200, 36)
        self.head = nn.Linear(36, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.middle(self.large(self.norm(self.small(x)))))
        return result


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def stored(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


@pytest.mark.parametrize("limit", [1_200, 4_001, 15_000])
def test_the_model_stores_what_the_plan_says_and_no_more_than_the_budget(limit: int) -> None:
    model = Net()
    before = count(model)
    plan = adntn.fit_budget(model, parameters=limit)
    assert (plan.before, count(model)) == (before, before)  # a plan changes nothing
    report = plan.apply_(model)
    assert count(model) == plan.after == report.model_after <= limit
    assert report.model_before == before
    assert [row.generated for row in report.layers] == [
        layer.generated
        for layer in sorted(plan.layers, key=lambda layer: [*dict(model.named_modules())].index(layer.name))
    ]
    assert sum(layer.generated for layer in plan.layers) + sum(each.numbers for each in plan.kept) == plan.after
    assert model(torch.randn(2, 50)).shape == (2, 2)


def test_as_few_layers_as_are_needed_the_largest_first() -> None:
    sizes = {
        limit: [layer.name for layer in adntn.fit_budget(Net(), parameters=limit).layers]
        for limit in (12_000, 5_000, 1_500)
    }
    assert sizes == {12_000: ["large"], 5_000: ["large", "middle"], 1_500: ["large", "middle", "small"]}
    everything = adntn.fit_budget(Net(), parameters=12_000, layers="all")
    assert [layer.name for layer in everything.layers] == ["large", "middle", "small", "head"]
    assert [layer.name for layer in adntn.fit_budget(Net(), parameters=12_000, layers=2).layers] == ["large", "middle"]


def test_a_layer_that_no_generator_is_smaller_than_stays_dense() -> None:
    model = nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 4), nn.Linear(4, 4))
    plan = adntn.fit_budget(model, parameters=3_000, layers="all", topologies="ttn")
    assert [layer.name for layer in plan.layers] == ["0", "1"]
    assert ("2", "no config is smaller") in [(each.name, each.why) for each in plan.kept]


def test_more_of_the_budget_means_better_configs() -> None:
    def total(limit: int) -> float:
        plan = adntn.fit_budget(Net(), parameters=limit, layers="all")
        return sum(math.log(layer.quality) for layer in plan.layers)

    totals = [total(limit) for limit in (900, 1_500, 3_000, 6_000)]
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]


def test_no_single_step_that_fits_is_left_out() -> None:
    plan = adntn.fit_budget(Net(), parameters=2_000, topologies="ttn")
    left = plan.limit - plan.after
    for layer in plan.layers:
        for changes in ({"terms": 2}, {"groups": 2}, {"bond_dim": 3}):
            config = layer.config.replace(
                **{key: max(value, getattr(layer.config, key) or 0) for key, value in changes.items()}
            )
            more = adntn.Generator(layer.shapes[0], config, device="meta").num_parameters - layer.generated
            if 0 < more <= left:
                assert quality(config, layer.shapes[0]) <= 1.05 * layer.quality


def test_a_plan_is_the_same_each_time_also_on_the_meta_device() -> None:
    with torch.device("meta"):
        bare = Net()
    assert adntn.fit_budget(Net(), parameters=2_000) == adntn.fit_budget(bare, parameters=2_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_count_buffers_and_the_size_of_a_number(dtype: torch.dtype) -> None:
    model = Net().to(dtype)
    before = stored(model)
    plan = adntn.fit_budget(model, bytes=8_000)
    assert (plan.before, plan.unit) == (before, "bytes")
    plan.apply_(model)
    assert stored(model) == plan.after <= 8_000


def test_seeds_of_random_projections_count_as_bytes() -> None:
    model = Net()
    plan = adntn.fit_budget(model, bytes=8_000, topologies="subspace", measure="numbers")
    plan.apply_(model)
    assert stored(model) == plan.after <= 8_000


@pytest.mark.parametrize("topologies", ["lowrank", "tt", ("mera", "ttn"), "brickwall"])
def test_other_topologies_have_families_too(topologies: str | tuple[str, ...]) -> None:
    model = Net()
    plan = adntn.fit_budget(model, parameters=4_000, topologies=topologies)
    assert {layer.config.topology for layer in plan.layers} <= set(
        [topologies] if isinstance(topologies, str) else topologies
    )
    plan.apply_(model)
    assert count(model) == plan.after <= 4_000


def test_options_that_are_not_chosen_are_kept_and_the_order_is_chosen() -> None:
    base = GeneratorConfig(activation="tanh", gate=True, terms=2)
    plan = adntn.fit_budget(Net(), parameters=4_000, config=base, orders=("blocked", "paired"))
    assert all(layer.config.activation == "tanh" and layer.config.gate for layer in plan.layers)
    assert all(layer.config.terms >= 2 for layer in plan.layers)
    # No bound of rank: at the same numbers its start is better.
    assert {layer.config.order for layer in plan.layers} == {"paired"}


def test_layers_are_ranked_by_name_or_by_time() -> None:
    named = adntn.fit_budget(Net(), parameters=12_500, targets=["small", "large"], rank_by="named")
    assert [layer.name for layer in named.layers] == ["small", "large"]
    timed = adntn.fit_budget(Net(), parameters=1_500, rank_by="time", example=torch.randn(8, 50))
    assert {layer.name for layer in timed.layers} == {"large", "middle", "small"}
    assert timed.layers[0].why.startswith("no. 1 by time")
    with pytest.raises(ConfigError, match="give an input"):
        adntn.fit_budget(Net(), parameters=1_500, rank_by="time")


def test_a_slow_layer_comes_first_by_time() -> None:
    model = nn.Sequential(nn.Conv2d(4, 32, 3, padding=1), nn.Flatten(), nn.Linear(32 * 32 * 32, 16))
    example = torch.randn(4, 4, 32, 32)
    by = {
        rank: adntn.fit_budget(
            model,
            parameters=600_000,
            layers=1,
            rank_by=rank,
            targets=["0", "2"],
            example=example,
            topologies="ttn",
            measure="numbers",
        )
        for rank in ("parameters", "time")
    }
    assert by["parameters"].layers[0].name == "2"
    assert by["time"].layers[0].name == "0"


def test_tied_layers_are_one_and_an_attention_brings_its_projection() -> None:
    model = nn.Sequential(
        nn.Embedding(300, 32), nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), nn.Linear(32, 300)
    )
    model[2].weight = model[0].weight
    before = count(model)
    plan = adntn.fit_budget(model, parameters=2_500)
    assert plan.before == before
    assert plan.overrides.keys() >= {"0", "2", "1.self_attn", "1.self_attn.out_proj"}
    assert plan.overrides["0"] == plan.overrides["2"]
    plan.apply_(model)
    assert count(model) == plan.after <= 2_500
    assert model[0].shares_generator_with(model[2])
    assert model(torch.arange(6).view(2, 3)).shape == (2, 3, 300)


def test_ignored_parts_stay_dense_when_the_plan_is_applied() -> None:
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    plan = adntn.fit_budget(model, parameters=9_000, ignore=["self_attn.out_proj"], layers="all")
    plan.apply_(model)
    assert type(model.self_attn.out_proj) is not adntn.nn.Linear
    assert count(model) == plan.after


def test_single_parameters_of_other_modules_can_be_targets() -> None:
    model = nn.Sequential(nn.LSTM(24, 24))
    plan = adntn.fit_budget(model, parameters=1_500, targets=[r"re:0\.weight_.*"])
    plan.apply_(model)
    assert count(model) == plan.after <= 1_500
    assert {layer.name for layer in plan.layers} == {"0.weight_ih_l0", "0.weight_hh_l0"}


def test_a_plan_goes_to_json_and_back_and_onto_another_model() -> None:
    plan = adntn.fit_budget(Net(), parameters=2_000, ignore=["head"])
    again = BudgetPlan.from_json(plan.to_json())
    assert again == plan
    assert json.loads(plan.to_json()) == plan.to_dict()
    first, second = Net(), Net()
    plan.apply_(first)
    again.apply_(second)
    assert [m.config for m in first.modules() if isinstance(m, adntn.nn.Linear)] == [
        m.config for m in second.modules() if isinstance(m, adntn.nn.Linear)
    ]
    for broken in ("{", "[]", '{"layers": []}', '{"layers": [{"name": 1}]}'):
        with pytest.raises(ConfigError, match="of a plan"):
            BudgetPlan.from_json(broken)


def test_compress_takes_the_overrides_and_other_options_go_through() -> None:
    plan = adntn.fit_budget(Net(), parameters=2_000)
    model = Net()
    adntn.compress_(model, targets=list(plan.overrides), overrides=plan.overrides)
    assert count(model) == plan.after
    plan = adntn.fit_budget(Net(), parameters=12_000, topologies="ttn")
    report = plan.apply_(Net(), init="fit", fit=adntn.FitOptions(steps=2, polish=0), progress=False)
    assert all(row.fit is not None for row in report.layers)


def test_the_table_says_what_is_stored_where_and_why() -> None:
    plan = adntn.fit_budget(Net(), parameters=2_000)
    lines = str(plan).splitlines()
    assert len({len(line) for line in lines if set(line) == {"-"}}) == 1
    large = next(line for line in lines if line.startswith("large"))
    assert "200x60" in large
    assert "12,000" in large
    assert "no. 1 by parameters" in large
    assert f"{plan.layers[0].generated:,}" in large
    assert any(line.startswith("norm") and "not of a kind that is generated" in line for line in lines)
    assert any(line.startswith("2 more") and "beside a generated weight" in line for line in lines)
    assert lines[-1] == f"whole model: {plan.before:,} -> {plan.after:,} numbers, of at most 2,000"


def test_an_impossible_budget_says_the_least_and_what_holds_the_rest() -> None:
    model = Net()
    with pytest.raises(CompressionError, match=r"the least is .*head 2") as caught:
        adntn.fit_budget(model, parameters=300)
    least = int(str(caught.value).split("the least is ")[1].split(",")[0])
    assert adntn.fit_budget(model, parameters=least).after == least
    with pytest.raises(CompressionError, match="not possible"):
        adntn.fit_budget(model, parameters=least - 1)
    with pytest.raises(
        CompressionError, match=rf"small 3,060.*With all 4 layers generated that can be, {least:,} would"
    ):
        adntn.fit_budget(model, parameters=300, layers=1)


def test_a_model_within_its_budget_needs_nothing() -> None:
    model = Net()
    with pytest.raises(CompressionError, match="nothing need be generated"):
        adntn.fit_budget(model, parameters=count(model))
    assert adntn.fit_budget(model, parameters=count(model), layers=1).layers[0].name == "large"


def test_mistakes_are_named() -> None:
    for options in ({}, {"parameters": 5, "bytes": 5}):
        with pytest.raises(ConfigError, match="give one budget"):
            adntn.fit_budget(Net(), **options)
    for options, said in (
        ({"rank_by": "size"}, "rank_by='size' is not known"),
        ({"measure": "rank"}, "measure='rank' is not known"),
        ({"layers": 0}, "layers=0"),
        ({"parameters": 1.5}, "parameters=1.5"),
        ({"topologies": "tnt"}, "Did you mean 'tt'"),
    ):
        with pytest.raises(ConfigError, match=said):
            adntn.fit_budget(Net(), **{"parameters": 2_000, **options})
    with pytest.raises(CompressionError, match=r"no module 'heads'.*Did you mean 'head'"):
        adntn.fit_budget(Net(), parameters=2_000, targets=["heads"])
    with pytest.raises(CompressionError, match="every target is in ignore"):
        adntn.fit_budget(Net(), parameters=2_000, ignore=["re:.*"])
    tied = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    tied[1].weight = tied[0].weight
    with pytest.raises(CompressionError, match="shares its weight"):
        adntn.fit_budget(tied, parameters=1_000, targets=["0"])
