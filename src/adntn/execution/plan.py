"""Which way a layer runs.

``factored`` runs y = A(C(B^T x)) and never makes the weight; ``dense`` makes the whole weight and hands it to torch's
own kernel. ``auto`` takes the way that is faster by a model of the machine, for the number of positions at hand; where
there is no such model, the one with clearly fewer multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from adntn.errors import ConfigError, check_choice
from adntn.execution.choices import EXECUTIONS, MODES, WAYS, Choices, Steps, Way
from adntn.execution.cost import applying_seconds, making_seconds
from adntn.execution.machine import Profile
from adntn.execution.rehearsal import SAMPLES, Performer, WayCount, count_way
from adntn.generator import GeneratorModule

__all__ = ["Work", "as_chosen", "choose", "find_choices", "machine_choices", "multiply_adds"]

# Three calls instead of one; below this share of the arithmetic they are still the faster way.
_WORTHWHILE = 0.75

# Of a convolution through Kronecker products. Kernels channel by channel are slow on small maps, in bfloat16 and with
# channels last, and what stands between the products is written and read term by term: of 128 channels with an eighth
# of the arithmetic a training step took longer than with the whole weight.
_WORTHWHILE_BY_CHANNEL = 0.1

# Where both ways are equally fast the plain one is to be taken.
_CLEARLY = 0.95

_POWERS = tuple(1 << power for power in range(25))


@dataclass(frozen=True)
class Work:
    """The multiply-adds of one position.

    Attributes:
        dense: with the whole weight.
        factored: with its factors; as dense where it has none.
        worthwhile: the share of the dense multiply-adds below which the factored ones may be the faster way.
    """

    dense: int
    factored: int
    worthwhile: float = 1.0

    def __str__(self) -> str:
        return f"{self.factored:,} multiply-adds a position factored, {self.dense:,} dense"


def choose(
    execution: str, generator: GeneratorModule, work: Work | None, find: Callable[[], Choices | None] | None = None
) -> Way:
    """Choose the way of a layer.

    Args:
        execution: ``"auto"``, ``"factored"`` or ``"dense"``.
        generator: the layer, or a generator on its own.
        work: what each way costs; None for lookups, which cost nothing but the making of what is looked up.
        find: asked for the machine's choices where ``"auto"`` has a choice; without it, or where it has none, the
            choice goes by ``work``.

    Raises:
        ConfigError: an unknown execution, or ``"factored"`` where the weight has no split.
    """
    way = _obliged(execution, generator, work)
    if way is not None:
        return way
    assert work is not None
    # With more arithmetic in more calls there is nothing to find out.
    choices = None if find is None or work.factored >= work.worthwhile * work.dense else find()
    if choices is None:
        share = min(_WORTHWHILE, work.worthwhile)
        choices = Choices.only("factored" if work.factored < share * work.dense else "dense")
    return as_chosen(choices, work)


def as_chosen(choices: Choices, work: Work) -> Way:
    """Return the way that follows from choices made before."""
    name = choices.training[-1][1]
    return Way(name, str(work) if choices == Choices.only(name) else f"{work}; {choices}", choices)


def _obliged(execution: str, generator: GeneratorModule, work: Work | None) -> Way | None:
    """Return the way where there is only one."""
    check_choice("execution", execution, EXECUTIONS)
    if execution == "dense":
        return Way.only("dense", "asked for")
    obstacle = generator.split_obstacle
    if obstacle is not None:
        if execution == "factored":
            raise ConfigError(f"execution='factored' is not possible: {obstacle}; use execution='auto' or 'dense'.")
        return Way.only("dense", obstacle)
    if execution == "factored":
        return Way.only("factored", "asked for")
    return Way.only("factored", "only the rows that are looked up are made") if work is None else None


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
    elif generator.kronecker is not None and groups == 1:
        blocks = generator.factored_groups
        factored = blocks * generator.config.terms * generator.kronecker.multiply_adds(rows // blocks, stride)
        return Work(dense, factored, _WORTHWHILE_BY_CHANNEL if math.prod(kernel) > 1 else 1.0)
    return Work(dense, factored)


# --- the machine's choices ------------------------------------------------------------------------------------------


_COUNTS: dict[Hashable, dict[str, WayCount] | None] = {}
_CHOICES: dict[Hashable, Choices] = {}
_MOST_COUNTS = 4096


def machine_choices(
    key: Hashable, build: Callable[[], Performer], profile: Profile | None, dtype: torch.dtype
) -> Choices | None:
    """Return a machine's choices for a layer; None where its operations cannot be counted.

    Args:
        key: what decides on the operations; for equal keys the layer is counted once.
        build: returns the layer on the meta device.
        profile: of the machine, if it has one.
        dtype: of the arithmetic on the input.
    """
    if profile is None or torch.compiler.is_compiling():
        return None
    if len(_COUNTS) > _MOST_COUNTS:
        _COUNTS.clear()
        _CHOICES.clear()
    if key not in _COUNTS:
        try:
            _COUNTS[key] = {way: count_way(build(), way) for way in WAYS}
        except Exception:  # a user's own activation may do anything, and need not work without values
            _COUNTS[key] = None
    counts = _COUNTS[key]
    if counts is None:
        return None
    if (key, profile) not in _CHOICES:
        _CHOICES[key, profile] = find_choices(counts, profile, dtype)
    return _CHOICES[key, profile]


def find_choices(counts: Mapping[str, WayCount], profile: Profile, dtype: torch.dtype) -> Choices:
    """Return the faster way for each number of positions, by a machine's profile.

    Args:
        counts: of both ways.
        profile: of the machine.
        dtype: of the arithmetic on the input.
    """
    return Choices(*(_steps_of({way: seconds(counts[way], mode, profile, dtype) for way in WAYS}) for mode in MODES))


def seconds(
    count: WayCount, mode: str, profile: Profile, dtype: torch.dtype, positions: Sequence[int] = _POWERS
) -> tuple[float, ...]:
    """Return the predicted time of a call with so many positions; by itself 1, 2, 4, ..."""
    training = mode == "training"
    making = 0.0 if mode == "kept" else making_seconds(count.making, profile, training=training)
    known = [applying_seconds(each, profile, dtype, training=training) for each in count.applying]
    times = []
    for many in positions:
        place = sum(sample <= many for sample in SAMPLES[1:-1])
        (x0, x1), (y0, y1) = SAMPLES[place : place + 2], known[place : place + 2]
        times.append(making + y0 + (y1 - y0) * (many - x0) / (x1 - x0))
    return tuple(times)


def _steps_of(times: Mapping[str, tuple[float, ...]]) -> Steps:
    faster = [
        "factored" if f < _CLEARLY * d else "dense" for f, d in zip(times["factored"], times["dense"], strict=True)
    ]
    return tuple((1 << power, name) for power, name in enumerate(faster) if power == 0 or name != faster[power - 1])
