"""Rows of an experiment over their seeds, and how two of them compare."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adntn.checkpoint import writing
from adntn.experiments.reproduce.rows import Folder, Result
from adntn.report.figures import NONE, mean_and_deviation, points
from adntn.training.folder import RunFolderError

__all__ = [
    "Difference",
    "Line",
    "compare",
    "conditions",
    "counted",
    "gather",
    "judged_by",
    "listed",
    "machines",
    "read_finished",
    "write_csv",
]


@dataclass(frozen=True)
class Line:
    """A row over the seeds that are finished.

    Attributes:
        group: of the row.
        variant: of the row.
        results: one a seed, at least one.
    """

    group: str
    variant: str
    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """The result of the first seed, for what is the same in all."""
        return self.results[0]

    @property
    def name(self) -> str:
        """The row's name, as ``"vgg16-fc2/ttn"``."""
        return f"{self.group}/{self.variant}"

    @property
    def accuracies(self) -> list[float]:
        """Accuracies, 0 ... 1."""
        return [result.accuracy for result in self.results]

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return statistics.mean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Sample deviation of the accuracies; None for one seed."""
        return statistics.stdev(self.accuracies) if len(self.results) > 1 else None

    def written(self) -> str:
        """Return mean and deviation in per cent, with the number of seeds: ``"91.20 ± 0.15 (3)"``."""
        return f"{mean_and_deviation(self.accuracies)} ({len(self.results)})"


@dataclass(frozen=True)
class Difference:
    """How far a row's accuracy is from another's, seed by seed.

    Attributes:
        values: a difference a seed that both have, as shares.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean difference."""
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample deviation of the differences; None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def sign(self) -> int | None:
        """1 where the row is above the other by more than the spread, -1 below, 0 between; None for one seed."""
        deviation = self.deviation
        if deviation is None:
            return None
        return 0 if abs(self.mean) <= deviation else (1 if self.mean > 0 else -1)

    def written(self) -> str:
        """Return mean and deviation in points: ``"+0.54 ± 0.11"``."""
        deviation = self.deviation
        return points(self.mean) if deviation is None else f"{points(self.mean)} ± {100 * deviation:.2f}"


def compare(line: Line | None, other: Line | None) -> Difference | None:
    """Return how far a row is from another; None where a row is missing or no seed is common to both."""
    if line is None or other is None:
        return None
    known = {result.seed: result.accuracy for result in other.results}
    values = tuple(result.accuracy - known[result.seed] for result in line.results if result.seed in known)
    return Difference(values) if values else None


def gather(results: Iterable[Result]) -> dict[str, dict[str, Line]]:
    """Bring seeds together: lines by group and variant."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        found.setdefault((result.group, result.variant), []).append(result)
    lines: dict[str, dict[str, Line]] = {}
    for (group, variant), seeds in found.items():
        lines.setdefault(group, {})[variant] = Line(group, variant, tuple(sorted(seeds, key=lambda each: each.seed)))
    return lines


def read_finished(folder: Path, experiment: str) -> tuple[dict[str, Any], list[Result]]:
    """Read the settings and what is finished of an experiment.

    Raises:
        RunFolderError: the folder holds no or another experiment, or nothing of it is finished.
    """
    files = Folder(folder)
    settings = files.settings()
    if settings.get("experiment") != experiment:
        raise RunFolderError(f"{folder} holds the experiment {settings.get('experiment')!r}, not {experiment!r}.")
    results = files.results()
    if not results:
        raise RunFolderError(f"{folder} holds no finished row yet; train some first: adntn reproduce {experiment}.")
    return settings, results


def conditions(settings: Mapping[str, Any], results: Sequence[Result]) -> str:
    """Return in a few words what was trained: ``"CIFAR-10 (JPEG), width 0.25, 8 epochs, seeds 0, 1"``."""
    seeds = sorted({result.seed for result in results})
    epochs = settings.get("epochs", NONE)
    parts = [
        str(settings.get("data", "unknown data")),
        f"width {settings.get('width', NONE):g}" if "width" in settings else "",
        f"{epochs} epoch{'' if epochs == 1 else 's'}",
        f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}",
    ]
    if settings.get("teacher_epochs") is not None:
        parts[2] += f" after a teacher's {settings['teacher_epochs']}"
    if settings.get("core_lr") is not None:
        parts[2] += f", cores at {settings['core_lr']:g}"
    limits = [(settings.get(f"{part}_limit"), name) for part, name in (("train", "training"), ("test", "test"))]
    parts[1:1] = [f"{limit:,} {name} images" for limit, name in limits if limit is not None]
    if settings.get("held_out") is not None:
        parts.append("judged by training images kept out")
    return ", ".join(filter(None, parts))


def judged_by(settings: Mapping[str, Any]) -> str:
    """Return on what accuracies were taken: ``"the test images"``."""
    held_out = settings.get("held_out")
    return "the test images" if held_out is None else f"{held_out:,} training images that were kept out of training"


def machines(environments: Iterable[Mapping[str, Any]]) -> str:
    """Return on what something ran, each kind of machine once."""
    seen = dict.fromkeys(map(_machine, environments))
    return "; ".join(seen) or "not known"


def _machine(environment: Mapping[str, Any]) -> str:
    on_gpu = environment.get("device") == "cuda" or str(environment.get("device", "")).startswith("cuda:")
    name = environment.get("gpu") if on_gpu else environment.get("processor")
    threads = environment.get("threads")
    parts = [str(name or "an unnamed processor")]
    if not on_gpu and threads is not None:
        parts.append(f"{threads} thread{'' if threads == 1 else 's'}")
    if environment.get("torch"):
        parts.append(f"torch {environment['torch']}")
    return ", ".join(parts)


def counted(number: int, thing: str) -> str:
    """Return a number with its noun: ``"1 row"``, ``"5 rows"``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Return names as code: ``"`ttn`, `mera`"``, or ``"none"``."""
    return ", ".join(f"`{name}`" for name in names) or "none"


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of equal keys as a CSV, whole or not at all; None is an empty cell."""
    with writing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
