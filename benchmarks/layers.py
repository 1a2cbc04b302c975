"""One layer at a time: generated against dense torch, inference and a training step, in turns in one process.

    OMP_NUM_THREADS=1 python benchmarks/layers.py

Writes medians and ratios (below 1 is faster than dense) to results/layers.json.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import benchmark

import adntn
from adntn.checkpoint import writing

RESULTS = Path(__file__).parent / "results" / "layers.json"
TOPOLOGIES = ("ttn", "mera")
LINEAR = [(256, 128), (1024, 1), (1024, 128), (4096, 1), (4096, 128)]  # features, batch
CONV = [(64, 4, 128), (128, 8, 32), (512, 4, 32)]  # channels, side of the map, batch


def seconds(work: Callable[[], object]) -> float:
    return benchmark.Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads()).timeit(1).median


def ratio(generated: Callable[[], object], dense: Callable[[], object], rounds: int = 9) -> dict[str, float]:
    """Return the median over the rounds of generated over dense, timed in turns after a warm-up."""
    pairs = [(seconds(generated), seconds(dense)) for _ in range(rounds + 2)][2:]
    ratios = sorted(g / d for g, d in pairs)
    return {"ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}


def step(layer: nn.Module, x: Tensor) -> None:
    layer.zero_grad()
    layer(x).square().mean().backward()


def compare(dense: nn.Module, topology: str, x: Tensor) -> dict[str, object]:
    model = nn.Sequential(dense)
    adntn.compress_(model, adntn.GeneratorConfig(topology=topology))
    training = ratio(lambda: step(model, x), lambda: step(dense, x))
    with adntn.cached(model):  # gradients are off inside, for the dense layer too
        inference = ratio(lambda: model(x), lambda: dense(x))
    return {"runs": model[0].way.name, "inference": inference, "training_step_without_optimizer": training}


def main() -> None:
    rows = []
    for topology in TOPOLOGIES:
        for size, batch in LINEAR:
            row = {"layer": f"linear {size}x{size}", "batch": batch, "topology": topology}
            rows.append(row | compare(nn.Linear(size, size), topology, torch.randn(batch, size)))
        for channels, side, batch in CONV:
            row = {"layer": f"conv {channels}x{channels}x3x3, map {side}x{side}", "batch": batch, "topology": topology}
            layer = nn.Conv2d(channels, channels, 3, padding=1)
            rows.append(row | compare(layer, topology, torch.randn(batch, channels, side, side)))
        print(*(json.dumps(row) for row in rows[-len(LINEAR) - len(CONV) :]), sep="\n")
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
    with writing(RESULTS) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
