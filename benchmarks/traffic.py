"""What two processes that train one model send each other, dense and generated.

    OMP_NUM_THREADS=1 python benchmarks/traffic.py     # starts torchrun, writes results/traffic.json: some minutes
    python benchmarks/traffic.py --table               # prints the table of docs/training.md

*Bytes* are those of the gradients that each process hands to gloo's all-reduce in a step, counted by a communication
hook of DistributedDataParallel; in a ring of two each process sends as many. *Step* is forward, backward, all-reduce
and AdamW with 16 images, or rows, a process; dense and generated take turns. Both processes run on one machine, so
that what they send goes through its memory: over a network the times of the dense models would be longer.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import adntn
from adntn.checkpoint import writing
from adntn.experiments.models import DEFAULT_TARGETS, vgg16
from adntn.training.distributed import Traffic, leave

RESULTS = Path(__file__).parent / "results" / "traffic.json"
BATCH = 16  # a process
STEPS = 7
SEED = 0


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(4096, 4096, bias=False))


def vgg() -> nn.Module:
    return vgg16((3, 32, 32), 10, head=(4096, 4096))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "linear 4096×4096": (linear, (4096,), ("0",)),
    "VGG-16, convolutions but the first, FC2": (vgg, (3, 32, 32), (*DEFAULT_TARGETS["vgg16"], "classifier.3")),
}


def stepper(model: nn.Module, shape: tuple[int, ...]) -> tuple[Callable[[], None], Traffic]:
    wrapped, traffic = nn.parallel.DistributedDataParallel(model), Traffic()
    traffic.watch(wrapped)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = torch.randn(BATCH, *shape)

    def step() -> None:
        optimizer.zero_grad()
        wrapped(inputs).square().mean().backward()
        optimizer.step()

    return step, traffic


def measure(name: str) -> dict[str, Any]:
    build, shape, targets = MODELS[name]
    ways: dict[str, tuple[Callable[[], None], Traffic]] = {}
    numbers: dict[str, int] = {}
    for way in ("dense", "ttn"):
        torch.manual_seed(SEED)
        model = build()
        if way != "dense":
            adntn.compress_(model, adntn.GeneratorConfig(topology=way), targets)
        numbers[way] = sum(p.numel() for p in model.parameters())
        ways[way] = stepper(model, shape)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(STEPS + 1):
        for way, (step, traffic) in ways.items():
            dist.barrier()
            traffic.bytes, start = 0, time.perf_counter()
            step()
            if turn:  # the first warms up
                seconds[way].append(time.perf_counter() - start)
    return {
        "model": name,
        "parameters": numbers,
        "bytes_per_step": {way: traffic.bytes for way, (_, traffic) in ways.items()},
        "seconds_per_step": {way: statistics.median(taken) for way, taken in seconds.items()},
        "time_ratio": statistics.median(a / b for a, b in zip(seconds["ttn"], seconds["dense"], strict=True)),
    }


def work() -> None:
    dist.init_process_group("gloo")
    rows = [measure(name) for name in MODELS]
    if dist.get_rank() == 0:
        result = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processes": dist.get_world_size(),
            "batch": BATCH,
            "steps": STEPS,
            "seed": SEED,
        }
        with writing(RESULTS) as temporary:
            temporary.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")
    leave()


def table() -> str:
    lines = ["| | bytes a step, dense | `ttn` | less | step, `ttn` over dense |", "|---|---:|---:|---:|---:|"]
    for row in json.loads(RESULTS.read_text())["rows"]:
        dense, small = row["bytes_per_step"]["dense"], row["bytes_per_step"]["ttn"]
        lines.append(f"| {row['model']} | {dense:,} | {small:,} | {dense / small:,.0f}x | {row['time_ratio']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--table" in sys.argv[1:]:
        print(table())
    elif "WORLD_SIZE" in os.environ:
        work()
    else:
        subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", __file__], check=True)
