"""Listing what a model could become, for the screen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from adntn.baselines import network
from adntn.budget import BudgetPlan, fit_budget
from adntn.cli.options import make_config, split_names
from adntn.cli.screen import print_whole
from adntn.errors import AdntnError, ConfigError, check_choice
from adntn.products import PRODUCTS, kronecker_budget
from adntn.targets import choose_places, find_places, obstacle
from adntn.topology import TOPOLOGIES, TREES, Blueprint, GeneratorConfig


def run_inspect(
    spec: str,
    targets: str | None,
    topologies: tuple[str, ...] | None,
    options: Mapping[str, Any],
    as_json: bool,
    *,
    parameters: int | None = None,
    size: int | None = None,
    share_cores: bool = False,
) -> None:
    """Run ``adntn inspect``.

    Args:
        spec: of the model.
        targets: names and patterns, comma-separated; None means all layers that can be generated.
        topologies: to list; None means the trees. With a budget ``"kronecker"`` alone, too.
        options: of the generators.
        as_json: whether to print JSON.
        parameters: numbers that the whole model may store; with it, or ``size``, the plan for that is printed.
        size: bytes that it may take.
        share_cores: whether layers of one shape have their cores in common in that plan; of Kronecker products only.

    Raises:
        AdntnError: whatever is wrong with the options.
    """
    from adntn.experiments.models import model_builder

    # On the meta device a model has shapes and no memory.
    with torch.device("meta"):
        model = model_builder(spec, None, None)()
    if parameters is not None or size is not None:
        plan = _plan(model, targets, topologies, options, share_cores, parameters, size)
        typer.echo(plan.to_json() if as_json else str(plan))
        return
    if share_cores or topologies == (PRODUCTS,):
        raise ConfigError("sums of Kronecker products are planned for a budget; give --parameters or --bytes.")
    places = choose_places(find_places(model), split_names(targets) or ("re:.*",), "targets", must_work=True)
    wanted = {id(weight) for place in places for weight in place.weights.values()}
    topologies = topologies or TREES
    for topology in topologies:
        check_choice("topology", topology, TOPOLOGIES)
    base = make_config(options, topologies)
    rows = []
    for name, module in model.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if not own:
            continue
        about = {"kind": type(module).__name__, "parameters": own}
        weights = {key: p for key, p in module.named_parameters(recurse=False) if id(p) in wanted}
        if not weights:
            rows.append({"name": name, **about, "why_not": obstacle(module) or "not among the targets"})
        for key, weight in weights.items():
            own_name = name if key == "weight" else f"{name}.{key}".lstrip(".")
            rows.append({"name": own_name, **about, **_row(tuple(weight.shape), base, topologies)})
    total = sum(p.numel() for p in model.parameters())
    possible = [row for row in rows if "why_not" not in row]
    saved = {t: sum(row["dense"] - row["stored"][t] for row in possible) for t in topologies}
    whole = {"dense": total} | {t: total - saved[t] for t in topologies}
    if as_json:
        typer.echo(json.dumps({"model": spec, "layers": rows, "whole_model": whole}, indent=1))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, collapse_padding=True)
    for title in ("layer", "weight", "P", "padded", *topologies, "modes", "rank"):
        table.add_column(title, justify="left" if title in ("layer", "weight", "modes") else "right", no_wrap=True)
    for row in rows:
        if "why_not" in row:
            table.add_row(row["name"], row["kind"], f"{row['parameters']:,}", style="dim")
            continue
        bounds = [row["rank_bound"][t] for t in topologies]
        table.add_row(
            row["name"],
            "x".join(map(str, row["weight"])),
            f"{row['dense']:,}",
            f"{row['padded']:,}",
            *(f"{row['stored'][t]:,}" for t in topologies),
            "-".join(map(str, row["schedule"])),
            "/".join(map(str, bounds)) if len(set(bounds)) > 1 else str(bounds[0]),
        )
    table.add_section()
    table.add_row("whole model", "", f"{total:,}", "", *(f"{whole[t]:,}" for t in topologies), "", "", style="bold")
    console = Console()
    print_whole(console, table)
    console.print(
        "P: numbers in the dense weight, and padded to powers of the radix. "
        f"{', '.join(topologies)}: numbers stored instead.\n"
        f"modes: after each level of {topologies[0]}. rank: the greatest that the generated weight can have "
        f"({'/'.join(topologies)}).\n"
        "Dim rows stay as they are; --json says why.",
        style="dim",
        highlight=False,
    )


def _plan(
    model: nn.Module,
    targets: str | None,
    topologies: tuple[str, ...] | None,
    options: Mapping[str, Any],
    share_cores: bool,
    parameters: int | None,
    size: int | None,
) -> BudgetPlan:
    """Return what a budget of the whole model buys."""
    chosen = split_names(targets) or ("re:.*",)
    if topologies == (PRODUCTS,):
        if options:
            raise ConfigError(f"{', '.join(options)} has no meaning for 'kronecker', which has a config a shape.")
        return kronecker_budget(model, parameters=parameters, bytes=size, targets=chosen, share_cores=share_cores)
    if share_cores:
        raise ConfigError("--share-cores needs --topology kronecker, whose plan counts cores once.")
    topologies = topologies or TREES
    return fit_budget(
        model,
        parameters=parameters,
        bytes=size,
        targets=chosen,
        config=make_config(options, topologies),
        topologies=topologies,
    )


def _row(shape: tuple[int, ...], base: GeneratorConfig, topologies: tuple[str, ...]) -> dict[str, Any]:
    row: dict[str, Any] = {"weight": list(shape), "dense": math.prod(shape), "stored": {}}
    try:
        for topology in topologies:
            blueprint = Blueprint(shape, base.with_topology(topology))
            row["stored"][topology] = blueprint.num_parameters
            row.setdefault("schedule", list(blueprint.schedule))
            row.setdefault("padded", blueprint.tensorization.padded_size)
            row.setdefault("rank_bound", {})[topology] = network(blueprint).rank_bound()
    except AdntnError as error:
        row["why_not"] = str(error)
    return row
