"""Replacing a model's layers by generated ones, and back: ``compress_``, ``materialize``, ``cached``."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from adntn.describe import CompressionReport, describe, generated_layers
from adntn.errors import CompressionError, ConfigError, ShapeError, check_choice
from adntn.execution.cache import keeping
from adntn.nn import GENERATED, GeneratedLayer
from adntn.nn._generated import dense_weight
from adntn.targets import (
    Place,
    choose_layers,
    compiled_alone,
    find_places,
    held_by_optimizer,
    is_compiled_wrapper,
    listing,
    refuse_broken_ties,
    refuse_wrapped,
)
from adntn.topology import GeneratorConfig

__all__ = ["cached", "compress_", "materialize"]

INITS = ("random",)


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
    refuse_wrapped(model)
    places = find_places(model)
    names = choose_layers(places, targets, "targets", must_work=True)
    if not names:
        raise CompressionError("targets is empty, so there is nothing to compress.")
    left_out = set(choose_layers(places, ignore, "ignore", must_work=False))
    chosen = {name: config for name in names if name not in left_out}
    for pattern, other in (overrides or {}).items():
        for name in choose_layers(places, pattern, "overrides", must_work=True):
            if name in chosen:
                chosen[name] = other
            elif not pattern.startswith("re:"):
                raise CompressionError(f"overrides names {name!r}, which is not among the targets: {listing(chosen)}.")
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
    refuse_broken_ties(model, places, chosen)

    new = _build(places, chosen, execution)
    for name, layer in new.items():
        for parent, attribute in places[name].parents:
            setattr(parent, attribute, layer)
    return describe(model)


def _build(
    places: Mapping[str, Place], chosen: Mapping[str, GeneratorConfig], execution: str
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
                if child.bias is not None:
                    layer.register_parameter("bias", child.bias)  # of the copy already, and possibly shared
                layer.register_parameter("weight", weights.setdefault(id(child._network), dense_weight(layer)))
                plain[id(child)] = layer
            setattr(parent, attribute, plain[id(child)])
            if is_compiled_wrapper(parent):
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
