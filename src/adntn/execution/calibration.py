"""Measuring a machine, in about half a second."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.execution.counting import Tally
from adntn.execution.machine import BYTES, CHANNELS, IMAGES, POSITIONS, SIDES, Profile, Rates, Table, remember
from adntn.generator import Generator
from adntn.topology import GeneratorConfig

__all__ = ["calibrate", "measure"]

_SAMPLES = 7
_SAMPLE_SECONDS = 5e-5
_LONG_SECONDS = 1e-2
_CHAIN = 8


def calibrate(device: torch.device | str = "cpu") -> Profile:
    """Measure the machine anew, and write the outcome into the user's cache folder.

    It takes about half a second and is done by itself before the first ``execution="auto"`` on a machine. Call it
    where the first measurement was disturbed. Layers that are there already keep the ways that they have; set
    ``layer.execution = "auto"`` to choose again.

    Args:
        device: to measure.

    Returns:
        The machine's profile.

    Example:
        >>> profile = adntn.calibrate()
    """
    return measure(torch.device(device))


def measure(device: torch.device) -> Profile:
    """Return the profile of a device, and keep it for the next process."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
        profile = _measure(device)
    remember(device, profile)
    return profile


def _measure(device: torch.device) -> Profile:
    clock = _Clock(device)
    small = torch.ones(8, 8, device=device)
    image = torch.ones(1, 8, 2, 2, device=device)
    kernel = torch.ones(8, 8, 3, 3, device=device)
    product = clock(lambda: F.linear(small, small))
    stack = torch.ones(256, 4, 4, device=device)
    convolution = clock(lambda: F.conv2d(image, kernel, padding=1))
    making, making_training = _making(clock, device)
    return Profile(
        view=clock(lambda: small.view(64)),
        move=clock(lambda: small * small),
        product=product,
        item=clock(lambda: stack @ stack) / len(stack),
        convolution=convolution,
        convolutions=clock(lambda: F.conv2d(image.expand(IMAGES, -1, -1, -1), kernel, padding=1)),
        autograd=_autograd(clock, small, product),
        making=making,
        making_training=making_training,
        read=tuple(size / clock(_reading(size, device)) for size in BYTES),
        write=tuple(size / clock(_writing(size, device)) for size in BYTES),
        float32=_rates(clock, device, torch.float32, product, convolution),
        bfloat16=_rates(clock, device, torch.bfloat16, product, convolution),
    )


class _Clock:
    """The least time of a call in some samples, in seconds."""

    def __init__(self, device: torch.device) -> None:
        self._wait: Callable[[], Any] = lambda: None
        if device.type == "cuda":
            self._wait = lambda: torch.cuda.synchronize(device)
        elif device.type != "cpu" and hasattr(torch, "accelerator"):
            self._wait = torch.accelerator.synchronize

    def __call__(self, function: Callable[[], object]) -> float:
        function()
        once = self._time(function, 1)
        times = max(1, math.ceil(_SAMPLE_SECONDS / once))
        samples = _SAMPLES if once < _LONG_SECONDS else 1
        # Not the median: where others work on the machine it is longer for what takes long, and hardly for the rest.
        return min(once, *(self._time(function, times) for _ in range(samples)))

    def _time(self, function: Callable[[], object], times: int) -> float:
        self._wait()
        start = time.perf_counter()
        for _ in range(times):
            function()
        self._wait()
        return max((time.perf_counter() - start) / times, 1e-9)


def _reading(size: int, device: torch.device) -> Callable[[], Tensor]:
    array = torch.ones(size // 4, device=device)
    return lambda: array.sum()


def _writing(size: int, device: torch.device) -> Callable[[], Tensor]:
    return lambda: torch.empty(size // 4, device=device).fill_(1.0)


def _autograd(clock: _Clock, x: Tensor, product: float) -> float:
    """Return how many times as long a product takes with its graph and its backward pass."""
    weight = x.clone().requires_grad_()

    def step() -> None:
        with torch.enable_grad():
            y = x
            for _ in range(_CHAIN):
                y = F.linear(y, weight)
            torch.autograd.grad(y, weight, x)

    return max(1.0, clock(step) / (_CHAIN * product))


def _making(clock: _Clock, device: torch.device) -> tuple[float, float]:
    """Return the seconds of a call in making factors, without and with the backward pass that belongs to it."""
    plain, training = [], []
    for topology in ("ttn", "mera"):
        generator = Generator((16, 16), GeneratorConfig(topology=topology, order="blocked"), device=device)
        parameters = [p for _, p in generator.generator_parameters()]

        def step(generator: Generator = generator, parameters: list[Any] = parameters) -> None:
            with torch.enable_grad():
                made = generator.factors() or ()
                torch.autograd.grad(made, parameters, [m.detach() for m in made], allow_unused=True)

        with Tally() as tally:
            generator.factors()
        plain.append(clock(generator.factors) / len(tally.ops))
        training.append(clock(step) / len(tally.ops))
    return statistics.mean(plain), statistics.mean(training)


def _rates(clock: _Clock, device: torch.device, dtype: torch.dtype, product: float, convolution: float) -> Rates:
    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, device=device, dtype=dtype)

    def rate(flops: int, function: Callable[[], object], call: float) -> float:
        seconds = clock(function)
        return flops / max(seconds - call, seconds / 4)

    def of_product(m: int, k: int, n: int) -> float:
        x, weight = ones(m, k), ones(n, k)
        return rate(2 * m * k * n, lambda: F.linear(x, weight), product)

    def of_convolution(channels: int, positions: int, size: int) -> float:
        side = min(8, math.isqrt(positions))
        x, weight = ones(positions // side**2, channels, side, side), ones(channels, channels, size, size)
        flops = 2 * positions * channels * channels * size**2
        return rate(flops, lambda: F.conv2d(x, weight, padding=size // 2), convolution)

    def by_sides(tall: bool) -> Table:
        table = [[0.0] * len(SIDES) for _ in SIDES]
        for i, a in enumerate(SIDES):
            for j, b in enumerate(SIDES[i:], start=i):
                c = max(b, min(4096, (1 << 19) // (a * b)))
                both = ((c, a, b), (c, b, a)) if tall else ((a, b, c), (a, c, b))
                table[i][j] = table[j][i] = math.exp(statistics.mean(math.log(of_product(*each)) for each in both))
        return tuple(map(tuple, table))

    def by_channels(size: int) -> Table:
        return tuple(tuple(of_convolution(c, p, size) for p in POSITIONS) for c in CHANNELS)

    return Rates(by_sides(tall=True), by_sides(tall=False), by_channels(3), by_channels(1))
