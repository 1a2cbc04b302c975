"""Losses of the paper's Section 5 and Eq. 19, as functions of weights, logits and generators.

Cross-entropy (Eq. 29) is torch's own, :func:`torch.nn.functional.cross_entropy`. Every function returns a scalar with a
gradient, to be added up in a training step, by hand or by :class:`WeightedSum`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.contraction import Contraction
from adntn.errors import ConfigError, ShapeError
from adntn.generator import GeneratorModule
from adntn.indices import entry_index

__all__ = ["WeightedSum", "distillation", "frobenius", "huber", "isometry", "l1", "sampled_frobenius"]


def frobenius(weight: Tensor, target: Tensor) -> Tensor:
    """Return half the squared Frobenius distance, ``||W - T||_F^2 / 2`` (Eq. 28).

    Args:
        weight: generated, of any shape.
        target: of the same shape.

    Raises:
        ShapeError: the shapes differ.
    """
    _same_shape(weight, target)
    return (weight - target).square().sum() / 2


def sampled_frobenius(weight: Tensor | GeneratorModule, target: Tensor, index: Tensor) -> Tensor:
    """Return half the mean squared difference at some entries, ``sum (W_i - T_i)^2 / (2 |Omega|)`` (Eq. 32).

    Of a generator or a layer only these entries are made (:meth:`adntn.Generator.entries`), and neither its weight nor
    anything of that size, forwards or backwards.

    Args:
        weight: generated, of any shape; or what generates it.
        target: of the same shape; or the target's values at these entries only, shape ``(n,)``, where the weight is
            given by its generator.
        index: of the entries, one a row, shape ``(n, dims)``; below zero they count from the end.

    Raises:
        ShapeError: the shapes differ, or a row of the index has not one number for each axis.
        EntryIndexError: an index is out of range.

    Example:
        >>> layer, teacher = adntn.nn.Linear(4096, 4096), torch.nn.Linear(4096, 4096)
        >>> index = torch.randint(4096, (1000, 2))
        >>> adntn.losses.sampled_frobenius(layer, teacher.weight.detach(), index).backward()
    """
    shape = tuple(weight.shape)
    if index.ndim != 2 or index.shape[1] != len(shape) or len(index) == 0:
        raise ShapeError(
            f"an index of shape {tuple(index.shape)} does not name entries of a weight of shape {shape}; "
            f"give at least one row of {len(shape)} numbers."
        )
    generated = isinstance(weight, GeneratorModule)
    if tuple(target.shape) != shape and not (generated and target.shape == index.shape[:1]):
        values = f", or its {len(index)} values at the index" if generated else ""
        raise ShapeError(
            f"a target of shape {tuple(target.shape)} and a weight of shape {shape} differ; give the whole "
            f"target{values}."
        )
    places = entry_index(index, shape)
    made = weight.entries(places) if isinstance(weight, GeneratorModule) else weight[places.unbind(1)]
    wanted = target[places.to(target.device).unbind(1)] if tuple(target.shape) == shape else target
    return (made - wanted).square().mean() / 2


def l1(weight: Tensor, target: Tensor) -> Tensor:
    """Return the sum of the absolute differences, ``sum |W - T|`` (Eq. 33); its subgradient at zero is zero.

    Args:
        weight: generated, of any shape.
        target: of the same shape.

    Raises:
        ShapeError: the shapes differ.
    """
    _same_shape(weight, target)
    return (weight - target).abs().sum()


def huber(weight: Tensor, target: Tensor, *, delta: float = 1.0) -> Tensor:
    """Return Huber's loss summed over entries: squares up to ``delta``, straight beyond (the text below Eq. 32).

    An entry's difference d counts ``d^2 / 2`` where ``|d| <= delta``, else ``delta (|d| - delta / 2)``.

    Args:
        weight: generated, of any shape.
        target: of the same shape.
        delta: where the two meet, in units of the weight.

    Raises:
        ShapeError: the shapes differ.
        ConfigError: ``delta`` is not positive.
    """
    _same_shape(weight, target)
    _positive("delta", delta)
    return F.huber_loss(weight, target, reduction="sum", delta=delta)


def distillation(
    logits: Tensor,  # shape: (*batch, classes)
    teacher: Tensor,  # shape: (*batch, classes), logits
    *,
    temperature: float = 1.0,
    delta: float = 1e-8,
) -> Tensor:
    """Return the Kullback-Leibler divergence from a teacher, ``sum p_T log((p_T + delta) / (p + delta))`` (Eq. 34).

    The mean over the batch, times ``temperature^2``, so that gradients keep their size (Hinton et al. 2015). No
    gradient goes to the teacher.

    Args:
        logits: of the compressed model.
        teacher: logits of the dense one.
        temperature: by which both are divided before the softmax.
        delta: keeps the logarithm finite.

    Raises:
        ShapeError: the shapes differ.
        ConfigError: ``temperature`` or ``delta`` is not positive.
    """
    _same_shape(logits, teacher)
    _positive("temperature", temperature)
    _positive("delta", delta)
    # A small delta would vanish beside a probability in half precision.
    work = torch.promote_types(logits.dtype, torch.float32)
    student = (logits.to(work) / temperature).softmax(-1)
    wanted = (teacher.detach().to(work) / temperature).softmax(-1)
    divergence = (wanted * ((wanted + delta).log() - (student + delta).log())).sum(-1)
    return divergence.mean() * temperature**2


def isometry(generator: GeneratorModule, *, expansions: float = 1.0, disentanglers: float = 1.0) -> Tensor:
    """Return how far a generator's cores are from isometries (Eq. 19).

    ``expansions`` times the sum of ``||V V^T - 1||_F^2`` over expansion and carry cores, with V the matrix (parent,
    children), or ``||V^T V - 1||_F^2`` where there are fewer children than parents; and ``disentanglers`` times the
    sum of ``||U U^T - 1||_F^2``, with U the matrix (new pair, old pair).

    Args:
        generator: a tree or a brick wall, or a layer with one.
        expansions: the paper's lambda_V.
        disentanglers: the paper's lambda_U.

    Raises:
        ConfigError: the generator is a baseline, or a factor is negative.
    """
    _not_negative("expansions", expansions)
    _not_negative("disentanglers", disentanglers)
    if not isinstance(generator._network, Contraction):
        raise ConfigError(f"topology={generator.config.topology!r} has no cores that could be isometries; a tree has.")
    total = torch.zeros((), device=generator.device, dtype=torch.promote_types(generator.dtype, torch.float32))
    for level in generator.blueprint.levels:
        for stack in level.stacks:
            cores = generator.get_core(stack.name).to(total.dtype)  # shape: (cores, rows, columns)
            cores = cores if cores.shape[1] <= cores.shape[2] else cores.mT
            identity = torch.eye(cores.shape[1], dtype=total.dtype, device=total.device)
            factor = disentanglers if stack.kind == "mix" else expansions
            total = total + factor * (cores @ cores.mT - identity).square().sum()
    return total


@dataclass(frozen=True)
class WeightedSum:
    """A weighted sum of losses, ``sum lambda_m L_m`` (Eqs. 31 and 35), that tells its terms apart.

    Args:
        terms: by name, the factor lambda >= 0 and the loss: a function without arguments, or one of those that
            :meth:`__call__` is given.

    Raises:
        ConfigError: there is no term, or a factor is negative or not finite.

    Example:
        >>> loss = adntn.losses.WeightedSum({
        ...     "task": (1.0, lambda logits, y: F.cross_entropy(logits, y)),
        ...     "isometry": (1e-3, lambda *_: adntn.losses.isometry(layer)),
        ... })
        >>> total, terms = loss(model(x), y)
    """

    terms: Mapping[str, tuple[float, Callable[..., Tensor]]]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ConfigError("a weighted sum needs at least one term: {'task': (1.0, loss)}.")
        for name, (factor, _) in self.terms.items():
            _not_negative(f"the factor of {name!r}", factor)
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))

    def __call__(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum, and every term by name without its factor and detached; terms of factor zero are left out."""
        values = {name: loss(*inputs) for name, (factor, loss) in self.terms.items() if factor}
        parts = [self.terms[name][0] * value for name, value in values.items()]
        device = next((each.device for each in inputs if isinstance(each, Tensor)), None)
        total = torch.stack(parts).sum() if parts else torch.zeros((), device=device)
        return total, {name: value.detach() for name, value in values.items()}


def _same_shape(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ShapeError(f"shapes {tuple(one.shape)} and {tuple(other.shape)} differ; the loss needs two equal ones.")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name}={value!r} is not possible; give a positive number.")


def _not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name}={value!r} is not possible; give a number that is not negative.")
