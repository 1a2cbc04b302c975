"""The predicted time of gated layers: the planner's own number where gates are all open or closed, by hand between."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from profiles import DEAR_CALLS
from torch import nn

import adntn
from adntn import ConfigError, Generator, GeneratorConfig
from adntn.execution.machine import using
from adntn.losses import costs, predicted_seconds, predicted_time
from adntn.losses.costs import PredictedSeconds

MERA = GeneratorConfig(topology="mera", gate=True, latent_order=2)
ROWS = {
    "ttn": GeneratorConfig(topology="ttn", gate=True, latent_order=2),
    "attn": GeneratorConfig(topology="attn", boundary_layers=2, gate=True, latent_order=2),
    "mera": MERA,
    "mera, paired": MERA.replace(order="paired"),
    "mera, three terms, two groups, bond 3": MERA.replace(terms=3, groups=2, bond_dim=3),
    "mera, kernel of its own radix": MERA.replace(kernel_radix=3),
    "brickwall": GeneratorConfig(topology="brickwall", columns=4, gate=True),
    "lowrank": GeneratorConfig(topology="lowrank"),
}


def linear(config: GeneratorConfig, **options: Any) -> adntn.nn.Linear:
    return adntn.nn.Linear(48, 40, config=config, **options)


@pytest.mark.parametrize("row, mode", [*((row, "rebuilt") for row in ROWS), ("mera", "training"), ("attn", "kept")])
def test_with_open_gates_it_is_the_planners_time_over_the_dense_layers(row: str, mode: str) -> None:
    layer = linear(ROWS[row])
    (taken,) = (each for each in adntn.plan(layer, (64, 48), mode=mode).rows if each.taken)
    times = predicted_seconds(layer, 64, mode=mode)
    # The plan knows of what is kept that it is kept, and may take another road there.
    assert times.layer == pytest.approx(taken.seconds, rel=0.5 if mode == "kept" else 1e-9)
    assert float(predicted_time({layer: 64}, mode=mode).detach()) == pytest.approx(times.layer / times.dense)
    kept = [each for each in adntn.plan(layer, (64, 48), mode="kept").rows if each.way == "dense"]
    if mode != "training":
        assert times.dense == pytest.approx(kept[0].seconds)


def without(topology: str, **changes: Any) -> adntn.nn.Linear:
    return linear(MERA.with_topology(topology).replace(**changes))


def test_closed_parts_are_the_planners_time_of_the_layer_without_them() -> None:
    layer = linear(MERA)
    times = predicted_seconds(layer, 64)
    assert set(times.parts) == {"gate.level.1", "gate.level.2", "gate.mix.1.0", "gate.mix.2.0", "gate.mix.3.0"}
    # Without the last level's disentanglers: an attn has these alone, a ttn none.
    attn, ttn = (predicted_seconds(without(topology), 64) for topology in ("attn", "ttn"))
    assert attn.parts["gate.mix.3.0"] == pytest.approx(attn.layer - ttn.layer, rel=1e-2)
    assert layer.config.terms == 1
    assert times.term == 0
    # The terms of a sum cost alike, each a tree.
    several, alone = (predicted_seconds(linear(MERA.replace(terms=terms)), 64) for terms in (4, 1))
    assert several.term == pytest.approx((several.layer - alone.layer) / 3)


def test_between_open_and_closed_it_is_that_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = linear(MERA.replace(terms=2, groups=2))
    names = dict(layer.generator_parameters())
    known = PredictedSeconds(layer=10.0, dense=5.0, term=3.0, parts={"gate.mix.1.0": 2.0, "gate.level.1": 0.5})
    monkeypatch.setattr(costs, "predicted_seconds", lambda *_, **__: known)
    width = 0.25

    def share(g: float) -> float:
        return 1.25 * g / (g + 0.25)

    def time() -> float:
        return 5.0 * float(predicted_time({layer: 8}, width=width).detach())

    assert time() == pytest.approx(10.0)
    with torch.no_grad():
        names["gate.mix.1.0"].fill_(-0.5)
    assert time() == pytest.approx(10.0 - 2.0 * (1 - share(0.5)))
    with torch.no_grad():
        names["gate.level.1"].fill_(7.0)  # open, and no more than that
        names["gate.mix.1.0"].zero_()
    assert time() == pytest.approx(10.0 - 2.0)
    with torch.no_grad():
        names["gate.term"][:2].zero_()  # one of two trees in each of two groups would be 3, these are both of one group
    # Two of four trees are gone, and with the others' disentanglers half of theirs is left to go.
    assert time() == pytest.approx(10.0 - 3.0 - 2.0 / 2)
    with torch.no_grad():
        names["gate.term"].fill_(0.25)
        names["gate.mix.1.0"].fill_(1.0)
        names["gate.level.1"].fill_(0.0)
    assert share(0.25) == pytest.approx(0.625)
    assert time() == pytest.approx(10.0 - 2 * 3.0 * (1 - 0.625) - 0.625 * 0.5)


def test_several_layers_are_their_sum_over_the_sum_of_dense_ones() -> None:
    one, other = linear(MERA), adntn.nn.Conv2d(8, 12, 3, config=MERA)
    times = [predicted_seconds(layer, positions) for layer, positions in ((one, 64), (other, 500))]
    together = float(predicted_time({one: 64, other: 500}).detach())
    assert together == pytest.approx(sum(t.layer for t in times) / sum(t.dense for t in times))


def test_gates_have_gradients_at_their_start_and_nothing_else_has() -> None:
    layer = linear(MERA.replace(terms=2), bias=False)
    predicted_time({layer: 64}).backward()
    for name, parameter in layer.generator_parameters():
        if name.startswith("gate."):
            assert parameter.grad is not None, name
            assert parameter.grad.min() > 0, name  # a gate that closes takes time away
        else:
            assert parameter.grad is None, name


def test_the_term_closes_gates_that_nothing_else_holds_open() -> None:
    layer = linear(MERA)
    gates = [p for name, p in layer.generator_parameters() if name.startswith("gate.")]
    with torch.no_grad():
        for gate in gates:
            gate.fill_(0.9)
    optimizer = torch.optim.Adam(gates, lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        predicted_time({layer: 64}).backward()
        optimizer.step()
    assert max(float(gate.detach().abs().max()) for gate in gates) < 0.1


@pytest.mark.parametrize(
    "layer, positions",
    [
        (adntn.nn.Embedding(60, 32, config=MERA), 10),
        (adntn.nn.ConvTranspose2d(6, 8, 4, stride=2, config=MERA), 100),
        (adntn.nn.Conv1d(6, 8, 3, groups=2, config=MERA), 100),
        (adntn.nn.MultiheadAttention(32, 4, config=MERA).in_proj, 40),
        (linear(MERA, dtype=torch.bfloat16), 16),
        (linear(MERA, device="meta"), 16),
    ],
    ids=lambda each: type(each).__name__,
)
def test_every_family_has_a_time(layer: nn.Module, positions: int) -> None:
    time = predicted_time({layer: positions})  # type: ignore[dict-item]
    assert time.requires_grad
    assert time.ndim == 0
    assert time.device == layer.device  # type: ignore[comparison-overlap]


def test_the_layer_is_left_as_it_was_and_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = linear(MERA.replace(terms=2))
    before = (layer.blueprint, layer._network, layer.way, layer.config, [*layer.state_dict()])
    with using(dataclasses.replace(DEAR_CALLS, view=2.0)):
        first = predicted_seconds(layer, 17)
        monkeypatch.setattr(costs, "count_way", lambda *_: pytest.fail("counted again"))
        assert predicted_seconds(layer, 17) is first
    assert (layer.blueprint, layer._network, layer.way, layer.config, [*layer.state_dict()]) == before
    assert math.isfinite(first.layer)


def test_mistakes_are_refused_with_what_was_given() -> None:
    layer = linear(MERA)
    with pytest.raises(ConfigError, match="at least one layer"):
        predicted_time({})
    with pytest.raises(ConfigError, match=r"mode='rebuild' .* Did you mean 'rebuilt'"):
        predicted_time({layer: 8}, mode="rebuild")
    with pytest.raises(ConfigError, match="positions=0"):
        predicted_time({layer: 0})
    with pytest.raises(ConfigError, match="width=0"):
        predicted_time({layer: 8}, width=0)
    with pytest.raises(ConfigError, match="a Generator meets no input"):
        predicted_time({Generator((8, 8)): 8})  # type: ignore[dict-item]
    rnn = nn.LSTM(8, 8)
    adntn.compress_(rnn, MERA, targets=["weight_hh_l0"])
    with pytest.raises(ConfigError, match="a GeneratedParameter meets no input"):
        predicted_time({rnn.parametrizations.weight_hh_l0[0]: 8})  # type: ignore[index, dict-item, union-attr]
