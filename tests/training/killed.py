"""A training run that is killed from inside; started by test_loop_killed.py.

usage: killed.py FOLDER EPOCHS SIGNAL MOMENT

MOMENT is ``none``; ``wait:S``, so many seconds after the first step; ``step:N``, in the backward pass of this process's
N-th step; or ``write:N:SHARE``, when a share of the N-th checkpoint is written, 1 between writing and renaming it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import adntn
from adntn.errors import TrainingStopped
from adntn.experiments.data import load_data
from adntn.training.data import Part, TrainingData
from adntn.training.loop import fit
from adntn.training.optimization import Optimization


def build() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 64), nn.Dropout(0.1), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    adntn.compress_(model, adntn.GeneratorConfig(topology="mera"), ["4"])
    return model


def digits() -> TrainingData:
    images, labels = (lambda part: (part.images, part.labels))(load_data("digits").train)
    train, rest = Part(images[:600], labels[:600]), Part(images[600:800], labels[600:800])
    return TrainingData(train, rest, rest, 10, torch.tensor([0.3]), torch.tensor([0.35]))


def arrange(number: int, moment: str) -> Any:
    """Prepare the end, and return what is called before each step."""
    kind, *when = moment.split(":")

    def end() -> None:
        os.kill(os.getpid(), number)

    steps = 0

    def on_step(step: int, total: int) -> None:
        nonlocal steps
        steps += 1
        if kind == "wait" and steps == 1:
            threading.Thread(target=lambda: (time.sleep(float(when[0])), end()), daemon=True).start()

    if kind == "step":
        backward = torch.Tensor.backward
        calls = 0

        def ending(self: torch.Tensor, *args: Any, **options: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == int(when[0]):
                self.register_hook(lambda grad: end())
            backward(self, *args, **options)

        torch.Tensor.backward = ending  # type: ignore[method-assign]
    if kind == "write":
        write, replace = Path.write_bytes, Path.replace
        writes = 0

        def writing(self: Path, content: Any) -> int:
            nonlocal writes
            writes += 1
            if writes != int(when[0]):
                return write(self, content)
            with self.open("wb") as file:
                file.write(bytes(content)[: int(float(when[1]) * len(content))])
                file.flush()
                if float(when[1]) < 1:
                    end()
                    file.write(bytes(content)[int(float(when[1]) * len(content)) :])
            return len(content)

        def replacing(self: Path, target: Path) -> Path:
            if writes == int(when[0]) and float(when[1]) == 1:
                end()
            return replace(self, target)

        Path.write_bytes = writing  # type: ignore[method-assign]
        Path.replace = replacing  # type: ignore[method-assign]
    return on_step


def main(folder: Path, epochs: int, number: int, moment: str) -> None:
    torch.set_num_threads(1)
    model = build()
    how = Optimization(epochs=epochs, batch_size=64, augment=True, ema=0.95)
    try:
        fit(model, digits(), how, folder=folder / "run", seed=3, on_step=arrange(number, moment))
    except TrainingStopped as stopped:
        sys.exit(f"stopped: {stopped}")
    torch.save(model.state_dict(), folder / "final.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
