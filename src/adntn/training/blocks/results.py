"""What came of blocks: kept in files, and put into the model."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adntn import errors
from adntn.savefile import digest, writing
from adntn.training.blocks.find import Block
from adntn.training.blocks.jobs import BlockFit, Done

__all__ = ["fingerprint", "keep", "kept", "put", "refusal"]

_HEADER, _DIGEST = "adntn.block", "adntn.sha256"


def fingerprint(block: Block, how: BlockFit, seed: int) -> str:
    """Return what a kept result has to be of to be used: the block at its start, the options and the seed."""
    values = {name: p.detach().cpu().contiguous() for name, p in block.parameters(how).items()}
    return digest(json.dumps([block.name, how.to_dict(), seed], sort_keys=True), values)


def keep(folder: Path, done: Done, mark: str) -> None:
    """Write a result into a folder, whole or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """
    tensors = done.read()
    header = json.dumps(
        {"mark": mark, "name": done.name, "before": done.before, "after": done.after, "steps": done.steps}
        | {"seconds": done.seconds}
    )
    with writing(_path(folder, done.name)) as temporary:
        save_file(tensors, temporary, {_HEADER: header, _DIGEST: digest(header, tensors)})


def kept(folder: Path, name: str, mark: str) -> Done | None:
    """Return the result of a block that a folder has, or None: there is none, it is broken, or of something else."""
    path = _path(folder, name)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        values = json.loads(metadata[_HEADER])
        if metadata[_DIGEST] != digest(metadata[_HEADER], tensors) or values.pop("mark") != mark:
            return None
        return Done.of(values["name"], tensors, values["before"], values["after"], values["steps"], values["seconds"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def _path(folder: Path, name: str) -> Path:
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100]
    # Two names may look alike then, and on some systems do if they differ in capitals only.
    mark = "" if plain == name.lower() else f".{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return folder / f"{plain}{mark}.safetensors"


@torch.no_grad()
def put(block: Block, how: BlockFit, done: Done) -> None:
    """Write what was trained into the model's block."""
    values = done.read()
    for name, parameter in block.parameters(how).items():
        parameter.copy_(values[name])


def refusal(done: Done) -> Exception:
    """Return the exception for a block that failed: of the same class where it is the library's own."""
    kind, message = done.problem or ("", "")
    text = f"block {done.name!r}: {message}"
    own = getattr(errors, kind, None)
    if isinstance(own, type) and issubclass(own, errors.AdntnError):
        error: Exception = own(text)
    else:
        error = RuntimeError(f"block {done.name!r}: {kind}: {message}")
    if done.trace:
        error.add_note(done.trace)
    return error
