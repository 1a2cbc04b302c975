"""IDX files: what is read is what was written, and whatever is not right is named."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from data_makers import assert_error, cycled_labels, idx_bytes, random_images, write_idx

from adntn.experiments.data import idx, load_data


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("separator", ["-", "."])
def test_idx_files_are_read(tmp_path: Path, packed: bool, separator: str) -> None:
    folder = tmp_path / "kmnist"
    arrays = list(write_idx(folder, packed=packed, separator=separator).values())
    data = load_data(folder)
    assert (data.name, data.title, data.num_classes, data.image_shape) == ("kmnist", "kmnist", 3, (1, 5, 4))
    np.testing.assert_array_equal(data.train.images[:, 0].numpy(), arrays[0])
    np.testing.assert_array_equal(data.train.labels.numpy(), arrays[1])
    np.testing.assert_array_equal(data.test.images[:, 0].numpy(), arrays[2])
    np.testing.assert_array_equal(data.test.labels.numpy(), arrays[3])
    assert "'kmnist'" in data.source
    assert str(tmp_path) not in data.source


def test_idx_files_may_be_misnamed_by_a_browser_that_unpacked_them(tmp_path: Path) -> None:
    for path, array in write_idx(tmp_path).items():
        (tmp_path / f"{path}.gz").write_bytes(idx_bytes(array))
    assert len(load_data(tmp_path).train) == 30


def test_the_folder_raw_is_part_of_the_one_with_the_name(tmp_path: Path) -> None:
    write_idx(tmp_path / "FashionMNIST" / "raw", packed=False)
    for folder in (tmp_path / "FashionMNIST", tmp_path / "FashionMNIST" / "raw"):
        data = load_data(folder)
        assert (data.name, data.title) == ("fashion-mnist", "Fashion-MNIST")


def test_fashion_mnist_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "FASHION_MNIST_FOLDER", tmp_path / "f")
    assert_error("fashion-mnist", "apt install dataset-fashion-mnist", "give the folder")
    write_idx(tmp_path / "f")
    assert load_data("fashion-mnist").title == "Fashion-MNIST"


def test_idx_missing_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    assert_error(tmp_path, "t10k-labels-idx1-ubyte", "not")


GOOD = idx_bytes(random_images(30, 5, 4))


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["0x00000803", "empty"]),
        (GOOD[:3], ["0x00000803", "0x000008"]),
        (GOOD[:9], ["truncated", "12 bytes of sizes", "found 5"]),
        (GOOD[:-1], ["truncated", "600", "(30, 5, 4)"]),
        (GOOD + b"\0", ["600 bytes", "more than 600"]),
        (b"\0\0\x0d\x03" + GOOD[4:], ["0x00000803", "0x00000d03"]),
        (b"\0\0\x08\x01" + GOOD[4:], ["0x00000803", "0x00000801"]),
        (b"PK\x03\x04 a zip file", ["0x00000803", "0x504b0304"]),
        (GOOD[:4] + bytes(4) + GOOD[8:], ["empty", "(0, 5, 4)"]),
        (GOOD[:4] + b"\xff" * 12 + GOOD[16:], ["are not read"]),
        (GOOD[:4] + b"\0\x0f\0\0" + GOOD[8:], ["cannot hold"]),
        (gzip.compress(GOOD[:-1]), ["600 bytes", "found 599"]),
        (gzip.compress(GOOD + bytes(10**6)), ["600 bytes", "more than 600"]),
        (gzip.compress(GOOD[:4] + b"\0\x0f\0\0" + GOOD[8:]), ["cannot hold"]),
        (gzip.compress(GOOD)[:-20], ["truncated", "gzip"]),
        (gzip.compress(GOOD)[:-8] + bytes(8), ["cannot be read", "CRC"]),
        (b"\x1f\x8b but not gzip at all", ["cannot be read"]),
    ],
)
def test_idx_truncated_or_foreign_file_is_named(tmp_path: Path, content: bytes, words: list[str]) -> None:
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    assert_error(tmp_path, str(path), *words)


def test_idx_counts_must_agree(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx_bytes(cycled_labels(29)))
    assert_error(tmp_path, "30 images", "29 labels")


def test_idx_splits_must_have_one_image_size(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(idx_bytes(random_images(12, 4, 5)))
    assert_error(tmp_path, "(1, 5, 4)", "(1, 4, 5)")


@pytest.mark.skipif(not idx.FASHION_MNIST_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_real_fashion_mnist() -> None:
    data = load_data("fashion-mnist")
    assert (len(data.train), len(data.test), data.image_shape) == (60_000, 10_000, (1, 28, 28))
    assert data.train.labels.bincount().tolist() == [6000] * 10
    assert data.mean == pytest.approx((0.2860,), abs=1e-4)
    assert data.std == pytest.approx((0.3530,), abs=1e-4)
