"""Taking out of a model's generators what lies under a threshold: ``prune_``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adntn.adjoint.reverse import full_precision
from adntn.errors import CompressionError
from adntn.fit import relative_error
from adntn.generator import Generator, GeneratorModule
from adntn.growth import drawn_anew, is_trained, refuse, replace_all
from adntn.optimizers import Carried, carry_over
from adntn.options import check_number
from adntn.pruning import Pruned, prune_values
from adntn.targets import by_generator, choose_generated
from adntn.topology import GeneratorConfig

__all__ = ["PruneReport", "PrunedWeight", "prune_"]


@dataclass(frozen=True)
class PrunedWeight:
    """One generated weight.

    Attributes:
        name: in the model; of a bare generator ``""``.
        before: config of its generator.
        after: the config that it has now, or would have had.
        numbers_before: that were stored for it; 0 for a weight that shares another's generator.
        numbers_after: that are stored now, or would have been.
        found: how many of what lay under the threshold: ``"terms"``, ``"mixing layers"``, ``"disentanglers"`` that
            became the identity, ``"level gates"`` that were closed, ``"bond"`` or rank.
        relative_change: ``||W' - W|| / ||W||`` between the weights with it and without it, in float64.
        accepted: whether it was taken out; else the generator is as it was.
        optimizer: what became of the optimisers' parameters.
    """

    name: str
    before: GeneratorConfig
    after: GeneratorConfig
    numbers_before: int
    numbers_after: int
    found: Mapping[str, int]
    relative_change: float
    accepted: bool
    optimizer: Carried = field(default_factory=Carried)


@dataclass(frozen=True)
class PruneReport:
    """What :func:`prune_` did: a row a weight.

    Attributes:
        layers: one for each generated weight that was looked at.
    """

    layers: tuple[PrunedWeight, ...]

    @property
    def numbers_before(self) -> int:
        return sum(row.numbers_before for row in self.layers)

    @property
    def numbers_after(self) -> int:
        """Numbers that are stored now."""
        return sum(row.numbers_after if row.accepted else row.numbers_before for row in self.layers)

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.layers), default=0)
        lines = []
        for row in self.layers:
            what = ", ".join(f"{count} {kind}" for kind, count in row.found.items())
            if not what:
                lines.append(f"{row.name:<{width}}  {row.numbers_before:,} numbers, nothing under the threshold")
                continue
            how = "" if row.accepted else "; left as it was"
            lines.append(
                f"{row.name:<{width}}  {row.numbers_before:,} -> {row.numbers_after:,} numbers without {what}, weight "
                f"changed by {row.relative_change:.2g}{how}"
            )
        return "\n".join([f"{self.numbers_before:,} -> {self.numbers_after:,} numbers", *lines])


@torch.inference_mode(mode=False)
@torch.no_grad()
def prune_(
    model: nn.Module,
    threshold: float = 1e-2,
    targets: str | Sequence[str] = ("re:.*",),
    *,
    ignore: str | Sequence[str] = (),
    tolerance: float | None = None,
    optimizer: Optimizer | Sequence[Optimizer] = (),
) -> PruneReport:
    """Take out of generated weights what lies under a threshold, in place.

    Smaller become: a sum of trees, by terms whose gates are nearly closed in all groups; a ``mera`` or an ``attn``, by
    layers of disentanglers that all are nearly the identity, or gated to it; the bond of a tree, by indices of which no
    core below makes much; the rank of ``lowrank`` and ``tt``, by singular values. A bond is one number for the whole
    generator, so the edge that needs most of it decides. Of the same size, but simpler stay single disentanglers near
    the identity, which become it, and gates of levels that are nearly closed, which are closed then.

    Before anything of a generator is replaced its weight is made with and without, and the change is in the report.

    Args:
        model: with generated layers; or a generator.
        threshold: of a gate, its absolute value; of a disentangler, ``|g| ||U - 1||_F / ||1||_F``, g its gate; of a
            bond's index, the norm of its slice of the core below over that of the strongest; of a rank, its singular
            value over the largest.
        targets: names of generated weights, or ``"re:"`` and a pattern that a whole name must match. Weights that share
            a generator are looked at together.
        ignore: the same, to leave out again.
        tolerance: the largest relative change of a weight that is accepted; a generator that would change one by more
            stays as it is. None accepts any, and 0 only what changes nothing at all: to look first.
        optimizer: those that train the model. What is replaced keeps its place and group there, and loses its state.

    Returns:
        A report; print it.

    Raises:
        ConfigError: threshold or tolerance is no number that is possible.
        CompressionError: a target matches no generated weight, a generator is on the meta device or sharded, or an
            optimiser that was not given holds a parameter that would be replaced. Nothing has been changed then.

    Example:
        >>> layer = adntn.nn.Linear(256, 256, config=adntn.GeneratorConfig(topology="mera"))
        >>> report = adntn.prune_(layer, threshold=0.5)
        >>> layer.config.topology, report.layers[0].found
        ('ttn', {'mixing layers': 2})
    """
    check_number("threshold", threshold, least=0)
    if tolerance is not None:
        check_number("tolerance", tolerance, least=0)
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    chosen = choose_generated(model, targets, ignore)
    for weight in chosen.values():
        weight.refuse_common_cores("pruned")
    trials = [_Trial(weights, threshold) for weights in by_generator(chosen)]
    accepted = [trial for trial in trials if trial.pruned.found and trial.is_within(tolerance)]
    for trial in accepted:
        refuse(trial.module, list(trial.module.users()), trial.pruned.blueprint, "", False, optimizers)
    rows = {row.name: row for trial in trials if trial not in accepted for row in trial.rows(not trial.pruned.found)}
    for trial in accepted:
        carried = trial.replace(optimizers)
        rows.update((row.name, row) for row in trial.rows(True, carried))
    return PruneReport(tuple(rows[name] for name in chosen))


class _Trial:
    """A generator without what lies under a threshold, beside the one that it may replace."""

    def __init__(self, weights: Mapping[str, GeneratorModule], threshold: float) -> None:
        self.weights, self.module = weights, next(iter(weights.values()))
        self.config, self.numbers = self.module.config, self.module.num_parameters
        name = next(iter(weights))
        parameters = dict(self.module.generator_parameters())
        if self.module.device.type == "meta":
            raise CompressionError(f"{name!r} is on the meta device and has no numbers to prune.")
        if any(hasattr(parameter, "device_mesh") for parameter in parameters.values()):
            raise CompressionError(f"FSDP has sharded the generator of {name!r}; prune first, then shard.")
        values = {each: parameter.detach().to("cpu", torch.float64) for each, parameter in parameters.items()}
        self.pruned: Pruned = prune_values(self.module.blueprint, values, threshold)
        self.changes = dict.fromkeys(weights, 0.0)
        if self.pruned.found:
            self.new = _rebuilt(self.module, self.pruned)
            with full_precision(self.module.device):
                old, new = self.module.bare_copy().double()(), self.new.bare_copy().double()()
            for each, weight in weights.items():
                rows = slice(*(getattr(weight, "rows", None) or (None,)))
                self.changes[each] = relative_error(new[rows], old[rows])

    def is_within(self, tolerance: float | None) -> bool:
        worst = max(self.changes.values(), key=lambda change: math.inf if math.isnan(change) else change)
        return tolerance is None or worst <= tolerance

    def replace(self, optimizers: Sequence[Optimizer]) -> Carried:
        was = self.module.bare()
        replace_all([user for user in self.module.users() if user is not was], was, self.new)
        return carry_over(optimizers, dict(was.named_parameters()), dict(self.new.named_parameters()), None)

    def rows(self, accepted: bool, carried: Carried | None = None) -> list[PrunedWeight]:
        return [
            PrunedWeight(
                name=name,
                before=self.config,
                after=self.pruned.blueprint.config,
                numbers_before=0 if place else self.numbers,
                numbers_after=0 if place else self.pruned.blueprint.num_parameters,
                found=dict(self.pruned.found),
                relative_change=change,
                accepted=accepted,
                optimizer=carried or Carried(),
            )
            for place, (name, change) in enumerate(self.changes.items())
        ]


def _rebuilt(module: GeneratorModule, pruned: Pruned) -> Generator:
    """Return a generator of what is left, made of the very parameters that have not changed, and of new ones."""
    old, blueprint = dict(module.generator_parameters()), pruned.blueprint
    if blueprint.config.trees == module.config.trees:
        made = Generator(blueprint.shape, blueprint.config, std=module.std, device="meta", dtype=module.dtype)
        made.activation = module.activation
    else:
        with torch.random.fork_rng([]):  # all that is drawn is overwritten
            made = drawn_anew(module, blueprint, torch.zeros(()))
    for name in blueprint.buffer_shapes:
        setattr(made, name, getattr(module, name))
    for name, value in pruned.values.items():
        parameter = old.get(name)
        if parameter is None or not _equal(parameter, value):
            trained = is_trained(module) if parameter is None else parameter.requires_grad
            parameter = nn.Parameter(value.to(module.device, module.dtype), requires_grad=trained)
        path, _, last = name.rpartition(".")
        setattr(made.get_submodule(path), last, parameter)
    made._quantization = module._quantization
    return made.train(module.training)


def _equal(parameter: Tensor, value: Tensor) -> bool:
    return parameter.shape == value.shape and torch.equal(parameter.to("cpu", torch.float64), value)
