"""What is decayed, and how fast each parameter is trained."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adntn import GeneratorConfig, compress_
from adntn.experiments.controls import freeze_weights_
from adntn.experiments.models import SmallCNN
from adntn.nn import GeneratedLayer
from adntn.training.optimization import Optimization
from adntn.training.rates import make_optimizer, momentum, parameter_groups, rate, set_rates


def names_by_decay(model: nn.Module) -> dict[float, set[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.5)
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    decays = {group["weight_decay"] for group in groups}
    return {d: {names[id(p)] for g in groups if g["weight_decay"] == d for p in g["params"]} for d in decays}


def test_dense_weights_decay_and_norms_and_biases_do_not() -> None:
    groups = names_by_decay(SmallCNN((1, 8, 8), 3))
    assert groups[0.5] == {"conv1.weight", "conv2.weight", "conv3.weight", "head.weight"}
    assert groups[0.0] == {"head.bias", *(f"norm{i}.{p}" for i in (1, 2, 3) for p in ("weight", "bias"))}


def test_root_and_cores_do_not_decay() -> None:
    model = SmallCNN((1, 8, 8), 3)
    compress_(model, GeneratorConfig(topology="mera", activation="prelu"), ["conv2", "conv3"])
    groups = names_by_decay(model)
    assert groups[0.5] == {"conv1.weight", "head.weight"}
    generated = {
        f"{layer}.{name}"
        for layer, m in model.named_modules()
        if isinstance(m, GeneratedLayer)
        for name, _ in m.generator_parameters()
    }
    assert generated <= groups[0.0]
    assert any("root" in name for name in generated)
    assert groups[0.0] | groups[0.5] == {name for name, _ in model.named_parameters()}


def test_what_is_shared_comes_once_and_what_is_frozen_not_at_all() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 4))
    model[3].weight = shared.weight
    freeze_weights_(model, ["3"])  # the shared weight too
    assert names_by_decay(model) == {0.0: {"0.bias", "3.bias"}}


def test_cores_have_a_rate_of_their_own() -> None:
    model = SmallCNN((1, 8, 8), 3)
    compress_(model, GeneratorConfig(topology="mera", activation="prelu"), ["conv2"])
    cores = {id(p) for _, p in model.conv2.generator_parameters()}
    groups = parameter_groups(model, 0.5, 0.1, 0.01)
    assert {g["lr"]: g["peak"] for g in groups} == {0.1: 0.1, 0.01: 0.01}
    assert {id(p) for g in groups if g["lr"] == 0.01 for p in g["params"]} == cores
    assert {g["lr"] for g in parameter_groups(model, 0.5, 0.1)} == {0.1}


# --- schedules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total, warmup", [(50, 0.2), (7, 0.3), (200, 0.01), (10, 0.9), (3, 0.0), (24, 0.5)])
def test_one_cycle_is_that_of_torch(total: int, warmup: float) -> None:
    how = Optimization(warmup=warmup, lr=0.03)
    theirs = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.03)
    schedule = torch.optim.lr_scheduler.OneCycleLR(theirs, 0.03, total_steps=total, pct_start=warmup)
    ours = make_optimizer(nn.Linear(2, 2), how)
    for step in range(total):
        set_rates(ours.param_groups, how, step, total)
        for group in ours.param_groups:
            if warmup:  # torch's own begins in the middle of its fall without a warm-up
                assert group["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9)
                assert group["betas"] == pytest.approx(theirs.param_groups[0]["betas"], rel=1e-9)
        theirs.step()
        schedule.step()


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("total", [1, 2, 3, 5, 10, 40])
def test_every_rate_is_positive_and_at_most_the_peak(schedule: str, warmup: float, total: int) -> None:
    how = Optimization(schedule=schedule, warmup=warmup)
    rates = [rate(how, step, total) for step in range(total)]
    assert all(0 < r <= 1 for r in rates)
    assert max(rates) > 0.4 or total < 3
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_cosine_schedule_by_hand() -> None:
    how = Optimization(schedule="cosine", warmup=0.2)
    rates = [rate(how, step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert rates[6] == pytest.approx(0.5)  # half of the way down
    assert rates[9] == pytest.approx((1 + math.cos(math.pi * 7 / 8)) / 2)


def test_only_adamw_in_one_cycle_has_a_moving_momentum() -> None:
    assert momentum(Optimization(), 0, 10) == pytest.approx(0.95)
    assert momentum(Optimization(schedule="cosine"), 0, 10) is None
    sgd = Optimization(optimizer="sgd", momentum=0.7)
    optimizer = make_optimizer(nn.Linear(2, 2), sgd)
    set_rates(optimizer.param_groups, sgd, 3, 10)
    assert all(group["momentum"] == 0.7 for group in optimizer.param_groups)


def test_a_lowered_rate_is_a_tenth() -> None:
    how = Optimization(schedule="constant", lr=0.5, core_lr=0.1)
    model = nn.Sequential(nn.Linear(16, 16))
    compress_(model, targets=["0"])
    optimizer = make_optimizer(model, how)
    set_rates(optimizer.param_groups, how, 0, 1, lowered=2)
    assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx([0.001, 0.005])
