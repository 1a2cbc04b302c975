"""A data set, a model and stages small enough to run in no time, for the tests of whole runs."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from adntn.errors import TrainingStopped
from adntn.training.data import Part, TrainingData
from adntn.training.stages.base import Event, Outcome, Stage, State


def two_classes(count: int = 60, seed: int = 0) -> TrainingData:
    """Images of 4x4 that are bright above or below; a fifth of them to choose by, as many to report on."""
    random = torch.Generator().manual_seed(seed)

    def part(n: int) -> Part:
        labels = torch.arange(n) % 2
        images = 60 * torch.rand(n, 1, 4, 4, generator=random)
        images[labels == 0, :, :2] += 100
        images[labels == 1, :, 2:] += 100
        return Part(images.to(torch.uint8), labels)

    fifth = count // 5
    mean, std = torch.tensor([0.3]), torch.tensor([0.2])
    return TrainingData(part(count), part(fifth), part(fifth), 2, mean, std)


def small_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))


@dataclass(frozen=True, kw_only=True)
class Shift(Stage):
    """Adds to the last bias: once it has been applied twice, one can tell."""

    by: float = 1.0
    what = "a shift"
    kind: ClassVar[str] = "shift"
    calls: ClassVar[list[float]] = []

    def run(self, state: State) -> Outcome:
        last = state.model.get_submodule("3").get_parameter("bias")
        self.calls.append(float(last[0].detach()))
        with torch.no_grad():
            last += self.by
        state.tell(Event(1, 1, f"shifted by {self.by}"))
        return {"by": self.by, "noise": float(torch.rand((), generator=torch.Generator().manual_seed(state.seed)))}


@dataclass(frozen=True, kw_only=True)
class Deaf(Stage):
    """Is sent SIGTERM, and works on to its end."""

    what = "a deaf stage"
    kind: ClassVar[str] = "deaf"

    def run(self, state: State) -> Outcome:
        signal.raise_signal(signal.SIGTERM)
        return {}


@dataclass(frozen=True, kw_only=True)
class StopsOnce(Stage):
    """Spoils the model and stops at its first call; works at the second."""

    how: str = "time"
    what = "a stop"
    kind: ClassVar[str] = "stops-once"

    def run(self, state: State) -> Outcome:
        mark = state.folder / "been-here"
        first = not mark.exists()
        mark.touch()
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter += 7.0 if first else 1.0
        if first and self.how == "signal":
            signal.raise_signal(signal.SIGTERM)
        if first and (self.how == "time" or state.out_of_time()):
            raise TrainingStopped("it was time")
        if first and self.how == "fault":
            raise ZeroDivisionError("a fault")
        return {}
