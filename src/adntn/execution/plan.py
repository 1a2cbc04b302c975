"""Which way a layer runs.

``factored`` runs y = A(C(B^T x)) and never makes the weight; ``dense`` makes the whole weight and hands it to torch's
own kernel. ``auto`` compares the multiply-adds of one position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from adntn.errors import ConfigError, check_choice
from adntn.generator import GeneratorModule

__all__ = ["EXECUTIONS", "Way", "Work", "choose", "multiply_adds"]

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


@dataclass(frozen=True)
class Work:
    """The multiply-adds of one position.

    Attributes:
        dense: with the whole weight.
        factored: with its factors; as dense where it has none.
    """

    dense: int
    factored: int

    def __str__(self) -> str:
        return f"{self.factored:,} multiply-adds a position factored, {self.dense:,} dense"


def choose(execution: str, generator: GeneratorModule, work: Work | None) -> Way:
    """Choose the way of a layer.

    Args:
        execution: ``"auto"``, ``"factored"`` or ``"dense"``.
        generator: the layer, or a generator on its own.
        work: what each way costs; None for lookups, which cost nothing but the making of what is looked up.

    Raises:
        ConfigError: an unknown execution, or ``"factored"`` where the weight has no split.
    """
    check_choice("execution", execution, EXECUTIONS)
    if execution == "dense":
        return Way("dense", "asked for")
    obstacle = generator.split_obstacle
    if obstacle is not None:
        if execution == "factored":
            raise ConfigError(f"execution='factored' is not possible: {obstacle}; use execution='auto' or 'dense'.")
        return Way("dense", obstacle)
    if execution == "factored":
        return Way("factored", "asked for")
    if work is None:
        return Way("factored", "only the rows that are looked up are made")
    return Way("factored" if work.factored < _WORTHWHILE * work.dense else "dense", str(work))


def multiply_adds(generator: GeneratorModule, *, groups: int = 1, stride: int = 1) -> Work:
    """Return the multiply-adds of one position.

    A position is one of a convolution's output, and of a transposed convolution's input: a transposed convolution
    is the adjoint of the other, and does the same products backwards.

    Args:
        generator: of a weight ``(out, in / groups, *kernel)``, or ``(in, out / groups, *kernel)`` for a transposed one.
        groups: convolution groups.
        stride: positions on the strided convolution's larger side for one on its smaller side.
    """
    rows, columns, *kernel = generator.shape
    dense = rows * columns * math.prod(kernel)
    factored = dense
    if generator.ranks is not None:
        outer, inner = generator.ranks
        blocks = math.lcm(groups, generator.factored_groups)
        factored = blocks * inner * (stride * columns + outer * math.prod(kernel)) + rows * outer
    return Work(dense, factored)
