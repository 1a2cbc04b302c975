"""How long networks take beside each other."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils import benchmark

from adntn.compress import cached
from adntn.experiments.runs import Timing

__all__ = ["time_forward"]


def time_forward(models: Mapping[str, nn.Module], images: Tensor, rounds: int = 7) -> list[Timing]:
    """Time one batch's forward pass of each network, in turns with the dense one, under :func:`adntn.cached`.

    Args:
        models: by name; one of them is ``"dense"``.
        images: a batch, normalised.
        rounds: timed, after a warm-up.
    """
    seconds: dict[str, list[float]] = {variant: [] for variant in models}
    for turn in range(rounds + 1):
        for variant, model in models.items():
            timer = benchmark.Timer(
                "model(images)", globals={"model": model, "images": images}, num_threads=torch.get_num_threads()
            )
            with cached(model):
                taken = timer.blocked_autorange(min_run_time=0.02).median
            if turn:  # the first round warms up
                seconds[variant].append(taken)
    return [
        Timing(
            variant=variant,
            milliseconds=1e3 * statistics.median(values),
            dense_ratio=statistics.median(a / b for a, b in zip(values, seconds["dense"], strict=True)),
            batch=len(images),
            rounds=rounds,
        )
        for variant, values in seconds.items()
    ]
