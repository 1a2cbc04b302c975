"""Train a classifier on images that lie in memory."""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from adntn.checkpoint import execution_state, load_execution_state
from adntn.errors import ConfigError
from adntn.generator import GeneratorModule

__all__ = ["Batches", "Fitted", "Recipe", "fit"]

_EXECUTION = "adntn_execution"


@dataclass(frozen=True)
class Recipe:
    """How to train. The same recipe is used for every model that is compared.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step.
        lr: peak learning rate of AdamW, reached by a one-cycle schedule.
        weight_decay: of dense weights; root, cores, norms and biases are not decayed.
        label_smoothing: of the cross-entropy.
        augment: random shifts by an eighth of the image and horizontal flips.
        clip: largest norm of the gradient.
    """

    epochs: int = 30
    batch_size: int = 128
    lr: float = 2e-2
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    augment: bool = False
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("epochs", "batch_size") and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}={value!r} is not possible; give a whole number of at least 1.")
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name in ("lr", "clip") and not (number and 0 < value < math.inf):
                raise ConfigError(f"{name}={value!r} is not possible; give a positive number.")
            if name == "weight_decay" and not (number and 0 <= value < math.inf):
                raise ConfigError(f"{name}={value!r} is not possible; give 0 or a positive number.")
            if name == "label_smoothing" and not (number and 0 <= value < 1):
                raise ConfigError(f"{name}={value!r} is not possible; give a number of at least 0 and below 1.")
            if name == "augment" and not isinstance(value, bool):
                raise ConfigError(f"{name}={value!r} is not possible; give true or false.")


class Batches:
    """Batches of images in memory, shuffled anew each time, without a copy an image.

    Args:
        images: shape ``(N, C, H, W)``, uint8 or float.
        labels: shape ``(N,)``.
        size: images a batch; the last one may be smaller.
        shuffle: seed of the order, or None to keep it.
    """

    def __init__(self, images: Tensor, labels: Tensor, size: int, shuffle: int | None = None) -> None:
        self.images, self.labels, self.size = images, labels, size
        self._random = None if shuffle is None else torch.Generator().manual_seed(shuffle)

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._random is None:
            order = torch.arange(len(self.labels))
        else:
            order = torch.randperm(len(self.labels), generator=self._random)
        for index in order.split(self.size):
            yield self.images[index], self.labels[index]


@dataclass(frozen=True)
class Fitted:
    """What a training run came to.

    Attributes:
        accuracy: on the test images after the last epoch, in 0 ... 1.
        loss: cross-entropy on the test images.
        curve: test accuracy at each look, oldest first.
        seconds: wall-clock time of training, evaluations left out.
        steps: optimiser steps.
    """

    accuracy: float
    loss: float
    curve: tuple[float, ...]
    seconds: float
    steps: int


class _Classifier(pl.LightningModule):
    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, recipe: Recipe, num_classes: int, mean: Tensor, std: Tensor, steps: int
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.steps = model, recipe, steps
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, -1, 1, 1), persistent=False)
        self.curve: list[float] = []
        self.loss = float("nan")
        self.training_seconds = 0.0
        self._started = 0.0

    def _logits(self, images: Tensor) -> Tensor:
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        logits: Tensor = self.model((scaled - self.mean) / self.std)
        return logits

    def on_train_epoch_start(self) -> None:
        self._started = time.perf_counter()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        if self.recipe.augment:
            images = augment(images)
        return F.cross_entropy(self._logits(images), labels, label_smoothing=self.recipe.label_smoothing)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        self.training_seconds += now - self._started
        self._started = now

    def on_validation_epoch_start(self) -> None:
        self._losses: list[Tensor] = []
        self._seen = 0

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        logits = self._logits(images)
        self.test_accuracy.update(logits, labels)
        self._seen += len(labels)
        self._losses.append(F.cross_entropy(logits, labels, reduction="sum"))

    def on_validation_epoch_end(self) -> None:
        self.curve.append(float(self.test_accuracy.compute()))
        self.loss = float(torch.stack(self._losses).sum()) / max(self._seen, 1)
        self.test_accuracy.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_EXECUTION] = execution_state(self.model)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A resumed run takes the ways that it took before. Older checkpoints do not say which.
        if _EXECUTION in checkpoint:
            load_execution_state(self.model, checkpoint[_EXECUTION])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(parameter_groups(self.model, self.recipe.weight_decay), lr=self.recipe.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.recipe.lr, total_steps=self.steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return a model's trained parameters in two groups: dense weights, which decay, and all others.

    Cores are not decayed: a weight is a product of many of them, so a small decay of each is a large one of the weight.
    """
    layers = [m for m in model.modules() if isinstance(m, GeneratorModule)]
    generated = {id(p) for layer in layers for _, p in layer.generator_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in generated]
    rest = [p for p in trained if p.ndim < 2 or id(p) in generated]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def augment(images: Tensor) -> Tensor:  # shape: (batch, C, H, W) -> the same
    """Shift each batch of images by up to an eighth of its side and flip half of the images."""
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


class _Ticker(pl.Callback):
    def __init__(self, tell: Callable[[int, float], None]) -> None:
        self.tell = tell

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, _Classifier)
        self.tell(trainer.current_epoch + 1 if module.steps else module.recipe.epochs, module.curve[-1])


def fit(
    model: nn.Module,
    recipe: Recipe,
    *,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    mean: Tensor,
    std: Tensor,
    num_classes: int,
    seed: int,
    device: str = "cpu",
    evaluate_every: int = 1,
    tell: Callable[[int, float], None] = lambda epoch, accuracy: None,
) -> Fitted:
    """Train a model in place; one that has nothing to train is only looked at, once.

    Args:
        model: takes normalised images ``(batch, C, H, W)`` and returns logits ``(batch, num_classes)``.
        recipe: how to train.
        train: images ``(N, C, H, W)``, uint8 or float in 0 ... 1, and labels ``(N,)``.
        test: the same, for the accuracy after each epoch. No choice is made by it.
        mean: a number a channel, subtracted from images scaled to 0 ... 1.
        std: a number a channel, divided by.
        num_classes: classes of the labels.
        seed: of the order of the batches and of the augmentation.
        device: ``"cpu"`` or ``"cuda"``.
        evaluate_every: epochs between two looks at the test images; the last epoch is always among them, so where
            this does not divide the epochs, their greatest common divisor takes its place.
        tell: called after each look with the epochs done and the test accuracy.
    """
    pl.seed_everything(seed, verbose=False)
    batches = Batches(*train, recipe.batch_size, shuffle=seed)
    trainable = any(p.requires_grad for p in model.parameters())
    steps = recipe.epochs * len(batches) if trainable else 0
    module = _Classifier(model, recipe, num_classes, mean, std, steps)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Lightning advises more loader processes; the images are in memory and need none.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
        # Lightning walks batches with a pytree check that torch has since renamed.
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        trainer = pl.Trainer(
            accelerator="cpu" if device == "cpu" else "gpu",
            devices=1,
            max_epochs=recipe.epochs,
            gradient_clip_val=recipe.clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            check_val_every_n_epoch=math.gcd(evaluate_every, recipe.epochs),
            callbacks=[_Ticker(tell)],
        )
        looks = Batches(*test, 1024)
        before = signal.getsignal(signal.SIGINT)
        try:
            if trainable:
                trainer.fit(module, batches, looks)
            else:
                trainer.validate(module, looks, verbose=False)
        except SystemExit as leaving:
            # Lightning makes Ctrl+C an exit of the program, and is deaf to the next one.
            if not isinstance(leaving.__context__, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, before)
            raise KeyboardInterrupt from None
    model.to("cpu")
    return Fitted(module.curve[-1], module.loss, tuple(module.curve), module.training_seconds, steps)
