"""Choices by the number of positions: how they are read, and what machines choose."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from profiles import DEAR_CALLS, FREE_CALLS, machine
from torch import Tensor, nn

import adntn
from adntn import ConfigError, GeneratorConfig, register_activation
from adntn.execution import factored, plan
from adntn.execution.choices import MODES, WAYS, Choices, way_at
from adntn.execution.machine import Profile, shipped, using
from adntn.execution.plan import multiply_adds, seconds
from adntn.execution.rehearsal import count_way
from adntn.nn import Conv2d, ConvTranspose1d, Embedding, GeneratedLayer, Linear, MultiheadAttention

FEW_DENSE = Choices(((1, "dense"), (16, "factored")), ((1, "factored"),), ((1, "factored"), (4, "dense")))

WORTHWHILE = {
    "linear": lambda: Linear(256, 256, device="meta"),
    "mera": lambda: Linear(100, 60, config=GeneratorConfig(topology="mera"), device="meta"),
    "groups": lambda: Linear(96, 96, bias=False, config=GeneratorConfig(groups=3), device="meta"),
    "conv": lambda: Conv2d(64, 64, 3, stride=2, device="meta"),
    "reflect": lambda: Conv2d(32, 64, 3, padding=1, padding_mode="reflect", device="meta"),
    "transposed": lambda: ConvTranspose1d(64, 32, 4, stride=2, device="meta"),
}
worthwhile = pytest.mark.parametrize("build", WORTHWHILE.values(), ids=WORTHWHILE)


@pytest.fixture
def took(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each run through factors."""
    ran: list[str] = []
    original = factored.linear

    def noted(*args: Any) -> Tensor:
        ran.append("factored")
        return original(*args)

    monkeypatch.setattr(factored, "linear", noted)
    return ran


# --- what choices are -------------------------------------------------------------------------------------------------


def test_the_way_changes_where_a_step_says_so() -> None:
    found = [FEW_DENSE.at("training", n) for n in (0, 1, 15, 16, 17, 1 << 40)]
    assert found == ["dense", "dense", "dense", "factored", "factored", "factored"]
    assert [FEW_DENSE.at("kept", n) for n in (1, 3, 4)] == ["factored", "factored", "dense"]


steps = st.lists(st.integers(2, 1 << 30), unique=True, max_size=5).flatmap(
    lambda starts: st.tuples(*(st.tuples(st.just(start), st.sampled_from(WAYS)) for start in (1, *sorted(starts))))
)


@given(st.builds(Choices, steps, steps, steps))
def test_choices_come_back_from_json(choices: Choices) -> None:
    assert Choices.from_dict(json.loads(json.dumps(choices.to_dict()))) == choices


def broken(**changed: Any) -> dict[str, Any]:
    return {**Choices.only("dense").to_dict(), **changed}


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"training": [[1, "dense"]]},
        {**broken(), "more": []},
        broken(kept=[]),
        broken(kept="dense"),
        broken(kept=[[2, "dense"]]),
        broken(kept=[[1, "dense"], [1, "factored"]]),
        broken(kept=[[1, "dense"], [8, "factored"], [4, "dense"]]),
        broken(kept=[[1, "sideways"]]),
        broken(kept=[[True, "dense"]]),
        broken(kept=[[1.0, "dense"]]),
        broken(kept=[[1, "dense", 3]]),
        broken(kept=[[1, ["dense"]]]),
        broken(kept=[1]),
        broken(kept=[[1, "dense"], [1 << 70, "factored"]]),
    ],
    ids=str,
)
def test_what_are_no_choices_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match="choices"):
        Choices.from_dict(values)


# --- what a machine chooses -------------------------------------------------------------------------------------------


@worthwhile
def test_where_calls_are_free_the_factors_are_taken_for_less_arithmetic(build: Any) -> None:
    with using(FREE_CALLS):
        layer = build()
    work = layer._work()
    assert work.factored < 0.9 * work.dense
    assert layer.choices.kept == ((1, "factored"),)
    assert layer.way_for(1 << 24, "training") == layer.way_for(1 << 24, "rebuilt") == "factored"


@worthwhile
def test_where_calls_are_dear_everything_runs_dense(build: Any) -> None:
    with using(DEAR_CALLS):
        layer = build()
    assert layer.choices == Choices.only("dense")
    assert layer.way.name == "dense"


def test_more_arithmetic_is_never_taken() -> None:
    with using(FREE_CALLS):
        assert Linear(8, 8).choices == Choices.only("dense")
        assert Conv2d(256, 256, 3, groups=256, device="meta").choices == Choices.only("dense")


@worthwhile
def test_choices_begin_with_one_position_and_change_at_each_step(build: Any) -> None:
    with using(shipped()):
        layer = build()
    for mode in MODES:
        found = getattr(layer.choices, mode)
        starts, names = zip(*found, strict=True)
        assert starts[0] == 1
        assert list(starts) == sorted(set(starts))
        assert all(one != other for one, other in itertools.pairwise(names))
    assert Choices.from_dict(layer.choices.to_dict()) == layer.choices


@pytest.mark.parametrize("profile", [shipped(), FREE_CALLS, DEAR_CALLS, machine(call=1e-6, rate=1e11, bandwidth=1e11)])
def test_the_way_is_the_one_that_the_model_finds_faster(profile: Profile) -> None:
    with using(profile):
        layer = Linear(256, 256, device="meta")
    counts = {way: count_way(layer._on_meta(), way) for way in WAYS}
    for mode in MODES:
        times = {way: seconds(counts[way], mode, profile, torch.float32) for way in WAYS}
        for power, (one, other) in enumerate(zip(times["factored"], times["dense"], strict=True)):
            expected = "factored" if one < 0.95 * other else "dense"
            assert layer.way_for(1 << power, mode) == expected


def test_time_grows_with_positions_and_training_takes_longest() -> None:
    for layer, way in itertools.product((Conv2d(64, 64, 3, padding=1, device="meta"), Linear(64, 64)), WAYS):
        count = count_way(layer._on_meta(), way)
        training, rebuilt, kept = (seconds(count, mode, shipped(), torch.float32) for mode in MODES)
        times = training[6:]  # of a few places of a map factors run another way than of many
        assert list(times) == sorted(times)
        assert all(t > r > k for t, r, k in zip(training, rebuilt, kept, strict=True))


def test_a_machine_chooses_alike_for_layers_that_are_alike() -> None:
    with using(shipped()):
        one, other = Linear(128, 128), Linear(128, 128)
        assert one.choices is other.choices
        assert Linear(128, 128, bias=False).choices is not one.choices


def test_choosing_draws_no_random_numbers() -> None:
    drawn = []
    for profile in (None, shipped()):
        torch.manual_seed(3)
        with using(profile):
            drawn.append(Linear(72, 56, config=GeneratorConfig(topology="mera")))
    assert drawn[0].choices != drawn[1].choices
    assert all(torch.equal(p, q) for p, q in zip(drawn[0].parameters(), drawn[1].parameters(), strict=True))


@pytest.mark.usefixtures("own_registry")
def test_an_activation_that_needs_values_is_met_by_the_arithmetic() -> None:
    class Looks(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z if float(z.abs().max()) < 1e30 else z.clamp(-1e30, 1e30)

    register_activation("looks", Looks)
    with using(DEAR_CALLS):
        layer = Linear(256, 256, config=GeneratorConfig(activation="looks"))
    assert layer.choices == Choices.only("factored")
    assert layer.way.reason == str(multiply_adds(layer))


# --- what a layer does with them --------------------------------------------------------------------------------------


def with_choices(choices: Choices = FEW_DENSE) -> Linear:
    layer = Linear(32, 32)
    layer.take_choices(choices)
    return layer


def test_a_call_takes_the_way_for_its_positions_and_mode(took: list[str]) -> None:
    layer = with_choices()
    for shape, count in (((15, 32), 0), ((16, 32), 1), ((4, 4, 32), 2), ((3, 5, 32), 2)):
        layer(torch.ones(shape))
        assert len(took) == count
    with torch.no_grad():
        layer(torch.ones(1, 32))
    assert len(took) == 3
    with adntn.cached(layer):
        layer(torch.ones(3, 32))
        layer(torch.ones(4, 32))
    assert len(took) == 4


def test_a_convolutions_positions_are_those_of_its_output() -> None:
    layer = Conv2d(8, 16, 3, stride=2, padding=1, dilation=2)
    for size in ((2, 8, 9, 12), (8, 9, 12)):
        x = torch.ones(size)
        assert layer._positions(x) == layer(x).numel() // 16
    same = Conv2d(8, 8, (2, 5), padding="same")
    assert same._positions(torch.ones(3, 8, 6, 7)) == 3 * 6 * 7
    transposed = ConvTranspose1d(8, 4, 3, stride=2)
    assert transposed._positions(torch.ones(3, 8, 6)) == 3 * 6


@pytest.mark.parametrize("positions", [1, 8, 64, 1000])
def test_a_probe_has_the_positions_that_were_asked_for(positions: int) -> None:
    layers: list[GeneratedLayer] = [
        Linear(8, 8),
        Conv2d(8, 8, 3, padding=1),
        Conv2d(8, 8, 3, stride=3, dilation=2),
        Conv2d(8, 8, 5, padding="same"),
        ConvTranspose1d(8, 8, 3),
        Embedding(8, 8),
    ]
    for layer in layers:
        assert positions <= layer._positions(layer.probe(positions)) < positions + 64


def test_asked_for_ways_are_taken_whatever_the_machine() -> None:
    with using(DEAR_CALLS):
        assert Linear(64, 64, execution="factored").choices == Choices.only("factored")
        assert Embedding(64, 64).choices == Choices.only("factored")
    with using(FREE_CALLS):
        assert Linear(64, 64, execution="dense").choices == Choices.only("dense")
        assert Linear(64, 64, config=GeneratorConfig(order="paired")).choices == Choices.only("dense")
        model = nn.GRU(32, 32)
        adntn.compress_(model, targets=["weight_hh_l0"])
        assert model.parametrizations.weight_hh_l0[0].choices == Choices.only("dense")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mode='trainig' is not known.*Did you mean 'training'"):
        Linear(8, 8).way_for(3, "trainig")


def test_another_dtype_is_another_choice_and_given_choices_stay() -> None:
    with using(FREE_CALLS):
        layer, given_ = Linear(64, 64), with_choices()
    with using(DEAR_CALLS):
        layer.bfloat16()
        given_.bfloat16()
        assert layer.choices == Choices.only("dense")
        assert given_.choices == FEW_DENSE
        given_.execution = "auto"
        assert given_.choices == Choices.only("dense")


def test_a_layer_from_the_meta_device_chooses_when_it_gets_memory() -> None:
    with using(FREE_CALLS):
        layer = Linear(64, 64, device="meta")
    with using(DEAR_CALLS):
        layer.to_empty(device="cpu")
    assert layer.choices == Choices.only("dense")


def test_copies_choose_alike() -> None:
    layer = with_choices()
    other = copy.deepcopy(layer).bfloat16()
    assert other.choices == FEW_DENSE
    assert other.way == layer.way


def test_the_reason_says_for_how_many_positions() -> None:
    way = with_choices().way
    assert (way.name, str(way)) == ("factored", "factored")
    assert (
        "training: dense, factored from 16 positions on; rebuilt: factored; kept: factored, dense from 4" in way.reason
    )


def test_the_report_says_from_how_many_positions_on() -> None:
    report = adntn.describe(nn.Sequential(with_choices()))
    assert (report.layers[0].way, report.layers[0].runs) == ("factored", "factored from 16")
    assert "factored from 16" in str(report)


def test_choices_are_refused_where_there_is_nothing_to_choose() -> None:
    layer = Linear(32, 32, config=GeneratorConfig(order="paired"))
    layer.take_choices(Choices.only("dense"))
    with pytest.raises(ConfigError, match="not possible: it runs dense, order='paired' has no split"):
        layer.take_choices(FEW_DENSE)
    assert layer.choices == Choices.only("dense")


def test_an_attention_takes_the_way_for_its_keys() -> None:
    attention = MultiheadAttention(32, 4)
    x, keys = torch.randn(2, 1, 32), torch.randn(30, 1, 32)
    expected = [attention(x, x, x)[0], attention(x, keys, keys)[0]]
    for part in (attention.in_proj, attention.out_proj):
        part.take_choices(FEW_DENSE)
    torch.testing.assert_close([attention(x, x, x)[0], attention(x, keys, keys)[0]], expected)


# --- compilers --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_graphs")
def test_a_compiled_layer_is_compiled_once_for_each_side_of_a_step() -> None:
    from torch._dynamo.testing import CompileCounter

    layer, counter = with_choices(), CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for batch in (3, 5, 7, 9, 20, 30, 40, 6, 50):
        x = torch.randn(batch, 32)
        torch.testing.assert_close(compiled(x), layer(x))
    # The first batch as it stands, then any of few, then any of many.
    assert counter.frame_count <= 3


@pytest.mark.usefixtures("no_graphs")
def test_an_exported_layer_takes_any_batch() -> None:
    layer = with_choices()
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(layer, (torch.randn(20, 32),), dynamic_shapes=({0: batch},))
    for size in (1, 15, 16, 4096):
        x = torch.randn(size, 32)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-5)


def test_counts_are_forgotten_before_they_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_MOST_COUNTS", 1)
    monkeypatch.setattr(plan, "_COUNTS", {})
    monkeypatch.setattr(plan, "_CHOICES", {})
    with using(FREE_CALLS):
        for size in (40, 48, 56, 72):
            Linear(size, size)
    assert len(plan._COUNTS) <= 2


def test_steps_are_read_from_the_left() -> None:
    assert way_at(((1, "dense"),), 0) == "dense"
