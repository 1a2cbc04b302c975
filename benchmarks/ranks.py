"""Which rank has a generated weight, and which could it have? Eq. 20 and Remark 1 of the paper, measured.

python benchmarks/ranks.py
python benchmarks/ranks.py --table
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path

import torch

import adntn
from adntn.checkpoint import writing
from adntn.ranks import cut_ranks

RESULTS = Path(__file__).parent / "results" / "ranks.json"
SHAPE = (256, 256)
LINEAR = "identity"
ACTIVATIONS = (LINEAR, "elu", "sine(omega=3)")
TOPOLOGIES = ("ttn", "attn", "mera")
ORDERS = ("blocked", "paired", "block_paired")
BONDS = (2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--table", action="store_true", help="print the tables of what is there and stop")
    args = parser.parse_args()
    if not args.table:
        measured = [
            {"topology": topology, "order": order, "bond_dim": bond, "activation": activation, "seed": seed} | row
            for topology in TOPOLOGIES
            for order in ORDERS
            for bond in BONDS
            for activation in ACTIVATIONS
            for seed in args.seeds
            for row in run(topology, order, bond, activation, seed)
        ]
        environment = {"torch": torch.__version__, "python": platform.python_version(), "shape": SHAPE}
        with writing(RESULTS) as temporary:
            lines = ",\n".join(json.dumps(row) for row in measured)
            temporary.write_text(f'{{"environment": {json.dumps(environment)}, "rows": [\n{lines}\n]}}\n')
    print(table())
    print()
    print(cuts())


def run(topology: str, order: str, bond: int, activation: str, seed: int) -> list[dict[str, object]]:
    config = adntn.GeneratorConfig(topology=topology, order=order, bond_dim=bond, activation=activation)
    modes = adntn.Generator(SHAPE, config, device="meta").num_modes
    every = cut_ranks(config, SHAPE, seeds=[seed])
    wanted = (
        every
        if (order, bond) == ("blocked", 2)
        else [r for r in every if r.name == "out | in" or 2 * len(r.cut) == modes]
    )
    kept = ("name", "rank", "stable_rank", "linear_bound", "bound")
    return [{key: row.to_dict()[key] for key in kept} for row in wanted]


def rows() -> list[dict[str, object]]:
    return json.loads(RESULTS.read_text())["rows"]


def span(values: list[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def cells(found: list[dict[str, object]]) -> list[str]:
    """Return ranks of linear and nonlinear generators beside their bounds, and stable ranks."""
    by = {a: [row for row in found if row["activation"] == a] for a in ACTIVATIONS}
    first = found[0]
    return [
        span([row["rank"] for row in by[LINEAR]]),
        str(first["linear_bound"]),
        *(span([row["rank"] for row in by[a]]) for a in ACTIVATIONS[1:]),
        str(first["bound"]),
        *(spread([row["stable_rank"] for row in by[a]]) for a in ACTIVATIONS),
    ]


HEAD = [
    "rank, linear",
    "Eq. 20 allows",
    "rank, ELU",
    "rank, sin(3z)",
    "the readout allows",
    "stable rank, linear",
    "ELU",
    "sin(3z)",
]


def markdown(head: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))


def table() -> str:
    """Return the ranks of the weight as a matrix, as a Markdown table."""
    grouped: dict[tuple[str, str, str], list[dict[str, object]]] = {}
    for row in rows():
        if row["name"] == "out | in":
            grouped.setdefault((row["order"], row["topology"], str(row["bond_dim"])), []).append(row)
    body = [[*key, *cells(grouped[key])] for key in sorted(grouped, key=lambda key: ORDERS.index(key[0]))]
    return markdown(["order", "topology", "bond", *HEAD], body)


def cuts() -> str:
    """Return the ranks of every cut of the blocked order's modes at bond 2, as a Markdown table."""
    grouped: dict[tuple[str, str], list[dict[str, object]]] = {}
    for row in rows():
        if (row["order"], row["bond_dim"]) == ("blocked", 2):
            grouped.setdefault((row["topology"], row["name"]), []).append(row)
    body = []
    for topology in TOPOLOGIES:
        names = [name for t, name in grouped if t == topology and name != "out | in"]
        # The cut in the middle is (out | in), and those behind it are the mirror images of those before.
        first = [*names[: len(names) // 2], "out | in"]
        body += [[topology, f"{n} of 16", *cells(grouped[topology, name])[:5]] for n, name in enumerate(first, start=1)]
    return markdown(["topology", "first modes", *HEAD[:5]], body)


if __name__ == "__main__":
    sys.exit(main())
