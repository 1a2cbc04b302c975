"""What a split and a data set promise, normalising, and limits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_makers import write_batches

from adntn.errors import AdntnError
from adntn.experiments.data import DataError, ImageData, Split, load_data, normalize


def test_normalized_training_images_have_zero_mean_and_unit_deviation(digits: ImageData) -> None:
    images = normalize(digits.train.images, digits)
    assert images.dtype == torch.float32
    assert abs(images.double().mean().item()) < 1e-6
    assert abs(images.double().std(correction=0).item() - 1) < 1e-6


def test_normalize_is_per_channel_and_takes_both_scales(tmp_path: Path) -> None:
    write_batches(tmp_path)
    data = load_data(tmp_path)
    whole = data.train.images
    expected = (whole.double() / 255 - torch.tensor(data.mean).double().view(3, 1, 1)) / torch.tensor(
        data.std
    ).double().view(3, 1, 1)
    torch.testing.assert_close(normalize(whole, data), expected.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(normalize(whole[0], data), expected[0].float(), atol=1e-5, rtol=1e-5)
    scaled = whole.float() / 255
    before = scaled.clone()
    torch.testing.assert_close(normalize(scaled, data), expected.float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(scaled, before)
    per_channel = normalize(whole, data).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(per_channel.mean(1), torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(per_channel.std(1, correction=0), torch.ones(3).double(), atol=1e-6, rtol=0)


def test_normalize_refuses_what_it_would_get_wrong(digits: ImageData) -> None:
    with pytest.raises(DataError, match=r"\(…, 1, H, W\)"):
        normalize(torch.zeros(2, 3, 8, 8), digits)
    with pytest.raises(DataError, match="int64"):
        normalize(torch.zeros(2, 1, 8, 8, dtype=torch.int64), digits)


def test_limit_is_deterministic_balanced_and_nested(digits: ImageData) -> None:
    small = digits.limit(100, 50, seed=3)
    assert small.train.labels.bincount().tolist() == [10] * 10
    assert small.test.labels.bincount().tolist() == [5] * 10
    again = digits.limit(100, 50, seed=3)
    assert torch.equal(small.train.images, again.train.images)
    assert torch.equal(small.test.labels, again.test.labels)
    assert not torch.equal(small.train.images, digits.limit(100, 50, seed=4).train.images)
    larger = {tuple(row) for row in digits.limit(137, None, seed=3).train.images.flatten(1).tolist()}
    assert {tuple(row) for row in small.train.images.flatten(1).tolist()} <= larger
    assert (small.mean, small.std) == (digits.mean, digits.std)
    assert "100 + 50 images, seed 3" in small.source


def test_limit_keeps_proportions_and_rare_classes() -> None:
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10 + [4])
    split = Split(torch.arange(len(labels)).remainder(256).to(torch.uint8).view(-1, 1, 1, 1), labels)
    data = ImageData("x", "X", split, split, 5, (0.5,), (0.5,), "made up")
    assert data.limit(101).train.labels.bincount().tolist() == [90, 9, 1, 0, 1]
    assert data.limit(4).train.labels.tolist() == [0, 1, 2, 4]


def test_limit_above_the_size_keeps_everything(digits: ImageData) -> None:
    assert digits.limit(None, None) is digits
    assert digits.limit(10**6, 500) is digits


@pytest.mark.parametrize("options", [{"train": 9}, {"test": 0}, {"train": -1}])
def test_limit_refuses_to_lose_a_class(digits: ImageData, options: dict[str, int]) -> None:
    with pytest.raises(DataError, match="10 classes"):
        digits.limit(**options)


def test_limit_refuses_a_negative_seed(digits: ImageData) -> None:
    with pytest.raises(DataError, match="seed=-1"):
        digits.limit(100, 100, seed=-1)


@pytest.mark.parametrize(
    "images, labels, words",
    [
        (torch.zeros(2, 8, 8), torch.zeros(2, dtype=torch.int64), "(N, C, H, W)"),
        (torch.zeros(2, 1, 8, 8).double(), torch.zeros(2, dtype=torch.int64), "float64"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2), "int64"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.int64), "2 images but 3 labels"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64), "at least one"),
    ],
)
def test_a_split_checks_its_tensors(images: torch.Tensor, labels: torch.Tensor, words: str) -> None:
    with pytest.raises(DataError) as caught:
        Split(images, labels)
    assert words in str(caught.value)


@pytest.mark.parametrize("mean, std", [((0.5, 0.5), (1.0, 1.0)), ((0.5,), (0.0,))])
def test_a_data_set_checks_its_statistics(digits: ImageData, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="channels"):
        ImageData("x", "X", digits.train, digits.test, 10, mean, std, "made up")


def test_a_data_set_checks_its_labels_and_prints_short(digits: ImageData) -> None:
    with pytest.raises(DataError, match=r"0\.\.8"):
        ImageData("x", "X", digits.train, digits.test, 9, (0.5,), (0.5,), "made up")
    assert len(repr(digits)) < 500


def test_errors_are_both_adntn_errors_and_value_errors() -> None:
    assert issubclass(DataError, AdntnError)
    assert issubclass(DataError, ValueError)
