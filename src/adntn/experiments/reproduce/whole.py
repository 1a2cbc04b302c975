"""Whole networks: every convolution but the first generated, within budgets of trained numbers, beside rivals."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import nn

from adntn.budget import fit_budget
from adntn.describe import generated_weights
from adntn.experiments.lessons import LESSONS
from adntn.experiments.models import Builder, ImageShape
from adntn.experiments.reproduce.networks import Whole, teacher_of
from adntn.experiments.reproduce.rows import Row
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.reproduce.sizing import count, sized
from adntn.experiments.variants import Variant
from adntn.products import choose_digits, most_within, spread_products
from adntn.topology import GeneratorConfig

__all__ = ["BUDGETS", "NETWORKS", "OURS", "RIVALS", "TAUGHT", "Spread", "whole_rows"]

Make = Callable[[int], nn.Module]

#: Trained numbers that a whole network may have; a quarter-width VGG-16 of trees has no room in less than the first.
BUDGETS = (5_500, 10_000, 20_000, 50_000, 100_000)

NETWORKS = ("vgg16", "resnet20")

# Peak learning rates of dense weights and of root and cores. Every convolution has a batch norm behind it. Trees do
# worse at a third and at three times of it, random subspaces better at three times and ten (adntn reproduce levers).
_RATE = 1e-2
_CORE_RATES = {
    "subspace": 6e-2,
    "subspaces": 6e-2,
    "kronecker": 2e-2,
    "kronecker-shared": 2e-2,
    "kronecker-shuffled": 2e-2,
    "kronecker-tangent": 2e-1,
}
# Those are for budgets up to this one. What the weight changes by in a step is what all of its numbers change by
# together, so with more of them the rate is less, by the square root; on images that were kept out, ours and the
# subspaces are better for it by about as much (adntn reproduce whole --held-out 5000 --core-lr ...).
_RATED = 20_000


@dataclass(frozen=True)
class Spread:
    """Generators that share a budget alike: every weight has about as many numbers.

    Attributes:
        config: of all of them, with everything but the size.
        by: what makes them larger, see :func:`~adntn.experiments.reproduce.sizing.sized`.
        digits: of Kronecker products, which are planned as :func:`adntn.kronecker_budget` does it; None for others,
            which are of that config. Where cores are common there may be more.
        shuffled: whether each tree of a sum has rows and columns in an order of its own, see
            :class:`~adntn.experiments.seeded.SeededConv2d`.
        shared: whether layers of one shape have their cores in common, and a root each.
    """

    config: GeneratorConfig = field(default_factory=GeneratorConfig)
    by: str = "groups"
    digits: int | None = None
    shuffled: bool = False
    shared: bool = False

    def configs(self, weights: Mapping[str, tuple[int, ...]], numbers: int) -> dict[str, GeneratorConfig]:
        """Return the config of each weight, for so many numbers in all, or a little less.

        Where small weights cannot use their share, or generators come in large steps, the shares are scaled until the
        numbers are met as nearly as they can be.
        """
        if self.digits is not None:
            digits = self._settled(weights, numbers, self.digits)
            return spread_products(weights, numbers, digits, share_cores=self.shared)
        return most_within(
            lambda scale: self._sized(weights, numbers, scale), lambda made: self.count(weights, made), numbers
        )

    def _settled(self, weights: Mapping[str, tuple[int, ...]], numbers: int, digits: int) -> int:
        return choose_digits(weights, numbers, share_cores=True) if self.shared else digits

    def core_rate(self, rate: float, weights: Mapping[str, tuple[int, ...]], numbers: int) -> float:
        """Return the peak rate of root and cores, for a rate that suits the digits that are asked for.

        What a product changes by is what all of its matrices change by, so with more of them the rate is less.
        """
        if self.digits is None:
            return rate
        return rate * self.digits / self._settled(weights, numbers, self.digits)

    def count(self, weights: Mapping[str, tuple[int, ...]], configs: Mapping[str, GeneratorConfig]) -> int:
        """Return how many numbers the weights have in all."""
        return round(sum(count(shape, configs[name], self._alike(weights, shape)) for name, shape in weights.items()))

    def _alike(self, weights: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> int:
        return list(weights.values()).count(shape) if self.shared else 1

    def _sized(self, weights: Mapping[str, tuple[int, ...]], numbers: int, scale: float) -> dict[str, GeneratorConfig]:
        made = {}
        for name, shape in weights.items():
            made[name] = sized(self.config, shape, max(1, round(scale * numbers / len(weights))), self.by)
        return made


#: Ours.
OURS: Mapping[str, Spread] = MappingProxyType(
    {
        "ttn-blocked": Spread(),
        "ttn-paired": Spread(GeneratorConfig(order="paired")),
        "kronecker": Spread(digits=2),
        "kronecker-shared": Spread(digits=2, shared=True),
        "kronecker-shuffled": Spread(digits=3, shuffled=True),
    }
)

#: What ours have to beat, of the library's baselines; a narrow dense network, a random subspace of all weights and one
#: for each weight come on top. The planner chooses the rank of each layer.
RIVALS = ("lowrank", "tt")

#: Of ours and of the rivals, those that are trained once more with what the trained dense network teaches: what is not
#: generated starts as it is there, generators fitted to its weights, and all learn from its answers. A narrow network
#: can take over nothing but these; one subspace of all weights starts as it was drawn, for a fit is of one weight.
TAUGHT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "kronecker": LESSONS,
        "kronecker-shared": LESSONS,
        "ttn-paired": LESSONS,
        "subspace": ("answers", "rest"),
        "subspaces": LESSONS,
        "lowrank": LESSONS,
        "tt": LESSONS,
        "narrow-dense": ("answers",),
    }
)


def whole_rows(settings: Settings, image_shape: ImageShape, num_classes: int) -> list[Row]:
    """Return the rows: each network dense, with frozen convolutions, and for each budget ours and the rivals.

    A budget that a rival cannot meet, as low rank has no less than rank one, has no row of it.
    """
    rows: list[Row] = []
    for name in NETWORKS:
        network = Whole(name, settings.width, image_shape, num_classes)
        makers: list[tuple[str, int | None, Make]] = [
            (kind, None, functools.partial(Variant(kind, kind).make, network.build, network.layers))
            for kind in ("dense", "frozen-dense")
        ]
        for budget in BUDGETS:
            if network.beside < budget < network.dense:
                makers += [(rival, budget, make) for rival, make in _networks(network, budget).items()]
        made = [
            Row(
                group=name,
                variant=rival if budget is None else f"{rival}-{budget}",
                network=name,
                build=network.build,
                make=make,
                layers=network.layers,
                optimization=settings.optimization(_RATE, _core_rate(rival, budget, network)),
                about={"rival": rival, "budget": budget, "ours": rival in OURS},
            )
            for rival, budget, make in makers
        ]
        teacher = teacher_of(made[0], settings)
        rows += made if teacher is made[0] else [*made, teacher]
        rows += [_taught(row, teacher) for row in made if row.about["rival"] in TAUGHT]
    return rows


def _core_rate(rival: str, budget: int | None, network: Whole) -> float:
    if budget is None or rival not in _CORE_RATES:
        return _RATE
    rate = _CORE_RATES[rival] * min(1.0, math.sqrt(_RATED / budget))
    if rival not in OURS:
        return rate
    return OURS[rival].core_rate(rate, network.weights, budget - network.beside)


def _taught(row: Row, teacher: Row) -> Row:
    rival, budget = row.about["rival"], row.about["budget"]
    return replace(
        row,
        variant=f"{rival}-taught-{budget}",
        about={**row.about, "rival": f"{rival}-taught"},
        teacher=teacher,
        lessons=TAUGHT[rival],
    )


def _networks(network: Whole, budget: int) -> dict[str, Make]:
    """Return what makes each network that is possible within a budget."""
    build, layers, weights = network.build, network.layers, network.weights
    numbers = budget - network.beside
    made: dict[str, Make] = {
        "narrow-dense": functools.partial(network.narrow, budget),
        "subspace": functools.partial(_subspace, build, layers, numbers),
    }
    for topology in RIVALS:
        least = GeneratorConfig(topology=topology, bond_dim=1)
        if sum(count(shape, least) for shape in weights.values()) <= numbers:
            made[topology] = functools.partial(_planned, build, layers, budget, least)
    each = Spread(GeneratorConfig(topology="subspace"), "dimension")
    for name, spread in {"subspaces": each, **OURS}.items():
        configs = spread.configs(weights, numbers)
        if spread.count(weights, configs) > numbers:
            continue
        if name == "kronecker":
            made["kronecker-tangent"] = functools.partial(network.seeded, configs, "tangent")
        if spread.shared:
            made[name] = functools.partial(Variant(name, overrides=configs, share_cores=True).make, build, layers)
        elif not spread.shuffled:
            made[name] = functools.partial(Variant(name, overrides=configs).make, build, layers)
        elif any(config.terms > 1 for config in configs.values()):
            made[name] = functools.partial(network.seeded, configs, "shuffle")
    return made


def _planned(build: Builder, layers: Sequence[str], budget: int, least: GeneratorConfig, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build()
    plan = fit_budget(
        model,
        parameters=budget,
        targets=layers,
        layers="all",
        config=least,
        topologies=(least.topology,),
        measure="numbers",
    )
    plan.apply_(model, progress=False)
    return model


def _subspace(build: Builder, layers: Sequence[str], count: int, seed: int) -> nn.Module:
    """Build a network whose weights all lie in one random subspace: every one is made of the same trained numbers."""
    subspace = GeneratorConfig(topology="subspace", subspace_dim=count)
    model = Variant("subspace", config=subspace).make(build, layers, seed)
    first, *others = generated_weights(model).values()
    for each in others:
        each.coordinates = first.coordinates
    return model
