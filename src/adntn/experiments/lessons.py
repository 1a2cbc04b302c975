"""What a network takes over from the trained dense one that it is made of, besides its answers."""

from __future__ import annotations

import torch
from torch import nn

from adntn.describe import generated_weights
from adntn.fit import fit_, fit_scale_
from adntn.initialize import default_std
from adntn.nn import GeneratedWeight

__all__ = ["LESSONS", "fit_weights_", "take_rest_"]

#: ``"answers"``: the loss compares them with the trained network's; ``"rest"``: all that is not generated starts as it
#: is there; ``"weights"``: the generators start fitted to its weights.
LESSONS: tuple[str, ...] = ("answers", "rest", "weights")


@torch.no_grad()
def take_rest_(model: nn.Module, trained: nn.Module) -> None:
    """Copy what a network and a trained one have by the same names: norms, biases, head, layers left dense."""
    values = trained.state_dict()
    for name, value in model.state_dict().items():
        if name in values:
            value.copy_(values[name])


def fit_weights_(model: nn.Module, trained: nn.Module) -> None:
    """Fit every generated weight to the trained one, and scale it to the deviation that a dense layer starts with.

    The scale is free where a norm stands behind each layer, and rates of learning are made for that deviation.
    """
    for name, layer in generated_weights(model).items():
        assert isinstance(layer, GeneratedWeight)
        target = trained.get_parameter(f"{name}.weight")
        fit_(layer, target, progress=False, name=name)
        with torch.no_grad():
            scaled = layer.bare_copy()
            made = scaled()
            fit_scale_(scaled, made * (default_std(made.shape) / made.std()))
            for (_, own), (_, other) in zip(layer.generator_parameters(), scaled.generator_parameters(), strict=True):
                own.copy_(other)
