"""Layers run through sums of Kronecker products: beside dense torch, and beside the same weights made whole.

    OMP_NUM_THREADS=1 python benchmarks/kronecker.py     # writes results/kronecker.json: some minutes
    python benchmarks/kronecker.py --table               # prints the table of docs/speed.md

Two digits a side and bond 1, so that the weight is a sum of Kronecker products, of 1, 4 and as many as bring the
trained numbers to about a hundredth of the weight. Convolutions also on the small maps that are deep in a network for
CIFAR-10, and there under bfloat16's autocast with channels last too. *Inference* is under ``adntn.cached``. A *step* is
forward and backward for a given gradient of the output, to the input too. All are timed in turns in one process, after
two rounds that do not count; medians, with the least and the most of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from runpy import run_path
from typing import Any

import torch
from torch import nn

import adntn
from adntn.checkpoint import writing

RESULTS = Path(__file__).parent / "results" / "kronecker.json"
LINEAR, BATCHES = (1024, 4096), (64,)
CHANNELS, MAPS, IMAGES = (128, 256, 512), (8,), 32
DEEP_MAPS, DEEP_IMAGES = (4, 2), 128
MIXED = "bfloat16, channels last"
TERMS, SHARE = (1, 4), 100
WARM_UP, ROUNDS = 2, 9
SEED = 0
seconds = run_path(str(Path(__file__).parent / "pairs.py"))["seconds"]

Work = Callable[[], object]


def cases() -> list[tuple[str, nn.Module, tuple[int, ...], bool]]:
    """Return names, torch's layers on the meta device, shapes of inputs, and whether in bfloat16 with channels last."""
    found: list[tuple[str, nn.Module, tuple[int, ...], bool]] = []
    for size in LINEAR:
        dense: nn.Module = nn.Linear(size, size, device="meta")
        found += [(f"linear {size}×{size}, batch {batch}", dense, (batch, size), False) for batch in BATCHES]
    for channels in CHANNELS:
        dense = nn.Conv2d(channels, channels, 3, padding=1, device="meta")
        maps = [(IMAGES, side, False) for side in MAPS]
        if channels == CHANNELS[0]:
            maps += [(DEEP_IMAGES, side, mixed) for side in DEEP_MAPS for mixed in (False, True)]
        for images, side, mixed in maps:
            name = f"conv {channels}×{channels}×3×3, {images} maps of {side}×{side}{f', {MIXED}' if mixed else ''}"
            found.append((name, dense, (images, channels, side, side), mixed))
    return found


def all_terms(shape: tuple[int, ...]) -> list[int]:
    one = adntn.Generator(shape, adntn.GeneratorConfig.kronecker(shape), device="meta")
    return sorted({*TERMS, max(1, round(math.prod(shape) / SHARE / one.num_parameters))})


def in_turns(works: Mapping[str, Work], rounds: int) -> dict[str, Any]:
    """Return the median seconds of each, and how many times as fast as the others the last is in a round."""
    times = [{name: seconds(work) for name, work in works.items()} for _ in range(WARM_UP + rounds)][WARM_UP:]
    found: dict[str, Any] = {name: statistics.median(each[name] for each in times) for name in works}
    for other in list(works)[:2]:
        ratios = sorted(each[other] / each["factored"] for each in times)
        found[f"faster than {other}"] = {"ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
    return found


def compare(
    name: str, template: nn.Module, shape: tuple[int, ...], terms: int, rounds: int, *, mixed: bool
) -> dict[str, Any]:
    torch.manual_seed(SEED)
    torchs = copy.deepcopy(template).to_empty(device="cpu")
    torchs.reset_parameters()  # type: ignore[operator]
    weight = tuple(template.weight.shape)
    kind = adntn.nn.Linear if len(weight) == 2 else adntn.nn.Conv2d
    factored = kind.from_dense(torchs, adntn.GeneratorConfig.kronecker(weight, terms=terms), execution="factored")
    whole = kind.from_dense(torchs, share=factored, execution="dense")
    layers: dict[str, nn.Module] = {"torch": torchs, "whole": whole, "factored": factored}
    x = torch.randn(shape)
    if mixed:
        x = x.to(memory_format=torch.channels_last)
        torchs.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        with torch.inference_mode(), adntn.cached(factored):  # of a shared generator the whole weight is kept too
            inference = in_turns({key: lambda layer=layer: layer(x) for key, layer in layers.items()}, rounds)
        gradient = torch.randn_like(torchs(x))

        def step(layer: nn.Module) -> Work:
            return lambda: torch.autograd.grad(layer(x), [x, *layer.parameters()], gradient)

        training = in_turns({key: step(layer) for key, layer in layers.items()}, rounds)
    numbers = {"terms": terms, "numbers": factored.num_parameters, "weight": math.prod(weight)}
    return {"layer": name, **numbers, "inference": inference, "step": training}


def table() -> str:
    head = ["layer", "terms", "weight / numbers", "dense torch, inference", "faster"]
    head += ["dense torch, step", "faster", "than with the weight made"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for row in json.loads(RESULTS.read_text())["rows"]:
        cells = [row["layer"], str(row["terms"]), f"{row['weight'] / row['numbers']:,.0f}"]
        for mode, others in (("inference", ("torch",)), ("step", ("torch", "whole"))):
            cells.append(f"{1e3 * row[mode]['torch']:.3g} ms")
            ratios = [row[mode][f"faster than {other}"] for other in others]
            cells += [f"{r['ratio']:.2g} ({r['least']:.2g} to {r['most']:.2g})" for r in ratios]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    args = parser.parse_args()
    if args.table:
        print(table())
        return
    rows = []
    for name, dense, shape, mixed in cases():
        for terms in all_terms(tuple(dense.weight.shape)):  # type: ignore[union-attr, arg-type]
            rows.append(compare(name, dense, shape, terms, args.rounds, mixed=mixed))
            print(json.dumps(rows[-1]), flush=True)
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rounds": args.rounds, "seed": SEED}
    with writing(RESULTS) as temporary:
        lines = ",\n".join(json.dumps(row) for row in rows)
        temporary.write_text(f'{json.dumps(result)[:-1]}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
