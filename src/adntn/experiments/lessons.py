"""What a network takes over from the trained dense one that it is made of, besides its answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from adntn.common_cores import core_key
from adntn.describe import generated_weights
from adntn.fit import fit_, fit_scale_, fit_together_
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

    The scale is free where a norm stands behind each layer, and rates of learning are made for that deviation. Weights
    that have their cores in common are fitted together.
    """
    groups: dict[int, dict[str, GeneratedWeight]] = {}
    for name, layer in generated_weights(model).items():
        assert isinstance(layer, GeneratedWeight)
        groups.setdefault(core_key(layer), {})[name] = layer
    for layers in groups.values():
        targets = [trained.get_parameter(f"{name}.weight") for name in layers]
        if len(layers) == 1:
            ((name, layer),) = layers.items()
            fit_(layer, targets[0], progress=False, name=name)
        else:
            fit_together_(list(layers.values()), targets, progress=False)
        _scale_alike_([*layers.values()])


@torch.no_grad()
def _scale_alike_(layers: Sequence[GeneratedWeight]) -> None:
    """Scale weights that have their cores in common: the cores by what is common, each root by what remains.

    A sum of Kronecker products is linear in its root, and nothing else has its cores in common here.
    """
    scaled = [layer.bare_copy() for layer in layers]
    made = [each() for each in scaled]
    scales = torch.stack([default_std(weight.shape) / weight.std() for weight in made])
    common = scales.log().mean().exp()
    fit_scale_(scaled[0], made[0] * common)
    for number, (layer, copied) in enumerate(zip(layers, scaled, strict=True)):
        for (name, own), (_, other) in zip(layer.generator_parameters(), copied.generator_parameters(), strict=True):
            if name == "root" and len(layers) > 1:
                own.mul_(scales[number] / common)
            elif number == 0:
                own.copy_(other)
