"""Parquet files: what is read is what was written, and whatever is not right is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_makers import assert_error, encode, random_images, write_parquet, write_parquet_folder

from adntn.experiments.data import load_data, parquet


@pytest.mark.parametrize("place", ["", "plain_text", "data"])
@pytest.mark.parametrize("column", ["img", "image"])
def test_parquet_png_is_read_exactly(tmp_path: Path, place: str, column: str) -> None:
    arrays = write_parquet_folder(tmp_path / place, column=column)
    data = load_data(tmp_path)
    assert (data.name, data.title, data.num_classes) == ("cifar10", "CIFAR-10", 10)
    assert data.image_shape == (3, 32, 32)
    np.testing.assert_array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), arrays["train"])
    np.testing.assert_array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), arrays["test"])
    assert data.train.labels.tolist() == [*range(10), *range(10)]
    assert data.train.images.is_contiguous()


def test_parquet_jpeg_is_said_in_the_title(tmp_path: Path) -> None:
    write_parquet_folder(tmp_path, kind="JPEG", names=("train.parquet", "test.parquet"))
    data = load_data(str(tmp_path))
    assert (data.name, data.title) == ("cifar10", "CIFAR-10 (JPEG)")
    assert "JPEG" in data.source


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (16, 16, 3)},
        {"classes": 4},
        {"class_names": [str(digit) for digit in range(10)]},  # as SVHN: the right shape, other classes
    ],
)
def test_other_parquet_data_has_the_name_of_its_folder(tmp_path: Path, options: dict[str, Any]) -> None:
    write_parquet_folder(tmp_path / "mine", **options)
    data = load_data(tmp_path / "mine")
    assert (data.name, data.title) == ("mine", "mine")
    assert data.num_classes == options.get("classes", 10)


def test_parquet_class_names_give_the_number_of_classes(tmp_path: Path) -> None:
    write_parquet_folder(tmp_path, shape=(8, 8, 3), classes=4, class_names=list("abcdefg"))
    assert load_data(tmp_path).num_classes == 7


def test_grey_parquet_images_keep_one_channel(tmp_path: Path) -> None:
    arrays = write_parquet_folder(tmp_path, shape=(9, 6))
    data = load_data(tmp_path)
    assert data.image_shape == (1, 9, 6)
    np.testing.assert_array_equal(data.test.images[:, 0].numpy(), arrays["test"])


def test_one_coloured_image_makes_all_coloured(tmp_path: Path) -> None:
    grey, coloured = random_images(1, 9, 6)[0], random_images(1, 9, 6, 3)[0]
    write_parquet(tmp_path / "train.parquet", [encode(grey), encode(grey)], [0, 1])
    write_parquet(tmp_path / "test.parquet", [encode(grey), encode(coloured)], [0, 1])
    data = load_data(tmp_path)
    assert data.image_shape == (3, 9, 6)
    np.testing.assert_array_equal(data.train.images[0].numpy(), np.stack([grey] * 3))
    np.testing.assert_array_equal(data.test.images[1].permute(1, 2, 0).numpy(), coloured)


def test_parquet_shards_are_read_in_order(tmp_path: Path) -> None:
    write_parquet_folder(tmp_path)
    images = random_images(4, 32, 32, 3, seed=9)
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    for index in range(2):
        path = tmp_path / f"train-0000{index}-of-00002.parquet"
        write_parquet(path, [encode(image) for image in images[2 * index :][:2]], [2 * index, 9])
    data = load_data(tmp_path)
    assert data.train.labels.tolist() == [0, 9, 2, 9]
    np.testing.assert_array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), images)


def test_parquet_missing_shard_is_an_error(tmp_path: Path) -> None:
    write_parquet_folder(tmp_path, names=("train-00001-of-00003.parquet", "test-00000-of-00001.parquet"))
    assert_error(tmp_path, "shard 0 of 3 of train is missing")


def test_parquet_data_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    write_parquet_folder(tmp_path)
    (tmp_path / "train.parquet").write_bytes((tmp_path / "train-00000-of-00001.parquet").read_bytes())
    assert_error(tmp_path, "not the shards of one data set", "train.parquet")


def test_parquet_without_a_test_split_is_an_error(tmp_path: Path) -> None:
    write_parquet_folder(tmp_path)
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    assert_error(tmp_path, "test*.parquet")


def test_parquet_truncated_or_foreign_file_is_named(tmp_path: Path) -> None:
    write_parquet_folder(tmp_path)
    path = tmp_path / "train-00000-of-00001.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert_error(tmp_path, str(path), "parquet")
    path.write_bytes(b"not parquet")
    assert_error(tmp_path, str(path), "parquet")
    # The footer is whole, a page in the middle is not.
    path.write_bytes(content[:4] + b"\xff" * 5000 + content[5004:])
    assert_error(tmp_path, str(path))


def test_parquet_columns_are_checked(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_parquet_folder(tmp_path)
    path = tmp_path / "test-00000-of-00001.parquet"
    for columns, words in (
        ({"picture": [b"x"], "label": [1]}, ["'img' (or 'image')", "picture (binary)"]),
        ({"img": [{"bytes": b"x"}], "fine_label": [1]}, ["'label'", "fine_label (int64)"]),
        ({"img": [b"x"], "label": [1]}, ["struct", "img (binary)"]),
        ({"img": [{"path": "a.png"}], "label": [1]}, ["struct", "path: string"]),
        ({"img": [{"bytes": b"x"}], "label": ["cat"]}, ["integers", "label (string)"]),
    ):
        parquet.write_table(pyarrow.table(columns), path)
        assert_error(tmp_path, str(path), *words)
    parquet.write_table(pyarrow.table({"img": [{"bytes": b"x"}], "label": [1]}).slice(0, 0), path)
    assert_error(tmp_path, str(path), "no rows")


@pytest.mark.parametrize(
    "make, labels, words",
    [
        (lambda: [b"GIF89a..."], [1], ["image 0", "neither PNG nor JPEG", "0x47494638"]),
        (lambda: [encode(random_images(1, 8, 8, 3)[0])[:-30]], [1], ["image 0", "decoded"]),
        (lambda: [b"\x89PNG and then nothing"], [1], ["image 0", "decoded"]),
        (lambda: [b"\xff\xd8 and then nothing"], [1], ["image 0", "decoded"]),
        (lambda: [None], [1], ["no image bytes"]),
        (lambda: [encode(random_images(1, 8, 8, 3)[0])], [None], ["no label"]),
        (lambda: [encode(random_images(1, 8, 8, 3)[0])], [-1], ["-1"]),
        (lambda: [encode(random_images(1, 8, 8)[0].astype(np.uint16) * 257)], [1], ["8 bits"]),
        (
            lambda: [encode(random_images(1, 8, side, 3)[0]) for side in (8, 9)],
            [1, 2],
            ["image 1", "9×8", "8×8", "same size"],
        ),
    ],
)
def test_parquet_bad_rows_are_named(tmp_path: Path, make: Any, labels: list[Any], words: list[str]) -> None:
    write_parquet_folder(tmp_path, shape=(8, 8, 3))
    write_parquet(tmp_path / "train-00000-of-00001.parquet", make(), labels)
    assert_error(tmp_path, *words)


def test_an_image_that_unpacks_to_too_much_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet_folder(tmp_path, shape=(8, 8, 3))
    monkeypatch.setattr(parquet, "MAX_BYTES", 20 * 8 * 8 * 3 - 1)
    assert_error(tmp_path, "20 images of 8×8", "are not read")
