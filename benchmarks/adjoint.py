"""Backward passes of one weight: the paper's adjoint equations against autograd, in turns in one process.

    OMP_NUM_THREADS=1 python benchmarks/adjoint.py          # measures and writes results/adjoint.json: some minutes
    python benchmarks/adjoint.py --table                    # prints the table of docs/adjoint.md

Time is that of making the weight, or the factors, and of taking a gradient of its shape back to all parameters. Bytes
kept are those of all storages that the way forward leaves for the way back, parameters included. The peak is what both
passes together add to the resident memory of the process at most, as Linux counts it, with the allocator told to hand
back all it frees: else what it happens to hold decides.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import benchmark

import adntn
from adntn.checkpoint import writing

RESULTS = Path(__file__).parent / "results" / "adjoint.json"
TOPOLOGIES = ("ttn", "attn", "mera")
SIZES = (1024, 4096)
WAYS = ("autograd", "adjoint")
ROUNDS = 9
SEED = 0


def make(gen: adntn.Generator, what: str) -> tuple[Tensor, ...]:
    return (gen(),) if what == "weight" else gen.factors() or ()


def kept(gen: adntn.Generator, what: str) -> int:
    storages: dict[int, int] = {}
    tensors: list[Tensor] = []  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        make(gen, what)
    return sum(storages.values())


def seconds(work: Callable[[], object]) -> float:
    return benchmark.Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads()).timeit(1).median


def peak(work: Callable[[], object]) -> int:
    """Return the bytes of resident memory that the work needs at most, beyond those there are."""

    def resident(kind: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def hand_back_what_is_freed() -> None:
    """Have glibc give what is free back to Linux, and map every tensor from 64 KiB on apart. Slows what follows."""
    glibc, mmap_threshold = ctypes.CDLL(None), -3
    glibc.mallopt(mmap_threshold, 1 << 16)
    glibc.malloc_trim(0)


def both_passes(topology: str, size: int, what: str) -> tuple[adntn.Generator, Callable[[], object]]:
    torch.manual_seed(SEED)
    gen = adntn.Generator((size, size), adntn.GeneratorConfig(topology=topology))
    upstream = tuple(torch.randn_like(made) for made in make(gen, what))
    parameters = list(gen.parameters())
    return gen, lambda: torch.autograd.grad(make(gen, what), parameters, upstream)


def peaks(topology: str, size: int, what: str) -> dict[str, int]:
    gen, step = both_passes(topology, size, what)
    found = {}
    for way in WAYS:
        gen.backward = way
        step()
        hand_back_what_is_freed()
        found[way] = peak(step)
    return found


def measure(topology: str, size: int, what: str) -> dict[str, Any]:
    gen, step = both_passes(topology, size, what)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    bytes_kept = {}
    for way in WAYS:
        gen.backward = way
        bytes_kept[way] = kept(gen, what)
    for _ in range(ROUNDS + 2):
        for way in WAYS:
            gen.backward = way
            times[way].append(seconds(step))
    ratios = sorted(b / a for a, b in zip(*(times[way][2:] for way in WAYS), strict=True))
    return {
        "topology": topology,
        "size": size,
        "made": what,
        "parameter_bytes": sum(p.numel() * p.element_size() for p in gen.parameters()),
        "bytes_kept": bytes_kept,
        "seconds": {way: statistics.median(times[way][2:]) for way in WAYS},
        "ratio": {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]},
    }


def table() -> str:
    lines = [
        "| topology | size | made | kept, KiB | adjoint | peak, MiB | adjoint | time, ms | adjoint | ratio |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in json.loads(RESULTS.read_text())["rows"]:
        bytes_kept = " | ".join(f"{row['bytes_kept'][way] / 2**10:,.1f}" for way in WAYS)
        peaks = " | ".join(f"{row['peak_bytes'][way] / 2**20:,.1f}" for way in WAYS)
        times = " | ".join(f"{row['seconds'][way] * 1e3:,.1f}" for way in WAYS)
        ratio = f"{row['ratio']['median']:.1f} ({row['ratio']['least']:.1f} to {row['ratio']['most']:.1f})"
        size = f"{row['size']}×{row['size']}"
        lines.append(f"| {row['topology']} | {size} | {row['made']} | {bytes_kept} | {peaks} | {times} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    rows = []
    for topology in TOPOLOGIES:
        for size in SIZES:
            for what in ("weight", "factors"):
                rows.append(measure(topology, size, what))
                print(json.dumps(rows[-1]), flush=True)
    for row in rows:
        row["peak_bytes"] = peaks(row["topology"], row["size"], row["made"])
        print(json.dumps(row), flush=True)
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rounds": ROUNDS, "seed": SEED}
    with writing(RESULTS) as temporary:
        temporary.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    if "--table" in sys.argv[1:]:
        print(table())
    else:
        main()
