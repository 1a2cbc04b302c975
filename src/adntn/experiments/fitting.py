"""Training a model on a data set: :func:`adntn.training.loop.fit` with an :class:`ImageData`, looked at test images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from adntn.experiments.data import ImageData
from adntn.experiments.parts import all_to_learn_from
from adntn.training.loop import Fitted, fit
from adntn.training.optimization import Optimization

__all__ = ["fit_to"]


def fit_to(
    data: ImageData,
    model: nn.Module,
    recipe: Optimization,
    *,
    seed: int,
    device: str = "cpu",
    tell: Callable[[int, float], None] = lambda epoch, accuracy: None,
) -> Fitted:
    """Train a model in place on a data set's training images, and look at its test images after each epoch.

    The test images stand in the place of the validation images, so that a curve of test accuracies comes out. A recipe
    without patience makes no choice by them.

    Args:
        data: to train on.
        model: takes normalised images and returns logits.
        recipe: how to train.
        seed: of the order of the batches and of the augmentation.
        device: ``"cpu"`` or ``"cuda"``.
        tell: called after each epoch with the epochs done and the test accuracy.
    """

    def log(step: int, row: Mapping[str, float]) -> None:
        tell(int(row["epoch"]), row["validation_accuracy"])

    fitted = fit(model, all_to_learn_from(data), recipe, seed=seed, device=device, log=log)
    if fitted.steps == 0:
        tell(recipe.epochs, fitted.validation_accuracy)
    return fitted
