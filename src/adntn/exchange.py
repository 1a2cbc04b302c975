"""Putting generated weights in the place of dense ones, all of them or none."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adntn.errors import AdntnError, CompressionError
from adntn.generator import Generator, GeneratorModule
from adntn.nn import GENERATED, GeneratedParameter, StandIn
from adntn.nn._generated import Source, plain_weight
from adntn.nn.parameter import attach, detach, generated_parameters
from adntn.targets import Place, is_compiled_wrapper
from adntn.topology import GeneratorConfig

__all__ = ["Replacement", "Wanted", "build", "generators_of", "put_in_place", "to_plain"]


@dataclass(frozen=True)
class Wanted:
    """A weight that is to be generated.

    Attributes:
        name: for errors.
        place: where it stands.
        weight: its name in the place's module.
        config: of its generator.
        execution: of its layer.
        source: weights with equal ones share a generator.
        whole: shape of all that the generator makes.
        rows: which of its rows are this weight's; None for all.
    """

    name: str
    place: Place
    weight: str
    config: GeneratorConfig
    execution: str
    source: Hashable
    whole: tuple[int, ...]
    rows: tuple[int, int] | None = None

    @property
    def prefix(self) -> str:
        """What comes before the names of root and cores in the ``state_dict`` of the new module."""
        if self.place.parameter is not None:
            return f"parametrizations.{self.weight}.0."
        return "" if self.weight == "weight" else f"{self.weight.removesuffix('_weight')}."


@dataclass(frozen=True)
class Replacement:
    """What comes into a place: another module, or what makes one parameter."""

    place: Place
    new: StandIn | GeneratedParameter


def generators_of(wanted: Sequence[Wanted]) -> dict[Hashable, GeneratorModule]:
    """Return a new generator for each source.

    Raises:
        AdntnError: one cannot be built; the message begins with the name of what wants it.
    """
    generators: dict[Hashable, GeneratorModule] = {}
    for each in wanted:
        if each.source not in generators:
            with _named(each.name):
                generators[each.source] = _generator(each)
    return generators


def build(wanted: Sequence[Wanted], given: Mapping[Any, GeneratorModule] | None = None) -> list[Replacement]:
    """Build all that is wanted, without touching the model.

    Args:
        wanted: in any order.
        given: generators that are there already, by source.

    Raises:
        AdntnError: something cannot be built; the message begins with its name.
    """
    generators: dict[Hashable, GeneratorModule] = {**(given or {})}
    generators.update(generators_of([each for each in wanted if each.source not in generators]))
    sources: dict[str, dict[str, Source]] = {}
    by_place: dict[str, Wanted] = {}
    new: list[Replacement] = []
    for each in wanted:
        by_place.setdefault(each.place.name, each)
        sources.setdefault(each.place.name, {})[each.weight] = (generators[each.source], each.rows)
    for name, each in by_place.items():
        with _named(each.name):
            new.append(Replacement(each.place, _one(each, sources[name])))
    return new


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except AdntnError as error:
        # The same type, so that callers can tell them apart, but saying which layer it was.
        raise type(error)(f"{name!r}: {error}") from None


def _generator(wanted: Wanted) -> Generator:
    place, weight = wanted.place, wanted.place.weights[wanted.weight]
    std = None
    if wanted.rows is None and place.parameter is None:
        std = GENERATED[type(place.module)].initial_std(place.module, wanted.weight)
    elif place.parameter is not None and not weight.is_meta:
        # How such a module starts is not known; it is as it is now that it works.
        std = float(weight.detach().float().std(correction=0)) or None
    return Generator(wanted.whole, wanted.config, std=std, device=weight.device, dtype=weight.dtype)


def _one(wanted: Wanted, sources: dict[str, Source]) -> StandIn | GeneratedParameter:
    place = wanted.place
    if place.parameter is None:
        return GENERATED[type(place.module)]._assemble(place.module, sources, wanted.execution)
    return GeneratedParameter(sources[place.parameter], wanted.execution)


def put_in_place(replacements: Sequence[Replacement]) -> None:
    """Put everything in its place. If that fails in one, all of it is undone.

    Raises:
        CompressionError: a module does not let its parameters or children be replaced.
    """
    modules = {id(r.place.module): r.new for r in replacements if isinstance(r.new, StandIn)}
    with contextlib.ExitStack() as undo:
        for replacement in replacements:
            place, new = replacement.place, replacement.new
            try:
                if isinstance(new, StandIn):
                    for parent, attribute in place.parents:
                        owner = modules.get(id(parent), parent)  # an attention that was replaced itself
                        undo.callback(setattr, owner, attribute, place.module)
                        setattr(owner, attribute, new)
                else:
                    name, parameter = next(iter(place.weights.items()))
                    attach(place.module, name, new)
                    undo.callback(detach, place.module, name, parameter)
            except Exception as error:
                raise CompressionError(f"{place.name!r} could not be put in place, so nothing was: {error}") from error
        undo.pop_all()


def to_plain(model: nn.Module) -> nn.Module:
    """Put dense weights in the place of all generated ones of a model, in place, and return it."""
    if isinstance(model, StandIn):
        return model.to_dense()
    made: dict[object, nn.Parameter] = {}
    plain: dict[int, nn.Module] = {}
    for parent in list(model.modules()):
        if isinstance(parent, StandIn):
            continue
        for attribute, child in list(parent._modules.items()):
            if isinstance(child, StandIn):
                if id(child) not in plain:
                    plain[id(child)] = child._plain(made)
                setattr(parent, attribute, plain[id(child)])
                if is_compiled_wrapper(parent):
                    parent.__setstate__(parent.__getstate__())  # else it goes on calling the layer it was made from
        for name, each in generated_parameters(parent).items():
            weight = plain_weight(each, made)
            if not torch.equal(weight, getattr(parent, name)):  # another parametrization came on top
                weight = nn.Parameter(getattr(parent, name).detach().clone())
            detach(parent, name, weight)
    return model
