"""What the readers share: limits, optional packages, and the way from arrays to a data set."""

from __future__ import annotations

import hashlib
import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adntn.experiments.data.images import DataError, ImageData, Split

# Far above every data set that these experiments mean (EMNIST, the largest of the IDX family, is 0.6 GB), far
# below what would take a machine down: a header that claims more is refused before anything is allocated.
MAX_BYTES = 4 << 30

Bytes = npt.NDArray[np.uint8]


def require(module: str, extra: str, purpose: str) -> Any:
    """Import a module that only some data sets need. ``Any``, because these packages ship no types."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{purpose} needs {module}: pip install 'adntn[{extra}]' ({error})") from error


def folder_name(folder: Path) -> str:
    """The name to give a folder's data: a folder called ``raw`` is part of the one that has the name."""
    resolved = folder.resolve()
    return (resolved.parent if resolved.name == "raw" else resolved).name


def shown(content: bytes) -> str:
    """The first bytes of a file or an image, for an error message."""
    return f"0x{content.hex()}" if content else "nothing: the file is empty"


def make_split(images: Bytes, labels: npt.NDArray[Any]) -> Split:
    """Make a split of arrays (N, C, H, W) and (N,)."""
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(np.array(labels, dtype=np.int64)))


def assemble(
    name: str, title: str, train: Split, test: Split, origin: str, num_classes: int | None = None
) -> ImageData:
    """Make a data set of two ``uint8`` splits; without ``num_classes`` it is the largest label, and one."""
    if num_classes is None:
        num_classes = 1 + max(int(train.labels.max()), int(test.labels.max()))
    mean, std = statistics(train.images)
    source = f"{origin}; sha256 of the decoded data {_fingerprint(train, test)}"
    return ImageData(name, title, train, test, num_classes, mean, std, source)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population deviation per channel of ``uint8`` images scaled to 0..1, from exact sums."""
    mean, std = [], []
    for channel in images.unbind(1):
        often = torch.bincount(channel.flatten(), minlength=256).tolist()
        count = sum(often)
        first = sum(value * times for value, times in enumerate(often))
        second = sum(value**2 * times for value, times in enumerate(often))
        # Python's integers keep the difference exact; in floating point it would cancel.
        variance = (count * second - first * first) / count**2
        mean.append(first / count / 255)
        std.append(math.sqrt(variance) / 255 or 1.0)
    return tuple(mean), tuple(std)


def _fingerprint(*splits: Split) -> str:
    """Sixteen hexadecimal digits that tell one data set's decoded content from another's."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.numpy().data)
        digest.update(split.labels.numpy().astype("<i8").data)
    return digest.hexdigest()[:16]
