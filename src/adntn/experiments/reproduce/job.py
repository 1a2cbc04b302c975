"""An experiment as a whole: its data, its folder, its rows, their times."""

from __future__ import annotations

import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from adntn.errors import ConfigError, NonFiniteError, check_choice
from adntn.experiments.data import load_data
from adntn.experiments.models import ImageShape
from adntn.experiments.reproduce.rows import Folder, Result, Row, chosen_rows
from adntn.experiments.reproduce.run import Told, run_rows
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.reproduce.steps import Timed, time_steps
from adntn.options import Options, check_number, check_whole
from adntn.training.folder import RunFolderError

__all__ = ["EXPERIMENTS", "experiment_rows", "reproduce", "settings_for"]

DEVICES = ("cpu", "cuda")
AnyOptions = TypeVar("AnyOptions", bound=Options)


#: What lists the rows of an experiment, by its name: where ``rows(settings, image_shape, num_classes)`` stands.
EXPERIMENTS: Mapping[str, str] = MappingProxyType(
    {
        "table3": "adntn.experiments.reproduce.table3:table3_rows",
        "whole": "adntn.experiments.reproduce.whole:whole_rows",
        "levers": "adntn.experiments.reproduce.levers:lever_rows",
    }
)


def experiment_rows(experiment: str, settings: Settings, image_shape: ImageShape, num_classes: int) -> list[Row]:
    """Return all rows of an experiment.

    Raises:
        ConfigError: there is no such experiment.
    """
    check_choice("experiment", experiment, EXPERIMENTS)
    rows: list[Row] = pkgutil.resolve_name(EXPERIMENTS[experiment])(settings, image_shape, num_classes)
    return rows


def settings_for(experiment: str, path: Path, given: Mapping[str, Any], kind: type[AnyOptions]) -> AnyOptions:
    """Return what is asked for: what is given, else what the folder was made for, else the defaults.

    Args:
        experiment: its name.
        path: of the folder; it need not exist yet.
        given: options of ``kind``.
        kind: :class:`~adntn.experiments.reproduce.settings.Settings`, or those of another experiment.

    Raises:
        RunFolderError: the folder holds another experiment, or cannot be read.
        ConfigError: an option is unknown or impossible.
    """
    found: dict[str, Any] = {}
    if (path / "settings.json").is_file():
        stored = Folder(path).settings()
        if stored.get("experiment") != experiment:
            raise RunFolderError(f"{path} holds {stored.get('experiment')}, not {experiment}; choose another --out.")
        found = {each.name: stored[each.name] for each in fields(kind) if each.name in stored}  # type: ignore[arg-type]
    return kind.from_dict({**found, **given})


def reproduce(
    experiment: str,
    settings: Settings,
    path: Path,
    *,
    data: str,
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1),
    device: str = "cpu",
    threads: int | None = None,
    minutes: float | None = None,
    download: bool = False,
    times: bool = True,
    tell: Callable[[Told | Timed], None] = lambda told: None,
) -> list[Result]:
    """Train what is not finished of an experiment, time what is not timed, and write everything into its folder.

    Rows, seeds, device and threads may be others from call to call; the settings and the images may not.

    Args:
        experiment: one of :data:`EXPERIMENTS`.
        settings: what changes the results.
        path: of the folder: new, empty, or of the same experiment and settings.
        data: name or folder of the data set.
        rows: patterns of the names of the rows that are wanted, as ``"vgg16-fc2/*"``; empty means all.
        seeds: each row is trained once with each.
        device: ``"cpu"`` or ``"cuda"``.
        threads: of torch, or None for torch's own choice.
        minutes: after which to stop; None means never.
        download: whether the data may be fetched over the network.
        times: whether to time a training step of each row, once all are trained.
        tell: is told the progress.

    Returns:
        What is finished of the rows and seeds asked for; less than all where another process works on some.

    Raises:
        TrainingStopped: the time was up, or SIGTERM came. Run again to go on.
        ConfigError: an option is impossible, a pattern matches nothing, or the device is not there.
        RunFolderError: the folder holds something else, or was made with other settings.
        DataError: the data cannot be read.
        NonFiniteError: some rows came to NaN or infinity; all others are finished.
    """
    _check(seeds, device, threads, minutes)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    if threads is not None:
        torch.set_num_threads(threads)
    images = load_data(data, download=download).limit(settings.train_limit, settings.test_limit)
    every = experiment_rows(experiment, settings, images.image_shape, images.num_classes)
    wanted = chosen_rows(every, rows)
    folder = Folder(path)
    folder.claim(experiment, settings, images)
    failure: NonFiniteError | None = None
    results: list[Result] = []
    try:
        results = run_rows(
            wanted,
            seeds,
            images,
            folder,
            device=device,
            deadline=deadline,
            held_out=settings.held_out,
            tell=tell,
        )
    except NonFiniteError as error:
        failure = error
    if times:
        time_steps(wanted, every, images, folder, device=device, deadline=deadline, tell=tell)
    if failure is not None:
        raise failure
    return results


def _check(seeds: Sequence[int], device: str, threads: int | None, minutes: float | None) -> None:
    check_choice("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda' is not possible here: torch sees no CUDA device.")
    if threads is not None:
        check_whole("threads", threads, 1)
    if minutes is not None:
        check_number("minutes", minutes, above=0)
    whole = all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) != len(seeds):
        raise ConfigError(
            f"seeds={tuple(seeds)!r} is not possible; give at least one, each once, whole numbers from 0 to 4294967295."
        )
