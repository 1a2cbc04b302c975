"""What the readers share: statistics, the fingerprint, optional packages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_makers import encode, random_images, write_batches, write_parquet

from adntn.experiments.data import DataError, load_data, reading


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    with pytest.raises(DataError, match=r"adntn_absent.*pip install 'adntn\[run\]'"):
        reading.require("adntn_absent", "run", "this test")


def test_statistics_are_exact_and_safe_for_a_constant_channel() -> None:
    images = torch.from_numpy(random_images(5000, 2, 3, 3))
    images[:, 1] = 7
    mean, std = reading.statistics(images)
    reference = images[:, 0].double() / 255
    assert mean == pytest.approx((reference.mean().item(), 7 / 255), rel=1e-12)
    assert std == pytest.approx((reference.std(correction=0).item(), 1.0), rel=1e-12)


def test_the_fingerprint_depends_on_the_pixels_and_not_on_the_files(tmp_path: Path) -> None:
    write_batches(tmp_path / "binary")
    binary = load_data(tmp_path / "binary")
    for part, split in (("train", binary.train), ("test", binary.test)):
        images = [encode(image) for image in split.images.permute(0, 2, 3, 1).numpy()]
        write_parquet(tmp_path / "parquet" / f"{part}.parquet", images, split.labels.tolist())
    parquet = load_data(tmp_path / "parquet")
    assert parquet.source.split("sha256")[1] == binary.source.split("sha256")[1]
    assert (parquet.mean, parquet.std) == (binary.mean, binary.std)
