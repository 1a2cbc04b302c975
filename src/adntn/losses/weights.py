"""Losses that compare a generated weight with a target (paper, Section 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from adntn.errors import ShapeError
from adntn.generator import GeneratorModule
from adntn.indices import entry_index
from adntn.losses.shapes import same_shape
from adntn.options import check_number

__all__ = ["frobenius", "huber", "l1", "sampled_frobenius"]


def frobenius(weight: Tensor, target: Tensor) -> Tensor:
    """Return half the squared Frobenius distance, ``||W - T||_F^2 / 2`` (Eq. 28).

    Args:
        weight: generated, of any shape.
        target: of the same shape.

    Raises:
        ShapeError: the shapes differ.
    """
    same_shape(weight, target)
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
    same_shape(weight, target)
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
    same_shape(weight, target)
    check_number("delta", delta, above=0)
    return F.huber_loss(weight, target, reduction="sum", delta=delta)
