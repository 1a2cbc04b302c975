"""Saving and loading: safetensors with the configs in the header, nothing unpickled, nothing half-written.

A file holds every tensor of the model's ``state_dict``; what several names share is stored once. Its header says
which layers are generated and how, and carries a digest over all of it, so that a changed file is refused instead of
loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adntn.describe import generated_layers, plain_name
from adntn.errors import AdntnError, CheckpointError, ConfigError, ShapeError
from adntn.execution.plan import EXECUTIONS
from adntn.nn import GENERATED, GeneratedLayer
from adntn.nn._generated import dense_weight
from adntn.targets import compiled_alone, held_by_optimizer, obstacle
from adntn.topology import Blueprint, GeneratorConfig

__all__ = ["FORMAT_VERSION", "load", "save"]

FORMAT_VERSION = 1
_HEADER = "adntn"
_DIGEST = "adntn.sha256"

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
        CheckpointError: a parameter has NaN or infinite entries, a tensor is on the meta device, or the file cannot
            be written.
    """
    path = Path(path)
    tensors, aliases = _tensors(model)
    layers = [_Layer.of(name, layer) for name, layer in generated_layers(model).items()]
    first_by_generator: dict[int, str] = {}
    for name, layer in generated_layers(model).items():
        first_by_generator.setdefault(id(layer._network), name)
    shared = {
        name: first_by_generator[id(layer._network)]
        for name, layer in generated_layers(model).items()
        if first_by_generator[id(layer._network)] != name
    }
    header = json.dumps(
        {
            "format": FORMAT_VERSION,
            "layers": {layer.name: layer.to_dict() for layer in layers},
            "shared": shared,
            "aliases": aliases,
        },
        sort_keys=True,
    )
    metadata = {"format": "pt", _HEADER: header, _DIGEST: _digest(header, tensors)}
    with writing(path) as temporary:
        save_file(tensors, temporary, metadata)
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to ``path`` when the block ends well.

    Raises:
        CheckpointError: the file cannot be written; what stood under ``path`` before still stands.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}.") from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}. What stood there before is untouched.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


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


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


# --- what the header says of a layer --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    name: str
    kind: str
    shape: tuple[int, ...]
    config: GeneratorConfig
    execution: str

    @classmethod
    def of(cls, name: str, layer: GeneratedLayer) -> _Layer:
        return cls(name, layer.dense_type.__name__, layer.blueprint.shape, layer.config, layer.execution)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "config": self.config.to_dict(),
            "execution": self.execution,
        }

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, Any]) -> _Layer:
        kind, shape, execution = values["kind"], values["shape"], values["execution"]
        if not all(type(n) is int for n in shape) or execution not in EXECUTIONS:
            raise CheckpointError(f"the entry of {name!r} is not one that this library writes.")
        return cls(name, kind, tuple(shape), GeneratorConfig.from_dict(values["config"]), execution)


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
    content = _read(path)
    modules = {plain_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    try:
        for layer in content.layers.values():
            _check_layer(path, layer, modules)
        _check_places(path, content, model, modules)
        _check_tensors(path, content, model, modules)
        new = _new_layers(content, modules)
    except (ConfigError, ShapeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    for parent in list(model.modules()):
        for attribute, child in list(parent._modules.items()):
            if child is not None and id(child) in new:
                setattr(parent, attribute, new[id(child)])
    with torch.no_grad():
        for full, tensor in model.state_dict(keep_vars=True).items():
            name = plain_name(full)
            tensor.copy_(content.tensors[content.aliases.get(name, name)])
    for name, layer in content.layers.items():
        module = modules[name]
        if isinstance(module, GeneratedLayer):
            module.execution = layer.execution
    return model


@dataclass(frozen=True)
class _Content:
    layers: dict[str, _Layer]
    shared: dict[str, str]
    aliases: dict[str, str]
    tensors: dict[str, Tensor]


def _read(path: Path) -> _Content:
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (
        SafetensorError,
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
        KeyError,
        UnicodeError,
        OverflowError,
    ) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
    header, digest = metadata.get(_HEADER), metadata.get(_DIGEST)
    if header is None or digest is None:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one that adntn.save wrote: its header names no generators."
        )
    version = _version(path, header)
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}, newer than the {FORMAT_VERSION} that this adntn knows; upgrade adntn."
        )
    if digest != _digest(header, tensors):
        raise CheckpointError(
            f"{path} was changed after it was written: its digest does not match. Take another copy of it."
        )
    try:
        values = json.loads(header)
        layers = {name: _Layer.from_dict(name, entry) for name, entry in values["layers"].items()}
        content = _Content(layers, dict(values["shared"]), dict(values["aliases"]), tensors)
        for name, owner in content.shared.items():
            one, other = layers[name], layers[owner]
            if owner in content.shared or (one.shape, one.config) != (other.shape, other.config):
                raise ValueError(f"{name!r} cannot share the generator of {owner!r}")
        for name, owner in content.aliases.items():
            if name in tensors or owner not in tensors:
                raise ValueError(f"{name!r} cannot stand for {owner!r}")
    except AdntnError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a header that this library did not write: {error!r}.") from None
    return content


def _version(path: Path, header: str) -> int:
    try:
        version = json.loads(header)["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        version = None
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path} has a header that this library did not write.")
    return version


def _check_layer(path: Path, layer: _Layer, modules: Mapping[str, nn.Module]) -> None:
    module = modules.get(layer.name)
    if module is None:
        raise CheckpointError(f"{path} has a generated layer {layer.name!r}, and the model has no module of that name.")
    if isinstance(module, GeneratedLayer):
        if (module.blueprint.shape, module.config) != (layer.shape, layer.config):
            raise CheckpointError(
                f"{path}: {layer.name!r} is generated with shape {layer.shape} and {layer.config} in the file, "
                f"with shape {module.blueprint.shape} and {module.config} in the model."
            )
        module.would_run(layer.execution)
        return
    why = obstacle(module)
    # The weight's values are about to go, so they need not be finite.
    if why is not None and "NaN" not in why:
        raise CheckpointError(f"{path} has a generated layer {layer.name!r}, which cannot be one in this model: {why}.")
    if type(module).__name__ != layer.kind or tuple(dense_weight(module).shape) != layer.shape:
        raise CheckpointError(
            f"{path}: {layer.name!r} is a {layer.kind} with a weight of shape {layer.shape} in the file, "
            f"a {type(module).__name__} with {tuple(dense_weight(module).shape)} in the model."
        )


def _check_places(path: Path, content: _Content, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Refuse where putting other layers in place would change nothing, or too little."""
    dense = {name: modules[name] for name in content.layers if not isinstance(modules[name], GeneratedLayer)}
    compiled = compiled_alone(model)
    for name, module in dense.items():
        if module is getattr(model, "_orig_mod", model):
            raise CheckpointError(
                f"{path} holds a single generated layer, and a {type(module).__name__} on its own has no place to put "
                "it; load it into the class of adntn.nn."
            )
        if id(module) in compiled:
            raise CheckpointError(
                f"{path}: {name!r} is compiled on its own already; load the file first, then torch.compile."
            )
    why = held_by_optimizer({id(dense_weight(module)): name for name, module in dense.items()})
    if why is not None:
        raise CheckpointError(f"{path}: {why}. Load the file first, then build the optimiser.")


@dataclass(frozen=True)
class _Expected:
    """What the model needs under a name; names of one identity are one tensor in it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parameter: bool
    identity: object


def _check_tensors(path: Path, content: _Content, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Compare the file's tensors with those that the model will have, before anything is changed."""
    parameters = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    expected: dict[str, _Expected] = {}
    problems: list[str] = []
    for full, tensor in model.state_dict(keep_vars=True).items():
        name = plain_name(full)
        expected[name] = _Expected(tuple(tensor.shape), tensor.dtype, name in parameters, id(tensor))
        if tensor.is_meta:
            problems.append(f"{name} is on the meta device in the model (call model.to_empty(device=...) first)")
    layers = {id(modules[name]): layer for name, layer in content.layers.items()}
    for name, module in modules.items():
        if id(module) in layers and not isinstance(module, GeneratedLayer):
            expected.pop(f"{name}.weight", None)
            layer, dtype = layers[id(module)], dense_weight(module).dtype
            blueprint = Blueprint(layer.shape, layer.config)
            for key, shape in blueprint.parameter_shapes.items():
                expected[f"{name}.{key}"] = _Expected(shape, dtype, True, (id(module), key))
            for key, shape in blueprint.buffer_shapes.items():
                expected[f"{name}.{key}"] = _Expected(shape, torch.int64, False, (id(module), key))

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


def _new_layers(content: _Content, modules: Mapping[str, nn.Module]) -> dict[int, GeneratedLayer]:
    """Return the layer for each dense module, by its id, that the file has a generated one for."""
    made: dict[str, GeneratedLayer] = {}
    new: dict[int, GeneratedLayer] = {}
    for name in sorted(content.layers, key=content.shared.__contains__):  # first those that others share with
        layer, module = content.layers[name], modules[name]
        if isinstance(module, GeneratedLayer):
            made[name] = module
            continue
        owner = content.shared.get(name)
        made[name] = new[id(module)] = GENERATED[type(module)].from_dense(
            module, layer.config, share=made[owner] if owner else None, execution=layer.execution
        )
    return new
