"""The digits and their fixed split."""

from __future__ import annotations

import pytest
import torch

from adntn.experiments.data import ImageData


def test_digits_have_the_documented_split(digits: ImageData) -> None:
    assert (digits.name, digits.title, digits.num_classes) == ("digits", "Digits", 10)
    assert digits.image_shape == (1, 8, 8)
    assert digits.train.images.shape == (1297, 1, 8, 8)
    assert digits.test.images.shape == (500, 1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    # Every class in proportion to the 174 to 183 images that it has.
    assert set(digits.test.labels.bincount().tolist()) <= set(range(48, 52))
    # The content, and with it the split, is the same on every machine and in every version.
    assert "9290f624f161efca" in digits.source


def test_digits_splits_are_disjoint_and_complete(digits: ImageData) -> None:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    together = torch.cat([digits.train.images, digits.test.images]).flatten(1)
    # 255/16 steps invert exactly: no grey level was lost, and no image is in both splits or in neither.
    restored = sorted(map(tuple, (together.double() * 16 / 255).round().long().tolist()))
    assert restored == sorted(map(tuple, bunch.data.astype(int).tolist()))
