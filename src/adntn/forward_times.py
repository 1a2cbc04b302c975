"""How long each module of a model takes in a forward pass."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from adntn.describe import plain_name
from adntn.errors import ConfigError, ShapeError

__all__ = ["forward_times"]

_RUNS = 5


@torch.no_grad()
def forward_times(model: nn.Module, example: object) -> dict[str, float]:
    """Return the seconds that each module takes in a forward pass, its children's among them.

    Medians of five passes in evaluation mode, after one to warm up; the model is left in the mode in which it was.

    Args:
        model: not on the meta device.
        example: an input, or a tuple of the arguments.

    Returns:
        By name; 0 for a module that is not called. The model itself is ``""``.

    Raises:
        ConfigError: there is no example, or the model has no values to run with.
        ShapeError: the model cannot run on it.
    """
    if example is None:
        raise ConfigError(
            "to measure times, give an input: example=torch.randn(8, 3, 32, 32), or a tuple of arguments."
        )
    if any(p.is_meta for p in model.parameters()):
        raise ConfigError("times cannot be measured on the meta device; rank by parameters.")
    inputs = example if isinstance(example, tuple) else (example,)
    names = {id(module): plain_name(name) for name, module in model.named_modules()}
    passes: list[dict[str, float]] = []
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as undo:
        for module, training in modes.items():
            undo.callback(setattr, module, "training", training)
            clock = _Clock(names[id(module)], passes)
            undo.callback(module.register_forward_pre_hook(clock.start).remove)
            undo.callback(module.register_forward_hook(clock.stop).remove)
        model.eval()
        for _ in range(1 + _RUNS):
            passes.append(dict.fromkeys(names.values(), 0.0))
            try:
                model(*inputs)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else repr(x)[:40] for x in inputs)
                raise ShapeError(f"the model cannot run on the example, {shapes}: {error}") from None
    return {name: statistics.median(each[name] for each in passes[1:]) for name in passes[0]}


class _Clock:
    """Adds up the time of a module's calls in the last pass."""

    def __init__(self, name: str, passes: list[dict[str, float]]) -> None:
        self.name, self.passes, self.began = name, passes, [0.0]

    def start(self, module: nn.Module, inputs: Any) -> None:
        self.began.append(_now(module))

    def stop(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.passes[-1][self.name] += _now(module) - self.began.pop()


def _now(module: nn.Module) -> float:
    first = next(module.parameters(), None)
    if first is not None and first.is_cuda:
        torch.cuda.synchronize(first.device)
    return time.perf_counter()
