"""IDX files, the format of MNIST: Fashion-MNIST by name, and any folder that holds the four files."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from adntn.experiments.data.images import DataError, ImageData, Split
from adntn.experiments.data.reading import MAX_BYTES, Bytes, assemble, folder_name, make_split, shown

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts the four IDX files."""

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def load_fashion_mnist() -> ImageData:
    """Read Fashion-MNIST from where its Debian package puts it."""
    data = load_idx(FASHION_MNIST_FOLDER, name="fashion-mnist")
    if data is None:
        raise DataError(
            f"fashion-mnist is not in {FASHION_MNIST_FOLDER}: run 'apt install dataset-fashion-mnist' "
            "(Debian), or give the folder that holds train-images-idx3-ubyte.gz and the three files beside it"
        )
    return data


def load_idx(folder: Path, name: str | None = None) -> ImageData | None:
    """Read a folder's four IDX files; ``None`` if it has none of them. ``name`` is the folder's by default."""
    files = _find(folder)
    if files is None:
        return None
    train, test = _read_split(*files[:2]), _read_split(*files[2:])
    name = title = name or folder_name(folder)
    if re.sub(r"[^a-z]", "", name.lower()) == "fashionmnist":
        name, title = "fashion-mnist", "Fashion-MNIST"
    return assemble(name, title, train, test, f"IDX files in folder {folder.resolve().name!r}")


def _find(folder: Path) -> list[Path] | None:
    """Find the files in the order of ``_FILES``, plain or .gz, the type after a hyphen or a point."""
    for place in (folder, folder / "raw"):
        found, missing = [], []
        for name in _FILES:
            stems = (name, name.replace("-idx", ".idx"))
            paths = (place / (stem + ending) for stem in stems for ending in ("", ".gz"))
            path = next(filter(Path.is_file, paths), None)
            if path is None:
                missing.append(name)
            else:
                found.append(path)
        if found and missing:
            raise DataError(f"{place} has IDX files, but not {', '.join(missing)} (plain or .gz)")
        if found:
            return found
    return None


def _read_split(images_path: Path, labels_path: Path) -> Split:
    images, labels = _read(images_path, ndim=3), _read(labels_path, ndim=1)
    if len(images) != len(labels):
        raise DataError(f"{images_path} holds {len(images)} images but {labels_path} holds {len(labels)} labels")
    return make_split(images[:, None], labels)


def _read(path: Path, *, ndim: int) -> Bytes:
    """Read one IDX file of unsigned bytes, plain or gzip (told by content: browsers unpack silently).

    Raises:
        DataError: unreadable, not IDX, another dtype or number of dimensions, empty, or longer or shorter
            than the header says.
    """
    try:
        stored = path.stat().st_size
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                # Deflate expands 1,032-fold at the very most: a header that claims more is lying.
                with gzip.GzipFile(fileobj=file) as stream:
                    return _parse(stream, path, ndim, possible=1032 * stored)
            return _parse(file, path, ndim, possible=stored)
    except EOFError as error:
        raise DataError(f"{path} is truncated: its gzip stream ends early") from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _parse(stream: BinaryIO | gzip.GzipFile, path: Path, ndim: int, possible: int) -> Bytes:
    expected_magic = bytes((0, 0, 0x08, ndim))  # two zeros, the code of unsigned bytes, the dimensions
    magic = stream.read(4)
    if magic != expected_magic:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes in {ndim} dimension(s): "
            f"expected it to start with 0x{expected_magic.hex()}, found {shown(magic)}"
        )
    header = stream.read(4 * ndim)
    if len(header) < 4 * ndim:
        raise DataError(
            f"{path} is truncated: expected {4 * ndim} bytes of sizes after the first four, found {len(header)}"
        )
    shape = tuple(int(size) for size in np.frombuffer(header, dtype=">u4"))
    size = math.prod(shape)
    if size == 0:
        raise DataError(f"{path} is empty: its header gives the sizes {shape}")
    if size > MAX_BYTES:
        raise DataError(f"{path} gives the sizes {shape}, {size:,} bytes; more than {MAX_BYTES:,} are not read")
    if size > possible:
        raise DataError(
            f"{path} is truncated or foreign: its sizes {shape} need {size:,} bytes, but it cannot hold "
            f"more than {possible:,}"
        )
    # One byte more than promised: enough to see that there is too much, and no more than that of a bomb. At
    # the right length it also makes gzip reach the end and verify its checksum.
    content = stream.read(size + 1)
    if len(content) != size:
        found = f"{len(content):,}" if len(content) < size else f"more than {size:,}"
        raise DataError(f"{path}: its sizes {shape} need {size:,} bytes of data, found {found}")
    return np.frombuffer(bytearray(content), dtype=np.uint8).reshape(shape)
