"""Orders without a split: a linear layer by its whole weight and by tiles, in turns in one process.

    OMP_NUM_THREADS=1 python benchmarks/tiles.py     # measures and writes results/tiles.json: some minutes
    python benchmarks/tiles.py --table               # prints the table of docs/gpu.md

*Kept* is inference with state and matrix at hand, over dense torch with the weight at hand. *Step* is a forward and
backward pass, over one that makes the whole weight, as the layer runs dense. Below 1 the tiles are faster.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import torch
import torch.nn.functional as F

import adntn
from adntn.checkpoint import writing
from adntn.execution import tiles

RESULTS = Path(__file__).parent / "results" / "tiles.json"
TOPOLOGIES = ("ttn", "mera")
SIZES = (1024, 4096)
BATCHES = (1, 8, 32, 128)
SEED = 0
ratio = run_path(str(Path(__file__).parent / "pairs.py"))["ratio"]


def compare(topology: str, size: int, batch: int) -> dict[str, Any]:
    torch.manual_seed(SEED)
    gen = adntn.Generator((size, size), adntn.GeneratorConfig(topology=topology, order="paired"))
    x = torch.randn(batch, size)
    with torch.no_grad():
        made, weight = tiles.make(gen), gen()
        kept = ratio(lambda: tiles.linear(x, gen, made=made), lambda: F.linear(x, weight))
    step = ratio(
        lambda: tiles.linear(x, gen).square().mean().backward(),
        lambda: F.linear(x, gen()).square().mean().backward(),
        5,
    )
    where = tiles.layout(gen)
    share = {"multiply_adds": where.multiply_adds(batch), "between": where.between(batch), "weight": size * size}
    return {"topology": topology, "size": size, "batch": batch, "kept": kept, "step": step} | share


def table() -> str:
    lines = ["| paired | batch | numbers between / weight | kept | step |", "|---|---:|---:|---:|---:|"]
    for row in json.loads(RESULTS.read_text())["rows"]:
        times = (
            f"{row[key]['ratio']:.2f} ({row[key]['least']:.2f} to {row[key]['most']:.2f})" for key in ("kept", "step")
        )
        size, share = f"{row['size']}×{row['size']}", row["between"] / row["weight"]
        lines.append(f"| {row['topology']}, {size} | {row['batch']} | {share:.3f} | {' | '.join(times)} |")
    return "\n".join(lines)


def main() -> None:
    rows = []
    for topology in TOPOLOGIES:
        for size in SIZES:
            for batch in BATCHES:
                rows.append(compare(topology, size, batch))
                print(json.dumps(rows[-1]), flush=True)
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "seed": SEED, "order": "paired"}
    with writing(RESULTS) as temporary:
        temporary.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    if "--table" in sys.argv[1:]:
        print(table())
    else:
        main()
