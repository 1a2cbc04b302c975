"""Which of a model's layers are meant, which of them can be generated, and what stands in the way."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from adntn.describe import _COMPILED, plain_name
from adntn.errors import CompressionError, nearest
from adntn.nn import GENERATED, GeneratedLayer
from adntn.nn._generated import dense_weight

__all__ = [
    "Place",
    "choose_layers",
    "compiled_alone",
    "find_places",
    "held_by_optimizer",
    "obstacle",
    "refuse_broken_ties",
    "refuse_wrapped",
    "select",
]


def obstacle(module: nn.Module) -> str | None:
    """Return why a module's weight cannot be generated, or None if it can."""
    if isinstance(module, GeneratedLayer):
        return "it is generated already"
    if nn.utils.parametrize.is_parametrized(module):
        return "it is parametrized (weight_norm, spectral_norm and the like must be removed first)"
    if type(module) not in GENERATED:
        known = ", ".join(cls.__name__ for cls in GENERATED)
        return f"it is a {type(module).__name__}, and only {known} can be generated (a subclass may do something else)"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is not a plain parameter (weight_norm, spectral_norm and the like must be removed first)"
    if weight.numel() == 0:
        return f"its weight has shape {tuple(weight.shape)}, which has a zero"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, which is not a floating-point type"
    if not weight.is_meta and not bool(torch.isfinite(weight).all()):
        return "its weight has NaN or infinite entries"
    return GENERATED[type(module)].refusal(module)


def select(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Return the names of the layers that :func:`compress_` would replace for these targets.

    Raises:
        CompressionError: a target matches nothing or cannot be generated.
    """
    return choose_layers(find_places(model), targets, "targets", must_work=True)


@dataclass
class Place:
    """A module under the first of its names, and every (parent, attribute) that holds it."""

    name: str
    module: nn.Module
    parents: list[tuple[nn.Module, str]] = field(default_factory=list)

    @cached_property
    def obstacle(self) -> str | None:
        return obstacle(self.module)


def find_places(model: nn.Module) -> dict[str, Place]:
    """Return the places by name; a module that stands in several places has one, under each of its names."""
    modules: dict[str, nn.Module] = {}
    by_module: dict[int, Place] = {}
    places: dict[str, Place] = {}
    for full, module in model.named_modules(remove_duplicate=False):
        modules[full] = module
        if full:
            parent, _, attribute = full.rpartition(".")
            place = by_module.setdefault(id(module), Place(plain_name(full), module))
            place.parents.append((modules[parent], attribute))
            places[plain_name(full)] = place
    return places


def _matcher(pattern: str, option: str) -> Callable[[str], bool]:
    if not pattern.startswith("re:"):
        return plain_name(pattern).__eq__
    try:
        compiled = re.compile(plain_name(pattern[3:].replace(r"_orig_mod\.", _COMPILED)))
    except re.error as error:
        raise CompressionError(f"{option}: {pattern!r} is not a regular expression: {error}.") from None
    return lambda name: compiled.fullmatch(name) is not None


def choose_layers(
    places: Mapping[str, Place], patterns: str | Sequence[str], option: str, *, must_work: bool
) -> list[str]:
    """Return the layers, each under the first of its names, that names and ``re:`` patterns choose.

    Args:
        places: of the model.
        patterns: names, and patterns that a whole name must match.
        option: where they were given, for the error.
        must_work: whether it is an error if one chooses nothing that can be generated.

    Raises:
        CompressionError: a name is not there, or a pattern is none; with ``must_work``, what cannot be generated too.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    possible = list(dict.fromkeys(place.name for place in places.values() if place.obstacle is None))
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matches = _matcher(pattern, option)
        if pattern.startswith("re:"):
            found = [place.name for name, place in places.items() if matches(name) and place.obstacle is None]
            if not found and must_work:
                raise CompressionError(
                    f"{option}: no layer that can be generated has a name that {pattern!r} matches as a whole; "
                    f"there are {listing(possible)}."
                )
        else:
            found = [place.name for name, place in places.items() if matches(name)]
            if not found:
                raise CompressionError(
                    f"{option}: the model has no module {pattern!r}; possible are {listing(possible)}."
                    f"{nearest(pattern, places)}"
                )
            why = places[found[0]].obstacle
            if must_work and why is not None:
                raise CompressionError(
                    f"{option}: {pattern!r} cannot be generated: {why}. Possible are {listing(possible)}."
                )
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def listing(names: Sequence[str] | Mapping[str, object], most: int = 12) -> str:
    """Return some names for an error message, and how many there are besides."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(map(repr, names[:most])) or "none") + more


def refuse_broken_ties(model: nn.Module, places: Mapping[str, Place], chosen: Collection[str]) -> None:
    """Refuse layers whose weight something else shares that would stay dense.

    Raises:
        CompressionError: the message names who shares it.
    """
    holders: dict[int, list[str]] = {}
    for full, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(plain_name(full))
    weights = {f"{name}.weight" for name, place in places.items() if place.name in chosen}
    for name in chosen:
        tied = [other for other in holders[id(dense_weight(places[name].module))] if other not in weights]
        if tied:
            raise CompressionError(
                f"{name!r} shares its weight with {listing(tied)}, which would come untied; "
                "make all of them targets, or put this one into ignore."
            )


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse what cannot be changed in place: models wrapped for several processes, and a layer on its own.

    Raises:
        CompressionError: the message says what to do first.
    """
    if not isinstance(model, nn.Module):
        raise CompressionError(f"compress_ takes an nn.Module, not {type(model).__name__}.")
    for name, module in model.named_modules():
        # By name, since torch's FSDP modules are slow to import and there are two of them.
        kinds = {cls.__name__ for cls in type(module).__mro__}
        wrapped = kinds & {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}
        if wrapped:
            raise CompressionError(
                f"{name or 'the model'} is wrapped in {min(wrapped)} already, which has recorded the dense parameters; "
                "call compress_ on the plain model, then wrap it."
            )
    inner = getattr(model, "_orig_mod", model)
    if not any(True for _ in inner.children()):
        raise CompressionError(
            f"a {type(inner).__name__} on its own has no place to put another layer; "
            "wrap it in nn.Sequential, or build the layer with adntn.nn."
        )


def compiled_alone(model: nn.Module) -> set[int]:
    """Return the ids of modules compiled on their own: that code would go on running the module it was made from."""
    wrapped = {
        id(module._orig_mod) for module in model.modules() if is_compiled_wrapper(module) and module is not model
    }
    return wrapped | {id(module) for module in model.modules() if module._compiled_call_impl is not None}


def is_compiled_wrapper(module: nn.Module) -> bool:
    """Return whether this is what ``torch.compile`` wraps around a module."""
    return type(module).__name__ == "OptimizedModule"


def held_by_optimizer(weights: Mapping[int, str]) -> str | None:
    """Say which optimiser holds a weight that is about to go, or return None: it would train a tensor that nobody uses.

    Args:
        weights: the name of each weight by its id.
    """
    if _find_optimizer(weights) is None:
        return None
    gc.collect()  # one that was thrown away may only be waiting for this
    return _find_optimizer(weights)


def _find_optimizer(weights: Mapping[int, str]) -> str | None:
    for thing in gc.get_objects():
        if not issubclass(type(thing), torch.optim.Optimizer):
            continue
        # One whose constructor failed may still be alive, without groups.
        for group in getattr(thing, "param_groups", ()):
            held = [weights[id(p)] for p in group["params"] if id(p) in weights]
            if held:
                return (
                    f"a {type(thing).__name__} optimiser already holds the weight of {listing(held)} and would go on "
                    "training a tensor that the model no longer uses"
                )
    return None
