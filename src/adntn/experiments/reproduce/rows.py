"""What a row of an experiment is, what it came to, and the folder in which rows are kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from adntn.errors import ConfigError, nearest
from adntn.experiments.data import ImageData
from adntn.experiments.locks import locked
from adntn.experiments.reproduce.settings import Settings
from adntn.training.folder import RunFolderError, claim_folder, read_json, write_json
from adntn.training.optimization import Optimization

__all__ = ["Folder", "Result", "Row", "chosen_rows"]


@dataclass(frozen=True, eq=False)
class Row:
    """A network that is trained, once a seed.

    Attributes:
        group: of rows that are compared with each other, as ``"vgg16-fc2"``.
        variant: as ``"ttn"``.
        network: that it is one of, as ``"vgg16"``; the row ``"vgg16/dense"`` is the network as it stands, to whose time
            the times of the others are ratios.
        build: makes the dense network that it is made of.
        make: makes the untrained network from a seed.
        layers: that it is about, by their names in the dense network.
        optimization: how it is trained.
        about: whatever else is to stand in the result: budget, config.
        teacher: a row that is trained before it, with the same seed; it must be of the network as it stands.
        lessons: what is learned from that, of :data:`~adntn.experiments.lessons.LESSONS`.
    """

    group: str
    variant: str
    network: str
    build: Callable[[], nn.Module]
    make: Callable[[int], nn.Module]
    layers: tuple[str, ...]
    optimization: Optimization
    about: Mapping[str, Any] = field(default_factory=dict)
    teacher: Row | None = None
    lessons: tuple[str, ...] = ("answers",)

    @property
    def name(self) -> str:
        """The row's name, as ``"vgg16-fc2/ttn"``."""
        return f"{self.group}/{self.variant}"


@dataclass(frozen=True)
class Result:
    """What a row came to with one seed.

    Attributes:
        group: as in :class:`Row`.
        variant: likewise.
        seed: of the start, of the order of batches and of augmentation.
        accuracy: on the test images after the last epoch, or on those of
            :attr:`~adntn.experiments.reproduce.settings.Settings.held_out`, 0 ... 1.
        loss: cross-entropy on them, nats.
        curve: accuracy on them after each epoch.
        layer_dense: numbers of the dense weights of the row's layers.
        layer_stored: numbers stored for them here.
        layer_trained: how many of those are trained.
        model_stored: parameters of the whole model.
        model_trained: how many of them are trained.
        stable_rank_start: of each layer's weight before training; none for a deleted one.
        stable_rank_end: after training.
        rank_bound: the greatest rank that each generated weight can have.
        steps: of the optimiser.
        train_seconds: wall-clock time of the steps, looks left out.
        optimization: how it was trained.
        about: as in :class:`Row`.
        environment: where it was trained.
    """

    group: str
    variant: str
    seed: int
    accuracy: float
    loss: float
    curve: tuple[float, ...]
    layer_dense: int
    layer_stored: int
    layer_trained: int
    model_stored: int
    model_trained: int
    stable_rank_start: Mapping[str, float]
    stable_rank_end: Mapping[str, float]
    rank_bound: Mapping[str, int]
    steps: int
    train_seconds: float
    optimization: Mapping[str, Any]
    about: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The row's name."""
        return f"{self.group}/{self.variant}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """Build from :meth:`to_dict`'s values.

        Raises:
            RunFolderError: they are not a result's.
        """
        try:
            known = {name: values[name] for name in (each.name for each in fields(cls))}
            return cls(**{**known, "curve": tuple(known["curve"])})
        except (KeyError, TypeError) as error:
            raise RunFolderError(f"these are not the values of a result: {error}") from None


class Folder:
    """The folder of an experiment. Every file in it is whole at any time.

    settings.json   what was asked for, on which images
    rows/           a JSON file a row and seed, there as soon as it is finished
    models/         their safetensors files
    checkpoints/    of what is being trained, and the locks of the processes that train it
    timings.json    time of a step of each network

    Args:
        path: of the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def claim(self, experiment: str, settings: Settings, data: ImageData) -> None:
        """Make the folder this experiment's, or make sure that it is.

        Raises:
            RunFolderError: it holds another experiment, other settings, or something else.
        """
        about = {"data": data.title, "source": data.source}
        self._claim({"experiment": experiment, **settings.to_dict(), **about})

    def _claim(self, wanted: dict[str, Any], environment: Mapping[str, Any] | None = None) -> None:
        """Write what is wanted, and where, into a folder that is new; compare it with what one that is not says."""
        file = self.path / "settings.json"
        wanted = json.loads(json.dumps(wanted))
        with contextlib.suppress(OSError):  # what is wrong with it is said below
            self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path) if self.path.is_dir() else contextlib.nullcontext():
            if claim_folder(self.path, "reproduction", file.name, lambda: True):
                self._check(self.settings(), wanted)
                return
            if environment is not None:
                write_json(self.path / "environment.json", environment)
            write_json(file, wanted)

    def _check(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
        if names:
            differing = "; ".join(f"{name} was {found.get(name)!r} and is {wanted.get(name)!r}" for name in names)
            raise RunFolderError(
                f"{self.path} was made with other settings: {differing}. Ask for the same, or choose another --out."
            )

    def settings(self) -> dict[str, Any]:
        """Read what the folder was made for.

        Raises:
            RunFolderError: it holds no experiment.
        """
        file = self.path / "settings.json"
        if not file.is_file():
            raise RunFolderError(f"{self.path} holds no reproduction: it has no settings.json.")
        found: dict[str, Any] = read_json(file)
        return found

    def result_file(self, row: str, seed: int) -> Path:
        """Return where the result of a row and seed stands, or will."""
        return self.path / "rows" / f"{row}-seed{seed}.json"

    def model_file(self, row: str, seed: int) -> Path:
        """Return where the trained network of a row and seed stands, or will."""
        return self.path / "models" / f"{row}-seed{seed}.safetensors"

    def checkpoints(self, row: str, seed: int) -> Path:
        """Return where the checkpoints of a row and seed stand."""
        return self.path / "checkpoints" / f"{row}-seed{seed}"

    @property
    def timings_file(self) -> Path:
        """Where the times of a step stand, or will."""
        return self.path / "timings.json"

    def result(self, row: str, seed: int) -> Result | None:
        """Read the result of a row and seed, or None where it is not finished."""
        file = self.result_file(row, seed)
        return Result.from_dict(read_json(file)) if file.is_file() else None

    def results(self) -> list[Result]:
        """Read all that is finished, by name and seed."""
        found = [Result.from_dict(read_json(file)) for file in self.path.glob("rows/*/*-seed*.json")]
        return sorted(found, key=lambda each: (each.name, each.seed))

    @contextlib.contextmanager
    def holding(self, name: str, seed: int | None = None) -> Iterator[bool]:
        """Hold a row and seed, or something else that one process does, for this one; yields whether no other one does.

        The system takes the lock back from a process that is killed.
        """
        file = self.path / "checkpoints" / (f"{name}.lock" if seed is None else f"{name}-seed{seed}.lock")
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(file, wait=False) as mine:
            yield mine


def chosen_rows(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """Return the rows whose names match one of the patterns, as ``"vgg16-fc2/*"`` or ``"*/ttn"``; without any, all.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    if not patterns:
        return list(rows)
    names = [row.name for row in rows]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            groups = ", ".join(f"{group}/..." for group in dict.fromkeys(row.group for row in rows))
            raise ConfigError(f"no row is named {pattern!r}; there are {groups} (--list).{nearest(pattern, names)}")
    return [row for row in rows if any(fnmatchcase(row.name, pattern) for pattern in patterns)]
