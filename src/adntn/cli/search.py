"""Running a search for the screen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adntn.checkpoint import writing
from adntn.cli.screen import print_whole
from adntn.errors import ConfigError

_FILES = (
    ("summary.md", "this table, and what the search changed"),
    ("points.json, points.csv", "every finished trial"),
    ("pareto.json, pareto.png", "the front"),
    ("recipes/", "a recipe for adntn train a point"),
)


def run_search_command(
    recipe: Path | None,
    given: Mapping[str, Any],
    out: Path | None,
    resume: Path | None,
    *,
    download: bool,
    as_json: bool,
) -> None:
    """Run ``adntn search`` with the options that were given.

    Raises:
        AdntnError: whatever is wrong with them.
    """
    console = Console(stderr=as_json)
    with console.status("loading the training stack"):
        from adntn.experiments.search.options import read_recipe
        from adntn.experiments.search.run import run_search, stored_search
        from adntn.report.search import pareto_plot, search_markdown

    if (recipe is None) == (resume is None):
        raise ConfigError("give a recipe, or with --resume the folder of a search; one of the two.")
    if resume is not None:
        if out is not None:
            raise ConfigError("--resume writes into the search folder; leave --out away.")
        values, options = stored_search(resume)
        folder = resume
    else:
        assert recipe is not None
        values, options = read_recipe(recipe)
        name = f"{datetime.now():%Y%m%d-%H%M%S}-{recipe.stem}"
        folder = out if out is not None else Path("searches") / name
    options = replace(options, **given)
    if not as_json:
        minutes = "" if options.minutes is None else f", {options.minutes:g} minutes at most"
        console.print(
            f"[bold]{escape(str(values.get('data', 'digits')))}[/] on {escape(str(values.get('model', 'small-cnn')))}: "
            f"{options.trials} trials in {options.processes} process(es){minutes}, into {escape(str(folder))}",
            highlight=False,
        )
    outcome = run_search(values, options, folder, download=download, tell=lambda event: _show(console, event))
    with writing(folder / "summary.md") as temporary:
        temporary.write_text(search_markdown(outcome), encoding="utf-8")
    title = f"{Path(str(values.get('data', 'digits'))).name}, {values.get('model', 'small-cnn')}: accuracy against size"
    pareto_plot(outcome, title, folder / "pareto.png")
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **outcome.to_dict()}, indent=1))
        return
    _conclude(console, outcome, folder)


def _show(console: Console, event: Any) -> None:
    if isinstance(event, str):
        console.print(f"  {event}", style="dim", highlight=False)
        return
    accuracy = "      – " if event.accuracy is None else f"{100 * event.accuracy:6.1f} %"
    best = "" if event.best is None else f"  best {100 * event.best:5.1f} %"
    size = "" if event.parameters is None else f"{event.parameters:,}"
    console.print(
        f"  {event.count:>3}/{event.total}  {event.name:<12} {size:>11} parameters {accuracy}  {event.state:<6}{best}",
        highlight=False,
    )


def _conclude(console: Console, outcome: Any, folder: Path) -> None:
    from adntn.report.search import front_cells, verdict

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, collapse_padding=True)
    rows = [front_cells(point, point.name) for point in outcome.front] + [front_cells(outcome.dense, "dense")]
    for title in rows[0]:
        table.add_column(title, justify="left" if title == "point" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values(), style=None if row["point"] == "dense" else "bold")
    print_whole(console, table)
    for each in outcome.comparisons:
        console.print(verdict(each), highlight=False)
    console.print(f"Energy, of training: {outcome.energy_note}", style="dim", highlight=False)
    console.print(f"\nEverything is in [bold]{escape(str(folder))}[/]:", highlight=False)
    for file, meaning in _FILES:
        console.print(f"  {file:<30} {meaning}", highlight=False)
