"""Folders of parquet files, as the Hugging Face hub keeps image data sets."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adntn.experiments.data.images import DataError, ImageData
from adntn.experiments.data.reading import MAX_BYTES, Bytes, assemble, folder_name, make_split, require, shown

_PURPOSE = "reading parquet files"
_CIFAR10_CLASSES = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}


@dataclass
class _Table:
    """One split of encoded images: its files with the name of each one's image column, checked but not read."""

    files: list[tuple[Path, str]]
    rows: int
    class_names: list[str] | None


@dataclass
class _Decoded:
    """One decoded split: (N, H, W, 3) images, labels, and what was seen on the way."""

    images: Bytes
    labels: npt.NDArray[np.int64]
    grey: bool
    jpeg: bool


def load_parquet(folder: Path) -> ImageData | None:
    """Read a folder's parquet files; ``None`` if it has none."""
    for place in (folder, folder / "plain_text", folder / "data"):
        train, test = (sorted(place.glob(f"{part}*.parquet")) for part in ("train", "test"))
        if not train and not test:
            continue
        for part, paths in (("train", train), ("test", test)):
            if not paths:
                raise DataError(f"{place} has parquet files, but none named {part}*.parquet")
            _check_shards(place, part, paths)
        return read_parquet(train, test, folder_name(folder), f"parquet files in folder {folder.resolve().name!r}")
    return None


def _check_shards(place: Path, part: str, paths: list[Path]) -> None:
    """Refuse a set of shards with one missing, or with the same rows twice: it would train all the same."""
    matches = [re.search(r"-(\d+)-of-(\d+)(?:-[0-9a-f]+)?$", path.stem) for path in paths]
    if not any(matches):
        return
    names = ", ".join(path.name for path in paths)
    indices = [int(match[1]) for match in matches if match]
    totals = {int(match[2]) for match in matches if match}
    if not all(matches) or len(totals) != 1 or len(set(indices)) != len(indices):
        raise DataError(f"{place}: these {part} files are not the shards of one data set: {names}")
    (total,) = totals
    missing = sorted(set(range(total)) - set(indices))
    if missing:
        raise DataError(f"{place}: shard {missing[0]} of {total} of {part} is missing; found {names}")


def read_parquet(train_paths: list[Path], test_paths: list[Path], name: str, origin: str) -> ImageData:
    """Decode the shards of both splits. What is seen to be CIFAR-10 is called that, all else ``name``."""
    train_table, test_table = _open(train_paths), _open(test_paths)
    train, test = _decode(train_table), _decode(test_table)
    # Grey images decode to three equal channels. Only when all are grey is one channel enough.
    channels = 1 if train.grey and test.grey else 3
    splits = [make_split(part.images[..., :channels].transpose(0, 3, 1, 2), part.labels) for part in (train, test)]
    names = train_table.class_names
    num_classes = len(names) if names else 1 + int(max(train.labels.max(), test.labels.max()))
    encoding = "JPEG" if train.jpeg or test.jpeg else "PNG"
    # SVHN, too, is 32×32, coloured, and has ten classes: where the file says what they are called, it decides.
    has_its_classes = num_classes == 10 and (not names or set(names) == _CIFAR10_CLASSES)
    title = name
    if has_its_classes and splits[0].images.shape[1:] == (3, 32, 32):
        name, title = "cifar10", "CIFAR-10 (JPEG)" if encoding == "JPEG" else "CIFAR-10"
    return assemble(name, title, splits[0], splits[1], f"{origin}, {encoding}", num_classes)


def _open(paths: list[Path]) -> _Table:
    """Check the columns and count the rows of one split's shards; read nothing else yet."""
    pyarrow, parquet = require("pyarrow", "cifar10", _PURPOSE), require("pyarrow.parquet", "cifar10", _PURPOSE)
    table = _Table([], 0, None)
    for path in paths:
        try:
            with parquet.ParquetFile(path) as reader:
                schema, rows = reader.schema_arrow, reader.metadata.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is not a parquet file that can be read: {error}") from error
        table.files.append((path, _image_column(schema, path)))
        table.rows += rows
        table.class_names = table.class_names or _class_names(schema)
    if table.rows == 0:
        raise DataError(f"{', '.join(map(str, paths))}: no rows")
    return table


def _image_column(schema: Any, path: Path) -> str:
    """Check both columns' types, and return the name of the one with the images."""
    types = require("pyarrow.types", "cifar10", _PURPOSE)
    fields = {field.name: field.type for field in schema}
    found = ", ".join(f"{name} ({kind})" for name, kind in fields.items()) or "none"
    name = next((name for name in ("img", "image") if name in fields), None)
    if name is None or "label" not in fields:
        raise DataError(f"{path}: expected columns 'img' (or 'image') and 'label'; found {found}")
    image = fields[name]
    index = image.get_field_index("bytes") if types.is_struct(image) else -1
    if index < 0 or not (types.is_binary(image.field(index).type) or types.is_large_binary(image.field(index).type)):
        raise DataError(f"{path}: column {name!r} must be a struct whose 'bytes' are an encoded image; found {found}")
    if not types.is_integer(fields["label"]):
        raise DataError(f"{path}: column 'label' must hold integers; found {found}")
    return name


def _class_names(schema: Any) -> list[str] | None:
    """Names of the classes, where the ``datasets`` library wrote them into the file; else ``None``."""
    try:
        note = json.loads((schema.metadata or {})[b"huggingface"])
        names = note["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    is_list = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return names if is_list else None


def _decode(table: _Table) -> _Decoded:
    """Decode one split's images to RGB.

    Raises:
        DataError: a null, an image that is not PNG or JPEG or is broken, sizes that differ, or another number
            of rows than promised.
    """
    open_image = require("PIL.Image", "cifar10", "decoding images").open
    images: Bytes | None = None
    labels = np.empty(table.rows, dtype=np.int64)
    grey, jpeg, row = True, False, 0
    for path, encoded, classes in _batches(table):
        if row + len(classes) > table.rows:
            raise DataError(f"{path}: more rows than the {table.rows:,} that were promised")
        labels[row : row + len(classes)] = classes
        for content in encoded:
            if content.startswith(b"\xff\xd8"):
                jpeg = True
            elif not content.startswith(b"\x89PNG"):
                raise DataError(f"{path}: image {row} is neither PNG nor JPEG; it starts with {shown(content[:4])}")
            try:
                # The decoders are named: Pillow would try dozens, some far less well tested than these.
                with open_image(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                    if images is None:
                        images = _allocate(table.rows, image.size, path)
                    if image.size != images.shape[2:0:-1]:  # checked on the header, before pixels are decoded
                        raise DataError(
                            f"{path}: image {row} is {image.size[0]}×{image.size[1]} (width×height), "
                            f"the first was {images.shape[2]}×{images.shape[1]}; all must have the same size"
                        )
                    if image.mode[0] in "IF":  # Pillow would clip 16 bits to 8, not scale them
                        raise DataError(f"{path}: image {row} has more than 8 bits a channel")
                    grey = grey and image.mode in ("1", "L")
                    images[row] = np.asarray(image.convert("RGB"))
            except DataError:
                raise
            except Exception as error:  # a broken image surfaces as any of half a dozen types
                raise DataError(f"{path}: image {row} cannot be decoded: {error}") from error
            row += 1
    if images is None or row != table.rows:
        raise DataError(f"{table.files[-1][0]}: expected {table.rows:,} rows, found {row:,}")
    return _Decoded(images, labels, grey, jpeg)


def _batches(table: _Table) -> Iterator[tuple[Path, list[bytes], npt.NDArray[Any]]]:
    """Read a split piece by piece: the file, its encoded images, and their labels."""
    pyarrow, parquet = require("pyarrow", "cifar10", _PURPOSE), require("pyarrow.parquet", "cifar10", _PURPOSE)
    for path, name in table.files:
        try:
            with parquet.ParquetFile(path) as reader:
                # The struct also holds each image's old path: not read.
                for batch in reader.iter_batches(batch_size=1024, columns=[f"{name}.bytes", "label"]):
                    images, labels = batch.column(name), batch.column("label")
                    encoded = images.field("bytes")
                    if images.null_count or encoded.null_count or labels.null_count:
                        raise DataError(f"{path}: a row has no image bytes or no label")
                    yield path, encoded.to_pylist(), labels.to_numpy(zero_copy_only=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is damaged: {error}") from error


def _allocate(rows: int, size: tuple[int, int], path: Path) -> Bytes:
    width, height = size
    needed = rows * height * width * 3
    if needed > MAX_BYTES:
        raise DataError(
            f"{path}: {rows:,} images of {width}×{height} pixels need {needed:,} bytes "
            f"in memory; more than {MAX_BYTES:,} are not read"
        )
    return np.empty((rows, height, width, 3), dtype=np.uint8)
