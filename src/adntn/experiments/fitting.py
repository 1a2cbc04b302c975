"""Training a model on a data set: :func:`adntn.training.classify.fit` with an :class:`ImageData`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adntn.experiments.data import ImageData
from adntn.training.classify import Fitted, Recipe, fit

__all__ = ["fit_to"]


def fit_to(data: ImageData, model: nn.Module, recipe: Recipe, *, seed: int, **options: Any) -> Fitted:
    """Train a model in place on a data set's training images and look at its test images.

    Args:
        data: to train on.
        model: takes normalised images and returns logits.
        recipe: how to train.
        seed: of the order of the batches and of the augmentation.
        **options: ``device``, ``evaluate_every`` and ``tell`` of :func:`adntn.training.classify.fit`.
    """
    return fit(
        model,
        recipe,
        train=(data.train.images, data.train.labels),
        test=(data.test.images, data.test.labels),
        mean=torch.tensor(data.mean),
        std=torch.tensor(data.std),
        num_classes=data.num_classes,
        seed=seed,
        **options,
    )
