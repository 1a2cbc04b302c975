"""Names and folders, known and not."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_makers import assert_error, write_idx

from adntn.experiments.data import load_data


@pytest.mark.parametrize(
    "given, meant",
    [("CIFAR-10", "cifar10"), ("fashion_mnist", "fashion-mnist"), ("digit", "digits")],
)
def test_an_unknown_name_names_the_nearest(given: str, meant: str) -> None:
    assert_error(given, repr(given), f"Did you mean '{meant}'?", "digits, fashion-mnist, cifar10")


@pytest.mark.parametrize("given", ["", "no such thing at all"])
def test_an_unknown_name_lists_the_known(given: str) -> None:
    assert "Did you mean" not in assert_error(given, "digits, fashion-mnist, cifar10")


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert_error(tmp_path / "gone", "no folder", "gone")


def test_a_file_instead_of_a_folder_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(b"")
    assert_error(path, "is a file", "folder")


def test_a_folder_without_data_says_what_was_looked_for_and_seen(tmp_path: Path) -> None:
    assert_error(tmp_path, "IDX", "parquet", "binary batches", "Saw nothing")
    for index in range(12):
        (tmp_path / f"note{index:02}.txt").write_text("x")
    assert_error(tmp_path, "note00.txt, note01.txt", "and 4 more")


def test_a_known_name_wins_over_a_folder_unless_the_folder_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert load_data("digits").image_shape == (1, 8, 8)
    assert load_data("./digits").image_shape == (1, 5, 4)
    assert load_data(Path("digits")).image_shape == (1, 5, 4)


@pytest.mark.parametrize("name", ["data_batch_1", "cifar-10-python.tar.gz", "cifar.pkl"])
def test_pickled_batches_are_refused(tmp_path: Path, name: str) -> None:
    # A pickle that, if anything loaded it, would raise another error than the one expected.
    (tmp_path / name).write_bytes(b"cbuiltins\nexit\n(I3\ntR.")
    assert_error(tmp_path, name, "unpickling a file runs", "cifar-10-binary.tar.gz", "uoft-cs/cifar10")


def test_an_archive_that_is_not_unpacked_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"x")
    assert_error(tmp_path, "unpack it")
