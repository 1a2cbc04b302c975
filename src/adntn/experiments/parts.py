"""The parts of a data set that a run sees: to learn from, to choose by, to report on."""

from __future__ import annotations

import torch
from torch import Tensor

from adntn.errors import ConfigError
from adntn.experiments.data import ImageData
from adntn.training.data import Part, TrainingData

__all__ = ["all_to_learn_from", "hold_out"]


def hold_out(images: ImageData, validation: float, seed: int) -> TrainingData:
    """Divide a data set's training images into those to learn from and those to choose by, classes in proportion.

    Args:
        images: the data set; its test images stay the test images.
        validation: to choose by: which share of the training images, or from 1 on how many.
        seed: of the draw.

    Raises:
        ConfigError: nothing would be left to learn from, or to choose by.
    """
    labels = images.train.labels
    share = validation if validation < 1 else validation / len(labels)
    random = torch.Generator().manual_seed(seed)
    held: list[Tensor] = []
    for label in range(images.num_classes):
        own = (labels == label).nonzero().flatten()
        held.append(own[torch.randperm(len(own), generator=random)[: round(share * len(own))]])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(held)] = True
    if bool(chosen.all()) or not bool(chosen.any()):
        raise ConfigError(
            f"validation={validation} of {len(labels)} training images leaves none to "
            f"{'learn from' if bool(chosen.all()) else 'choose by'}."
        )

    def part(which: Tensor) -> Part:
        return Part(images.train.images[which], labels[which])

    return _training_data(images, part(~chosen), part(chosen))


def all_to_learn_from(images: ImageData) -> TrainingData:
    """Return all training images to learn from, and the test images in the place of those to choose by.

    A curve of test accuracies comes out of that. It is for trainings that make no choice by what they look at.
    """
    test = Part(images.test.images, images.test.labels)
    return _training_data(images, Part(images.train.images, images.train.labels), test)


def _training_data(images: ImageData, train: Part, validation: Part) -> TrainingData:
    return TrainingData(
        train=train,
        validation=validation,
        test=Part(images.test.images, images.test.labels),
        num_classes=images.num_classes,
        mean=torch.tensor(images.mean),
        std=torch.tensor(images.std),
    )
