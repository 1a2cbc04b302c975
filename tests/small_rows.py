"""An experiment of a few rows on small images, for the tests of what runs experiments.

usage: small_rows.py FOLDER MINUTES STEP, which runs it on digits in a process of its own
"""

from __future__ import annotations

import functools
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from adntn import GeneratorConfig
from adntn.experiments.data import ImageData, Split
from adntn.experiments.reproduce import job
from adntn.experiments.reproduce.rows import Row
from adntn.experiments.reproduce.run import Told
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.reproduce.steps import Timed
from adntn.experiments.variants import Variant

SETTINGS = Settings(epochs=3, batch_size=32, train_limit=96, test_limit=40, precision="float32")
STEPS = 3 * 3  # of a row


def bright_halves(train: int = 96, test: int = 40) -> ImageData:
    """Images of 8x8 that are bright above or below."""

    def part(count: int, seed: int) -> Split:
        labels = torch.arange(count) % 2
        images = torch.randint(0, 150, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
        images[labels == 0, :, :4] += 60
        images[labels == 1, :, 4:] += 60
        return Split(images.to(torch.uint8), labels)

    return ImageData("halves", "Bright halves", part(train, 0), part(test, 1), 2, (0.4,), (0.2,), "made by hand")


def network(image_shape: tuple[int, int, int], num_classes: int, width: float = 1.0) -> nn.Module:
    """A convolution with batch norm, and two linear layers with dropout; activations work in place, as VGG-16's do."""
    hidden = max(1, round(32 * width))
    return nn.Sequential(
        *(nn.Conv2d(image_shape[0], 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(8 * 4 * 4, hidden), nn.ReLU(inplace=True), nn.Dropout()),
        *(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, num_classes)),
    )


def small_rows(settings: Settings, image_shape: tuple[int, int, int], num_classes: int) -> list[Row]:
    """The network as it stands, and with its second linear layer generated or gone."""
    build = functools.partial(network, image_shape, num_classes, settings.width)
    return [
        Row(
            group="small" if variant.kind == "dense" else "small-fc",
            variant=variant.name,
            network="small",
            build=build,
            make=functools.partial(variant.make, build, ("7",)),
            layers=("7",),
            optimization=settings.optimization(1e-2, 2e-2),
            about={"kind": variant.kind},
        )
        for variant in (
            Variant("dense", "dense"),
            Variant("ttn", config=GeneratorConfig()),
            Variant("deleted", "deleted"),
            Variant("frozen-dense", "frozen-dense"),
        )
    ]


@dataclass
class Heard:
    """Listens to an experiment."""

    told: list[Told | Timed] = field(default_factory=list)

    def __call__(self, told: Told | Timed) -> None:
        self.told.append(told)

    def begun(self) -> list[tuple[str, int]]:
        """Rows and seeds whose training began."""
        return [(t.row, t.seed) for t in self.told if isinstance(t, Told) and t.event is None and t.result is None]

    def timed(self) -> list[str]:
        """Rows whose time was taken."""
        return [t.row for t in self.told if isinstance(t, Timed) and t.row is not None and t.values is not None]


def main(folder: Path, minutes: float, kill: int) -> None:
    """Run the experiment on digits in a process of its own; SIGKILL it in its so many-th step, 0 means never."""
    job.EXPERIMENTS = {"small": "small_rows:small_rows"}  # type: ignore[assignment]
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == kill:
            signal.raise_signal(signal.SIGKILL)

    register_optimizer_step_post_hook(count)
    heard = Heard()
    job.reproduce(
        "small", SETTINGS, folder, data="digits", seeds=(0, 1), threads=1, minutes=minutes, times=False, tell=heard
    )
    sys.stdout.write(" ".join([str(steps), *(f"{row}:{seed}" for row, seed in heard.begun())]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
