"""How many numbers a row stores and trains, in its layers and in the whole network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from adntn.experiments.controls import chosen_weights, stored_numbers
from adntn.experiments.reproduce.rows import Row
from adntn.nn import GeneratedWeight

__all__ = ["Counts", "count_numbers", "row_weights"]


@dataclass(frozen=True)
class Counts:
    """Numbers of a row, as they stand in its result.

    Attributes:
        layer_dense: of the dense weights of its layers.
        layer_stored: stored for them here.
        layer_trained: of those, trained.
        model_stored: parameters of the whole network.
        model_trained: of those, trained.
    """

    layer_dense: int
    layer_stored: int
    layer_trained: int
    model_stored: int
    model_trained: int


def count_numbers(row: Row, model: nn.Module | None = None) -> Counts:
    """Count the numbers of a row; what several layers share, once.

    Args:
        row: to count.
        model: the row's network; without it one is made that takes no memory.
    """
    with torch.device("meta"):
        dense = sum(math.prod(weight.shape) for weight in chosen_weights(row.build(), row.layers).values())
        model = row.make(0) if model is None else model
    parts = {id(p): p for weight in row_weights(row, model).values() for p in stored_numbers(weight)}.values()
    return Counts(
        layer_dense=dense,
        layer_stored=sum(p.numel() for p in parts),
        layer_trained=sum(p.numel() for p in parts if p.requires_grad),
        model_stored=sum(p.numel() for p in model.parameters()),
        model_trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def row_weights(row: Row, model: nn.Module) -> dict[str, nn.Parameter | GeneratedWeight]:
    """Return the weights of a row's layers by name; none where the layers are gone."""
    modules = dict(model.named_modules())
    if row.variant == "deleted" or not all(name in modules for name in row.layers):
        return {}
    return chosen_weights(model, row.layers)
