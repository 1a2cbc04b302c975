"""Which way a layer runs.

``factored`` runs y = A(C(B^T x)) and never makes the weight; ``dense`` makes the whole weight and hands it to torch's
own kernel. ``auto`` compares their multiply-adds for one output position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from adntn.errors import ConfigError, check_choice
from adntn.generator import GeneratorModule
from adntn.topology import BASELINES

__all__ = ["EXECUTIONS", "Way", "choose"]

EXECUTIONS = ("auto", "factored", "dense")

# Three calls instead of one; below this share of the arithmetic they are still the faster way.
_WORTHWHILE = 0.75


@dataclass(frozen=True)
class Way:
    """The way a layer takes, and why.

    Attributes:
        name: ``"factored"`` or ``"dense"``.
        reason: one line for a person.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return self.name


def choose(execution: str, generator: GeneratorModule, *, splits_input: bool = False, stride: int = 1) -> Way:
    """Choose the way of a layer.

    Args:
        execution: ``"auto"``, ``"factored"`` or ``"dense"``.
        generator: the layer, or a generator on its own.
        splits_input: whether the layer has convolution groups, which each see only a part of the input channels.
        stride: input positions an output position, of a strided convolution.

    Raises:
        ConfigError: an unknown execution, or ``"factored"`` where the weight has no split.
    """
    check_choice("execution", execution, EXECUTIONS)
    if execution == "dense":
        return Way("dense", "asked for")
    obstacle = None
    if generator.ranks is None:
        c = generator.config
        what = f"topology={c.topology!r}" if c.topology in BASELINES else f"order={c.order!r}"
        obstacle = f"{what} has no split into factors"
    elif splits_input:
        obstacle = "convolution groups see different input channels"
    if execution == "factored":
        if obstacle is not None:
            raise ConfigError(f"execution='factored' is not possible: {obstacle}; use execution='auto' or 'dense'.")
        return Way("factored", "asked for")
    if obstacle is not None:
        return Way("dense", obstacle)
    dense, factored = multiply_adds(generator, stride)
    way = "factored" if factored < _WORTHWHILE * dense else "dense"
    return Way(way, f"{factored:,} multiply-adds an output position factored, {dense:,} dense")


def multiply_adds(generator: GeneratorModule, stride: int = 1) -> tuple[int, int]:
    """Return the multiply-adds of one output position: with the whole weight, and with the factors."""
    out, columns, *kernel = generator.blueprint.shape
    dense = out * columns * math.prod(kernel)
    if generator.ranks is None:
        return dense, dense
    (outer, inner), groups = generator.ranks, generator.config.groups
    return dense, groups * (stride * columns * inner + outer * inner * math.prod(kernel)) + out * outer
