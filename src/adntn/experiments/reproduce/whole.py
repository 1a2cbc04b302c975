"""Whole networks: every convolution but the first generated, within budgets of trained numbers, beside rivals."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from adntn.budget import fit_budget
from adntn.compress import compress_
from adntn.describe import generated_weights
from adntn.experiments.controls import chosen_weights
from adntn.experiments.models import DEFAULT_TARGETS, Builder, ImageShape, model_builder
from adntn.experiments.reproduce.rows import Row
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.rivals import narrow_dense
from adntn.experiments.variants import Variant
from adntn.targets import select
from adntn.tensorize import Order
from adntn.topology import Blueprint, GeneratorConfig

__all__ = ["BUDGETS", "NETWORKS", "OURS", "RIVALS", "Planned", "whole_rows"]

#: Trained numbers that a whole network may have.
BUDGETS = (5_000, 10_000, 20_000, 50_000, 100_000)

NETWORKS = ("vgg16", "resnet20")

# Peak learning rates of dense weights and of cores. Every convolution has a batch norm behind it.
_RATES = (1e-2, 1e-2)


@dataclass(frozen=True)
class Planned:
    """Generators whose sizes :func:`adntn.fit_budget` chooses.

    Attributes:
        topology: of all of them.
        order: likewise.
        config: whatever else is not chosen.
        measure: of quality, which the plan spends by.
    """

    topology: str
    order: Order = "blocked"
    config: Mapping[str, Any] = field(default_factory=dict)
    measure: str = "stable-rank"

    def base(self) -> GeneratorConfig:
        """Return the smallest choice."""
        return GeneratorConfig(**self.config, order=self.order).with_topology(self.topology)

    def make(self, build: Callable[[], nn.Module], layers: Sequence[str], budget: int, seed: int) -> nn.Module:
        """Build an untrained network of at most so many numbers."""
        torch.manual_seed(seed)
        model = build()
        plan = fit_budget(
            model,
            parameters=budget,
            targets=layers,
            layers="all",
            config=self.base(),
            topologies=(self.topology,),
            orders=(self.order,),
            measure=self.measure,
        )
        plan.apply_(model, progress=False)
        return model


#: Ours.
OURS: Mapping[str, Planned] = MappingProxyType(
    {
        "ttn-blocked": Planned("ttn"),
        "ttn-paired": Planned("ttn", "paired"),
        "mera-paired": Planned("mera", "paired"),
    }
)

#: What ours have to beat; a narrow dense network and a random subspace of all weights come on top.
RIVALS: Mapping[str, Planned] = MappingProxyType(
    {
        "lowrank": Planned("lowrank", config={"bond_dim": 1}, measure="numbers"),
        "tt": Planned("tt", config={"bond_dim": 1}, measure="numbers"),
    }
)


def whole_rows(settings: Settings, image_shape: ImageShape, num_classes: int) -> list[Row]:
    """Return the rows: each network dense, with frozen convolutions, and for each budget ours and the rivals.

    A budget that a rival cannot meet, as low rank has no less than rank one, has no row of it.
    """
    rows: list[Row] = []
    for network in NETWORKS:
        full = model_builder(network, image_shape, num_classes)
        build = Builder(lambda width=1.0, full=full: full.narrower(width * settings.width), takes_width=True)
        with torch.device("meta"):
            model = build()
        layers = tuple(select(model, DEFAULT_TARGETS[network]))
        row = functools.partial(
            Row, group=network, network=network, build=build, layers=layers, optimization=settings.optimization(*_RATES)
        )
        for variant in (Variant("dense", "dense"), Variant("frozen-dense", "frozen-dense")):
            make = functools.partial(variant.make, build, layers)
            rows.append(row(variant=variant.name, make=make, about=_about(variant.name, None)))
        for budget in BUDGETS:
            for name, makes in _rivals(build, model, layers, budget).items():
                rows.append(row(variant=f"{name}-{budget}", make=makes, about=_about(name, budget)))
    return rows


def _about(rival: str, budget: int | None) -> dict[str, Any]:
    return {"rival": rival, "budget": budget, "ours": rival in OURS}


def _rivals(
    build: Builder, model: nn.Module, layers: Sequence[str], budget: int
) -> dict[str, Callable[[int], nn.Module]]:
    """Return what makes each network that is possible within a budget."""
    weights = {name: tuple(weight.shape) for name, weight in chosen_weights(model, layers).items()}
    dense = sum(p.numel() for p in model.parameters())
    beside = dense - sum(map(math.prod, weights.values()))
    if not beside < budget < dense:
        return {}
    made: dict[str, Callable[[int], nn.Module]] = {"narrow-dense": functools.partial(_narrow, build, budget)}
    made["subspace"] = functools.partial(_subspace, build, layers, budget - beside)
    for name, planned in {**RIVALS, **OURS}.items():
        least = sum(Blueprint(shape, planned.base()).num_parameters for shape in weights.values())
        if beside + least <= budget:
            made[name] = functools.partial(planned.make, build, layers, budget)
    return made


def _narrow(build: Builder, budget: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return narrow_dense(build.narrower, budget)


def _subspace(build: Builder, layers: Sequence[str], count: int, seed: int) -> nn.Module:
    """Build a network whose weights all lie in one random subspace: every one is made of the same trained numbers."""
    torch.manual_seed(seed)
    model = build()
    compress_(model, GeneratorConfig(topology="subspace", subspace_dim=count), list(layers), progress=False)
    first, *others = generated_weights(model).values()
    for each in others:
        each.coordinates = first.coordinates
    return model
