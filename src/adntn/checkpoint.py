"""Saving and loading: safetensors with the configs in the header, nothing unpickled, nothing half-written."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from adntn.common_cores import tie_cores_
from adntn.cores import CoreModule
from adntn.describe import generated_weights, plain_name
from adntn.errors import CheckpointError, CompressionError, ConfigError, ShapeError
from adntn.exchange import Replacement, Wanted, build, put_in_place
from adntn.execution.choices import Choices
from adntn.nn import GeneratedWeight
from adntn.quantization import quantized_names
from adntn.savefile import FORMAT_VERSION, PACKED, Content, Entry, read, write, writing
from adntn.targets import Place, Places, compiled_alone, find_places, held_by_optimizer
from adntn.topology import Blueprint

__all__ = ["FORMAT_VERSION", "execution_state", "load", "load_execution_state", "save", "writing"]

Model = TypeVar("Model", bound=nn.Module)


# --- writing --------------------------------------------------------------------------------------------------------


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model to a safetensors file.

    The file appears under its name only when it is whole: it is written beside it, flushed to the disk, then renamed.
    If that fails, what stood there before still stands.

    Args:
        model: any model, with or without generated layers; a compiled one is seen through.
        path: of the file; its folder must exist.

    Returns:
        The path.

    Raises:
        CheckpointError: a parameter has NaN or infinite entries, a tensor is on the meta device, a generator's
            ``activation_strength`` is below 1, or the file cannot be written.

    Example:
        >>> adntn.save(model, "model.safetensors")
    """
    path = Path(path)
    _refuse_weakened(model)
    tensors, aliases = _tensors(model)
    generated = generated_weights(model)
    first: dict[int, str] = {}
    for name, weight in generated.items():
        first.setdefault(id(weight._network), name)
    shared = {name: owner for name, weight in generated.items() if (owner := first[id(weight._network)]) != name}
    entries = {name: Entry.of(name, weight) for name, weight in generated.items()}
    write(path, Content(entries, shared, aliases, tensors, _packed(model, generated, tensors)))
    return path


def _packed(
    model: nn.Module, generated: Mapping[str, GeneratedWeight], tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """Return what the names of a quantised generator's tensors begin with, and the name of one of its weights."""
    names = {id(module): plain_name(full) for full, module in reversed([*model.named_modules()])}
    packed: dict[str, str] = {}
    for name, weight in generated.items():
        start = f"{module}." if (module := names[id(weight)]) else ""
        own = [start + each for each in quantized_names(weight.blueprint)]
        # Of those that share a generator one is stored. Where it is in part under the name of something else, as a
        # parameter that is tied by hand, the float numbers stay.
        if weight.quantization is not None and own and {*own} <= tensors.keys() and start + PACKED not in tensors:
            packed[start] = name
    return packed


def _refuse_weakened(model: nn.Module) -> None:
    """Refuse generators whose activation does not act in full: the file would not say so."""
    for name, module in model.named_modules():
        if isinstance(module, CoreModule) and len(module.activation) and module.activation_strength < 1.0:
            raise CheckpointError(
                f"{plain_name(name) or 'the model'!r} has activation_strength={module.activation_strength:g}, which a "
                "file cannot hold: set it to 1 and train on, or save what adntn.materialize(model) returns."
            )


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what to store by name, each tensor once and on the CPU, and the further names of what is shared."""
    parameters = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    owners: dict[int, str] = {}
    # keep_vars: detached copies would hide which names are one parameter.
    for full, tensor in model.state_dict(keep_vars=True).items():
        name = plain_name(full)
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{name!r} in the state_dict is a {type(tensor).__name__}, not a tensor; it cannot be stored."
            )
        if tensor.is_meta:
            raise CheckpointError(
                f"{name!r} is on the meta device and has no values; move the model off it, then load or initialise it."
            )
        if id(tensor) in owners:
            aliases[name] = owners[id(tensor)]
            continue
        if name in parameters and not _finite(tensor):
            raise CheckpointError(f"{name!r} has NaN or infinite entries; such a model is not saved.")
        owners[id(tensor)] = name
        # A copy where memory is shared with another tensor in part, which safetensors refuses.
        stored[name] = tensor.detach().cpu().contiguous().clone()
    return stored, aliases


def _kind(dtype: torch.dtype) -> str:
    """Return which of the kinds of numbers a type is, between which a cast would lose something."""
    return "complex" if dtype.is_complex else "floating" if dtype.is_floating_point else "whole"


def _finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    # torch cannot ask that of its types of eight bits.
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())


# --- reading --------------------------------------------------------------------------------------------------------


def load(model: Model, path: str | os.PathLike[str]) -> Model:
    """Load a file that :func:`save` wrote into a model, generating the layers that the file says are generated.

    Args:
        model: as it was before compression (plain layers), or compressed with the same configs. Its device and dtype
            are kept.
        path: of the file.

    Returns:
        The same model, changed in place. It is untouched if anything is wrong.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, changed or from a newer version, or does not fit the
            model.
        GeneratorTooLargeError: a generator would not fit into memory.

    Example:
        >>> model = adntn.load(build_model(), "model.safetensors")
    """
    path = Path(path)
    content = read(path)
    generated = generated_weights(model)
    try:
        wanted = _wanted(path, content, generated, model)
        _check_places(path, wanted, model)
        _check_tensors(path, content, model, wanted)
        replacements = build(wanted, generated)
        for name, weight in _new_weights(replacements).items():
            _take(weight, content.entries[name])
        put_in_place(replacements)
        tie_cores_(model, _new_weights(replacements).values(), content.aliases)
    except (ConfigError, ShapeError, CompressionError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    with torch.no_grad():
        for full, tensor in model.state_dict(keep_vars=True).items():
            name = plain_name(full)
            tensor.copy_(content.tensors[content.aliases.get(name, name)])
    for name, entry in content.entries.items():
        if name in generated:
            _take(generated[name], entry)
            generated[name].activation_strength = 1.0  # as it was saved
    for name, weight in generated_weights(model).items():
        if name in content.entries:
            weight._set_quantization(content.entries[name].quantization)
    return model


def _take(weight: GeneratedWeight, entry: Entry) -> None:
    """Run a weight as a file says."""
    weight.execution = entry.execution
    if entry.choices is not None:
        weight.take_choices(entry.choices)


def _new_weights(replacements: Sequence[Replacement]) -> dict[str, GeneratedWeight]:
    """Return what is generated in modules that are not in the model yet, by the names that it will have there."""
    return {
        ".".join(filter(None, (each.place.name, name))): weight
        for each in replacements
        for name, weight in generated_weights(each.new).items()
    }


def _wanted(path: Path, content: Content, generated: Mapping[str, GeneratedWeight], model: nn.Module) -> list[Wanted]:
    """Return what has to be generated in the model, after a comparison with what is."""
    places = find_places(model)
    wanted: list[Wanted] = []
    for name, entry in content.entries.items():
        if name in generated:
            _check_generated(path, entry, generated[name])
            continue
        place, key = _find(path, entry, places, model)
        why = place.find_obstacle(values=False)  # the values are about to go
        if why is not None:
            raise CheckpointError(f"{path} has a generated layer {name!r}, which cannot be one in this model: {why}.")
        kind = "parameter" if place.parameter else type(place.module).__name__
        weight = place.weights.get(key)
        shape = None if weight is None else tuple(weight.shape)
        if (kind, shape) != (entry.kind, entry.own_shape):
            raise CheckpointError(
                f"{path}: {name!r} is a {entry.kind} with a weight of shape {entry.own_shape} in the file, a {kind} "
                f"with {shape} in the model."
            )
        source = content.shared.get(name, name)
        wanted.append(Wanted(name, place, key, entry.config, entry.execution, source, entry.shape, entry.rows))
    for each in wanted:
        missing = set(each.place.weights) - {other.weight for other in wanted if other.place is each.place}
        if missing:
            raise CheckpointError(f"{path} has no generator for {min(missing)!r} beside {each.name!r}.")
    return wanted


def _check_generated(path: Path, entry: Entry, weight: GeneratedWeight) -> None:
    here = Entry.of(entry.name, weight)
    if (here.shape, here.rows, here.config) != (entry.shape, entry.rows, entry.config):
        raise CheckpointError(
            f"{path}: {entry.name!r} is generated with shape {_rows(entry)} and {entry.config} in the file, "
            f"with shape {_rows(here)} and {here.config} in the model."
        )
    _take(copy.copy(weight), entry)  # raises where that is impossible


def _rows(entry: Entry) -> str:
    return str(entry.shape) if entry.rows is None else f"{entry.own_shape}, rows {entry.rows} of {entry.shape},"


def _find(path: Path, entry: Entry, places: Places, model: nn.Module) -> tuple[Place, str]:
    """Return the place in a model that a file's generated weight belongs to, and its name in the place's module."""
    module, _, key = entry.name.rpartition(".")
    if entry.kind == "parameter":
        place = places.parameters.get(entry.name)
    else:
        module, key = (module, key) if entry.kind == "MultiheadAttention" else (entry.name, "weight")
        place = places.layers.get(module)
        if not module:
            raise CheckpointError(
                f"{path} holds a single generated layer, and a {type(getattr(model, '_orig_mod', model)).__name__} on "
                "its own has no place to put it; load it into the class of adntn.nn."
            )
    if place is None:
        raise CheckpointError(
            f"{path} has a generated layer {entry.name!r}, and the model has no module of that name, nor a parameter."
        )
    return place, key


def _check_places(path: Path, wanted: Sequence[Wanted], model: nn.Module) -> None:
    """Refuse where putting other layers in place would change nothing, or too little."""
    compiled = compiled_alone(model)
    for each in wanted:
        if id(each.place.module) in compiled:
            raise CheckpointError(
                f"{path}: {each.name!r} is compiled on its own already; load the file first, then torch.compile."
            )
    why = held_by_optimizer({id(each.place.weights[each.weight]): each.name for each in wanted})
    if why is not None:
        raise CheckpointError(f"{path}: {why}. Load the file first, then build the optimiser.")


@dataclass(frozen=True)
class _Expected:
    """What the model needs under a name; names of one identity are one tensor in it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parameter: bool
    identity: object


def _check_tensors(path: Path, content: Content, model: nn.Module, wanted: Sequence[Wanted]) -> None:
    """Compare the file's tensors with those that the model will have, before anything is changed."""
    parameters = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    expected: dict[str, _Expected] = {}
    problems: list[str] = []
    for full, tensor in model.state_dict(keep_vars=True).items():
        name = plain_name(full)
        expected[name] = _Expected(tuple(tensor.shape), tensor.dtype, name in parameters, id(tensor))
        if tensor.is_meta:
            problems.append(f"{name} is on the meta device in the model (call model.to_empty(device=...) first)")
    names: dict[int, list[str]] = {}
    for full, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(plain_name(full))
    for each in wanted:
        dtype = each.place.weights[each.weight].dtype
        blueprint = Blueprint(each.whole, each.config)
        for name in names[id(each.place.module)]:
            start = f"{name}." if name else ""
            expected.pop(start + each.weight, None)
            for key, shape in blueprint.parameter_shapes.items():
                expected[start + each.prefix + key] = _Expected(shape, dtype, True, (each.source, key))
            for key, shape in blueprint.buffer_shapes.items():
                expected[start + each.prefix + key] = _Expected(shape, torch.int64, False, (each.source, key))

    found = dict(content.tensors)
    found.update({name: content.tensors[owner] for name, owner in content.aliases.items()})
    problems += [f"{name} is missing from the file" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} is not in the model" for name in sorted(found.keys() - expected.keys())]
    first: dict[object, str] = {}
    for name in sorted(expected.keys() & found.keys()):
        want, tensor = expected[name], found[name]
        other = first.setdefault(want.identity, name)
        if tuple(tensor.shape) != want.shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)} in the file and {want.shape} in the model")
        elif _kind(tensor.dtype) != _kind(want.dtype):
            problems.append(f"{name} is {tensor.dtype} in the file and {want.dtype} in the model")
        elif want.parameter and not _finite(tensor.to(want.dtype)):
            problems.append(
                f"{name} has NaN or infinite entries in the file, or such that are too large for {want.dtype}"
            )
        elif not _same(found[other], tensor):
            problems.append(f"{other} and {name} are one tensor in the model and two different ones in the file")
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(problems[:8])}{more}.")


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.dtype == other.dtype and torch.equal(one, other))


# --- how it runs, for training loops of one's own -------------------------------------------------------------------


def execution_state(model: nn.Module) -> dict[str, Any]:
    """Return how each generated layer of a model runs, to be stored with a checkpoint of one's own.

    A ``state_dict`` has parameters only. With this beside it a resumed run takes the same ways, on whatever machine it
    is resumed; :func:`save` and the training runs of :mod:`adntn.training` store it by themselves.

    Args:
        model: with generated layers; a compiled one is seen through.

    Returns:
        Dictionaries, lists, texts and numbers, as JSON takes them.

    Example:
        >>> torch.save({"model": model.state_dict(), "execution": adntn.execution_state(model)}, "last.pt")
    """
    named = generated_weights(model).items()
    return {name: {"execution": weight.execution, "choices": weight.choices.to_dict()} for name, weight in named}


def load_execution_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Let each generated layer of a model run as :func:`execution_state` says.

    Args:
        model: with the same generated layers.
        state: what :func:`execution_state` returned.

    Raises:
        CheckpointError: the layers are others, or the state is not one that this library wrote. Nothing is changed.

    Example:
        >>> adntn.load_execution_state(model, checkpoint["execution"])
    """
    generated = generated_weights(model)
    if not isinstance(state, Mapping):
        raise CheckpointError(f"a {type(state).__name__} is no execution state; give what execution_state returned.")
    if state.keys() != generated.keys():
        missing, other = sorted(generated.keys() - state.keys()), sorted(map(str, state.keys() - generated.keys()))
        raise CheckpointError(
            f"the execution state is of another model: {', '.join(missing[:4]) or 'nothing'} missing in it, "
            f"{', '.join(other[:4]) or 'nothing'} not generated in the model."
        )
    taken: list[tuple[GeneratedWeight, str, Choices]] = []
    for name, weight in generated.items():
        try:
            execution, choices = state[name]["execution"], Choices.from_dict(state[name]["choices"])
            trial = copy.copy(weight)
            trial.execution = execution
            trial.take_choices(choices)
        except (ConfigError, KeyError, TypeError) as error:
            raise CheckpointError(f"the execution state of {name!r} is not possible: {error}") from error
        taken.append((weight, execution, choices))
    for weight, execution, choices in taken:
        weight.execution = execution
        weight.take_choices(choices)
