"""The controls that an accuracy stands beside: what if the layer were not there, or were never trained?"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from adntn.describe import generated_weights
from adntn.errors import CompressionError, nearest
from adntn.experiments.deleted import deleted
from adntn.nn import GeneratedWeight
from adntn.targets import Place, Places, find_places, listing

__all__ = ["chosen_weights", "delete_", "freeze_weights_", "stored_numbers"]


def delete_(model: nn.Module, names: Iterable[str]) -> None:
    """Replace layers, in place and wherever they stand in the model, by what :func:`deleted` makes of them.

    A parameter that is a target by its own name, as ``"rnn.weight_hh_l0"``, becomes zeros: what its module does with it
    is not known, so nothing can be passed around it. That cuts a recurrence, or takes positions away. It also cuts off
    a module's input where the parameter is the only way in; that such a network fails then says nothing.

    Args:
        model: with dense layers.
        names: of layers, or of parameters.

    Raises:
        CompressionError: a name is not there, or the layer cannot be deleted.
    """
    places = find_places(model)
    for place in [_place(places, name) for name in names]:
        if place.parameter is not None:
            _to_zeros(place.module, place.parameter)
            continue
        try:
            gone = deleted(place.module)
        except CompressionError as error:
            raise CompressionError(f"{place.name!r}: {error}") from None
        for parent, attribute in place.parents:
            setattr(parent, attribute, gone)


def _to_zeros(module: nn.Module, name: str) -> None:
    parameter = module._parameters.pop(name)
    assert parameter is not None
    module.register_buffer(name, torch.zeros_like(parameter, requires_grad=False), persistent=False)
    setattr(module, name, module._buffers[name])  # a recurrent layer keeps a list of its own


def freeze_weights_(model: nn.Module, names: Iterable[str]) -> None:
    """Stop the training of weights, dense or generated; biases and all that is not replaced are trained on.

    Args:
        model: with dense or generated layers.
        names: of layers, or of parameters.

    Raises:
        CompressionError: a name is not there.
    """
    for weight in chosen_weights(model, names).values():
        for number in stored_numbers(weight):
            number.requires_grad_(False)


def chosen_weights(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter | GeneratedWeight]:
    """Return the weights of layers, and parameters, each by the layer's name or, where it has several, by its own.

    Names are the same whether the model is dense or generated.

    Args:
        model: with dense or generated layers.
        names: of layers, or of parameters.

    Raises:
        CompressionError: a name is not there.
    """
    places, generated = find_places(model), generated_weights(model)
    chosen: dict[str, nn.Parameter | GeneratedWeight] = {}
    for name in names:
        made = {key: each for key, each in generated.items() if name in (key, key.rpartition(".")[0])}
        if made:
            chosen.update(made)
            continue
        place = _place(places, name)
        for key, weight in place.weights.items():
            chosen[name if place.parameter is not None or key == "weight" else f"{name}.{key}"] = weight
    return chosen


def stored_numbers(weight: Tensor | GeneratedWeight) -> list[Tensor]:
    """Return the parameters that a weight is stored as: itself, or root and cores."""
    return [p for _, p in weight.generator_parameters()] if isinstance(weight, GeneratedWeight) else [weight]


def _place(places: Places, name: str) -> Place:
    place = places.get(name)
    if place is None:
        raise CompressionError(
            f"the model has no layer or parameter {name!r}; it has {listing(list(places))}.{nearest(name, places)}"
        )
    return place
