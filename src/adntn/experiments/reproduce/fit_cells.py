"""What is fitted to a target, and what a fit came to: the cells of the expressivity experiment."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from adntn.candidates import usable
from adntn.decompose import obstacle, warm_start_
from adntn.experiments.reproduce.fit_targets import Target, measured_rank, spectrum
from adntn.fit import FitOptions, fit_, relative_error
from adntn.generator import Generator
from adntn.initialize import stable_rank
from adntn.ranks import matrix_bound
from adntn.topology import TREES, Blueprint, GeneratorConfig
from adntn.training.folder import RunFolderError

__all__ = ["BASELINE", "DECOMPOSED", "SIZES", "Cell", "Fitting", "Wanted", "fit_cell", "wanted_cells"]

#: The start that is the target's own decomposition.
DECOMPOSED = "decomposed"

#: The size of what has no sizes of its own: the ladders of low rank, tensor train and subspace.
BASELINE = "baseline"

#: What is larger in a tree; and in a brick wall, which has columns instead of a bond and a root, or None for nothing.
SIZES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any] | None]] = MappingProxyType(
    {
        "base": ({}, {"columns": 2}),
        # Not nine modes: at half of a 256x256 weight's sixteen no level is left for an activation.
        "root": ({"latent_order": 7}, {"columns": 4}),
        "bond": ({"bond_dim": 3}, {"columns": 6}),
        "terms": ({"terms": 4}, None),
        "groups": ({"groups": 8}, {"groups": 8}),
        "wide": ({"radix": 4, "bond_dim": 4, "latent_order": 2}, {"radix": 4}),
        "wide-groups": ({"radix": 4, "bond_dim": 4, "latent_order": 2, "groups": 8}, {"radix": 4, "groups": 8}),
    }
)

_LADDERS: Mapping[str, tuple[str, tuple[int, ...]]] = MappingProxyType(
    {
        "lowrank": ("bond_dim", (1, 2, 3, 4, 6, 8, 12, 16)),
        "tt": ("bond_dim", (1, 2, 4, 8, 16)),
        "subspace": ("subspace_dim", (128, 256, 512, 1024, 2048, 4096, 8192)),
    }
)
_LINEAR = "identity"
_TRIAL = 5  # a start is tried for a fifth of the steps


@dataclass(frozen=True)
class Wanted:
    """What is to be fitted.

    Attributes:
        size: its name, one of :data:`SIZES` or :data:`BASELINE`.
        config: of the generator.
    """

    size: str
    config: GeneratorConfig

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from the others of one target and seed."""
        c = self.config
        baseline = f"{c.subspace_dim or c.bond_dim}" if self.size == BASELINE else ""
        return self.size, c.topology, str(c.order), c.activation, baseline


@dataclass(frozen=True)
class Cell:
    """What the best of several starts came to.

    Attributes:
        size: as in :class:`Wanted`.
        topology: of the config.
        order: likewise.
        activation: likewise; ``"identity"`` also where no level is left for one.
        config: what else the config has that is not the default.
        numbers: stored.
        error: ``||W - target|| / ||target||``, Frobenius, float64.
        rank: of the fitted weight as the matrix (out, in * kernel); see
            :func:`~adntn.experiments.reproduce.fit_targets.measured_rank`.
        stable_rank: of it.
        linear_bound: what Eq. 20 allows without an activation.
        rank_bound: what ``rank_bound()`` allows with one.
        start: which was the best: an initialization by name, or ``"decomposed"``.
        starts: the error that each of them came to, by name and number; of one that did not go on, in its trial.
        steps: passes, those of all starts.
        seconds: of one process.
    """

    size: str
    topology: str
    order: str
    activation: str
    config: Mapping[str, Any]
    numbers: int
    error: float
    rank: int
    stable_rank: float
    linear_bound: int
    rank_bound: int
    start: str
    starts: Mapping[str, float]
    steps: int
    seconds: float

    @property
    def key(self) -> tuple[str, ...]:
        """As :attr:`Wanted.key`."""
        baseline = str(self.config.get("subspace_dim") or self.config.get("bond_dim")) if self.is_baseline else ""
        return self.size, self.topology, self.order, self.activation, baseline

    @property
    def is_baseline(self) -> bool:
        """Whether it is none of ours."""
        return self.size == BASELINE

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cell:
        """Build from :meth:`to_dict`'s values.

        Raises:
            RunFolderError: they are not a cell's.
        """
        try:
            return cls(**{each.name: values[each.name] for each in fields(cls)})
        except (KeyError, TypeError) as error:
            raise RunFolderError(f"these are not the values of a fit: {error}") from None


@dataclass(frozen=True)
class Fitting:
    """How a cell is fitted.

    Attributes:
        restarts: random starts.
        steps: of Adam from each start that goes on.
        polish: iterations of L-BFGS after them.
    """

    restarts: int
    steps: int
    polish: int


def wanted_cells(
    shape: tuple[int, ...], size: str, topologies: Sequence[str], orders: Sequence[str], activations: Sequence[str]
) -> list[Wanted]:
    """Return what is to be fitted to a weight of a shape at one size, each generator once.

    A ``"flat"`` order that has the very modes of the blocked one is left out, and so are activations where no level is
    left for one. What cannot be, or would store no less than the weight, is left out too.
    """
    found: dict[tuple[str, ...], Wanted] = {}
    for config in _configs(size, topologies, orders, activations):
        blueprint = usable(config, shape, torch.device("cpu"), fast=False)
        if blueprint is None or _is_blocked(blueprint, orders):
            continue
        if size != BASELINE and len(blueprint.levels) < 2:
            config = config.replace(activation=_LINEAR)
        each = Wanted(size, config)
        found.setdefault(each.key, each)
    return list(found.values())


def _configs(
    size: str, topologies: Sequence[str], orders: Sequence[str], activations: Sequence[str]
) -> Iterator[GeneratorConfig]:
    if size == BASELINE:
        for name, (option, values) in _LADDERS.items():
            # What the order does to a tensor train is asked; low rank and subspaces know none.
            for order in orders if name == "tt" else ("blocked",):
                start = GeneratorConfig(order=order, activation=_LINEAR).with_topology(name)
                yield from (start.replace(**{option: value}) for value in values)
        return
    for topology in topologies:
        changes = SIZES[size][topology == "brickwall"]
        for order in orders if changes is not None else ():
            for activation in activations:
                yield GeneratorConfig(topology=topology, order=order, activation=activation, **(changes or {}))


def _is_blocked(blueprint: Blueprint, orders: Sequence[str]) -> bool:
    """Return whether a flat order has the modes of the blocked one, which is asked for too."""
    return blueprint.config.order == "flat" and "blocked" in orders and blueprint.tensorization.splits_axes


def fit_cell(wanted: Wanted, target: Target, how: Fitting, seed: int) -> Cell:
    """Fit a generator to a target from several starts, and keep the nearest.

    Random starts are isometric, in turns with conformal ones where the order mixes ``out`` and ``in``; the one that is
    nearest after a short trial goes on. Trees and tensor trains start from the target's own decomposition too
    (:func:`adntn.warm_start_`), which goes on in any case: it begins nearer, and where there is much to find it often
    ends farther away. Low rank is the truncated singular value decomposition, and a subspace, a linear problem, has one
    start. torch's global random state is left as it was.
    """
    began = time.perf_counter()
    goal = target.weight.float()
    made = starts(wanted, goal, how, seed)
    reached: dict[str, float] = {}
    steps = 0
    if len(made) > 1:
        for name in made:
            steps += _fit(made[name], goal, FitOptions(steps=-(-how.steps // _TRIAL), polish=0), name, reached)
    drawn = min((name for name in made if name != DECOMPOSED), key=lambda name: reached.get(name, 0.0))
    options = FitOptions(steps=how.steps, polish=how.polish)
    if wanted.config.topology == "subspace":  # least squares, one number an entry: a few steps of L-BFGS are the end
        options = FitOptions(steps=0, polish=20)
    full = [name for name in made if name in (drawn, DECOMPOSED)]
    for name in full:
        steps += _fit(made[name], goal, options, name, reached)
    best = min(full, key=lambda name: reached[name])
    return make_cell(wanted, target, made[best], best, reached, steps, time.perf_counter() - began)


def starts(wanted: Wanted, goal: Tensor, how: Fitting, seed: int) -> dict[str, Generator]:
    """Return the generators that a fit starts from, by name and number."""
    config, shape = wanted.config, tuple(goal.shape)
    made: dict[str, Generator] = {}
    with torch.random.fork_rng(devices=[]):
        for number in range(1 if config.topology in ("lowrank", "subspace") else how.restarts):
            name = _initialization(config, number)
            torch.default_generator.manual_seed(zlib.crc32(repr((wanted.key, number, seed)).encode()))
            made[f"{name}-{number}"] = Generator(shape, config.replace(initialization=name), std=1.0, device="cpu")
        if config.topology in (*TREES, "tt") and obstacle(config) is None:
            made[DECOMPOSED] = Generator(shape, config, std=1.0, device="cpu")
            warm_start_(made[DECOMPOSED], goal)
    return made


def _fit(generator: Generator, goal: Tensor, options: FitOptions, name: str, reached: dict[str, float]) -> int:
    report = fit_(generator, goal, options, progress=False)
    reached[name] = float(f"{report.relative_error:.6g}")
    return report.steps


def make_cell(
    wanted: Wanted,
    target: Target,
    fitted: Generator,
    start: str,
    reached: Mapping[str, float],
    steps: int,
    seconds: float,
) -> Cell:
    """Measure what a fit came to, in float64; the generator becomes one of float64."""
    config, shape = wanted.config, tuple(target.weight.shape)
    with torch.no_grad():
        weight = fitted.double()()
    values = spectrum(weight)
    default = GeneratorConfig()
    shown = {name: value for name, value in config.to_dict().items() if value != getattr(default, name, value)}
    return Cell(
        size=wanted.size,
        topology=config.topology,
        order=str(config.order),
        activation=config.activation,
        config={n: v for n, v in shown.items() if n not in ("topology", "order", "activation", "initialization")},
        numbers=fitted.num_parameters,
        error=float(f"{relative_error(weight, target.weight):.8g}"),
        rank=measured_rank(values),
        stable_rank=float(f"{stable_rank(weight):.6g}"),
        linear_bound=matrix_bound(config, shape, linear=True),
        rank_bound=fitted.rank_bound(),
        start=DECOMPOSED if config.topology == "lowrank" else start.rpartition("-")[0] or start,
        starts=dict(reached),
        steps=steps,
        seconds=round(seconds, 3),
    )


def _initialization(config: GeneratorConfig, number: int) -> str:
    mixes = config.topology in TREES and config.order in ("paired", "block_paired")
    return "conformal" if mixes and number % 2 else "isometric"
