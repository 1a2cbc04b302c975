"""What an optimiser steps on: which parameters, at which rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from adntn.generator import GeneratorModule
from adntn.training.optimization import Optimization

__all__ = ["make_optimizer", "momentum", "parameter_groups", "rate", "set_rates"]

# A one-cycle schedule starts at 1/25 of its peak and ends at 1/10,000 of its start; its momentum goes the other way.
_START, _END = 1 / 25, 1 / 25e4
_MOMENTA = (0.95, 0.85)


def parameter_groups(
    model: nn.Module, weight_decay: float, lr: float = 1e-3, core_lr: float | None = None
) -> list[dict[str, Any]]:
    """Return a model's trained parameters in up to three groups: dense weights, which decay; norms and biases; cores.

    Cores are not decayed: a weight is a product of many of them, so a small decay of each is a large one of the weight.

    Args:
        model: with or without generated layers.
        weight_decay: of dense weights.
        lr: peak rate, in ``"lr"`` and ``"peak"`` of each group.
        core_lr: of the root and cores of generators; None means ``lr``.
    """
    layers = [m for m in model.modules() if isinstance(m, GeneratorModule)]
    generated = {id(p) for layer in layers for _, p in layer.generator_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    dense = [p for p in trained if id(p) not in generated]
    cores = lr if core_lr is None else core_lr
    groups = [
        {"params": [p for p in dense if p.ndim >= 2], "weight_decay": weight_decay, "lr": lr, "peak": lr},
        {"params": [p for p in dense if p.ndim < 2], "weight_decay": 0.0, "lr": lr, "peak": lr},
        {"params": [p for p in trained if id(p) in generated], "weight_decay": 0.0, "lr": cores, "peak": cores},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, how: Optimization) -> torch.optim.Optimizer:
    """Return the optimiser of a model's trained parameters."""
    groups = parameter_groups(model, how.weight_decay, how.lr, how.core_lr)
    if how.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=how.lr, momentum=how.momentum)
    return torch.optim.AdamW(groups, lr=how.lr)


def rate(how: Optimization, step: int, total: int) -> float:
    """Return the share of the peak rate at a step.

    One-cycle is that of :class:`torch.optim.lr_scheduler.OneCycleLR`: a cosine from 1/25 to 1 in the warm-up, and
    another down to 1/250,000. The cosine schedule rises in a line from 0 and falls to 0; a constant one is 1.

    Args:
        how: with the schedule and its warm-up.
        step: from 0.
        total: steps in all.
    """
    if how.schedule == "constant":
        return 1.0
    if how.schedule == "one-cycle":
        return _one_cycle(how, step, total, (_START, 1.0, _END))
    rising = math.ceil(how.warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (1 + math.cos(math.pi * (step - rising) / max(1, total - rising))) / 2


def momentum(how: Optimization, step: int, total: int) -> float | None:
    """Return AdamW's first momentum at a step of a one-cycle schedule; None where it is a constant."""
    if how.schedule != "one-cycle" or how.optimizer != "adamw":
        return None
    high, low = _MOMENTA
    return _one_cycle(how, step, total, (high, low, high))


def _one_cycle(how: Optimization, step: int, total: int, values: tuple[float, float, float]) -> float:
    start, peak, end = values
    turn = how.warmup * total - 1
    if turn > 0 and step <= turn:
        return _cosine(start, peak, step / turn)
    first = max(0.0, turn)
    return _cosine(peak, end, (step - first) / max(1.0, total - 1 - first))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def set_rates(groups: Iterable[dict[str, Any]], how: Optimization, step: int, total: int, lowered: int = 0) -> None:
    """Give an optimiser's groups the rates of a step, each a tenth for every time that they have been lowered."""
    share, beta = rate(how, step, total) * 0.1**lowered, momentum(how, step, total)
    for group in groups:
        group["lr"] = group["peak"] * share
        if beta is not None:
            group["betas"] = (beta, group["betas"][1])
