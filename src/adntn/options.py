"""Options that stand in a frozen dataclass, in JSON and in TOML alike, and the checks that they share."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from adntn.errors import ConfigError, nearest

__all__ = ["Options", "check_flag", "check_number", "check_whole"]


class Options:
    """Base of frozen dataclasses whose fields are plain values, tuples of them, or other such dataclasses.

    A subclass says what it is in an error by :attr:`what`, and checks its values in ``__post_init__``.
    """

    what = "these options"
    #: Whether what they stand in takes other values than a table for them, too.
    has_shorthand: ClassVar[bool] = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values.

        Lists become tuples, ``-`` in a name stands for ``_``, and a table within makes the options of its field.

        Raises:
            ConfigError: an option is unknown or impossible; the nearest known one is named.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.what}: a table of options is needed, not {values!r}.")
        known = [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]
        given: dict[str, Any] = {}
        for name, value in values.items():
            plain = str(name).replace("-", "_")
            if plain not in known:
                listed = ", ".join(known) or "none"
                raise ConfigError(f"{cls.what} has no option {name!r}; it has {listed}.{nearest(plain, known)}")
            table, optional = _table(cls, plain)  # type: ignore[arg-type]
            made = isinstance(value, table or ()) or (optional and value is None)
            if table is not None and not made and (isinstance(value, Mapping) or not table.has_shorthand):
                given[plain] = table.from_dict(value)
            else:
                given[plain] = tuple(value) if isinstance(value, list) else value
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_dict` reads back to equal options."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self) if field.init}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.to_dict() if isinstance(value, Options) else value


@functools.cache
def _table(cls: type[Options], name: str) -> tuple[type[Options] | None, bool]:
    """Return which options a field holds as a table of its own, and whether it may be None."""
    hint = get_type_hints(cls)[name]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Options)]
    return (tables[0] if tables else None), NoneType in kinds


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Raise unless a value is a finite number in a range.

    Raises:
        ConfigError: it is not.
    """
    possible = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    for bound, holds in (
        (above, possible and above is not None and value > above),  # type: ignore[operator]
        (least, possible and least is not None and value >= least),  # type: ignore[operator]
        (below, possible and below is not None and value < below),  # type: ignore[operator]
        (most, possible and most is not None and value <= most),  # type: ignore[operator]
    ):
        possible = possible and (bound is None or holds)
    if not possible:
        words = [f"above {above:g}" if above is not None else "", f"at least {least:g}" if least is not None else ""]
        words += [f"below {below:g}" if below is not None else "", f"at most {most:g}" if most is not None else ""]
        wanted = " and ".join(word for word in words if word) or "finite"
        raise ConfigError(f"{name}={value!r} is not possible; give a number that is {wanted}.")


def check_whole(name: str, value: object, least: int) -> None:
    """Raise unless a value is a whole number of at least ``least``.

    Raises:
        ConfigError: it is not.
    """
    if type(value) is not int or value < least:
        raise ConfigError(f"{name}={value!r} is not possible; give a whole number of at least {least}.")


def check_flag(name: str, value: object) -> None:
    """Raise unless a value is True or False.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is not possible; give true or false.")
