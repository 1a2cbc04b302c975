"""Replacing a model's layers by generated ones, and back: ``compress_``, ``materialize``, ``cached``."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence

import torch
from torch import nn

from adntn.baselines import Network
from adntn.common_cores import core_key, groups_alike, tie_groups_
from adntn.decompose import WarmStartReport, warm_start_
from adntn.describe import CompressionReport, describe, generated_weights
from adntn.errors import CompressionError, ConfigError, check_choice
from adntn.exchange import Wanted, build, generators_of, put_in_place, to_plain
from adntn.execution.cache import keeping
from adntn.fit import FitOptions, FitReport, fit_, fit_together_
from adntn.generator import GeneratorModule
from adntn.options import check_flag
from adntn.sharing import find_groups
from adntn.targets import (
    Place,
    choose_places,
    compiled_alone,
    find_places,
    held_by_optimizer,
    listing,
    refuse_broken_ties,
    refuse_wrapped,
)
from adntn.topology import GeneratorConfig

__all__ = ["cached", "compress_", "materialize"]

INITS = ("random", "fit", "svd")


def compress_(
    model: nn.Module,
    config: GeneratorConfig | None = None,
    targets: str | Sequence[str] = ("re:.*",),
    *,
    ignore: str | Sequence[str] = (),
    overrides: Mapping[str, GeneratorConfig] | None = None,
    shared: Sequence[Sequence[str]] = (),
    share_cores: bool = False,
    init: str = "random",
    fit: FitOptions | None = None,
    progress: bool | None = None,
    execution: str = "auto",
) -> CompressionReport:
    r"""Replace chosen layers, in place, by layers whose weight is generated.

    Options, bias, hooks, mode, device and dtype of a layer are kept; layers that share one weight share one generator.
    Nothing is changed unless everything asked for can be done.

    Args:
        model: holds the layers. Compress first, then build the optimiser, then wrap in DDP or FSDP. A compiled model,
            or one with compiled parts, is seen through.
        config: of the generators; None means the default config.
        targets: names of layers, or ``"re:"`` and a pattern that a whole name must match. A name must be there and
            possible; a pattern passes over what cannot be generated, but must match something that can. An attention
            brings its ``out_proj`` along. Any other parameter of two axes or more can be generated too, by its own name
            (``"rnn.weight_hh_l0"``) or by a pattern that matches the name of no module; its module then cannot be
            pickled whole any more, only its ``state_dict``, and it starts with the deviation that it had.
        ignore: names or patterns to leave out again; the name of a module stands for its own parameters too.
        overrides: other configs for some names or patterns; a later entry wins.
        shared: groups of layers, each of which has one generator that makes their weights one below the other (paper,
            Eq. 6). ``("q_proj", "k_proj", "v_proj")`` is found in every parent module that has all of these; names that
            are full names of layers are taken as such; ``"re:"`` and a pattern stand for the layers of a parent whose
            full names it matches. All must be targets, with equal ``in_features``; biases stay their own. The
            ``state_dict`` has the generator under each of their names, as torch has tied weights; :func:`adntn.save`
            stores it once. In an attention ``("in_proj_weight", "out_proj")`` makes all four projections one.
        share_cores: whether weights of one shape, config and dtype have their cores in common, and a root each
            (:func:`adntn.share_cores_`). Those that ``shared`` puts into one are one weight here.
        init: ``"random"`` draws and calibrates (paper, Section 3.5); the dense weight's values are not used. ``"fit"``
            then fits each generator to its layer's weight (:func:`adntn.fit_`; those with cores in common together,
            :func:`adntn.fit_together_`), ``"svd"`` starts it from the weight's
            decomposition (:func:`adntn.warm_start_`), and the report says how near it came.
        fit: how to fit; None means the defaults.
        progress: whether fits show a progress bar, one a layer; None means on a terminal only.
        execution: of the new layers: ``"auto"``, ``"factored"`` or ``"dense"``.

    Returns:
        A report; print it.

    Raises:
        CompressionError: a target matches nothing or cannot be generated, or the model is wrapped or has an optimiser
            already.
        ConfigError: an option is unknown or does not fit a layer.
        ShapeError: a config does not fit a layer's shape.
        GeneratorTooLargeError: a generator would not fit into memory.

    Example:
        >>> report = adntn.compress_(model, adntn.GeneratorConfig(), targets=["classifier.3", r"re:features\..*"])
        >>> print(report)
    """
    config = config if config is not None else GeneratorConfig()
    for given in (config, *(overrides or {}).values()):
        if not isinstance(given, GeneratorConfig):
            raise ConfigError(
                f"a config is a GeneratorConfig, not a {type(given).__name__}: compress_(model, config, targets)."
            )
    check_choice("init", init, INITS)
    check_flag("share_cores", share_cores)
    if share_cores and init == "svd":
        raise ConfigError("init='svd' starts one weight alone; with share_cores=True use 'random' or 'fit'.")
    if fit is not None and init != "fit":
        raise ConfigError(f"fit={fit!r} needs init='fit', not init={init!r}.")
    refuse_wrapped(model)
    places = find_places(model)
    chosen = {place.name: place for place in choose_places(places, targets, "targets", must_work=True)}
    if not chosen:
        raise CompressionError("targets is empty, so there is nothing to compress.")
    left_out = {(id(p.module), p.parameter) for p in choose_places(places, ignore, "ignore", must_work=False)}
    for name, place in list(chosen.items()):
        if {(id(place.module), None), (id(place.module), place.parameter)} & left_out:
            del chosen[name]
    configs = dict.fromkeys(chosen, config)
    for pattern, other in (overrides or {}).items():
        found = [place.name for place in choose_places(places, pattern, "overrides", must_work=True)]
        if not pattern.startswith("re:") and not any(name in chosen for name in found):
            raise CompressionError(f"overrides names {found[0]!r}, which is not among the targets: {listing(chosen)}.")
        configs.update((name, other) for name in found if name in chosen)
    if not chosen:
        raise CompressionError("nothing is left to compress: every target is in ignore as well.")
    why = held_by_optimizer({id(w): name for name, place in chosen.items() for w in place.weights.values()})
    if why is not None:
        raise CompressionError(f"{why}. Call compress_ first, then build the optimiser.")
    compiled = compiled_alone(model)
    for name, place in chosen.items():
        if id(place.module) in compiled:
            raise CompressionError(
                f"{name!r} is compiled on its own already; call compress_ first, then torch.compile."
            )
    refuse_broken_ties(model, places, chosen)
    groups = find_groups(places, chosen, shared)
    wanted = _wanted(chosen, configs, groups, execution)
    generators = generators_of(wanted)
    if share_cores:
        named = [(_named(wanted, source), generator) for source, generator in generators.items()]
        tie_groups_([weight for _, weight in group] for group in groups_alike(named))
    starts = {} if init == "random" else _start_all(wanted, generators, init, fit, progress)
    put_in_place(build(wanted, generators))
    return describe(model, starts)


def _wanted(
    chosen: Mapping[str, Place],
    configs: Mapping[str, GeneratorConfig],
    groups: Sequence[Sequence[Place]],
    execution: str,
) -> list[Wanted]:
    """Return what is to be generated; places with one weight share a generator, and so do the places of a group."""
    grouped: dict[int, tuple[Hashable, tuple[int, ...], tuple[int, int] | None]] = {}
    for group in groups:
        weights = [weight for place in group for weight in place.weights.values()]
        whole, start = (sum(len(w) for w in weights), *weights[0].shape[1:]), 0
        for weight in weights:
            grouped[id(weight)] = (group[0].name, whole, (start, start + len(weight)))
            start += len(weight)
    wanted: list[Wanted] = []
    first: dict[Hashable, str] = {}
    for name, place in chosen.items():
        for key, weight in place.weights.items():
            alone = (id(weight), tuple(weight.shape), None)
            source, whole, rows = grouped.get(id(weight), alone)
            owner = first.setdefault(source, name)
            if configs[owner] != configs[name]:
                what = "share one weight" if rows is None else "are to share one generator"
                raise CompressionError(f"{owner!r} and {name!r} {what}, so they need one config.")
            wanted.append(Wanted(name, place, key, configs[name], execution, source, whole, rows))
    return wanted


def _start_all(
    wanted: Sequence[Wanted],
    generators: Mapping[Hashable, GeneratorModule],
    init: str,
    options: FitOptions | None,
    progress: bool | None,
) -> dict[Network, FitReport | WarmStartReport]:
    """Start every generator from the dense weights that it is to make."""
    starts: dict[Network, FitReport | WarmStartReport] = {}
    targets = {source: _target(wanted, source) for source in generators}
    for sources in _by_cores(generators):
        first, *others = sources
        name = _named(wanted, first)
        try:
            if others:
                alike = [generators[source] for source in sources]
                name = ", ".join(_named(wanted, source) for source in sources)
                made = fit_together_(alike, [targets[s] for s in sources], options, progress=progress, name=name)
                starts.update(zip((each._network for each in alike), made, strict=True))
            elif init == "fit":
                starts[generators[first]._network] = fit_(
                    generators[first], targets[first], options, progress=progress, name=name
                )
            else:
                starts[generators[first]._network] = warm_start_(generators[first], targets[first])
        except ConfigError as error:
            raise ConfigError(f"{name!r}: {error}") from None
    return starts


def _named(wanted: Sequence[Wanted], source: Hashable) -> str:
    """Return the names of all that one generator is for."""
    return ", ".join(dict.fromkeys(each.name for each in wanted if each.source == source))


def _target(wanted: Sequence[Wanted], source: Hashable) -> torch.Tensor:
    """Return what a generator is to make: side by side, the rows of those who share are all rows."""
    mine = {each.rows: each for each in wanted if each.source == source}
    ordered = sorted(mine.values(), key=lambda each: each.rows or (0, 0))
    return torch.cat([each.place.weights[each.weight].detach() for each in ordered])


def _by_cores(generators: Mapping[Hashable, GeneratorModule]) -> list[list[Hashable]]:
    """Return the sources apart by the cores that their generators are made of."""
    apart: dict[int, list[Hashable]] = {}
    for source, generator in generators.items():
        apart.setdefault(core_key(generator), []).append(source)
    return [*apart.values()]


def materialize(model: nn.Module) -> nn.Module:
    """Return a copy of a model with plain torch layers in place of generated ones, weights as they are now.

    Layers that are tied come out sharing one weight, those that only share a generator each with its own. The model
    itself is left as it is.

    Args:
        model: holds the layers.

    Example:
        >>> dense = adntn.materialize(model)
    """
    return to_plain(copy.deepcopy(model))


@contextlib.contextmanager
def cached(model: nn.Module) -> Iterator[None]:
    """Keep what a model's generators make, for inference, until the block ends.

    Gradients are off inside. A kept value is made anew when a parameter is written to; it is never part of a copy, a
    pickle or a ``state_dict``, and is gone after the block. What is kept is in the generator's own precision; casting
    is done at each call.

    Args:
        model: holds the generators.

    Example:
        >>> with adntn.cached(model):
        ...     for x in batches:
        ...         y = model(x)
    """
    with keeping(generated_weights(model).values()), torch.no_grad():
        yield
