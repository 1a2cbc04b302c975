"""What a stage of a run is, and what it works on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from adntn.options import Options
from adntn.training.data import TrainingData

__all__ = ["Event", "Outcome", "Stage", "State"]


@dataclass(frozen=True)
class Event:
    """Told while a stage runs.

    Attributes:
        step: of the work that is done, in units of the stage's own (optimiser steps, layers, ...).
        total: of them in all.
        text: how it goes, short, as ``"loss 0.31, validation 91.2 %"``.
    """

    step: int
    total: int
    text: str = ""


@dataclass
class State:
    """What stages work on, one after the other.

    Attributes:
        model: is made small; a stage changes it in place or puts another in its place.
        teacher: the dense model, frozen and in evaluation mode; None if there is none.
        data: to train on.
        folder: the stage's own, for its checkpoints and what else it keeps. It is there already.
        seed: of the stage.
        device: ``"cpu"`` or ``"cuda"``.
        log: takes metrics as they come: ``log(step, {"loss": 0.3})``.
        tell: takes progress.
        deadline: of :func:`time.monotonic`, at which the stage should raise
            :class:`adntn.errors.TrainingStopped`, with what it has done kept safe in its folder; None means never.
    """

    model: nn.Module
    teacher: nn.Module | None
    data: TrainingData
    folder: Path
    seed: int = 0
    device: str = "cpu"
    log: Callable[[int, Mapping[str, float]], None] = field(default=lambda step, values: None)
    tell: Callable[[Event], None] = field(default=lambda event: None)
    deadline: float | None = None

    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


#: What a stage says of itself: plain values that go to JSON, short enough for a report.
Outcome = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stage(Options, ABC):
    """One stage of a recipe: its options, and how it runs.

    A subclass is a frozen dataclass whose fields are the options of the stage's table in a recipe.
    """

    kind: ClassVar[str]
    #: Whether all processes of a run take part; else the first one runs the stage, and the others take its model.
    in_every_process: ClassVar[bool] = False

    @abstractmethod
    def run(self, state: State) -> Outcome:
        """Do the stage's work on ``state.model``.

        After an interruption it is called anew with the model as it was before the stage, and the same folder, in which
        it finds what it has kept; what comes out is the same as without the interruption.
        """

    def check(self, model: nn.Module) -> None:
        """Raise what is wrong with the options for a model, before any stage has run.

        Args:
            model: the dense one, which stages before this one may change.

        Raises:
            AdntnError: whatever is wrong.
        """
