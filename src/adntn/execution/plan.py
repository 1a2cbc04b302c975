"""Which way a layer runs.

``factored`` runs y = A(C(B^T x)) and never makes the weight; ``dense`` makes the whole weight and hands it to torch's
own kernel. ``auto`` compares what they cost: the multiply-adds of one position, or for lookups, which need none, the
numbers that have to be generated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from adntn.errors import ConfigError, check_choice
from adntn.generator import GeneratorModule

__all__ = ["EXECUTIONS", "Way", "Work", "choose", "generated", "multiply_adds"]

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
    """What a layer costs in each way.

    Attributes:
        dense: with the whole weight.
        factored: with its factors; as dense where it has none.
        unit: what is counted.
    """

    dense: int
    factored: int
    unit: str

    def __str__(self) -> str:
        return f"{self.factored:,} {self.unit} factored, {self.dense:,} dense"


def choose(execution: str, generator: GeneratorModule, work: Work) -> Way:
    """Choose the way of a layer.

    Args:
        execution: ``"auto"``, ``"factored"`` or ``"dense"``.
        generator: the layer, or a generator on its own.
        work: what each way costs.

    Raises:
        ConfigError: an unknown execution, or ``"factored"`` where the weight has no split.
    """
    check_choice("execution", execution, EXECUTIONS)
    if execution == "dense":
        return Way("dense", "asked for")
    if generator.ranks is None:
        obstacle = f"order={generator.config.order!r} has no split into factors"
        if execution == "factored":
            raise ConfigError(f"execution='factored' is not possible: {obstacle}; use execution='auto' or 'dense'.")
        return Way("dense", obstacle)
    if execution == "factored":
        return Way("factored", "asked for")
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
    rows, columns, *kernel = generator.blueprint.shape
    dense = rows * columns * math.prod(kernel)
    factored = dense
    if generator.ranks is not None:
        outer, inner = generator.ranks
        blocks = math.lcm(groups, generator.config.groups)
        factored = blocks * inner * (stride * columns + outer * math.prod(kernel)) + rows * outer
    return Work(dense, factored, "multiply-adds a position")


def generated(generator: GeneratorModule) -> Work:
    """Return how many numbers are generated: those of a table ``(out, in)``, and those of its factors."""
    rows, columns = generator.blueprint.shape
    factored = dense = rows * columns
    if generator.ranks is not None:
        outer, inner = generator.ranks
        factored = rows * outer + generator.config.groups * (outer + columns) * inner
    return Work(dense, factored, "numbers to generate")
