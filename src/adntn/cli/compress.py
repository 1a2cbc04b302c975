"""Running the main job for the screen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from adntn.checkpoint import writing
from adntn.cli.options import make_job, read_toml
from adntn.cli.screen import Screen, headline, legend, print_whole, result_table
from adntn.errors import ConfigError


def run_compress(
    given: Mapping[str, Any],
    config: Path | None,
    out: Path | None,
    resume: Path | None,
    *,
    download: bool,
    as_json: bool,
) -> None:
    """Run ``adntn compress`` with the options that were given.

    Raises:
        AdntnError: whatever is wrong with them.
    """
    # Written to a terminal it moves; otherwise it is a line for each network.
    console = Console(stderr=as_json)
    with console.status("loading the training stack"):
        from adntn.experiments.job import run_job
        from adntn.experiments.runs import Job, RunFolder
        from adntn.report.summary import markdown, summarize

    if resume is not None:
        if given or config is not None or out is not None:
            raise ConfigError("--resume takes its settings from the run folder; leave the other options away.")
        job, folder = RunFolder(resume).job(), resume
    else:
        options = (read_toml(config) if config is not None else {}) | dict(given)
        job = make_job(options, Job)
        name = f"{datetime.now():%Y%m%d-%H%M%S}-{Path(job.data).name}-{Path(job.model.split(':')[0]).stem}"
        folder = out if out is not None else Path("runs") / name

    if not as_json:
        console.print(headline(job, folder), highlight=False)
    with Screen(console, job) as screen:
        outcome = run_job(job, folder, download=download, tell=screen.tell)
    summaries = summarize(outcome.rows, outcome.timings)
    with console.status("drawing"):
        files = _draw(job, folder, outcome)
    with writing(folder / "table.md") as temporary:
        temporary.write_text(markdown(summaries) + "\n")
    if as_json:
        result = {"folder": str(folder), "summary": [s.to_dict() for s in summaries], "runs": len(outcome.rows)}
        typer.echo(json.dumps(result, indent=1))
        return
    print_whole(console, result_table(summaries, job))
    console.print(legend(job), style="dim", highlight=False)
    console.print(f"\nEverything is in [bold]{escape(str(folder))}[/]:", highlight=False)
    for file, meaning in (
        ("table.md", "this table"),
        ("metrics.json, metrics.csv", "every run, with its curve"),
        ("config.json, environment.json", "what was run, and where"),
        (f"models/ ({len(outcome.rows)} files)", "one safetensors file a network"),
        *files,
    ):
        console.print(f"  {file:<30} {meaning}", highlight=False)


def _draw(job: Any, folder: Path, outcome: Any) -> list[tuple[str, str]]:
    from adntn.report.plots import accuracy_plot, weights_plot

    accuracy, weights = folder / "plots" / "accuracy.png", folder / "plots" / "weights.png"
    accuracy_plot(outcome.rows, f"{Path(job.data).name}, {job.model}: accuracy against size", accuracy)
    weights_plot(outcome.weights, f"Trained weights, seed {job.seeds[0]}, in units of their deviation", weights)
    return [
        ("plots/accuracy.png", "accuracy against size, with controls"),
        ("plots/weights.png", "generated weights beside dense ones"),
    ]
