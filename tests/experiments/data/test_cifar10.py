"""CIFAR-10: its binary batches, and by name without a network."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from data_makers import assert_error, write_batches, write_parquet_folder

from adntn.experiments.data import cifar10, load_data


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, whatever the machine has in its own."""
    constants = pytest.importorskip("huggingface_hub.constants")
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin"])
def test_binary_batches_are_read(tmp_path: Path, place: str) -> None:
    arrays = write_batches(tmp_path / place)
    data = load_data(tmp_path)
    assert (data.name, data.title, data.num_classes) == ("cifar10", "CIFAR-10", 10)
    assert (len(data.train), len(data.test)) == (50, 10)
    np.testing.assert_array_equal(data.train.images[10:20].numpy(), arrays["data_batch_2.bin"])
    np.testing.assert_array_equal(data.test.images.numpy(), arrays["test_batch.bin"])
    assert data.test.labels.tolist() == list(range(10))


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["3073 bytes", "found 0 bytes"]),
        (bytes(3072), ["truncated", "3073 bytes", "3,072 bytes"]),
        (bytes(2 * 3074), ["3073 bytes", "2 of them over"]),
        (b"\x0a" + bytes(3072), ["labels must be 0..9", "found 10"]),
    ],
)
def test_binary_truncated_or_foreign_file_is_named(tmp_path: Path, content: bytes, words: list[str]) -> None:
    write_batches(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(content)
    assert_error(tmp_path, str(path), *words)


def test_binary_missing_batch_is_named(tmp_path: Path) -> None:
    write_batches(tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    assert_error(tmp_path, "not data_batch_4.bin")


@pytest.mark.usefixtures("no_cache")
def test_cifar10_is_not_downloaded_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "HfApi", lambda: pytest.fail("the network was used"))
    assert_error("cifar10", "--download", "give a folder")


def test_cifar10_in_the_cache_is_read_without_a_network(no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "HfApi", lambda: pytest.fail("the network was used"))
    snapshot = no_cache / "datasets--uoft-cs--cifar10" / "snapshots" / cifar10.CIFAR10_REVISION
    write_parquet_folder(snapshot / "plain_text")
    data = load_data("cifar10", download=True)
    assert (data.name, data.title, len(data.train)) == ("cifar10", "CIFAR-10", 20)
    assert cifar10.CIFAR10_REVISION[:12] in data.source


def test_cifar10_of_another_revision_in_the_cache_is_not_taken(no_cache: Path) -> None:
    write_parquet_folder(no_cache / "datasets--uoft-cs--cifar10" / "snapshots" / ("a" * 40) / "plain_text")
    assert_error("cifar10", "--download")


@pytest.mark.usefixtures("no_cache")
def test_a_download_without_a_network_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    # Nothing listens on port 9 of this machine: as good as no network, and no name is looked up.
    api = hub.HfApi(endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setattr(api, "hf_hub_download", lambda *_, **__: pytest.fail("would retry for 23 s"))
    begin = time.monotonic()
    assert_error("cifar10", "could not be downloaded", "give a folder", download=True)
    assert time.monotonic() - begin < 10


@pytest.mark.usefixtures("no_cache")
def test_a_download_asks_for_the_pinned_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    arrays = write_parquet_folder(tmp_path / "plain_text")
    asked: list[str] = []

    class Reachable:
        def dataset_info(self, repository: str, *, revision: str, timeout: float) -> None:
            assert timeout <= 10
            asked.append(f"{repository}@{revision}")

        def hf_hub_download(self, repository: str, file: str, *, revision: str, repo_type: str) -> str:
            assert repo_type == "dataset"
            asked.append(f"{repository}@{revision}")
            return str(tmp_path / file)

    monkeypatch.setattr(hub, "HfApi", Reachable)
    data = load_data("cifar10", download=True)
    assert asked == [f"uoft-cs/cifar10@{cifar10.CIFAR10_REVISION}"] * 3
    assert data.title == "CIFAR-10"
    np.testing.assert_array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), arrays["train"])
    np.testing.assert_array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), arrays["test"])


@pytest.mark.skipif("ADNTN_CIFAR10" not in os.environ, reason="ADNTN_CIFAR10 names no folder with CIFAR-10")
def test_real_cifar10() -> None:
    data = load_data(Path(os.environ["ADNTN_CIFAR10"]))
    assert data.name == "cifar10"
    assert (len(data.train), len(data.test), data.image_shape) == (50_000, 10_000, (3, 32, 32))
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10
    # What everyone normalises by; JPEG moves the deviations by some 0.002.
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=3e-3)
