"""Linear layers on a GPU: dense torch, factors, the whole weight by torch and by Triton, and tiles made on the way.

    python benchmarks/kernels.py            # some minutes; needs CUDA and Triton
    python benchmarks/kernels.py --quick    # one size

All ways of a row run in turns in one process, after a warm-up. *Kept* is inference with what a way keeps under
``adntn.cached``: the weight, the factors, the tiles. *Anew* is inference that makes them at every call, as training has
to. *Step* is forward, backward and AdamW. Before a row is timed, output and gradients of each way are compared with
those of float64: a wrong number is an error, not a time. Writes results/kernels-<device>.json: medians and quartiles in
seconds, medians over dense torch, and peak memory beyond what was there before.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import benchmark

import adntn
from adntn.checkpoint import writing
from adntn.execution import kernels, tiles

RESULTS = Path(__file__).parent / "results"
SIZES = ((1024, 1024), (4096, 4096), (16384, 4096))  # out, in
BATCHES = (1, 32, 128, 1024)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ORDERS = ("blocked", "paired")
ROUNDS = 9
SECONDS = 0.02  # of each way in each round
SEED = 0

Call = Callable[[Tensor], Tensor]


def ways(layer: adntn.nn.Linear, dense: nn.Linear) -> dict[str, tuple[Call, Call | None]]:
    """Return how each way runs anew, and with what it keeps; None where that is dense torch once more."""
    found: dict[str, tuple[Call, Call | None]] = {"dense": (dense, dense)}
    if layer.ranks is not None:
        factored = adntn.nn.Linear.from_dense(
            nn.Linear(layer.in_features, layer.out_features, device="meta"), share=layer, execution="factored"
        )
        factored.bias = layer.bias
        found["factored"] = (factored, factored)
    found["weight by torch"] = (lambda x: F.linear(x, layer.generate(), layer.bias), None)
    found["weight by Triton"] = (lambda x: F.linear(x, kernels.weight(layer), layer.bias), None)
    with torch.no_grad():
        kept = tiles.make(layer)
    found["tiled by torch"] = (
        lambda x: tiles.linear(x, layer, layer.bias),
        lambda x: tiles.linear(x, layer, layer.bias, kept),
    )
    found["fused"] = (
        lambda x: kernels.linear(x, layer, layer.bias),
        lambda x: kernels.linear(x, layer, layer.bias, kept),
    )
    return found


def check(call: Call, layer: adntn.nn.Linear, x: Tensor) -> dict[str, float]:
    """Return the relative errors of output and gradients against float64."""
    parameters = [p for _, p in layer.generator_parameters()]
    exact = layer.bare_copy().double()
    inputs, doubles = x.detach().requires_grad_(), x.detach().double().requires_grad_()
    y = call(inputs)
    assert layer.bias is not None
    expected = F.linear(doubles, exact(), layer.bias.detach().double())
    probe = torch.randn_like(y)
    ours = torch.autograd.grad(y, [inputs, *parameters], probe)
    theirs = torch.autograd.grad(
        expected, [doubles, *(p for _, p in exact.generator_parameters())], probe.to(torch.float64)
    )
    pairs = [(y, expected), *zip(ours, theirs, strict=True)]
    errors = [float((a.double() - b).norm().detach() / b.norm().detach()) for a, b in pairs]
    return {"output": errors[0], "input_gradient": errors[1], "parameter_gradients": max(errors[2:])}


def in_turns(calls: dict[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
    timers = {name: benchmark.Timer("work()", globals={"work": work}) for name, work in calls.items()}
    count = {}
    for name, timer in timers.items():
        timer.timeit(3)  # Triton compiles at the first call
        count[name] = max(1, min(1000, int(SECONDS / timer.timeit(3).median)))
    rounds = [{name: timer.timeit(count[name]).median for name, timer in timers.items()} for _ in range(ROUNDS)]
    found = {}
    for name in calls:
        low, median, high = statistics.quantiles([r[name] for r in rounds], n=4)
        over = statistics.median(r[name] / r["dense"] for r in rounds)
        found[name] = {"median": median, "lower_quartile": low, "upper_quartile": high, "over_dense": over}
    return found


def peak(work: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def stepper(call: Call, module: nn.Module, x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        call(x).square().mean().backward()
        optimizer.step()

    return step


def without_gradients(call: Call, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return call(x)

    return run


def measure(size: tuple[int, int], batch: int, dtype: str, order: str) -> dict[str, Any]:
    torch.manual_seed(SEED)
    options: dict[str, Any] = {"device": "cuda", "dtype": DTYPES[dtype]}
    config = adntn.GeneratorConfig(topology="ttn", order=order)
    layer = adntn.nn.Linear(size[1], size[0], config=config, execution="dense", **options)
    dense = nn.Linear(size[1], size[0], **options)
    x = torch.randn(batch, size[1], **options)
    obstacle = kernels.usable(layer, x.device)
    if obstacle is not None:
        raise SystemExit(f"the kernels do not run here: {obstacle}")
    calls = ways(layer, dense)
    errors = {name: check(call, layer, x) for name, (call, _) in calls.items() if name != "dense"}
    bound = 0.05 if DTYPES[dtype] == torch.bfloat16 else 1e-4
    wrong = {name: found for name, found in errors.items() if not max(found.values()) < bound}
    if wrong:
        raise SystemExit(f"{size}, batch {batch}, {dtype}, {order}: wrong beyond rounding: {wrong}")

    anew = {name: without_gradients(call, x) for name, (call, _) in calls.items()}
    with adntn.cached(layer):  # the factored layer shares its generator, so its factors are kept too
        kept = in_turns({name: without_gradients(call, x) for name, (_, call) in calls.items() if call is not None})
    steps = {name: stepper(call, dense if name == "dense" else layer, x) for name, (call, _) in calls.items()}
    row: dict[str, Any] = {"out": size[0], "in": size[1], "batch": batch, "dtype": dtype, "order": order}
    row |= {"errors": errors, "kept": kept, "anew": in_turns(anew), "step": in_turns(steps)}
    row["peak_bytes"] = {name: {"anew": peak(anew[name]), "step": peak(steps[name])} for name in calls}
    return row


def making(size: tuple[int, int], dtype: str, order: str) -> dict[str, Any]:
    """Time the whole weight alone, against filling a new tensor of its size with a number."""
    gen = adntn.Generator(size, adntn.GeneratorConfig(topology="ttn", order=order), device="cuda", dtype=DTYPES[dtype])
    with torch.no_grad():
        kept = tiles.make(gen)
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "dense": lambda _: torch.empty(size, device="cuda", dtype=DTYPES[dtype]).fill_(1),  # what is compared with
        "torch": lambda _: gen(),
        "Triton": lambda _: kernels.weight(gen),
        "Triton, tiles kept": lambda _: kernels.weight(gen, kept),
        "tiles": lambda _: tiles.make(gen)[0],
    }
    times = in_turns({name: without_gradients(call, kept[1]) for name, call in calls.items()})
    times["fill"] = times.pop("dense")
    return {"out": size[0], "in": size[1], "dtype": dtype, "order": order, "making": times}


def main() -> int:
    parser = argparse.ArgumentParser(description="Time linear layers on a GPU.")
    parser.add_argument("--quick", action="store_true", help="4096x4096 only, at batch 1 and 128")
    quick = parser.parse_args().quick
    can_run = kernels.available("cuda")
    if not can_run:
        sys.stderr.write(f"benchmarks/kernels.py needs a CUDA device and Triton: {can_run}.\n")
        return 2
    import triton

    sizes, batches = (((4096, 4096),), (1, 128)) if quick else (SIZES, BATCHES)
    rows = []
    for size, dtype, order in itertools.product(sizes, DTYPES, ORDERS):
        rows.append(making(size, dtype, order))
        print(json.dumps(rows[-1]), flush=True)
        for batch in batches:
            rows.append(measure(size, batch, dtype, order))
            print(json.dumps(rows[-1]), flush=True)
    device = torch.cuda.get_device_name()
    result = {"device": device, "torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}
    result |= {"rounds": ROUNDS, "seed": SEED, "rows": rows}
    name = "-".join(device.lower().replace("/", " ").split())
    with writing(RESULTS / f"kernels-{name}.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
