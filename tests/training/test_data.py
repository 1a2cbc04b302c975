"""Batches and augmentation, on data small enough to know by heart."""

from __future__ import annotations

import math

import pytest
import torch

from adntn.training.data import Batches, Part, TrainingData, augment

# --- batches --------------------------------------------------------------------------------------------------------


def seen(batches: Batches) -> list[int]:
    return [int(label) for _, labels in batches for label in labels]


@pytest.mark.parametrize("count, size", [(10, 3), (9, 3), (1, 5), (5, 5), (7, 1)])
@pytest.mark.parametrize("shuffle", [None, 4])
def test_every_image_comes_once_with_its_label(count: int, size: int, shuffle: int | None) -> None:
    labels = torch.arange(count)
    images = labels[:, None, None, None].expand(count, 2, 3, 3).to(torch.uint8).clone()
    batches = Batches(Part(images, labels), size, shuffle)
    given = list(batches)
    assert len(given) == len(batches) == math.ceil(count / size)
    assert [len(y) for _, y in given[:-1]] == [size] * (len(given) - 1)
    assert sorted(seen(batches)) == list(range(count))
    for x, y in given:
        assert x.dtype == torch.uint8
        assert x.shape == (len(y), 2, 3, 3)
        assert torch.equal(x[:, 0, 0, 0].long(), y)


def test_the_order_is_new_each_epoch_and_the_same_for_one_seed() -> None:
    part = Part(torch.zeros(50, 1, 1, 1), torch.arange(50))
    first, second, other = (Batches(part, 7, seed) for seed in (3, 3, 4))
    epochs = []
    for epoch in range(3):
        first.set_epoch(epoch)
        epochs.append(seen(first))
    for epoch in (2, 0, 1):  # whatever was before
        second.set_epoch(epoch)
        assert seen(second) == epochs[epoch]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert seen(other) != epochs[0]
    assert seen(Batches(part, 7)) == list(range(50))


def test_batches_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    seen(Batches(Part(torch.zeros(5, 1, 1, 1), torch.arange(5)), 2, 0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_an_epoch_can_begin_with_any_batch(first: int) -> None:
    part = Part(torch.zeros(10, 1, 1, 1), torch.arange(10))
    whole = [labels.tolist() for _, labels in Batches(part, 3, 5)]
    rest = Batches(part, 3, 5)
    rest.first = first
    assert [labels.tolist() for _, labels in rest] == whole[first:]


@pytest.mark.parametrize("count, size, world", [(12, 4, 2), (10, 4, 2), (9, 4, 2), (7, 5, 3), (3, 1, 2)])
def test_shares_are_equal_and_make_up_the_batches(count: int, size: int, world: int) -> None:
    part = Part(torch.zeros(count, 1, 1, 1), torch.arange(count))
    whole = [labels.tolist() for _, labels in Batches(part, size, 5)]
    shares = [[labels.tolist() for _, labels in Batches(part, size, 5, (rank, world))] for rank in range(world)]
    for i, batch in enumerate(whole):
        own = [share[i] for share in shares]
        assert len({len(each) for each in own}) == 1
        assert set(batch) <= {label for each in own for label in each}
        assert sum(map(len, own)) - len(batch) < world


def test_data_moves_as_a_whole_and_batches_stay_where_it_is() -> None:
    parts = [Part(torch.zeros(n, 1, 2, 2, dtype=torch.uint8), torch.arange(n) % 2) for n in (6, 3, 4)]
    data = TrainingData(*parts, num_classes=2, mean=torch.tensor([0.5]), std=torch.tensor([0.25]))
    moved = data.to("meta")
    for name, part in zip(("train", "validation", "test"), parts, strict=True):
        found = getattr(moved, name)
        assert (found.images.device.type, found.labels.device.type) == ("meta", "meta")
        assert (found.images.shape, found.images.dtype, len(found)) == (part.images.shape, torch.uint8, len(part))
        assert getattr(data, name) is part  # what it was made of stays
    assert (moved.mean.device.type, moved.std.device.type, moved.num_classes) == ("meta", "meta", 2)
    assert moved.normalized(moved.train.images).device.type == "meta"
    assert augment(moved.train.images).device.type == "meta"
    for images, labels in Batches(moved.train, 4, 1):
        assert (images.device.type, labels.device.type) == ("meta", "meta")
    same = data.to("cpu").train
    assert torch.equal(same.images, data.train.images)
    assert torch.equal(same.labels, data.train.labels)


# --- augmentation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(40, 3, 16, 16), (40, 1, 8, 8), (40, 2, 24, 9), (40, 1, 5, 20), (1, 1, 1, 1)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_an_augmented_image_is_a_shift_of_itself_or_of_its_mirror_image(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    count, _, height, width = shape
    reach = max(1, height // 8)
    # No two pixels of an image are equal and none is 0, so that each can be found again.
    images = (torch.arange(math.prod(shape[1:])).remainder(255) + 1).reshape(shape[1:]).repeat(count, 1, 1, 1).to(dtype)
    out = augment(images)
    assert out.shape == images.shape
    assert out.dtype == dtype
    padded = torch.nn.functional.pad(images[0], (reach,) * 4)
    windows = [padded[:, y : y + height, x : x + width] for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
    windows += [window.flip(-1) for window in windows]
    found = [next(i for i, window in enumerate(windows) if torch.equal(window, image)) for image in out]
    assert set(out.unique().tolist()) <= {0, *images.unique().tolist()}
    if count > 1:
        assert len(set(found)) > 5  # each image has a shift of its own
        flipped = sum(i >= len(windows) // 2 for i in found)
        assert 0 < flipped < count


def test_augmentation_follows_the_seed_and_leaves_its_input_alone() -> None:
    images = torch.rand(20, 1, 8, 8)
    before = images.clone()
    torch.manual_seed(1)
    first = augment(images)
    torch.manual_seed(1)
    assert torch.equal(augment(images), first)
    assert not torch.equal(augment(images), first)
    assert torch.equal(images, before)
