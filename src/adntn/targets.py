"""Which of a model's layers are meant, which of them can be generated, and what stands in the way."""

from __future__ import annotations

import gc
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from adntn.describe import _COMPILED, generated_weights, plain_name
from adntn.errors import CompressionError, nearest
from adntn.generator import GeneratorModule
from adntn.nn import GENERATED, StandIn
from adntn.nn.parameter import generated_parameters

__all__ = [
    "Place",
    "Places",
    "choose_places",
    "compiled_alone",
    "find_places",
    "held_by_optimizer",
    "listing",
    "matcher",
    "obstacle",
    "refuse_broken_ties",
    "refuse_wrapped",
    "select",
]


_REMOVE = "(weight_norm, spectral_norm and the like must be removed first)"


def obstacle(module: nn.Module, *, values: bool = True) -> str | None:
    """Return why a module cannot be generated as a layer, or None if it can.

    Args:
        module: any.
        values: whether weights with NaN or infinite entries are an obstacle.
    """
    if isinstance(module, StandIn):
        return "it is generated already"
    if nn.utils.parametrize.is_parametrized(module):
        ours = generated_parameters(module)
        return f"its {listing(ours)} is generated already" if ours else f"it is parametrized {_REMOVE}"
    if type(module) not in GENERATED:
        known = ", ".join(dict.fromkeys(cls.dense_type.__name__ for cls in GENERATED.values()))
        why = f"it is a {type(module).__name__}, and only {known} can be generated (a subclass may do something else)"
        own = [name for name, p in module._parameters.items() if p is not None and _weight_obstacle(p) is None]
        return f"{why}; its parameters can, by their names: {listing(own)}" if own else why
    for name in GENERATED[type(module)].generated_names(module):
        weight = module._parameters.get(name)
        if weight is None:
            return f"its {name} is not a plain parameter {_REMOVE}"
        problem = _weight_obstacle(weight, values=values)
        if problem is not None:
            return f"its {name} {problem}"
    return GENERATED[type(module)].refusal(module)


def _weight_obstacle(weight: Tensor, *, values: bool = True) -> str | None:
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return "has no shape yet; run the model once"
    if weight.numel() == 0:
        return f"has shape {tuple(weight.shape)}, which has a zero"
    if weight.ndim < 2:
        return f"has shape {tuple(weight.shape)}; what is generated needs at least two axes, so it stays as it is"
    if not weight.is_floating_point():
        return f"is {weight.dtype}, which is not a floating-point type"
    if values and not weight.is_meta and not bool(torch.isfinite(weight).all()):
        return "has NaN or infinite entries"
    return None


@dataclass
class Place:
    """Weights that can be generated together: those of a layer, or one parameter of any module.

    Attributes:
        name: the first of its names.
        module: the layer, or whose parameter it is.
        parameter: its name in the module; None for a layer.
        parents: every (parent, attribute) that holds the layer.
    """

    name: str
    module: nn.Module
    parameter: str | None = None
    parents: list[tuple[nn.Module, str]] = field(default_factory=list)

    @cached_property
    def obstacle(self) -> str | None:
        return self.find_obstacle()

    def find_obstacle(self, *, values: bool = True) -> str | None:
        """Return why it cannot be generated, or None if it can."""
        if self.parameter is None:
            return obstacle(self.module, values=values)
        if isinstance(self.module, torch.jit.ScriptModule):
            return "its module is scripted"
        problem = _weight_obstacle(self.module._parameters[self.parameter], values=values)  # type: ignore[arg-type]
        return problem if problem is None else f"it {problem}"

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """What would be generated, by its name in the module; for a place without obstacle."""
        if self.parameter is not None:
            names: tuple[str, ...] = (self.parameter,)
        else:
            names = GENERATED[type(self.module)].generated_names(self.module)
        return {name: self.module._parameters[name] for name in names}  # type: ignore[misc]


@dataclass(frozen=True)
class Places:
    """All places of a model by each of their names.

    Attributes:
        layers: every module.
        parameters: every parameter. The only weight of a layer that can be generated stands for the layer.
    """

    layers: dict[str, Place]
    parameters: dict[str, Place]

    def get(self, name: str) -> Place | None:
        return self.layers.get(name) or self.parameters.get(name)

    def possible(self) -> str:
        """Return what can be generated, for an error message."""
        layers = dict.fromkeys(place.name for place in self.layers.values() if place.obstacle is None)
        single = {p.name: None for p in self.parameters.values() if p.parameter and p.obstacle is None}
        return listing(layers) + (f"; by their names also the parameters {listing(single)}" if single else "")

    def __iter__(self) -> Iterator[str]:
        return itertools.chain(self.layers, self.parameters)


def find_places(model: nn.Module) -> Places:
    """Return a model's places; a module that stands in several has one, under each of its names.

    What is inside a generator is none.
    """
    modules: dict[str, nn.Module] = {}
    layers: dict[str, Place] = {}
    parameters: dict[str, Place] = {}
    known: dict[object, Place] = {}
    sealed = ""
    for full, module in model.named_modules(remove_duplicate=False):
        modules[full] = module
        if sealed and full.startswith(sealed):
            continue
        parent, _, attribute = full.rpartition(".")
        if attribute == "parametrizations":
            sealed = f"{full}."
            continue
        name = plain_name(full)
        if full:
            place = known.setdefault(id(module), Place(name, module))
            place.parents.append((modules[parent], attribute))
            layers[name] = place
        if isinstance(module, GeneratorModule):
            sealed = f"{full}."
            continue
        kind = GENERATED.get(type(module))
        own = {n: p for n, p in module._parameters.items() if p is not None}
        only = kind.generated_names(module) if kind is not None and full else ()
        for key in own:
            joined = f"{name}.{key}" if name else key
            if only == (key,):
                parameters[joined] = layers[name]
            else:
                parameters[joined] = known.setdefault((id(module), key), Place(joined, module, key))
    return Places(layers, parameters)


def select(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Return the names of the places whose weights :func:`compress_` would replace for these targets.

    Raises:
        CompressionError: a target matches nothing or cannot be generated.
    """
    return [place.name for place in choose_places(find_places(model), targets, "targets", must_work=True)]


def matcher(pattern: str, option: str) -> Callable[[str], bool]:
    """Return whether a name is meant by a name, or by ``"re:"`` and a pattern.

    Raises:
        CompressionError: it is not a pattern.
    """
    if not pattern.startswith("re:"):
        return plain_name(pattern).__eq__
    try:
        compiled = re.compile(plain_name(pattern[3:].replace(r"_orig_mod\.", _COMPILED)))
    except re.error as error:
        raise CompressionError(f"{option}: {pattern!r} is not a regular expression: {error}.") from None
    return lambda name: compiled.fullmatch(name) is not None


def choose_places(places: Places, patterns: str | Sequence[str], option: str, *, must_work: bool) -> list[Place]:
    """Return the places that names and ``re:`` patterns choose.

    A pattern that matches the name of any module is about layers; one that matches none is about parameters.
    An attention brings its ``out_proj`` along.

    Args:
        places: of the model.
        patterns: names, and patterns that a whole name must match.
        option: where they were given, for the error.
        must_work: whether it is an error if one chooses nothing that can be generated.

    Raises:
        CompressionError: a name is not there, or a pattern is none; with ``must_work``, what cannot be generated too.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    chosen: dict[str, Place] = {}
    for pattern in patterns:
        matches = matcher(pattern, option)
        layers = [place for name, place in places.layers.items() if matches(name)]
        found = layers or [place for name, place in places.parameters.items() if matches(name)]
        if not must_work:
            found = [place for name in places if matches(name) and (place := places.get(name))]
        found += [part for place in layers if (part := _out_projection(places, place))]
        if pattern.startswith("re:") and must_work:
            found = [place for place in found if place.obstacle is None]
            if not found:
                raise CompressionError(
                    f"{option}: no layer that can be generated has a name that {pattern!r} matches as a whole; "
                    f"there are {places.possible()}."
                )
        elif not found and not pattern.startswith("re:"):
            raise CompressionError(
                f"{option}: the model has no module {pattern!r}, nor a parameter of that name; possible are "
                f"{places.possible()}.{nearest(pattern, places)}"
            )
        for place in found:
            if must_work and place.obstacle is not None:
                raise CompressionError(
                    f"{option}: {place.name!r} cannot be generated: {place.obstacle}. Possible are {places.possible()}."
                )
        chosen.update((place.name, place) for place in found)
    return list(chosen.values())


def choose_generated(
    model: nn.Module, targets: str | Sequence[str], ignore: str | Sequence[str] = ()
) -> dict[str, GeneratorModule]:
    """Return the generated weights of a model that names and ``re:`` patterns choose, with all that share a generator.

    Args:
        model: with generated layers; or a generator, which has the name ``""``.
        targets: names, and patterns that a whole name must match.
        ignore: the same, to leave out again.

    Raises:
        CompressionError: a target matches nothing, or one that is left out shares its generator with one that is not.
    """
    known: dict[str, GeneratorModule] = {**generated_weights(model)}
    if not known and isinstance(model, GeneratorModule):
        known = {"": model}
    found: dict[str, set[str]] = {}
    for option, patterns in (("targets", targets), ("ignore", ignore)):
        found[option] = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matches = matcher(pattern, option)
            names = {name for name in known if matches(name)}
            if not names and option == "targets":
                raise CompressionError(
                    f"targets: no generated weight of the model has the name {pattern!r}; there are "
                    f"{listing(known)}.{nearest(pattern, known)}"
                )
            found[option] |= names
    chosen = found["targets"] - found["ignore"]
    networks = {id(known[name]._network): name for name in sorted(chosen)}
    for name in sorted(found["ignore"]):
        other = networks.get(id(known[name]._network))
        if other is not None:
            raise CompressionError(f"ignore: {name!r} shares its generator with {other!r}, which is a target.")
    return {name: weight for name, weight in known.items() if id(weight._network) in networks}


def by_generator(weights: Mapping[str, GeneratorModule]) -> list[dict[str, GeneratorModule]]:
    """Return generated weights apart by the generator that makes them."""
    apart: dict[int, dict[str, GeneratorModule]] = {}
    for name, weight in weights.items():
        apart.setdefault(id(weight._network), {})[name] = weight
    return list(apart.values())


def _out_projection(places: Places, place: Place) -> Place | None:
    if place.obstacle is not None or not isinstance(place.module, nn.MultiheadAttention):
        return None
    projection = next(name for name, other in places.layers.items() if other.module is place.module.out_proj)
    return None if isinstance(place.module.out_proj, StandIn) else places.layers[projection]


def listing(names: Sequence[str] | Mapping[str, object], most: int = 12) -> str:
    """Return some names for an error message, and how many there are besides."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(map(repr, names[:most])) or "none") + more


def refuse_broken_ties(model: nn.Module, places: Places, chosen: Mapping[str, Place]) -> None:
    """Refuse places whose weight something else shares that would stay dense.

    Raises:
        CompressionError: the message names who shares it.
    """
    holders: dict[int, list[str]] = {}
    for full, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(plain_name(full))
    generated = {name for name, place in places.parameters.items() if place.name in chosen}
    generated |= {
        f"{name}.{weight}" for name, place in places.layers.items() if place.name in chosen for weight in place.weights
    }
    for name, place in chosen.items():
        for weight in place.weights.values():
            tied = [other for other in holders[id(weight)] if other not in generated]
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
    own = any(_weight_obstacle(p, values=False) is None for p in inner.parameters(recurse=False))
    if type(inner) in GENERATED or isinstance(inner, StandIn) or not (own or any(True for _ in inner.children())):
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


def held_by_optimizer(weights: Mapping[int, str], besides: Collection[torch.optim.Optimizer] = ()) -> str | None:
    """Say which optimiser holds a weight that is about to go, or return None: it would train a tensor that nobody uses.

    Args:
        weights: the name of each weight by its id.
        besides: optimisers that may.
    """
    known = {id(optimizer) for optimizer in besides}
    if _find_optimizer(weights, known) is None:
        return None
    gc.collect()  # one that was thrown away may only be waiting for this
    return _find_optimizer(weights, known)


def _find_optimizer(weights: Mapping[int, str], known: Collection[int]) -> str | None:
    for thing in gc.get_objects():
        if not issubclass(type(thing), torch.optim.Optimizer) or id(thing) in known:
            continue
        # One whose constructor failed may still be alive, without groups.
        for group in getattr(thing, "param_groups", ()):
            held = list(dict.fromkeys(weights[id(p)] for p in group["params"] if id(p) in weights))
            if held:
                return (
                    f"a {type(thing).__name__} optimiser already holds the weight of {listing(held)} and would go on "
                    "training a tensor that the model no longer uses"
                )
    return None
