"""Listing what a model could become, for the screen."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from adntn.cli.options import split_names
from adntn.cli.screen import print_whole
from adntn.contraction import Contraction
from adntn.errors import AdntnError
from adntn.targets import choose_places, find_places, obstacle
from adntn.topology import TREES, Blueprint, GeneratorConfig


def run_inspect(
    spec: str,
    targets: str | None,
    order: str | None,
    radix: int,
    bond_dim: int | None,
    latent_order: int,
    groups: int,
    as_json: bool,
) -> None:
    """Run ``adntn inspect``.

    Raises:
        AdntnError: whatever is wrong with the options.
    """
    from adntn.experiments.models import model_builder

    # On the meta device a model has shapes and no memory.
    with torch.device("meta"):
        network = model_builder(spec, None, None)()
    places = choose_places(find_places(network), split_names(targets) or ("re:.*",), "targets", must_work=True)
    wanted = {id(weight) for place in places for weight in place.weights.values()}
    base = GeneratorConfig(radix=radix, bond_dim=bond_dim, latent_order=latent_order, groups=groups)
    base = base if order is None else base.replace(order=order)
    rows = []
    for name, module in network.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if not own:
            continue
        about = {"kind": type(module).__name__, "parameters": own}
        weights = {key: p for key, p in module.named_parameters(recurse=False) if id(p) in wanted}
        if not weights:
            rows.append({"name": name, **about, "why_not": obstacle(module) or "not among the targets"})
        for key, weight in weights.items():
            own_name = name if key == "weight" else f"{name}.{key}".lstrip(".")
            rows.append({"name": own_name, **about, **_row(tuple(weight.shape), base)})
    total = sum(p.numel() for p in network.parameters())
    possible = [row for row in rows if "why_not" not in row]
    saved = {t: sum(row["dense"] - row["stored"][t] for row in possible) for t in TREES}
    whole = {"dense": total} | {t: total - saved[t] for t in TREES}
    if as_json:
        typer.echo(json.dumps({"model": spec, "layers": rows, "whole_model": whole}, indent=1))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, collapse_padding=True)
    for title in ("layer", "weight", "P", "padded", *TREES, "modes", "rank"):
        table.add_column(title, justify="left" if title in ("layer", "weight", "modes") else "right", no_wrap=True)
    for row in rows:
        if "why_not" in row:
            table.add_row(row["name"], row["kind"], f"{row['parameters']:,}", *[""] * 6, style="dim")
            continue
        bounds = [row["rank_bound"][t] for t in TREES]
        table.add_row(
            row["name"],
            "x".join(map(str, row["weight"])),
            f"{row['dense']:,}",
            f"{row['padded']:,}",
            *(f"{row['stored'][t]:,}" for t in TREES),
            "-".join(map(str, row["schedule"])),
            "/".join(map(str, bounds)) if len(set(bounds)) > 1 else str(bounds[0]),
        )
    table.add_section()
    table.add_row("whole model", "", f"{total:,}", "", *(f"{whole[t]:,}" for t in TREES), "", "", style="bold")
    console = Console()
    print_whole(console, table)
    console.print(
        "P: numbers in the dense weight, and padded to powers of the radix. ttn, attn, mera: numbers stored instead.\n"
        "modes: after each level of the tree. rank: the greatest that the generated weight can have (ttn/attn/mera).\n"
        "Dim rows stay as they are; --json says why.",
        style="dim",
        highlight=False,
    )


def _row(shape: tuple[int, ...], base: GeneratorConfig) -> dict[str, Any]:
    row: dict[str, Any] = {"weight": list(shape), "dense": math.prod(shape), "stored": {}}
    try:
        for topology in TREES:
            blueprint = Blueprint(shape, base.replace(topology=topology))
            row["stored"][topology] = blueprint.num_parameters
            row.setdefault("schedule", list(blueprint.schedule))
            row.setdefault("padded", blueprint.tensorization.padded_size)
            row.setdefault("rank_bound", {})[topology] = Contraction(blueprint).rank_bound()
    except AdntnError as error:
        row["why_not"] = str(error)
    return row
