"""Corruptions are those of the paper, the same on every call and in batches of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from adntn import ConfigError, ShapeError
from adntn.experiments.corruptions import CORRUPTIONS, STANDARD, corrupt

IMAGES = torch.rand(5, 3, 9, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name, severity", STANDARD)
def test_an_image_is_changed_the_same_way_in_every_batch(name: str, severity: int) -> None:
    whole = corrupt(IMAGES, name, severity, seed=3)
    parts = [corrupt(part, name, severity, seed=3, first=first) for first, part in ((0, IMAGES[:2]), (2, IMAGES[2:]))]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.shape == IMAGES.shape
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert not torch.allclose(whole, IMAGES, atol=1e-3)
    assert corrupt(IMAGES[:0], name, severity).shape == (0, 3, 9, 7)


def test_noise_has_its_deviation_and_depends_on_seed_image_and_severity() -> None:
    grey = torch.full((64, 1, 16, 16), 0.5)
    for severity, deviation in enumerate(CORRUPTIONS["gaussian noise"], start=1):
        noise = corrupt(grey, "gaussian noise", severity) - 0.5
        assert noise.std().item() == pytest.approx(deviation, rel=0.03)
        assert noise.mean().item() == pytest.approx(0, abs=0.03 * deviation)
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, corrupt(grey, "gaussian noise", 5, seed=1) - 0.5)
    assert torch.equal(corrupt((255 * grey).byte(), "contrast", 1), corrupt((255 * grey).byte() / 255, "contrast", 1))


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_blur_is_scipys(severity: int) -> None:
    deviation = CORRUPTIONS["gaussian blur"][severity - 1]
    expected = [[gaussian_filter(plane, deviation, mode="nearest") for plane in image] for image in IMAGES.numpy()]
    np.testing.assert_allclose(corrupt(IMAGES, "gaussian blur", severity).numpy(), expected, atol=1e-6)


def test_contrast_shrinks_towards_the_mean_of_image_and_channel() -> None:
    image = torch.tensor([[[[0.0, 1.0]], [[0.2, 0.2]]]])
    torch.testing.assert_close(corrupt(image, "contrast", 2), torch.tensor([[[[0.25, 0.75]], [[0.2, 0.2]]]]))


def test_what_is_not_known_is_said() -> None:
    with pytest.raises(ConfigError, match="contrast"):
        corrupt(IMAGES, "contrasts", 1)
    with pytest.raises(ConfigError, match="severity=6"):
        corrupt(IMAGES, "contrast", 6)
    with pytest.raises(ShapeError, match=r"\(9, 7\)"):
        corrupt(IMAGES[0, 0], "contrast", 1)
