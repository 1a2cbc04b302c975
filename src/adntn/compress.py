"""Replacing a model's layers by generated ones, and back: ``compress_``, ``materialize``, ``cached``."""

from __future__ import annotations

import contextlib
import copy
import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from adntn.errors import CompressionError, ConfigError, ShapeError, check_choice, nearest
from adntn.execution.cache import keeping
from adntn.nn import GENERATED, GeneratedLayer
from adntn.nn._generated import dense_weight
from adntn.topology import GeneratorConfig

__all__ = [
    "CompressionReport",
    "LayerReport",
    "cached",
    "compress_",
    "generated_layers",
    "materialize",
    "obstacle",
    "report",
    "select",
]

INITS = ("random",)
_COMPILED = "_orig_mod."


# --- what was done --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerReport:
    """One generated layer.

    Attributes:
        name: in the model.
        kind: of the torch layer, as ``"Linear"``.
        shape: of the weight.
        topology: of the generator.
        dense: numbers that the dense weight stores, P.
        padded: entries that the trees make, P padded to powers of the radix.
        generated: numbers that are stored and trained instead; 0 for a layer that shares another's generator.
        dense_bytes: bytes of the dense weight.
        generated_bytes: bytes of the generator's parameters.
        rank_bound: the greatest rank that the weight can have.
        way: how the layer runs, ``"factored"`` or ``"dense"``.
        reason: why it runs so.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    topology: str
    dense: int
    padded: int
    generated: int
    dense_bytes: int
    generated_bytes: int
    rank_bound: int
    way: str
    reason: str

    @property
    def ratio(self) -> float:
        """Stored numbers before over after; infinite for a layer that shares another's generator."""
        return self.dense / self.generated if self.generated else float("inf")


@dataclass(frozen=True)
class CompressionReport:
    """What became of a model: a row a layer, their sum, and the whole model.

    Attributes:
        layers: one for each generated layer.
        model_before: parameters of the whole model when these layers are dense.
        model_after: parameters of the whole model as it is.
    """

    layers: tuple[LayerReport, ...]
    model_before: int
    model_after: int

    @property
    def dense(self) -> int:
        return sum(row.dense for row in self.layers)

    @property
    def generated(self) -> int:
        return sum(row.generated for row in self.layers)

    @property
    def ratio(self) -> float:
        """Stored numbers of the generated layers' weights, before over after."""
        return self.dense / self.generated if self.generated else float("nan")

    @property
    def model_ratio(self) -> float:
        """Parameters of the whole model, before over after."""
        return self.model_before / self.model_after if self.model_after else float("nan")

    def __str__(self) -> str:
        head = ("layer", "weight", "topology", "P", "P padded", "stored", "ratio", "bytes", "rank <=", "runs")
        rows = [
            (
                row.name,
                "x".join(map(str, row.shape)),
                row.topology,
                f"{row.dense:,}",
                f"{row.padded:,}",
                f"{row.generated:,}",
                f"{row.ratio:,.1f}x" if row.generated else "shared",
                f"{row.generated_bytes:,}",
                f"{row.rank_bound:,}",
                row.way,
            )
            for row in self.layers
        ]
        stored_bytes = sum(row.generated_bytes for row in self.layers)
        padded = sum(row.padded for row in self.layers)
        sums = (f"{self.dense:,}", f"{padded:,}", f"{self.generated:,}", f"{self.ratio:,.1f}x", f"{stored_bytes:,}")
        whole = (f"{self.model_before:,}", "", f"{self.model_after:,}", f"{self.model_ratio:,.1f}x", "")
        rows.append(("these layers", "", "", *sums, "", ""))
        rows.append(("whole model", "", "", *whole, "", ""))
        widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
        align = [str.ljust if i in (0, 1, 2, 9) else str.rjust for i in range(len(head))]
        lines = ["  ".join(a(c, w) for a, c, w in zip(align, r, widths, strict=True)).rstrip() for r in (head, *rows)]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:-2], "-" * max(map(len, lines)), *lines[-2:]])


# --- looking at a model ---------------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """Return a module's or parameter's name without the ``_orig_mod.`` that torch.compile puts in."""
    return name.replace(_COMPILED, "").removesuffix(_COMPILED[:-1]).rstrip(".")


def generated_layers(model: nn.Module) -> dict[str, GeneratedLayer]:
    """Return a model's generated layers by name; a layer that stands in several places comes once."""
    return {plain_name(name): m for name, m in model.named_modules() if isinstance(m, GeneratedLayer)}


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
    return None


def report(model: nn.Module) -> CompressionReport:
    """Report a model's generated layers, its own size, and what both would be with dense layers."""
    rows: list[LayerReport] = []
    seen: set[int] = set()
    for name, layer in generated_layers(model).items():
        blueprint = layer.blueprint
        first = id(layer.root) not in seen
        seen.add(id(layer.root))
        stored = layer.num_parameters if first else 0
        item = layer.root.element_size()
        rows.append(
            LayerReport(
                name=name,
                kind=layer.dense_type.__name__,
                shape=blueprint.shape,
                topology=layer.config.topology,
                dense=blueprint.size if first else 0,
                padded=blueprint.tensorization.padded_size if first else 0,
                generated=stored,
                dense_bytes=blueprint.size * item if first else 0,
                generated_bytes=stored * item,
                rank_bound=layer.rank_bound(),
                way=layer.way.name,
                reason=layer.way.reason,
            )
        )
    # A lazy layer's parameters have no size yet.
    after = sum(p.numel() for p in model.parameters() if not isinstance(p, nn.parameter.UninitializedParameter))
    saved = sum(row.dense - row.generated for row in rows)
    return CompressionReport(tuple(rows), after + saved, after)


# --- compress_ ------------------------------------------------------------------------------------------------------


def compress_(
    model: nn.Module,
    config: GeneratorConfig | None = None,
    targets: str | Sequence[str] = ("re:.*",),
    *,
    ignore: str | Sequence[str] = (),
    overrides: Mapping[str, GeneratorConfig] | None = None,
    init: str = "random",
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
            possible; a pattern passes over what cannot be generated, but must match something that can.
        ignore: names or patterns to leave out again.
        overrides: other configs for some names or patterns; a later entry wins.
        init: ``"random"`` draws and calibrates (paper, Section 3.5); the dense weight's values are not used.
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
    _refuse_wrapped(model)
    places = _places(model)
    names = _select(places, targets, "targets", must_work=True)
    if not names:
        raise CompressionError("targets is empty, so there is nothing to compress.")
    left_out = set(_select(places, ignore, "ignore", must_work=False))
    chosen = {name: config for name in names if name not in left_out}
    for pattern, other in (overrides or {}).items():
        for name in _select(places, pattern, "overrides", must_work=True):
            if name in chosen:
                chosen[name] = other
            elif not pattern.startswith("re:"):
                raise CompressionError(f"overrides names {name!r}, which is not among the targets: {_listing(chosen)}.")
    if not chosen:
        raise CompressionError("nothing is left to compress: every target is in ignore as well.")
    why = held_by_optimizer({id(dense_weight(places[name].module)): name for name in chosen})
    if why is not None:
        raise CompressionError(f"{why}. Call compress_ first, then build the optimiser.")
    compiled = compiled_alone(model)
    for name in chosen:
        if id(places[name].module) in compiled:
            raise CompressionError(
                f"{name!r} is compiled on its own already; call compress_ first, then torch.compile."
            )
    _refuse_broken_ties(model, places, chosen)

    new = _build(places, chosen, execution)
    for name, layer in new.items():
        for parent, attribute in places[name].parents:
            setattr(parent, attribute, layer)
    return report(model)


def select(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Return the names of the layers that :func:`compress_` would replace for these targets.

    Raises:
        CompressionError: a target matches nothing or cannot be generated.
    """
    return _select(_places(model), targets, "targets", must_work=True)


@dataclass
class _Place:
    """A module under the first of its names, and every (parent, attribute) that holds it."""

    name: str
    module: nn.Module
    parents: list[tuple[nn.Module, str]] = field(default_factory=list)

    @cached_property
    def obstacle(self) -> str | None:
        return obstacle(self.module)


def _places(model: nn.Module) -> dict[str, _Place]:
    """Return the places by name; a module that stands in several places has one, under each of its names."""
    modules: dict[str, nn.Module] = {}
    by_module: dict[int, _Place] = {}
    places: dict[str, _Place] = {}
    for full, module in model.named_modules(remove_duplicate=False):
        modules[full] = module
        if full:
            parent, _, attribute = full.rpartition(".")
            place = by_module.setdefault(id(module), _Place(plain_name(full), module))
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


def _select(places: Mapping[str, _Place], patterns: str | Sequence[str], option: str, *, must_work: bool) -> list[str]:
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
                    f"there are {_listing(possible)}."
                )
        else:
            found = [place.name for name, place in places.items() if matches(name)]
            if not found:
                raise CompressionError(
                    f"{option}: the model has no module {pattern!r}; possible are {_listing(possible)}."
                    f"{nearest(pattern, places)}"
                )
            why = places[found[0]].obstacle
            if must_work and why is not None:
                raise CompressionError(
                    f"{option}: {pattern!r} cannot be generated: {why}. Possible are {_listing(possible)}."
                )
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def _listing(names: Sequence[str] | Mapping[str, object], most: int = 12) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(map(repr, names[:most])) or "none") + more


def _build(
    places: Mapping[str, _Place], chosen: Mapping[str, GeneratorConfig], execution: str
) -> dict[str, GeneratedLayer]:
    """Build every new layer before the model is touched; layers with one weight share root and cores."""
    first: dict[int, str] = {}
    new: dict[str, GeneratedLayer] = {}
    for name, config in chosen.items():
        dense = places[name].module
        owner = first.setdefault(id(dense_weight(dense)), name)
        if chosen[owner] != config:
            raise CompressionError(f"{owner!r} and {name!r} share one weight, so they need one config.")
        kind = GENERATED[type(dense)]
        try:
            new[name] = kind.from_dense(dense, config, share=new.get(owner), execution=execution)
        except (ShapeError, ValueError, MemoryError) as error:
            # The same type, so that callers can tell them apart, but saying which layer it was.
            raise type(error)(f"{name!r}: {error}") from None
    return new


def _refuse_broken_ties(model: nn.Module, places: Mapping[str, _Place], chosen: Mapping[str, GeneratorConfig]) -> None:
    holders: dict[int, list[str]] = {}
    for full, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(plain_name(full))
    weights = {f"{name}.weight" for name, place in places.items() if place.name in chosen}
    for name in chosen:
        tied = [other for other in holders[id(dense_weight(places[name].module))] if other not in weights]
        if tied:
            raise CompressionError(
                f"{name!r} shares its weight with {_listing(tied)}, which would come untied; "
                "make all of them targets, or put this one into ignore."
            )


def _refuse_wrapped(model: nn.Module) -> None:
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
    wrapped = {id(module._orig_mod) for module in model.modules() if _is_wrapper(module) and module is not model}
    return wrapped | {id(module) for module in model.modules() if module._compiled_call_impl is not None}


def _is_wrapper(module: nn.Module) -> bool:
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
                    f"a {type(thing).__name__} optimiser already holds the weight of {_listing(held)} and would go on "
                    "training a tensor that the model no longer uses"
                )
    return None


# --- and back -------------------------------------------------------------------------------------------------------


def materialize(model: nn.Module) -> nn.Module:
    """Return a copy of a model with plain torch layers in place of generated ones, weights as they are now.

    Layers that share a generator come out sharing one weight. The model itself is left as it is.
    """
    dense = copy.deepcopy(model)
    if isinstance(dense, GeneratedLayer):
        return dense.to_dense()
    plain: dict[int, nn.Module] = {}
    weights: dict[int, nn.Parameter] = {}
    for parent in list(dense.modules()):
        for attribute, child in list(parent._modules.items()):
            if not isinstance(child, GeneratedLayer):
                continue
            if id(child) not in plain:
                layer = child.to_dense()
                layer.register_parameter("bias", child.bias)  # of the copy already, and possibly shared
                layer.register_parameter("weight", weights.setdefault(id(child.root), dense_weight(layer)))
                plain[id(child)] = layer
            setattr(parent, attribute, plain[id(child)])
            if _is_wrapper(parent):
                parent.__setstate__(parent.__getstate__())  # else it goes on calling the layer it was made from
    return dense


@contextlib.contextmanager
def cached(model: nn.Module) -> Iterator[None]:
    """Keep what a model's generators make, for inference, until the block ends.

    Gradients are off inside. A kept value is made anew when a parameter is written to; it is never part of a copy, a
    pickle or a ``state_dict``, and is gone after the block. What is kept is in the generator's own precision; casting
    is done at each call.

    Example:
        >>> with adntn.cached(model):
        ...     for x in batches:
        ...         y = model(x)
    """
    with keeping(generated_layers(model).values()), torch.no_grad():
        yield
