"""What a file holds, and writing it whole or not at all.

A file is safetensors with every tensor of the model's ``state_dict``; what several names share is stored once. Its
header says what is generated and how, and carries a digest over all of it, so that a changed file is refused instead of
loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adntn.errors import AdntnError, CheckpointError
from adntn.execution.choices import EXECUTIONS, Choices
from adntn.nn import GeneratedWeight
from adntn.quantization import Quantization, pack, quantized_names, unpack
from adntn.topology import Blueprint, GeneratorConfig

__all__ = ["FORMAT_VERSION", "PACKED", "Content", "Entry", "digest", "is_ours", "read", "write", "writing"]

#: 2 has weights that share rows of one generator, attentions, and parameters of modules without a class of their own; 3
#: has the ways that were chosen; 4 has quantised generators. A file without them is still written as 1, 2 or 3, which
#: older versions read.
FORMAT_VERSION = 4
#: What the tensor of a packed generator is called, behind what its parameters' names begin with.
PACKED = "packed"
_FLOATS = ("float32", "float64", "bfloat16", "float16")
_HEADER = "adntn"
_DIGEST = "adntn.sha256"


@dataclass(frozen=True)
class Content:
    """A file.

    Attributes:
        entries: the generated weights by name.
        shared: those that have the generator of another, with its name.
        aliases: further names of stored tensors.
        tensors: by name.
        packed: which generators are packed in the file: what their tensors' names begin with, and which entry it is.
            Here their tensors are as the model has them.
    """

    entries: dict[str, Entry]
    shared: dict[str, str]
    aliases: dict[str, str]
    tensors: dict[str, Tensor]
    packed: dict[str, str] = field(default_factory=dict)


# --- what the header says of a weight --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A generated weight, under its layer's name or that of the parameter in the plain model.

    Attributes:
        name: in the model.
        kind: the torch layer's class, or ``"MultiheadAttention"`` and ``"parameter"`` for one of several in a module.
        shape: of all that its generator makes.
        config: of its generator.
        execution: of its layer.
        rows: which rows of all that are its own; None for all of them.
        choices: the ways that ``execution="auto"`` chose; None where there was nothing to choose.
        quantization: of its generator's root and cores; None where they are not quantised.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    config: GeneratorConfig
    execution: str
    rows: tuple[int, int] | None = None
    choices: Choices | None = None
    quantization: Quantization | None = None

    @classmethod
    def of(cls, name: str, weight: GeneratedWeight) -> Entry:
        choices = weight.choices if weight.chooses else None
        return cls(
            name,
            weight.kind,
            weight.blueprint.shape,
            weight.config,
            weight.execution,
            weight.rows,
            choices,
            weight.quantization,
        )

    @property
    def own_shape(self) -> tuple[int, ...]:
        """Shape of the weight itself."""
        return self.shape if self.rows is None else (self.rows[1] - self.rows[0], *self.shape[1:])

    @property
    def format(self) -> int:
        """The first version of the format that has such weights."""
        if self.quantization is not None:
            return 4
        if self.choices is not None:
            return 3
        return 1 if self.rows is None and self.kind not in ("MultiheadAttention", "parameter") else 2

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "kind": self.kind,
            "shape": list(self.shape),
            "config": self.config.to_dict(),
            "execution": self.execution,
        }
        if self.rows is not None:
            values["rows"] = list(self.rows)
        if self.choices is not None:
            values["choices"] = self.choices.to_dict()
        if self.quantization is not None:
            values["bits"] = self.quantization.bits
        return values

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, Any]) -> Entry:
        kind, shape, execution, rows = values["kind"], values["shape"], values["execution"], values.get("rows")
        possible = type(shape) is list and shape and all(type(n) is int for n in shape)
        possible = possible and type(kind) is str and execution in EXECUTIONS
        if possible and rows is not None:
            possible = type(rows) is list and len(rows) == 2 and all(type(n) is int for n in rows)
            possible = possible and 0 <= rows[0] < rows[1] <= shape[0]
        if not possible:
            raise CheckpointError(f"the entry of {name!r} is not one that this library writes.")
        config = GeneratorConfig.from_dict(values["config"])
        own = None if rows is None else (rows[0], rows[1])
        choices = values.get("choices")
        if choices is not None and execution != "auto":
            raise CheckpointError(f"the entry of {name!r} has choices, and execution={execution!r} leaves none.")
        chosen = None if choices is None else Choices.from_dict(choices)
        quantization = Quantization(values["bits"]) if "bits" in values else None
        return cls(name, kind, tuple(shape), config, execution, own, chosen, quantization)


# --- writing --------------------------------------------------------------------------------------------------------


def write(path: Path, content: Content) -> None:
    """Write a file, whole or not at all.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors, packed = _pack(content)
    values = {
        "format": max((entry.format for entry in content.entries.values()), default=1),
        "layers": {name: entry.to_dict() for name, entry in content.entries.items()},
        "shared": content.shared,
        "aliases": content.aliases,
    }
    header = json.dumps(values | ({"packed": packed} if packed else {}), sort_keys=True)
    metadata = {"format": "pt", _HEADER: header, _DIGEST: digest(header, tensors)}
    with writing(path) as temporary:
        save_file(tensors, temporary, metadata)


def _pack(content: Content) -> tuple[dict[str, Tensor], dict[str, dict[str, str]]]:
    """Return the tensors of the file, and what its header says of those that are packed.

    A generator's quantised parameters become one tensor, since every tensor of a file has a description that is longer
    than a core.
    """
    tensors = dict(content.tensors)
    packed: dict[str, dict[str, str]] = {}
    for start, owner in content.packed.items():
        entry = content.entries[owner]
        assert entry.quantization is not None
        blueprint = Blueprint(entry.shape, entry.config)
        values = {name: tensors.pop(start + name) for name in quantized_names(blueprint)}
        dtype = next(iter(values.values())).dtype
        tensors[start + PACKED] = pack(values, blueprint, entry.quantization)
        packed[start + PACKED] = {"layer": owner, "dtype": str(dtype).removeprefix("torch.")}
    return tensors, packed


def _unpack(content: Content, packed: Mapping[str, Mapping[str, str]]) -> Content:
    """Return what :func:`_pack` was given, its packed parameters on their grid.

    Raises:
        ValueError: the tensors are not what the header says; the message says which.
    """
    tensors, starts = dict(content.tensors), dict(content.packed)
    for name, values in packed.items():
        start, owner, entry = name.removesuffix(PACKED), values["layer"], content.entries[values["layer"]]
        if not name.endswith(PACKED) or entry.quantization is None or values["dtype"] not in _FLOATS:
            raise ValueError(f"{name!r} cannot be packed")
        blueprint = Blueprint(entry.shape, entry.config)
        try:
            made = unpack(tensors.pop(name), blueprint, entry.quantization, getattr(torch, values["dtype"]))
        except ValueError as error:
            raise ValueError(f"{name!r} is {error}") from None
        if any(start + each in tensors for each in made):
            raise ValueError(f"{name!r} is packed, and stored beside that")
        tensors.update({start + each: value for each, value in made.items()})
        starts[start] = owner
    return Content(content.entries, content.shared, content.aliases, tensors, starts)


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


def digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of a header and all tensors."""
    sha = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


# --- reading --------------------------------------------------------------------------------------------------------


def read(path: Path) -> Content:
    """Return what a file holds.

    Raises:
        CheckpointError: it is missing, truncated, foreign, changed or from a newer version.
    """
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
    header, signed = metadata.get(_HEADER), metadata.get(_DIGEST)
    if header is None or signed is None:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one that adntn.save wrote: its header names no generators."
        )
    version = _version(path, header)
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}, newer than the {FORMAT_VERSION} that this adntn knows; upgrade adntn."
        )
    if signed != digest(header, tensors):
        raise CheckpointError(
            f"{path} was changed after it was written: its digest does not match. Take another copy of it."
        )
    try:
        values = json.loads(header)
        entries = {name: Entry.from_dict(name, entry) for name, entry in values["layers"].items()}
        content = Content(entries, dict(values["shared"]), dict(values["aliases"]), tensors)
        content = _unpack(content, values.get("packed", {}))
        tensors = content.tensors
        for name, owner in content.shared.items():
            one, other = entries[name], entries[owner]
            same = (one.shape, one.config, one.quantization) == (other.shape, other.config, other.quantization)
            if owner in content.shared or not same:
                raise ValueError(f"{name!r} cannot share the generator of {owner!r}")
        for name, owner in content.aliases.items():
            if name in tensors or owner not in tensors:
                raise ValueError(f"{name!r} cannot stand for {owner!r}")
    except AdntnError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a header that this library did not write: {error!r}.") from None
    return content


def is_ours(path: Path) -> bool:
    """Return whether a file is a safetensors file with this library's header; nothing else of it is looked at."""
    try:
        with safe_open(path, framework="pt") as file:
            return _HEADER in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _version(path: Path, header: str) -> int:
    try:
        version = json.loads(header)["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        version = None
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path} has a header that this library did not write.")
    return version
