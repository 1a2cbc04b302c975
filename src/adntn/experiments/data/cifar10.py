"""CIFAR-10: its binary batches, and by name one pinned commit of the Hugging Face copy."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adntn.experiments.data.images import DataError, ImageData, Split
from adntn.experiments.data.parquet import read_parquet
from adntn.experiments.data.reading import MAX_BYTES, Bytes, assemble, make_split, require

CIFAR10_REPOSITORY = "uoft-cs/cifar10"
CIFAR10_REVISION = "0b2714987fa478483af9968de7c934580d0bb9a2"
"""Commit of the Hugging Face copy of CIFAR-10: a run's data must not change because a branch moved."""

_HUB_FILES = ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet")

_BATCHES = (*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin")
_RECORD = 1 + 3 * 32 * 32  # a label, then the red, the green and the blue plane


def load_cifar10(*, download: bool) -> ImageData:
    """Read CIFAR-10 from the Hugging Face cache, or, only with ``download``, from the network."""
    train, test = _find_cached() or _download(download)
    origin = f"Hugging Face {CIFAR10_REPOSITORY} at {CIFAR10_REVISION[:12]}, parquet files"
    return read_parquet([train], [test], "cifar10", origin)


def _find_cached() -> list[Path] | None:
    """Look for both files in the Hugging Face cache; no network."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        return None
    paths = [
        hub.try_to_load_from_cache(CIFAR10_REPOSITORY, file, revision=CIFAR10_REVISION, repo_type="dataset")
        for file in _HUB_FILES
    ]
    return [Path(path) for path in paths] if all(isinstance(path, str) for path in paths) else None


def _download(allowed: bool) -> list[Path]:
    """Download both files into the Hugging Face cache."""
    instead = "give a folder with its parquet files or with the binary batches (data_batch_1.bin … test_batch.bin)"
    if not allowed:
        raise DataError(
            f"cifar10 is not on this machine: allow the download (--download, or download=True), or {instead}"
        )
    hub = require("huggingface_hub", "cifar10", "downloading cifar10")
    api = hub.HfApi()
    try:
        # Asked first, because it fails at once: a download retries for 23 s before it admits that there is no
        # network.
        api.dataset_info(CIFAR10_REPOSITORY, revision=CIFAR10_REVISION, timeout=5.0)
        return [
            Path(api.hf_hub_download(CIFAR10_REPOSITORY, file, revision=CIFAR10_REVISION, repo_type="dataset"))
            for file in _HUB_FILES
        ]
    except Exception as error:  # the HTTP client, and with it the errors, changes between releases
        raise DataError(
            f"cifar10 could not be downloaded from {CIFAR10_REPOSITORY}: {type(error).__name__}: {error}. "
            f"Check the network, or {instead}"
        ) from error


def load_batches(folder: Path) -> ImageData | None:
    """Read a folder's binary batches; ``None`` if it has none of them."""
    for place in (folder, folder / "cifar-10-batches-bin"):
        missing = [name for name in _BATCHES if not (place / name).is_file()]
        if len(missing) == len(_BATCHES):
            continue
        if missing:
            raise DataError(f"{place} has binary batches of CIFAR-10, but not {', '.join(missing)}")
        train, test = _read_batches(place, _BATCHES[:5]), _read_batches(place, _BATCHES[5:])
        origin = f"CIFAR-10 binary batches in folder {folder.resolve().name!r}"
        return assemble("cifar10", "CIFAR-10", train, test, origin, num_classes=10)
    return None


def _read_batches(place: Path, names: Sequence[str]) -> Split:
    records = np.concatenate([_read_batch(place / name) for name in names])
    return make_split(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])


def _read_batch(path: Path) -> Bytes:
    """Read one binary batch as (N, 3073)."""
    try:
        stored = path.stat().st_size
        if stored > MAX_BYTES:
            raise DataError(f"{path} has {stored:,} bytes; more than {MAX_BYTES:,} are not read")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not content or len(content) % _RECORD:
        raise DataError(
            f"{path} is truncated or foreign: expected records of {_RECORD} bytes, found "
            f"{len(content):,} bytes, {len(content) % _RECORD} of them over"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD)
    if (largest := int(records[:, 0].max())) > 9:
        raise DataError(f"{path} is not a batch of CIFAR-10: labels must be 0..9, found {largest}")
    return records
