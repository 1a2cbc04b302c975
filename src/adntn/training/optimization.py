"""How a model is trained: everything that a stage with gradient steps can be told."""

from __future__ import annotations

from dataclasses import dataclass

from adntn.errors import check_choice
from adntn.options import Options, check_flag, check_number, check_whole

__all__ = ["ON_NONFINITE", "OPTIMIZERS", "PRECISIONS", "SCHEDULES", "Optimization"]

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("one-cycle", "cosine", "constant")
PRECISIONS = ("float32", "bfloat16")
ON_NONFINITE = ("stop", "lower-rate")


@dataclass(frozen=True, kw_only=True)
class Optimization(Options):
    """How to train.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step, over all processes.
        optimizer: ``"adamw"`` or ``"sgd"``.
        lr: peak learning rate.
        core_lr: peak learning rate of root and cores; None means ``lr``.
        momentum: of SGD.
        weight_decay: of dense weights; root, cores, norms and biases are not decayed.
        schedule: ``"one-cycle"``, ``"cosine"`` or ``"constant"``, step by step over all epochs.
        warmup: share of the steps in which the rate rises; a constant schedule has none.
        clip: largest norm of the gradient; None means any.
        ema: decay of an exponential moving average of the weights, which then is what is looked at and kept, as 0.999;
            None means the weights themselves.
        augment: random shifts by an eighth of the image and horizontal flips.
        label_smoothing: of the cross-entropy where no losses are named.
        patience: epochs without a better validation accuracy after which to stop; None means never.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast; generators work in float32 either way.
        channels_last: whether images and convolutions' weights lie in memory channels last, which is faster for most
            convolutions, above all in bfloat16.
        compile: whether the model runs through :func:`torch.compile`. That takes a minute or more at the first step.
        on_nonfinite: of a loss or gradient that is NaN or infinite: ``"stop"`` with the layer's name, or
            ``"lower-rate"``: back to the last good state with a tenth of the rate.

    Raises:
        ConfigError: an option is impossible.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 2e-2
    core_lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-2
    schedule: str = "one-cycle"
    warmup: float = 0.2
    clip: float | None = 1.0
    ema: float | None = None
    augment: bool = False
    label_smoothing: float = 0.0
    patience: int | None = None
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    on_nonfinite: str = "stop"

    what = "an optimization"

    def __post_init__(self) -> None:
        check_whole("epochs", self.epochs, 1)
        check_whole("batch_size", self.batch_size, 1)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("on_nonfinite", self.on_nonfinite, ON_NONFINITE)
        check_number("lr", self.lr, above=0)
        check_number("momentum", self.momentum, least=0, below=1)
        check_number("weight_decay", self.weight_decay, least=0)
        check_number("warmup", self.warmup, least=0, below=1)
        check_number("label_smoothing", self.label_smoothing, least=0, below=1)
        for name in ("augment", "channels_last", "compile"):
            check_flag(name, getattr(self, name))
        for name in ("core_lr", "clip"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        if self.ema is not None:
            check_number("ema", self.ema, above=0, below=1)
        if self.patience is not None:
            check_whole("patience", self.patience, 1)
