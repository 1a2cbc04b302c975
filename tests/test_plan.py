"""The plan of a layer: its alternatives, counted."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from conformance_layers import LayerCase, one_of_each
from profiles import DEAR_CALLS, FREE_CALLS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import adntn
from adntn import ConfigError, GeneratorConfig, ShapeError
from adntn.execution.choices import MODES, WAYS, Choices
from adntn.execution.machine import shipped, using
from adntn.nn import Conv2d, Embedding, Linear, MultiheadAttention


def flops(layer: nn.Module, x: torch.Tensor, mode: str) -> int:
    """What torch's own counter says of a real run."""
    x = x.requires_grad_(mode == "training")
    with torch.set_grad_enabled(mode == "training"), FlopCounterMode(display=False) as counter:
        y = layer(x)
        if mode == "training":
            y.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("mode", ["training", "rebuilt"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "build, shape",
    [
        (lambda way: Linear(60, 100, config=GeneratorConfig(topology="mera"), execution=way), (5, 3, 60)),
        # Without groups, which the counter leaves out of the weight's gradient.
        (lambda way: Conv2d(16, 24, 3, stride=2, padding=1, execution=way), (2, 16, 9, 7)),
        (lambda way: adntn.nn.ConvTranspose1d(16, 12, 4, stride=2, execution=way), (2, 16, 9)),
    ],
    ids=["linear", "conv", "transposed"],
)
def test_flops_are_those_of_torchs_counter_on_a_real_run(
    build: Any, shape: tuple[int, ...], way: str, mode: str
) -> None:
    layer = build(way)
    (row,) = [row for row in adntn.plan(layer, shape, mode=mode).rows if row.way == way]
    assert row.taken
    assert row.flops == flops(layer, torch.randn(shape), mode) > 0


def test_kept_flops_are_those_of_the_products_with_the_input() -> None:
    rows = adntn.plan(Linear(256, 512, device="meta"), (7, 256), mode="kept").rows
    assert {row.way: row.flops for row in rows} == {
        "dense": 2 * 7 * 256 * 512,
        "factored": 2 * 7 * (256 * 16 + 16 * 32 + 32 * 512),
    }
    assert {row.way: row.products for row in rows} == {"dense": "256x512", "factored": "256x16 16x32 32x512"}


def test_memory_beyond_input_and_output() -> None:
    rows = {(row.mode, row.way): row for row in adntn.plan(Linear(1024, 1024, device="meta"), (4, 1024)).rows}
    weight = 4 * 1024**2
    assert rows["kept", "dense"].peak == weight
    assert rows["rebuilt", "dense"].peak >= weight
    assert rows["training", "dense"].peak >= 2 * weight  # and its gradient
    for mode in MODES:
        assert rows[mode, "factored"].peak < weight / 4
        assert rows[mode, "dense"].bytes > weight


@one_of_each
def test_every_kind_of_layer_has_a_plan(layer: LayerCase) -> None:
    module, x = layer.build(), layer.make_input()
    with using(shipped()):
        found = adntn.plan(module, tuple(x.shape))
    splits = module.split_obstacle is None
    assert [(row.mode, row.way) for row in found.rows] == [
        (m, w) for m in MODES for w in WAYS if splits or w == "dense"
    ]
    assert sum(row.taken for row in found.rows) == len(MODES)
    assert all(row.calls >= 0 and row.seconds >= 0 for row in found.rows)
    assert found.positions == module._positions(x)
    assert str(found.rows[0].calls) in str(found).replace(",", "")


def test_a_plan_shows_what_is_taken_and_why() -> None:
    with using(shipped()):
        layer = Linear(512, 512)
        found = adntn.plan(layer, (1, 512))
    assert {row.mode: row.way for row in found.rows if row.taken} == {m: layer.way_for(1, m) for m in MODES}
    assert [line.split(":")[0] for line in found.reason.splitlines()] == list(MODES)
    assert "of the time of" in found.reason
    assert str(found).splitlines()[0].startswith("Linear(in_features=512")
    with pytest.raises(FrozenInstanceError):
        found.positions = 3  # type: ignore[misc]


def test_the_reason_is_the_one_that_held() -> None:
    asked = adntn.plan(Linear(64, 64, execution="dense"), (1, 64))
    assert asked.reason == "dense, asked for"
    without = adntn.plan(Linear(64, 64, config=GeneratorConfig(order="paired")), (1, 64))
    assert without.reason == "dense, order='paired' has no split into factors"
    assert {row.way for row in without.rows} == {"dense"}
    assert adntn.plan(Embedding(64, 64), (3,)).reason == "factored, only the rows that are looked up are made"
    assert "by the arithmetic alone" in adntn.plan(Linear(64, 64), (1, 64)).reason
    saved = Linear(64, 64)
    saved.take_choices(Choices.only("dense"))
    assert adntn.plan(saved, (1, 64)).reason == "as it was saved: training: dense; rebuilt: dense; kept: dense"


def test_times_are_those_of_the_machine() -> None:
    layer = Linear(256, 256)
    with using(FREE_CALLS):
        free = adntn.plan(layer, (1, 256), mode="kept").rows
    with using(DEAR_CALLS):
        dear = adntn.plan(layer, (1, 256), mode="kept").rows
    assert free[0].seconds < free[1].seconds < 1e-3 < dear[1].seconds < dear[0].seconds


def test_an_embedding_keeps_the_whole_of_a_and_looks_up_rows_of_it() -> None:
    layer = Embedding(4096, 512, config=GeneratorConfig(order="blocked"), device="meta")
    rows = {row.mode: row for row in adntn.plan(layer, (5, 3)).rows if row.way == "factored"}
    a, c, b = layer.factors()
    assert rows["kept"].flops == 2 * 15 * (c.numel() + b.numel())
    kept = 4 * (a.numel() + c.numel() + b.numel())
    assert kept <= rows["kept"].peak < 1.1 * kept
    assert rows["kept"].calls < rows["rebuilt"].calls / 4


def test_an_attention_has_a_row_for_each_projection() -> None:
    found = adntn.plan(MultiheadAttention(64, 4, kdim=32, vdim=16), (10, 2, 64), mode="kept")
    assert {row.part for row in found.rows} == {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert found.positions == 20
    dense = {row.part: row.products for row in found.rows if row.way == "dense"}
    assert dense == {"q_proj": "64x64", "k_proj": "32x64", "v_proj": "16x64", "out_proj": "64x64"}


def test_a_parameter_runs_dense() -> None:
    rnn = nn.LSTM(32, 32)
    adntn.compress_(rnn, targets=["weight_ih_l0"])
    found = adntn.plan(rnn.parametrizations.weight_ih_l0[0], ())
    assert found.reason == "dense, its module takes a whole parameter"
    assert [row.taken for row in found.rows] == [True] * 3


def test_a_plan_changes_nothing() -> None:
    layer, x = Linear(64, 64), torch.randn(3, 64)
    before, way, state = layer(x), layer.way, torch.get_rng_state()
    adntn.plan(layer, (3, 64))
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.way is way
    assert torch.equal(layer(x), before)
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize(
    "layer, shape, error, says",
    [
        (adntn.Generator((8, 8)), (8,), ConfigError, "a Generator on its own makes a weight"),
        (nn.Linear(8, 8), (8,), ConfigError, "a Linear is none. compress_ makes"),
        (nn.Sequential(Linear(8, 8), Linear(8, 8)), (8,), ConfigError, "one generated layer; this Sequential has 0, 1"),
        (Linear(8, 8), (3, 9), ShapeError, r"shape \(3, 9\) does not fit Linear"),
        (Linear(8, 8), (), ShapeError, "does not fit Linear"),
        (Linear(8, 8), "ab", ShapeError, "input_shape='ab' is not a shape"),
        (Linear(8, 8), 8, ShapeError, "input_shape=8 is not a shape"),
        (Linear(8, 8), (-1, 8), ShapeError, "is not a shape"),
        (Conv2d(8, 8, 3), (1, 7, 8, 8), ShapeError, "does not fit Conv2d"),
        (Conv2d(8, 8, 3), (1, 8, 2, 2), ShapeError, "does not fit Conv2d"),
        (MultiheadAttention(16, 2), (3, 8), ShapeError, "do not fit an attention of embed_dim=16"),
    ],
    ids=str,
)
def test_mistakes_are_met_with_what_would_work(layer: Any, shape: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        adntn.plan(layer, shape)


def test_a_plan_can_be_made_where_gradients_are_off() -> None:
    layer = Linear(64, 64)
    expected = adntn.plan(layer, (3, 64))
    with torch.inference_mode():
        assert adntn.plan(layer, (3, 64)) == expected
    with adntn.cached(layer):
        assert adntn.plan(layer, (3, 64)) == expected


def test_an_unknown_mode_is_met_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'kept'"):
        adntn.plan(Linear(8, 8), (1, 8), mode="keep")
