"""Which generator to grow, and how: the gradient that new numbers would have, before anything is grown.

A growth that is exact leaves the weight W as it is, and with it the loss and the gradient of every number that was
there (:mod:`adntn.embedding`). To first order a small step of gradient descent then lowers the loss by its rate times
the squared norm of the gradient; what growth adds to that is the squared norm over the new numbers alone. It follows by
the chain rule from dL/dW, which is the same for all growths of a layer, so that one pass over the batches does for the
whole model: each candidate is only a copy of a generator that is grown and run backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adntn.baselines import Network
from adntn.candidates import usable
from adntn.compress import materialize
from adntn.describe import generated_weights, plain_name
from adntn.errors import AdntnError, CompressionError, ConfigError, check_choice
from adntn.fit import FitOptions
from adntn.generator import Generator, GeneratorModule
from adntn.growth import GrowthReport, grow_
from adntn.topology import TREES, Blueprint, GeneratorConfig
from adntn.training.seeds import derive_seed

__all__ = ["CHANGES", "EXACT", "Growth", "grow_as_planned_", "rank_growths", "weight_gradients"]

#: Changes that keep the weight.
EXACT = ("bond", "disentanglers", "terms")
#: All changes; the others are refits.
CHANGES = (*EXACT, "groups", "root")

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Growth:
    """A growth that could be, from :func:`rank_growths`.

    Attributes:
        layer: that grows.
        change: one of :data:`CHANGES`.
        options: that :func:`adntn.grow_` would be given, as ``{"bond_dim": 3}``.
        numbers: that the layer would store more.
        gain: by which the squared norm of the generator's gradient would rise; of an exact growth, that of its new
            numbers.
        relative_error: of the weight after it.
        seed: of the new numbers' draw.
    """

    layer: str
    change: str
    options: Mapping[str, Any]
    numbers: int
    gain: float
    relative_error: float
    seed: int

    @property
    def rate(self) -> float:
        """The gain by new number."""
        return self.gain / self.numbers

    def __str__(self) -> str:
        what = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.layer}: {what} for {self.numbers:,} numbers, gain {self.gain:.3g}, {self.rate:.3g} by number"


def rank_growths(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    changes: Sequence[str] = EXACT,
    loss: Loss | None = None,
    most: int | None = None,
    fit: FitOptions | None = None,
    tolerance: float = 0.1,
    seed: int = 0,
) -> tuple[Growth, ...]:
    """Return the growths that a model's generators could make, by the gain of each number that they would store more.

    Left out are growths that are impossible, do not fit into memory, or would make a layer slow
    (:func:`adntn.candidates.usable`), layers that are not trained, and refits that miss the weight. Model and random
    state are left as they are.

    Args:
        model: with generated layers.
        batches: inputs and labels, on the model's device; gradients are summed up over all.
        changes: to consider: ``"bond"``, a bond larger by one; ``"disentanglers"``, from ttn to attn to mera;
            ``"terms"``, one tree more; and the refits ``"groups"``, twice as many, and ``"root"``, one mode more.
        loss: ``loss(model, inputs, labels)``, a mean over the batch; None means cross-entropy.
        most: numbers that a growth may add; None means any.
        fit: how to refit; None means the defaults.
        tolerance: the largest relative error of a refit.
        seed: of all draws.

    Raises:
        ConfigError: a change is unknown, or there is no batch.
        CompressionError: nothing in the model is generated.

    Example:
        >>> best, *others = rank_growths(model, [(images, labels)])
        >>> report = grow_as_planned_(model, best)
    """
    for change in changes:
        check_choice("changes", change, CHANGES)
    gradients = weight_gradients(model, batches, loss)
    found: list[Growth] = []
    for name, generator in _generators(model).items():
        gradient = gradients[generator._network]
        norm = _squared_norm(generator.bare_copy(), gradient)
        for change in changes:
            options = _options(generator.config, change)
            if options is None or not all(p.requires_grad for _, p in generator.generator_parameters()):
                continue
            own = derive_seed(seed, name, change)
            grown = generator.bare_copy()
            try:
                more = _numbers_more(generator, options)
                if more <= 0 or (most is not None and more > most):
                    continue
                report = _grow(grown, options, own, fit)
            except AdntnError:  # a layer of this kind cannot be grown so
                continue
            if report.relative_error <= tolerance:
                gain = _squared_norm(grown, gradient) - norm
                found.append(Growth(name, change, options, more, gain, report.relative_error, own))
    return tuple(sorted(found, key=lambda growth: -growth.rate))


def grow_as_planned_(model: nn.Module, growth: Growth, *, fit: FitOptions | None = None) -> GrowthReport:
    """Grow a layer in place, its new numbers those that were looked at.

    Args:
        model: for which the growth was found.
        growth: from :func:`rank_growths`.
        fit: how to refit, as it was given there.

    Raises:
        CompressionError: the model has no such generated layer, or an optimiser holds its parameters.
    """
    generated = generated_weights(model)
    if growth.layer not in generated:
        raise CompressionError(f"{growth.layer!r} is not generated in this model; it has {', '.join(generated)}.")
    return _grow(generated[growth.layer], growth.options, growth.seed, fit)


def _grow(module: GeneratorModule, options: Mapping[str, Any], seed: int, fit: FitOptions | None) -> GrowthReport:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's only; torch.manual_seed would reset the GPU's too
        return grow_(module, fit=fit, progress=False, **options)


def _numbers_more(generator: GeneratorModule, options: Mapping[str, Any]) -> int:
    """Return the numbers that a growth adds; 0 if it would make slow what is not slow yet, or larger than dense."""
    shape, device = generator.blueprint.shape, generator.device
    grown = Blueprint(shape, generator.config.replace(**options))
    if usable(grown.config, shape, device) is None and usable(generator.config, shape, device) is not None:
        return 0
    return grown.num_parameters - generator.num_parameters


def _options(config: GeneratorConfig, change: str) -> dict[str, Any] | None:
    """Return what a change is for a config, or None where it has none."""
    tree = config.topology in TREES
    if change == "bond" and (tree or config.topology in ("tt", "lowrank")):
        return {"bond_dim": config.chi + 1}
    if change == "terms" and (tree or config.topology == "brickwall"):
        return {"terms": config.terms + 1}
    if change == "disentanglers" and tree and config.topology != TREES[-1]:
        return {"topology": TREES[TREES.index(config.topology) + 1], "boundary_layers": 1}
    if change == "groups":
        return {"groups": 2 * config.groups}
    if change == "root" and tree:
        return {"latent_order": config.latent_order + 1}
    return None


def _generators(model: nn.Module) -> dict[str, GeneratorModule]:
    """Return each generator of a model once, by the name of the first layer that has it."""
    first: dict[Network, str] = {}
    generated = generated_weights(model)
    for name, weight in generated.items():
        first.setdefault(weight._network, name)
    return {name: generated[name] for name in first.values()}


@torch.inference_mode(mode=False)
@torch.enable_grad()
def weight_gradients(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss | None = None
) -> dict[Network, Tensor]:
    """Return the gradient of the mean loss by all that each generator of a model makes, in evaluation mode.

    Args:
        model: with generated layers; left as it is.
        batches: inputs and labels.
        loss: as in :func:`rank_growths`.

    Returns:
        By what makes the weight, in float32 at least, of the generator's shape.

    Raises:
        ConfigError: there is no batch.
        CompressionError: nothing in the model is generated.
    """
    generated = generated_weights(model)
    if not generated:
        raise CompressionError("nothing in this model is generated, so there is nothing to grow.")
    dense = materialize(model).eval()
    plain = {plain_name(name): p for name, p in dense.named_parameters(remove_duplicate=False)}
    weights = {name: plain[name] if name in plain else plain[f"{name}.weight"] for name in generated}
    for parameter in dense.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in weights.values()))
    count = 0
    for inputs, labels in batches:
        value = F.cross_entropy(dense(inputs), labels) if loss is None else loss(dense, inputs, labels)
        (value * len(labels)).backward()
        count += len(labels)
    if not count:
        raise ConfigError("batches is empty; give at least one of inputs and labels.")
    made: dict[Network, Tensor] = {}
    seen: set[int] = set()
    for name, weight in generated.items():
        own = weights[name]
        if id(own) in seen:  # tied: its gradient has come already
            continue
        seen.add(id(own))
        if weight._network not in made:
            made[weight._network] = torch.zeros(weight.blueprint.shape, dtype=_precise(weight), device=weight.device)
        if own.grad is not None:
            start, stop = weight.rows or (0, len(own))
            made[weight._network][start:stop] += own.grad / count
    return made


def _precise(module: GeneratorModule) -> torch.dtype:
    return torch.promote_types(module.dtype, torch.float32)


@torch.inference_mode(mode=False)
@torch.enable_grad()
def _squared_norm(generator: Generator, gradient: Tensor) -> float:
    """Return the squared norm of the gradient by a generator's parameters, for that by its weight."""
    generator = generator.to(_precise(generator)).requires_grad_(True)
    parameters = [parameter for _, parameter in generator.generator_parameters()]
    grads = torch.autograd.grad((generator() * gradient).sum(), parameters, allow_unused=True)
    return sum(float(grad.double().square().sum()) for grad in grads if grad is not None)
