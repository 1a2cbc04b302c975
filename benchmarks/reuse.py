"""The first stage of a product with zero and equal sub-vectors left out, against the plain product, in turns.

    OMP_NUM_THREADS=1 python benchmarks/reuse.py            # --layers for whole layers only

Writes medians of reuse over plain (below 1 is faster) to results/reuse.json: with each kind of reuse taken whatever it
costs, and with the choice by a sample, which includes the time to look. Times are those of the one thread itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import adntn
from adntn.checkpoint import writing
from adntn.execution import reuse

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


def seconds(work: Callable[[], object], x: Tensor) -> float:
    x.sum()  # as if it had just been made: in the caches as far as it goes into them, whatever ran before
    # The thread's own time: what else the machine does meanwhile is left out.
    start = time.thread_time()
    work()
    return time.thread_time() - start


@contextlib.contextmanager
def decided(kind: str | None) -> Iterator[None]:
    """Take this kind of reuse whatever it costs; None for the choice by a sample."""
    before = reuse.decide
    if kind is not None:
        reuse.decide = lambda *_, **__: kind
    try:
        yield
    finally:
        reuse.decide = before


def compare(x: Tensor, columns: int) -> dict[str, Any]:
    """Return the times of each kind over the plain one, in turns after a warm-up."""
    matrix = torch.randn(x.shape[1], columns)
    ways = {"plain": "off", "zeros": "on", "distinct": "on", "auto": "auto"}
    times = []
    with torch.no_grad():
        for _ in range(ROUNDS + 3):
            times.append({})
            for name in random.sample(list(ways), len(ways)):
                with decided(name if ways[name] == "on" else None):
                    times[-1][name] = seconds(partial(reuse.first_stage, x, matrix, ways[name]), x)
    times = times[3:]
    rows = {}
    for name in ("zeros", "distinct", "auto"):
        ratios = sorted(each[name] / each["plain"] for each in times)
        rows[name] = {"ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
    milliseconds = 1e3 * statistics.median(each["plain"] for each in times)
    return {"plain_ms": milliseconds, "chosen": reuse.decide(x, columns), **rows}


def layer(x: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """Return a whole layer's times with reuse over those without, in turns after a warm-up; factors are kept."""
    linear = adntn.nn.Linear(x.shape[1], x.shape[1], config=adntn.GeneratorConfig(**options), execution="factored")
    times: dict[str, list[float]] = {"off": [], "on": [], "auto": []}
    with adntn.cached(linear):
        for _ in range(ROUNDS + 3):
            for linear.reuse in random.sample(list(times), len(times)):
                times[linear.reuse].append(seconds(partial(linear, x), x))
    ratios = {kind: [t / off for t, off in zip(times[kind][3:], times["off"][3:], strict=True)] for kind in times}
    milliseconds = 1e3 * statistics.median(times["off"][3:])
    return {"off_ms": milliseconds, "on": statistics.median(ratios["on"]), "auto": statistics.median(ratios["auto"])}


LAYERS: dict[str, dict[str, Any]] = {
    "ttn, in two stages": {"topology": "ttn"},
    "lowrank 64, whole rows": {"topology": "lowrank", "bond_dim": 64},
}


def main() -> None:
    torch.set_num_threads(1)
    random.seed(0)
    layers = [
        {"layer": name, "input": kind, "rows": BATCH, "features": FEATURES, **layer(make(FEATURES), options)}
        for name, options in LAYERS.items()
        for kind, make in INPUTS.items()
    ]
    print(*map(json.dumps, layers), sep="\n")
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "seed": 0, "layers": layers}
    if "--layers" in sys.argv[1:]:
        result["rows"] = json.loads(RESULTS.read_text())["rows"]
    else:
        result["rows"] = []
        for (name, make), size, columns in itertools.product(INPUTS.items(), SIZES, COLUMNS):
            torch.manual_seed(0)
            row = compare(make(size).reshape(-1, size), columns)
            result["rows"].append({"input": name, "n": size, "k": columns, "rows": BATCH * FEATURES // size, **row})
            print(json.dumps(result["rows"][-1]))
    with writing(RESULTS) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
