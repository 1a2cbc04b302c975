"""Running one case: every variant built, its memory taken, then all timed in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import inspect
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import adntn
from adntn.nn import GeneratedWeight
from benchmarks.speed.cases import Case
from benchmarks.speed.measure import Clock, Step, in_turns, peak_bytes, stored_bytes
from benchmarks.speed.peers import einsum_weight
from benchmarks.speed.variants import TOPOLOGIES, Variant, variants_of

__all__ = ["Limits", "Result", "run_case", "skips_from"]

Result = dict[str, Any]
Row = dict[str, Any]

SEED = 0


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a case may cost.

    Attributes:
        budget: seconds of timing for one case, if three rounds do not need more.
        call: seconds that one call may take; what takes more is left out.
        heavy: seconds a call of dense from which others that run its kernel on a whole weight are left out.
        slow: what is not essential and takes so many seconds, and ten times the fastest, is left with its first call.
        hopeless: how many times the fastest a peer may take before larger batches are left out.
    """

    budget: float = 3.0
    call: float = 60.0
    heavy: float = 1.0
    slow: float = 0.1
    hopeless: float = 50.0


def skips_from(case: Case, rows: Mapping[str, Row], limits: Limits) -> dict[str, str]:
    """Return which peers were so slow in smaller batches of the same layer that they are left out now, and why."""
    if case.kind == "weight":
        return {}
    peers = {variant.name for variant in variants_of(case) if not variant.essential and variant.family != "adntn"}
    skips: dict[str, str] = {}
    for row in rows.values():
        if row["line"] != case.line or row["batch"] >= case.batch:
            continue
        seconds = {name: s for name, result in row["results"].items() if (s := seconds_of(result)) is not None}
        best = _fastest_of_tensorly(seconds)
        for name in sorted(peers & seconds.keys() - {best}):
            times = seconds[name] / min(seconds.values())
            if times > limits.hopeless:
                skips.setdefault(name, f"{times:.0f} times the fastest at batch {row['batch']}")
    return skips


def _fastest_of_tensorly(seconds: Mapping[str, float]) -> str | None:
    """Return what the goals compare with, which is measured whatever it takes."""
    return min((name for name in seconds if name.startswith("tensorly")), key=seconds.__getitem__, default=None)


def seconds_of(result: Result) -> float | None:
    """Return the seconds a call, of the first call where that was all; None where there was none."""
    value = result.get("median", result.get("first"))
    return None if value is None else float(value)


def run_case(case: Case, limits: Limits, skips: Mapping[str, str] | None = None) -> dict[str, Result]:
    """Measure all variants of a case, and return the results by their names."""
    gc.collect()  # the models of the case before, whose clocks refer to each other
    if case.kind == "weight":
        return _run_making(case, limits)
    torch.manual_seed(SEED)
    x = torch.randn(case.input_shape).to(case.torch_dtype)
    upstream = (1e-3 * torch.randn(_output_shape(case))).to(case.torch_dtype)
    trial = _Trial(case, limits, skips or {}, x, upstream)
    with contextlib.ExitStack() as stack:
        for variant in variants_of(case):
            trial.prepare(variant, stack)
        trial.time()
    return trial.results


def _output_shape(case: Case) -> tuple[int, ...]:
    if case.kind == "model":
        return (case.batch, 10)
    return (case.batch, case.shape[0], *case.input_shape[2:])


class _Trial:
    def __init__(self, case: Case, limits: Limits, skips: Mapping[str, str], x: Tensor, upstream: Tensor) -> None:
        self.case, self.limits, self.skips = case, limits, skips
        self.x, self.upstream = x.requires_grad_(case.mode == "training"), upstream
        self.results: dict[str, Result] = {}
        self.clocks: dict[str, Clock] = {}
        self.estimates: dict[str, float] = {}
        self.essential: set[str] = set()

    def prepare(self, variant: Variant, stack: contextlib.ExitStack) -> None:
        """Build a variant and make its first calls, or say why not."""
        name, limits = variant.name, self.limits
        self.essential |= {name} if variant.essential else set()
        dense = self.estimates.get("dense", 0.0)
        if variant.missing or name in self.skips:
            self.results[name] = {"skipped": variant.missing or self.skips[name]}
            return
        if variant.whole and dense > limits.heavy:
            self.results[name] = {"skipped": f"as dense, which takes {dense:.1f} s a call, on a weight made besides"}
            return
        try:
            self._first_calls(variant, stack)
        except (RuntimeError, MemoryError, ValueError) as error:
            if variant.family in ("dense", "adntn", "low rank"):
                raise
            why = str(error).partition("\n")[0][:120]
            self.results[name] = {"skipped": f"{type(error).__name__}: {why}"}

    def _first_calls(self, variant: Variant, stack: contextlib.ExitStack) -> None:
        case, name = self.case, variant.name
        torch.manual_seed(SEED)
        model = variant.build().to(case.torch_dtype)
        result: Result = {}
        work: Callable[[], Any]
        returned: Callable[[], tuple[Tensor, ...]]
        if case.mode == "training":
            work = returned = step = Step(model.train(), self.x, self.upstream)
            held = stored_bytes([*model.parameters(), *model.buffers(), *step.state()])
        else:
            model.eval()
            stack.enter_context(adntn.cached(model) if variant.family in ("adntn", "paired") else torch.no_grad())
            held = stored_bytes([*model.parameters(), *model.buffers()])
            work = lambda: model(self.x)  # noqa: E731  # as bare as what dense torch is timed by
            returned = lambda: (model(self.x),)  # noqa: E731
        peak, first = peak_bytes(returned)
        result["peak"] = held + peak
        clock = Clock(work)
        if first < 0.2:  # else another call would cost more than it would tell
            first = clock.estimate()
        result["parameters"] = sum(p.numel() for p in model.parameters())
        if case.kind == "model" and case.batch == 1:  # the same for every batch
            result["file"] = _file_bytes(model)
        if name.endswith("auto"):
            result["way"] = _way(model)
        self.results[name], self.estimates[name], self.clocks[name] = result, first, clock
        if first > self.limits.call:
            self._leave(name, f"{first:.0f} s a call")

    def time(self) -> None:
        """Time what is left in turns."""
        for name in self._too_slow():
            self._leave(
                name, f"{self.estimates[name] / min(self.estimates.values()):.0f} times the fastest; not repeated"
            )
        for name, timing in in_turns(self.clocks, self.estimates, self.limits.budget).items():
            values = dataclasses.asdict(timing)
            self.results[name] = {k: _rounded(v) for k, v in values.items()} | self.results[name]

    def _too_slow(self) -> list[str]:
        fastest = min(self.estimates.values())
        keep = {*self.essential, _fastest_of_tensorly(self.estimates)}
        bound = max(self.limits.slow, 10 * fastest)
        return [name for name in self.clocks if name not in keep and self.estimates[name] > bound]

    def _leave(self, name: str, why: str) -> None:
        self.results[name] |= {"skipped": why, "first": _rounded(self.estimates[name])}
        del self.clocks[name]


def _rounded(value: float) -> float | int:
    return value if isinstance(value, int) else float(f"{value:.4g}")


def _way(model: nn.Module) -> str:
    return str(next((module.way for module in model.modules() if isinstance(module, GeneratedWeight)), "–"))


def _file_bytes(model: nn.Module) -> int:
    """Return the size of the model's file: adntn's, or a plain safetensors one of a dense model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        if any(isinstance(module, GeneratedWeight) for module in model.modules()):
            adntn.save(model, path)
        else:
            save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
        return path.stat().st_size


# --- making a weight --------------------------------------------------------------------------------------------------


def _run_making(case: Case, limits: Limits) -> dict[str, Result]:
    results: dict[str, Result] = {}
    clocks: dict[str, Clock] = {}
    estimates: dict[str, float] = {}
    with torch.no_grad():
        for name, work in _makers(case):
            if work is None:
                results[name] = {"skipped": "Generator.generate() takes no buffer in this version"}
                continue
            peak, _ = peak_bytes(lambda work=work: (work(),))  # type: ignore[misc]
            results[name], clocks[name] = {"peak": peak}, Clock(work)
            estimates[name] = clocks[name].estimate()
        for name, timing in in_turns(clocks, estimates, limits.budget).items():
            values = dataclasses.asdict(timing)
            results[name] = {k: _rounded(v) for k, v in values.items()} | results[name]
    return results


def _makers(case: Case) -> Iterator[tuple[str, Callable[[], Tensor] | None]]:
    size, dtype = math.prod(case.shape), case.torch_dtype
    buffer = torch.empty(case.shape, dtype=dtype)
    yield "fill new", lambda: torch.empty(size, dtype=dtype).fill_(1)
    yield "fill buffer", lambda: buffer.fill_(1)
    for topology in TOPOLOGIES:
        torch.manual_seed(SEED)
        gen = adntn.Generator(case.shape, adntn.GeneratorConfig(topology=topology), dtype=dtype)
        yield f"{topology} new", gen.generate
        takes_buffer = "out" in inspect.signature(gen.generate).parameters
        generate: Any = gen.generate
        yield f"{topology} into a buffer", partial(generate, out=buffer) if takes_buffer else None
        if topology == "ttn":
            yield "einsum loop", partial(einsum_weight, gen)
