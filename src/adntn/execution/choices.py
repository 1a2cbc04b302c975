"""The ways of a layer, and for how many positions each is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from adntn.errors import ConfigError

__all__ = ["EXECUTIONS", "MODES", "WAYS", "Choices", "Steps", "Way", "way_at"]

EXECUTIONS = ("auto", "factored", "dense")
WAYS = ("factored", "dense")
#: With gradients; without them; and where :func:`adntn.cached` keeps factors or weight.
MODES = ("training", "rebuilt", "kept")

_MOST = 1 << 62

Steps = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Choices:
    """The way to take from a number of positions on, in each mode.

    Attributes:
        training: with gradients, ``((1, "dense"), (64, "factored"))``; the first entry stands for all that is fewer.
        rebuilt: without gradients, and nothing kept between calls.
        kept: where factors or weight are kept.
    """

    training: Steps
    rebuilt: Steps
    kept: Steps

    @classmethod
    def only(cls, name: str) -> Choices:
        """Return the choice of one way, always."""
        return cls(*(((1, name),) for _ in MODES))

    def at(self, mode: str, positions: int) -> str:
        """Return the way to take."""
        return way_at(getattr(self, mode), positions)

    def to_dict(self) -> dict[str, Any]:
        """Return it as lists, for JSON."""
        return {mode: [list(step) for step in getattr(self, mode)] for mode in MODES}

    @classmethod
    def from_dict(cls, values: object) -> Choices:
        """Read what :meth:`to_dict` returned.

        Raises:
            ConfigError: it is something else.
        """
        if not isinstance(values, Mapping) or set(values) != set(MODES):
            raise ConfigError(f"choices have one entry for each of {', '.join(MODES)}: {str(values)[:80]} are none.")
        return cls(**{mode: _steps(mode, values[mode]) for mode in MODES})

    def __str__(self) -> str:
        return "; ".join(f"{f.name}: {_spoken(getattr(self, f.name))}" for f in fields(self))


def way_at(steps: Steps, positions: int) -> str:
    """Return the way to take with a number of positions."""
    name = steps[0][1]
    for start, other in steps[1:]:
        if positions < start:
            break
        name = other
    return name


def _steps(mode: str, values: object) -> Steps:
    steps: list[tuple[int, str]] = []
    for step in values if isinstance(values, (list, tuple)) else ():
        least, most = (steps[-1][0] + 1, _MOST) if steps else (1, 1)
        possible = isinstance(step, (list, tuple)) and len(step) == 2 and step[1] in WAYS
        if not possible or type(step[0]) is not int or not least <= step[0] <= most:
            steps.clear()
            break
        steps.append((step[0], step[1]))
    if not steps:
        raise ConfigError(
            f"the choices of {mode!r} are pairs of a number of positions and a way, rising from 1 on: not "
            f"{str(values)[:80]}."
        )
    return tuple(steps)


def _spoken(steps: Steps) -> str:
    first, *rest = (name if start == 1 else f"{name} from {start:,} positions on" for start, name in steps)
    return ", ".join((first, *rest))


@dataclass(frozen=True)
class Way:
    """The way a layer takes, and why.

    Attributes:
        name: ``"factored"`` or ``"dense"``: for many positions, in training.
        reason: one line for a person.
        choices: the way for each number of positions.
    """

    name: str
    reason: str
    choices: Choices

    @classmethod
    def only(cls, name: str, reason: str) -> Way:
        """Return the way that is taken always."""
        return cls(name, reason, Choices.only(name))

    def __str__(self) -> str:
        return self.name
