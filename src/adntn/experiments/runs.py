"""What a job is, and the folder that a run of it writes."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adntn.checkpoint import writing
from adntn.errors import ConfigError, check_choice, nearest
from adntn.experiments.data import ImageData
from adntn.topology import TOPOLOGIES, TREES, GeneratorConfig
from adntn.training.folder import RunFolderError, claim_folder, describe_machine, write_json
from adntn.training.optimization import Optimization

__all__ = ["CONTROLS", "Job", "Row", "RunFolder", "RunFolderError", "Timing", "environment", "model_file"]

CONTROLS = ("deleted", "frozen-dense", "frozen-tree")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Job:
    """What to run.

    Attributes:
        model: a reference model's name, or ``path/to/file.py:function``.
        data: a data set's name, or a folder.
        targets: layers, or parameters by their own names, to generate; empty means the reference model's own, or every
            layer that can be.
        topologies: one variant each.
        config: options of the generators; each variant has its own topology, and of the options those that it takes.
        controls: some of ``"deleted"``, ``"frozen-dense"``, ``"frozen-tree"``; the last one freezes the first topology.
        recipe: how to train, the same for all.
        seeds: each variant is trained once with each.
        train_limit: training images at most, a stratified sample.
        test_limit: test images at most, likewise.
        device: ``"cpu"`` or ``"cuda"``.
        threads: of torch, or None for torch's own choice.
    """

    model: str = "small-cnn"
    data: str = "digits"
    targets: tuple[str, ...] = ()
    topologies: tuple[str, ...] = TREES
    config: GeneratorConfig = field(default_factory=GeneratorConfig)
    controls: tuple[str, ...] = CONTROLS
    recipe: Optimization = field(default_factory=lambda: Optimization(epochs=30))
    seeds: tuple[int, ...] = (0, 1, 2)
    train_limit: int | None = None
    test_limit: int | None = None
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("model", "data"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ConfigError(f"{name}={getattr(self, name)!r} is not a name.")
        for name in ("targets", "topologies", "controls", "seeds"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)):
                raise ConfigError(f"{name}={value!r} is not a list.")
            object.__setattr__(self, name, tuple(value))
            if len(set(value)) != len(value):
                raise ConfigError(f"{name}={value!r} is not possible; give each once.")
        for topology in self.topologies:
            check_choice("topology", topology, TOPOLOGIES)
        for control in self.controls:
            check_choice("control", control, CONTROLS)
        if not self.seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in self.seeds):
            raise ConfigError(
                f"seeds={self.seeds!r} is not possible; give at least one, each a whole number from 0 to 4294967295."
            )
        for name in ("train_limit", "test_limit", "threads"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}={value!r} is not possible; give a whole number of at least 1.")
        check_choice("device", self.device, DEVICES)
        if "frozen-tree" in self.controls and not self.topologies:
            raise ConfigError("the control 'frozen-tree' needs a topology to freeze.")

    @property
    def variants(self) -> tuple[str, ...]:
        """The networks that are trained, the dense one first."""
        return ("dense", *self.topologies, *self.controls)

    def to_dict(self) -> dict[str, Any]:
        return {"version": 1, **asdict(self), "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Job:
        """Build a job from :meth:`to_dict`'s values.

        Raises:
            ConfigError: an option is unknown or impossible; the nearest known one is named.
        """
        rest = dict(values)
        if rest.pop("version", 1) != 1:
            raise ConfigError("this run was written by a newer version of adntn; upgrade adntn.")
        known = cls.__dataclass_fields__
        for name in rest:
            if name not in known:
                raise ConfigError(f"a job has no option {name!r}; it has {', '.join(known)}.{nearest(name, known)}")
        for name in ("targets", "topologies", "controls", "seeds"):
            if name in rest:
                rest[name] = tuple(rest[name])
        if "config" in rest:
            rest["config"] = GeneratorConfig.from_dict(rest["config"])
        if "recipe" in rest:
            rest["recipe"] = Optimization.from_dict(rest["recipe"])
        return cls(**rest)


@dataclass(frozen=True)
class Row:
    """One trained network.

    Attributes:
        variant: as in :attr:`Job.variants`.
        seed: of its start and of the order of its batches.
        accuracy: on the test images after the last epoch, 0 ... 1.
        loss: cross-entropy on the test images.
        curve: test accuracy after each epoch.
        layer_stored: numbers stored for the weights of the chosen layers.
        layer_trained: how many of them are trained.
        model_stored: parameters of the whole model.
        model_trained: how many of them are trained.
        file_bytes: of its safetensors file, weights and buffers and header.
        stable_rank_start: mean over the chosen layers' weights, untrained; None for a deleted layer.
        stable_rank_end: the same after training.
        train_seconds: wall-clock time of training, evaluations left out.
        steps: optimiser steps.
        file: the model's file, relative to the run folder.
    """

    variant: str
    seed: int
    accuracy: float
    loss: float
    curve: tuple[float, ...]
    layer_stored: int
    layer_trained: int
    model_stored: int
    model_trained: int
    file_bytes: int
    stable_rank_start: float | None
    stable_rank_end: float | None
    train_seconds: float
    steps: int
    file: str


@dataclass(frozen=True)
class Timing:
    """Forward time of one variant, timed in turns with the dense network in one process.

    Attributes:
        variant: as in :attr:`Job.variants`.
        milliseconds: median over the rounds, a batch.
        dense_ratio: median over the rounds of this network's time over the dense one's; below 1 is faster.
        batch: images a batch.
        rounds: timed, after a warm-up.
    """

    variant: str
    milliseconds: float
    dense_ratio: float
    batch: int
    rounds: int


def model_file(variant: str, seed: int) -> Path:
    """Return a trained network's file, relative to its run folder."""
    return Path("models") / f"{variant}-seed{seed}.safetensors"


class RunFolder:
    """A run's folder: what was asked, where it ran, what came out. Every file in it is whole at any time.

    Args:
        path: of the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def claim(self, job: Job, data: ImageData) -> None:
        """Make the folder this job's, or make sure that it is.

        Raises:
            RunFolderError: it holds another job's run, or something else.
        """
        claim_folder(self.path, "run", "config.json", lambda: self.job() == job)
        write_json(self.path / "config.json", job.to_dict())
        write_json(self.path / "environment.json", environment(data))

    def job(self) -> Job:
        """Read the job that the folder was made for.

        Raises:
            RunFolderError: the folder holds no run.
        """
        config = self.path / "config.json"
        if not config.is_file():
            raise RunFolderError(f"{self.path} is no run folder: it has no config.json.")
        try:
            values = json.loads(config.read_text())
            if not isinstance(values, dict):
                raise TypeError("it is not what this library writes")
            return Job.from_dict(values)
        except (ValueError, TypeError, AttributeError) as error:
            raise RunFolderError(f"{config} cannot be read: {error}") from None

    def rows(self) -> list[Row]:
        """Read the finished networks; one whose file is gone does not count.

        Raises:
            RunFolderError: the metrics are not what this library writes.
        """
        metrics = self.path / "metrics.json"
        if not metrics.is_file():
            return []
        try:
            runs = json.loads(metrics.read_text())["runs"]
            rows = [Row(**{**row, "curve": tuple(row["curve"])}) for row in runs]
        except (ValueError, TypeError, KeyError) as error:
            raise RunFolderError(f"{metrics} cannot be read: {error!r}") from None
        return [row for row in rows if (self.path / row.file).is_file()]

    def write_metrics(self, rows: Sequence[Row], timings: Sequence[Timing]) -> None:
        """Write ``metrics.json`` and ``metrics.csv``."""
        runs, times = [asdict(row) for row in rows], [asdict(timing) for timing in timings]
        write_json(self.path / "metrics.json", {"version": 1, "runs": runs, "forward_times": times})
        columns = [name for name in Row.__dataclass_fields__ if name != "curve"]
        with writing(self.path / "metrics.csv") as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, columns, extrasaction="ignore")
            table.writeheader()
            table.writerows(runs)


def environment(data: ImageData) -> dict[str, Any]:
    """Describe where a run takes place: versions, processor, threads, revision, data."""
    about = {"title": data.title, "source": data.source, "train": len(data.train), "test": len(data.test)}
    return {**describe_machine(), "data": about}
