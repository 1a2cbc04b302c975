"""A search whose configurations are not trained: what each comes to follows from its recipe."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adntn.errors import ConfigError, NonFiniteError
from adntn.experiments.search.points import Measured
from adntn.experiments.search.space import config_of, optimization_of
from adntn.experiments.search.study import Report

EPOCHS = 4
#: Best at the rate 0.01, and with as many groups as there may be.
RECIPE: dict[str, Any] = {
    "model": "small-cnn",
    "data": "digits",
    "seed": 3,
    "stage": [
        {"kind": "select", "targets": ["conv2"], "config": {"groups": 1}},
        {"kind": "fine-tune", "optimization": {"epochs": EPOCHS, "lr": 0.1}},
    ],
}
SPACE: dict[str, Any] = {"groups": [1, 2, 3, 4, 6, 8], "latent_order": [3, 5], "lr": [1e-3, 1.0]}


def accuracy_of(recipe: Mapping[str, Any], seed: int) -> float:
    off = math.log10(optimization_of(recipe).lr / 1e-2)
    return 0.5 + 0.04 * config_of(recipe).groups - 0.1 * abs(off) + 0.002 * (seed % 5)


def size_of(recipe: Mapping[str, Any]) -> int:
    return 100 * config_of(recipe).groups + config_of(recipe).latent_order


@dataclass
class Fake:
    """Parameters are a hundred a group; three groups are impossible.

    Attributes:
        folder: where every training leaves a line.
        stop: training, counted from 0, in which Ctrl+C comes; None means in none.
        kill: how many times the process that trains four groups is killed.
        diverge: number of groups whose training is not finite.
        seconds: that an epoch takes.
        lucky: number of groups that does well with the search's own seed, and with no other.
    """

    folder: Path
    stop: int | None = None
    kill: int = 0
    diverge: int | None = None
    seconds: float = 0.0
    lucky: int | None = None

    def prepare(self) -> Measured:
        return self.measured(10_000, 0.99)

    def parameters(self, recipe: Mapping[str, Any]) -> int:
        if config_of(recipe).groups == 3:
            raise ConfigError("conv2: groups=3 does not divide the rows")
        return size_of(recipe)

    def evaluate(self, recipe: Mapping[str, Any], seed: int, file: Path, report: Report) -> Measured:
        groups = config_of(recipe).groups
        count = len(self.trained())
        with (self.folder / "trained").open("a") as log:
            log.write(f"{groups} {config_of(recipe).latent_order} {optimization_of(recipe).lr!r} {seed}\n")
        if groups == 4 and sum(line.startswith("4 ") for line in self.trained()) <= self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if groups == self.diverge:
            raise NonFiniteError("conv2 is NaN")
        accuracy = accuracy_of(recipe, seed) + (0.4 if groups == self.lucky and seed == RECIPE["seed"] else 0.0)
        for epoch in range(1, EPOCHS + 1):
            time.sleep(self.seconds)
            if count == self.stop and epoch == 2:
                raise KeyboardInterrupt
            report(epoch, EPOCHS, accuracy * epoch / EPOCHS)
        file.write_text(f"{groups}")
        return self.measured(size_of(recipe), accuracy)

    def latency(self, file: Path) -> tuple[float, float]:
        return float(file.read_text()), 0.5

    def trained(self) -> list[str]:
        log = self.folder / "trained"
        return log.read_text().splitlines() if log.is_file() else []

    @staticmethod
    def measured(parameters: int, accuracy: float) -> Measured:
        return Measured(
            parameters=parameters,
            file_bytes=4 * parameters,
            validation_accuracy=accuracy,
            test_accuracy=accuracy - 0.01,
            agreement=accuracy,
            calibration_error=0.1,
            train_seconds=2.0,
            energy_note="absent: nothing is trained",
            curve=(accuracy,),
        )
