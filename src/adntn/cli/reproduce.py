"""Running the experiments behind the library's claims for the screen."""

from __future__ import annotations

import json
import pkgutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adntn.cli.screen import print_whole
from adntn.errors import ConfigError, NonFiniteError, TrainingStopped

#: What writes the report of an experiment into its folder and returns the headline.
REPORTS: Mapping[str, str] = MappingProxyType(
    {
        "table3": "adntn.report.reproduce.table3:write_table3",
        "whole": "adntn.report.reproduce.whole:write_whole",
        "levers": "adntn.report.reproduce.levers:write_levers",
        "expressivity": "adntn.report.reproduce.expressivity:write_expressivity",
    }
)
#: How a run that was stopped goes on.
AGAIN = "the same command goes on from there"

# Of a data set that need not be there to list the rows.
_CIFAR10 = ((3, 32, 32), 10)
_KNOWN = {
    "settings.json": "what was asked for",
    "environment.json": "where it was begun",
    "rows": "a file a row and seed: accuracy, curve, numbers, ranks",
    "cells": "a file a target and seed: what it is, and a line a fit",
    "models": "the trained networks",
    "timings.json": "time of a training step, in turns with the dense network",
    "checkpoints": "what is not finished",
    "table.md": "the tables",
    "table.csv": "the same for other programs",
}


def run_experiment(
    experiment: str,
    given: Mapping[str, Any],
    out: Path | None,
    resume: Path | None,
    *,
    data: str | None,
    rows: Sequence[str],
    seeds: Sequence[int],
    device: str,
    threads: int | None,
    minutes: float | None,
    download: bool,
    times: bool,
    only_list: bool,
    as_json: bool,
) -> None:
    """Run an experiment of rows for the screen; the report is written also where it does not come to its end.

    Raises:
        TrainingStopped: the time was up, or SIGTERM came.
        NonFiniteError: some rows came to NaN or infinity; all others are finished.
        AdntnError: whatever else is wrong.
    """
    console = Console(stderr=as_json)
    with console.status("loading the training stack"):
        from adntn.cli.rows import RowScreen
        from adntn.experiments.reproduce.job import reproduce, settings_for
        from adntn.experiments.reproduce.rows import Folder
        from adntn.experiments.reproduce.settings import Settings
        from adntn.experiments.reproduce.steps import read_timings

    folder = choose_folder(experiment, out, resume)
    settings = settings_for(experiment, folder, given, Settings)
    if only_list:
        _list_rows(console, experiment, settings, data, rows, download=download, as_json=as_json)
        return
    source = "cifar10" if data is None else data
    if not as_json:
        console.print(
            f"[bold]{experiment}[/] on {escape(Path(source).name)}: width {settings.width:g}, "
            f"{settings.epochs} epoch{'s' if settings.epochs > 1 else ''}, seeds {', '.join(map(str, seeds))}, "
            f"{settings.precision}, on {escape(device)}; into {escape(str(folder))}",
            highlight=False,
            soft_wrap=not console.is_terminal,
        )
    stopped: TrainingStopped | NonFiniteError | None = None
    with RowScreen(console, quiet=as_json) as screen:
        try:
            reproduce(
                experiment,
                settings,
                folder,
                data=source,
                rows=rows,
                seeds=seeds,
                device=device,
                threads=threads,
                minutes=minutes,
                download=download,
                times=times,
                tell=screen,
            )
        except (TrainingStopped, NonFiniteError) as error:
            stopped = error
    found = [each.to_dict() for each in Folder(folder).results()]
    content = {"settings": Folder(folder).settings(), "results": found, "timings": read_timings(Folder(folder))}
    _conclude(console, experiment, folder, bool(found), content, as_json=as_json)
    if stopped is not None:
        raise stopped


def run_expressivity_command(
    given: Mapping[str, Any],
    out: Path | None,
    resume: Path | None,
    *,
    models: Path | None,
    minutes: float | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run ``adntn reproduce expressivity``; the report is written also where the time limit ends it.

    Raises:
        TrainingStopped: the time was up.
        AdntnError: whatever else is wrong.
    """
    console = Console(stderr=as_json)
    with console.status("loading the fitting stack"):
        from adntn.cli.rows import FitScreen
        from adntn.experiments.reproduce.expressivity import CellFolder, ExpressivitySettings, run_expressivity
        from adntn.experiments.reproduce.job import settings_for
        from adntn.options import check_number, check_whole

    if threads is not None:
        check_whole("threads", threads, 1)
    if minutes is not None:
        check_number("minutes", minutes, above=0)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    folder = choose_folder("expressivity", out, resume)
    settings = settings_for("expressivity", folder, given, ExpressivitySettings)
    if not as_json:
        console.print(
            f"[bold]expressivity[/]: width {settings.width:g}, {settings.steps} steps; into {escape(str(folder))}",
            highlight=False,
        )
    stopped: TrainingStopped | None = None
    with FitScreen(console, quiet=as_json) as screen:
        try:
            run_expressivity(settings, folder, models=models, deadline=deadline, threads=threads, tell=screen)
        except TrainingStopped as error:
            stopped = error
    fits = CellFolder(folder).all_fits()
    found = [{**fit.facts, "seed": fit.seed, "fits": [cell.to_dict() for cell in fit.cells]} for fit in fits]
    content = {"settings": CellFolder(folder).settings(), "results": found}
    _conclude(console, "expressivity", folder, bool(found), content, as_json=as_json)
    if stopped is not None:
        raise stopped


def choose_folder(experiment: str, out: Path | None, resume: Path | None) -> Path:
    """Return the folder of an experiment.

    Raises:
        ConfigError: ``resume`` is no folder that can be gone on with, or both are given.
    """
    if resume is not None:
        if out is not None:
            raise ConfigError("--resume writes into the folder that it names; leave --out away.")
        if not (resume / "settings.json").is_file():
            raise ConfigError(f"--resume {resume}: there is nothing to go on with; it has no settings.json.")
        return resume
    return out if out is not None else Path("runs") / experiment


def _list_rows(
    console: Console,
    experiment: str,
    settings: Any,
    data: str | None,
    patterns: Sequence[str],
    *,
    download: bool,
    as_json: bool,
) -> None:
    from adntn.experiments.data import load_data
    from adntn.experiments.reproduce.counts import count_numbers
    from adntn.experiments.reproduce.job import experiment_rows
    from adntn.experiments.reproduce.rows import chosen_rows

    shape, classes = _CIFAR10
    if data is not None:
        images = load_data(data, download=download)
        shape, classes = images.image_shape, images.num_classes
    listed = [
        {"row": row.name, **asdict(count_numbers(row))}
        for row in chosen_rows(experiment_rows(experiment, settings, shape, classes), patterns)
    ]
    if as_json:
        typer.echo(json.dumps(listed, indent=1))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, collapse_padding=True)
    titles = ("row", "layers, dense", "stored", "trained", "model, stored", "trained")
    for title in titles:
        table.add_column(title, justify="left" if title == "row" else "right", no_wrap=True)
    for each in listed:
        table.add_row(*(value if isinstance(value, str) else f"{value:,}" for value in each.values()))
    print_whole(console, table)


def _conclude(
    console: Console, experiment: str, folder: Path, finished: bool, content: Mapping[str, Any], *, as_json: bool
) -> None:
    """Write the report of what is finished, and say what came of it."""
    headline = pkgutil.resolve_name(REPORTS[experiment])(folder) if finished else ""
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "headline": headline, **content}, indent=1))
        return
    if headline:
        console.print(f"\n{headline}\n", markup=False, highlight=False, soft_wrap=not console.is_terminal)
    console.print(f"Everything is in [bold]{escape(str(folder))}[/]:", highlight=False)
    for name, meaning in list_files(folder):
        console.print(f"  {name:<30} {meaning}".rstrip(), markup=False, highlight=False, soft_wrap=True)


def list_files(folder: Path) -> list[tuple[str, str]]:
    """Return what lies in an experiment's folder, with what it is; of folders of many files, how many."""
    listed = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            listed.append((path.name, _KNOWN.get(path.name, "")))
        elif path.name in _KNOWN:
            files = [file for file in path.rglob("*") if file.is_file() and file.suffix not in (".lock", ".part")]
            if files:
                listed.append((f"{path.name}/ ({len(files)} files)", _KNOWN[path.name]))
        else:
            listed += [(file.relative_to(folder).as_posix(), "") for file in sorted(path.rglob("*")) if file.is_file()]
    return listed
