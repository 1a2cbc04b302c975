"""Generators that have been trained a little, for the tests of growth."""

from __future__ import annotations

from typing import Any

import torch
from conformance_cases import PLAIN, TOPOLOGIES, scramble
from torch import Tensor

from adntn import FitOptions, Generator, GeneratorConfig

Options = dict[str, Any]
TREES = {name: {"latent_order": 2, **options} for name, options in TOPOLOGIES.items()}
WALL = {"topology": "brickwall", "columns": 2, "blocks": 1}
QUICK = FitOptions(steps=12, polish=6)


def trained(shape: tuple[int, ...], options: Options, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Tensor]:
    """A generator after some steps of Adam, its optimiser, and what it was trained to be."""
    torch.manual_seed(0)
    generator = scramble(Generator(shape, GeneratorConfig(**{**PLAIN, **options}), dtype=dtype))
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3, amsgrad=True)
    target = torch.randn(shape, dtype=dtype)
    for _ in range(3):
        step(generator, optimizer, target)
    return generator, optimizer, target


def step(generator: Any, optimizer: torch.optim.Optimizer, target: Tensor) -> None:
    optimizer.zero_grad()
    (generator() - target).square().sum().backward()
    optimizer.step()


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().norm() / other.detach().norm())
