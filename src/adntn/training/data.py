"""What a run trains on: labelled images in memory, in three parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.training.seeds import derive_seed

__all__ = ["Batches", "Part", "TrainingData", "augment"]


@dataclass(frozen=True, eq=False)
class Part:
    """Some labelled images.

    Attributes:
        images: shape ``(N, C, H, W)``, uint8, or float in 0 ... 1.
        labels: shape ``(N,)``, int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> Part:
        """Return the same on a device."""
        return Part(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class TrainingData:
    """A data set as a run sees it.

    Attributes:
        train: to learn from.
        validation: to choose by: when to stop, what to grow, what to keep. Held out of the training images.
        test: to report on; no choice is made by it.
        num_classes: classes of the labels.
        mean: a number a channel, subtracted from images scaled to 0 ... 1.
        std: a number a channel, divided by.
    """

    train: Part
    validation: Part
    test: Part
    num_classes: int
    mean: Tensor
    std: Tensor

    def to(self, device: str | torch.device) -> TrainingData:
        """Return the same with all images on a device, so that no step waits for a copy."""
        parts = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return replace(self, mean=self.mean.to(device), std=self.std.to(device), **parts)

    def normalized(self, images: Tensor) -> Tensor:  # shape: (n, C, H, W) -> the same, float32
        """Return images as a model takes them."""
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        mean, std = (each.to(images.device).view(1, -1, 1, 1) for each in (self.mean, self.std))
        return (scaled - mean) / std


class Batches:
    """Batches of images in memory, in another order each epoch, without a copy an image.

    The order depends on seed and epoch alone, so that a run that was interrupted goes on with the batches that it would
    have seen.

    Args:
        part: the images and labels.
        size: images a batch; the last one may be smaller.
        shuffle: seed of the order, or None to keep it.
        share: which share of every batch, and of how many, where several processes train together; the last batch is
            then filled up from the epoch's first images so that all shares are equal.
    """

    def __init__(self, part: Part, size: int, shuffle: int | None = None, share: tuple[int, int] = (0, 1)) -> None:
        self.part, self.size, self.shuffle, self.share = part, size, shuffle, share
        self.epoch = 0
        self.first = 0  # batch of this epoch to begin with, for a run that goes on

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.part) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.part)
        if self.shuffle is None:
            order = torch.arange(count)
        else:
            random = torch.Generator().manual_seed(derive_seed(self.shuffle, "order", self.epoch))
            order = torch.randperm(count, generator=random)
        rank, world = self.share
        for index in order.split(self.size)[self.first :]:
            if world > 1:
                missing = -len(index) % world
                index = torch.cat([index, order[:missing]])[rank::world]
            index = index.to(self.part.images.device)
            yield self.part.images[index], self.part.labels[index]


def augment(images: Tensor) -> Tensor:  # shape: (batch, C, H, W) -> the same
    """Shift each image by up to an eighth of its side and flip half of the images."""
    height, width = images.shape[-2:]
    reach = max(1, height // 8)
    padded = F.pad(images, (reach,) * 4)
    count, device = len(images), images.device
    rows = torch.randint(0, 2 * reach + 1, (count, 1), device=device) + torch.arange(height, device=device)
    columns = torch.randint(0, 2 * reach + 1, (count, 1), device=device) + torch.arange(width, device=device)
    flip = torch.rand(count, 1, device=device) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    batch = torch.arange(count, device=device)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
