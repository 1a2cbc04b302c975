"""What can be asked for: everything that changes what a row comes to. Where it runs does not, and is not here."""

from __future__ import annotations

from dataclasses import dataclass

from adntn.errors import check_choice
from adntn.options import Options, check_flag, check_number, check_whole
from adntn.training.optimization import PRECISIONS, Optimization

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """How an experiment is run, the same for all of its rows.

    Attributes:
        width: share of the networks' channels and hidden features.
        epochs: passes over the training images.
        batch_size: images a step.
        train_limit: training images at most, a stratified sample.
        test_limit: test images at most, likewise.
        precision: as in :class:`~adntn.training.optimization.Optimization`.
        augment: random shifts and flips.
        compile: as in :class:`~adntn.training.optimization.Optimization`.
        teacher_epochs: passes of the dense network that rows learn from; None means as many as theirs.
        held_out: training images, about, classes in proportion, that are kept out of training and judged by in place of
            the test images: to choose a rate or a row without those. None judges by the test images.
        core_lr: peak learning rate of root and cores, of all rows; None means each row's own.

    Raises:
        ConfigError: an option is impossible.
    """

    width: float = 1.0
    epochs: int = 12
    batch_size: int = 128
    train_limit: int | None = None
    test_limit: int | None = None
    precision: str = "bfloat16"
    augment: bool = True
    compile: bool = False
    teacher_epochs: int | None = None
    held_out: int | None = None
    core_lr: float | None = None

    what = "a reproduction"

    def __post_init__(self) -> None:
        check_number("width", self.width, above=0)
        check_whole("epochs", self.epochs, 1)
        check_whole("batch_size", self.batch_size, 1)
        for name in ("train_limit", "test_limit", "teacher_epochs", "held_out"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        if self.core_lr is not None:
            check_number("core_lr", self.core_lr, above=0)
        check_choice("precision", self.precision, PRECISIONS)
        check_flag("augment", self.augment)
        check_flag("compile", self.compile)

    def optimization(self, lr: float, core_lr: float) -> Optimization:
        """Return how a network is trained with these peak learning rates; those of cores unless it is said above."""
        return Optimization(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=lr,
            core_lr=core_lr if self.core_lr is None else self.core_lr,
            augment=self.augment,
            precision=self.precision,
            channels_last=True,
            compile=self.compile,
        )
