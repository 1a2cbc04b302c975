"""Small data sets on disk, in each of the formats that are read."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adntn.experiments.data import DataError, load_data


def random_images(count: int, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def cycled_labels(count: int, classes: int = 10) -> np.ndarray[Any, Any]:
    return (np.arange(count) % classes).astype(np.uint8)


def idx_bytes(array: np.ndarray[Any, Any], magic: bytes | None = None) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) if magic is None else magic
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, *, packed: bool = True, separator: str = "-") -> dict[str, np.ndarray[Any, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"train-images{separator}idx3-ubyte": random_images(30, 5, 4),
        f"train-labels{separator}idx1-ubyte": cycled_labels(30, 3),
        f"t10k-images{separator}idx3-ubyte": random_images(12, 5, 4, seed=1),
        f"t10k-labels{separator}idx1-ubyte": cycled_labels(12, 3),
    }
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return arrays


def encode(image: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    image_module = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    image_module.fromarray(image).save(buffer, format=kind)
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    *,
    column: str = "img",
    class_names: list[str] | None = None,
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = [None if content is None else {"bytes": content, "path": "a.png"} for content in images]
    table = pyarrow.table(
        {column: pyarrow.array(rows, type=kind), "label": pyarrow.array(labels, type=pyarrow.int64())}
    )
    if class_names is not None:
        note = {"info": {"features": {"label": {"names": class_names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": str(note).replace("'", '"')})
    parquet.write_table(table, path, row_group_size=7)


def write_parquet_folder(
    folder: Path,
    *,
    kind: str = "PNG",
    shape: tuple[int, ...] = (32, 32, 3),
    classes: int = 10,
    column: str = "img",
    names: tuple[str, str] = ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
    class_names: list[str] | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    arrays = {}
    for seed, (part, name, count) in enumerate((("train", names[0], 20), ("test", names[1], 10))):
        arrays[part] = random_images(count, *shape, seed=seed)
        write_parquet(
            folder / name,
            [encode(image, kind) for image in arrays[part]],
            cycled_labels(count, classes).tolist(),
            column=column,
            class_names=class_names,
        )
    return arrays


def write_batches(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for seed, name in enumerate([f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]):
        arrays[name] = random_images(10, 3, 32, 32, seed=seed)
        records = np.concatenate([cycled_labels(10)[:, None], arrays[name].reshape(10, -1)], axis=1)
        (folder / name).write_bytes(records.tobytes())
    return arrays


def assert_error(folder: str | Path, *words: str, **options: Any) -> str:
    """Loading fails with a ``DataError`` that has all the words in it."""
    with pytest.raises(DataError) as caught:
        load_data(folder, **options)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    return message
