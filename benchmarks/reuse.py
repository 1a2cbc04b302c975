"""The first stage of a product with zero and equal sub-vectors left out, against the plain product, in turns.

    OMP_NUM_THREADS=1 python benchmarks/reuse.py

Writes medians of reuse over plain (below 1 is faster) to results/reuse.json: with each kind of reuse taken whatever it
costs, and with the choice by a sample, which includes the time to look.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from adntn.checkpoint import writing
from adntn.execution import reuse
from adntn.report.summary import markdown

RESULTS = Path(__file__).parent / "results" / "reuse.json"
SIZES, COLUMNS = (16, 64, 256, 1024, 4096), (8, 16, 32, 64, 128)
BATCH, FEATURES = 256, 4096
ROUNDS = 15


def one_hot() -> Tensor:
    return torch.nn.functional.one_hot(torch.randint(FEATURES, (BATCH,)), FEATURES).float()


def padded() -> Tensor:
    x = torch.randn(BATCH, FEATURES)
    x[torch.arange(BATCH) % 32 >= 16] = 0.0  # sequences of 32 tokens, half of them padding
    return x


def quantised(size: int) -> Tensor:
    kinds = torch.randint(-8, 8, (64, size)) / 8
    return kinds[torch.randint(64, (BATCH * FEATURES // size,))]


INPUTS: dict[str, Callable[[int], Tensor]] = {
    "one-hot": lambda size: one_hot(),
    "padded, half": lambda size: padded(),
    "4 bits, 64 kinds": quantised,
    "4 bits, any": lambda size: torch.randint(-8, 8, (BATCH, FEATURES)) / 8,
    "behind a ReLU": lambda size: torch.randn(BATCH, FEATURES).relu(),
    "dense": lambda size: torch.randn(BATCH, FEATURES),
}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(x: Tensor, columns: int) -> dict[str, Any]:
    """Return the times of each kind over the plain one, in turns after a warm-up."""
    matrix, rows = torch.randn(x.shape[1], columns), {}

    def forced(kind: str) -> Callable[[], object]:
        def work() -> object:
            with mock.patch.object(reuse, "decide", return_value=kind):
                return reuse.first_stage(x, matrix, "on")

        return work

    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: reuse.first_stage(x, matrix, "off"),
        "zeros": forced("zeros"),
        "distinct": forced("distinct"),
        "auto": lambda: reuse.first_stage(x, matrix),
    }
    # In another order each round: what ran just before leaves its traces in the caches.
    shuffled = random.Random(0)
    turns = [shuffled.sample(list(ways), len(ways)) for _ in range(ROUNDS + 3)]
    with torch.no_grad():
        times = [{name: seconds(ways[name]) for name in turn} for turn in turns][3:]
    for name in ("zeros", "distinct", "auto"):
        ratios = sorted(each[name] / each["plain"] for each in times)
        rows[name] = {"ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
    milliseconds = 1e3 * statistics.median(each["plain"] for each in times)
    return {"plain_ms": milliseconds, "chosen": reuse.decide(x, columns), **rows}


def table(columns: int = 64) -> str:
    """The committed ratios for one width of the matrix: the better kind of reuse, and the choice."""
    rows = json.loads(RESULTS.read_text())["rows"]
    lines = []
    for name in INPUTS:
        line = [name]
        for size in SIZES:
            (row,) = [r for r in rows if (r["input"], r["n"], r["k"]) == (name, size, columns)]
            best = min(("zeros", "distinct"), key=lambda kind: row[kind]["ratio"])
            line.append(f"{row[best]['ratio']:.2f} {best} / {row['auto']['ratio']:.2f} {row['chosen']}")
        lines.append(line)
    return markdown([f"input, k = {columns}", *(f"n = {size}" for size in SIZES)], lines)


def main() -> None:
    rows = []
    for name, make in INPUTS.items():
        for size in SIZES:
            for columns in COLUMNS:
                torch.manual_seed(0)
                row = compare(make(size).reshape(-1, size), columns)
                rows.append({"input": name, "n": size, "k": columns, "rows": BATCH * FEATURES // size, **row})
                print(json.dumps(rows[-1]))
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "seed": 0, "rows": rows}
    with writing(RESULTS) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
