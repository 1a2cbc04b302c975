"""Running a recipe for the screen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from adntn.errors import ConfigError


def run_train(
    recipe_file: Path | None,
    given: Mapping[str, Any],
    out: Path | None,
    resume: Path | None,
    *,
    minutes: float | None,
    download: bool,
    as_json: bool,
) -> None:
    """Run ``adntn train`` with the options that were given.

    Raises:
        AdntnError: whatever is wrong with them.
    """
    console = Console(stderr=as_json)
    with console.status("loading the training stack"):
        from adntn.cli.progress import Screen
        from adntn.experiments.train import train
        from adntn.training.distributed import leave, share
        from adntn.training.folder import RunFolder
        from adntn.training.recipe import Recipe

    if (recipe_file is None) == (resume is None):
        raise ConfigError("give a recipe (adntn train recipe.toml), or a run folder to go on with (--resume FOLDER).")
    if resume is not None:
        if given or out is not None:
            raise ConfigError("--resume takes its settings from the run folder; leave the other options away.")
        recipe, folder = RunFolder(resume).recipe(), resume
    else:
        assert recipe_file is not None
        recipe = replace(Recipe.from_toml(recipe_file), **given)
        if out is None and share()[1] > 1:
            raise ConfigError("several processes need one folder: give --out.")
        folder = out if out is not None else Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{recipe_file.stem}"
    with Screen(console, recipe, folder, quiet=as_json) as screen:
        run = train(recipe, folder, download=download, minutes=minutes, tell=screen)
    if run:  # of several processes the first one has it
        _tell(console, run, folder, as_json=as_json)
    if share()[1] > 1:
        leave()


def _tell(console: Console, run: Mapping[str, Any], folder: Path, *, as_json: bool) -> None:
    """Write the report and say what came of the run."""
    from adntn.report.from_run import report_of
    from adntn.report.training import headline, write_report

    report = report_of(run, f"{run['recipe']['model']} on {run['data']['title']}")
    write_report(report, folder)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **run}, indent=1))
        return
    console.print(f"\n{escape(headline(report))}\n", highlight=False, soft_wrap=not console.is_terminal)
    console.print(f"Everything is in [bold]{escape(str(folder))}[/]:", highlight=False)
    for file, meaning in report.files.items():
        console.print(f"  {file:<38} {meaning}", highlight=False, soft_wrap=True)
