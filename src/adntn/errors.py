"""Errors that the library raises for a user's mistake, and the wording they share.

Every one derives from :class:`AdntnError` *and* from the built-in type that plain Python code would
expect, so both ``except adntn.AdntnError`` and ``except ValueError`` work.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AdntnError",
    "CheckpointError",
    "CompressionError",
    "ConfigError",
    "EntryIndexError",
    "GeneratorTooLargeError",
    "NonFiniteError",
    "ShapeError",
    "TrainingStopped",
]


class AdntnError(Exception):
    """Base class of every error that this library raises on purpose."""


class ConfigError(AdntnError, ValueError):
    """An option has a value that is not known or not possible."""


class ShapeError(AdntnError, ValueError, RuntimeError):
    """A weight, a layer or an input has a shape that cannot be used here; a ``RuntimeError`` too, as torch's are."""


class EntryIndexError(AdntnError, IndexError):
    """An index does not name entries or rows of a weight."""


class CompressionError(AdntnError, ValueError):
    """A model or a target cannot be compressed as asked."""


class CheckpointError(AdntnError, RuntimeError):
    """A file is truncated, foreign, changed, from a newer version, or does not fit the model."""


class GeneratorTooLargeError(AdntnError, MemoryError):
    """A generator's intermediate arrays would not fit into memory; nothing was allocated."""


class NonFiniteError(AdntnError, ArithmeticError):
    """Training came to NaN or infinity; the message names the layer and the last good state."""


class TrainingStopped(AdntnError, RuntimeError):
    """A run ended before its end, by a signal or its time limit; it goes on from what it has kept."""


def nearest(given: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name closest to the given one, or ``""``."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_choice(option: str, given: object, known: Iterable[str]) -> str:
    """Return ``given`` when it is one of ``known``; otherwise raise with the nearest known name.

    Raises:
        ConfigError: the value is not known.
    """
    names = list(known)
    if isinstance(given, str) and given in names:
        return given
    hint = nearest(given, names) if isinstance(given, str) else ""
    raise ConfigError(f"{option}={given!r} is not known; choose one of {', '.join(names)}.{hint}")
