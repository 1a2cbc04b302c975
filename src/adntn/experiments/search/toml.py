"""Writing TOML: the standard library only reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from adntn.errors import ConfigError

__all__ = ["to_toml"]


def to_toml(values: Mapping[str, Any], *, path: Sequence[str] = ()) -> str:
    """Return values as TOML that :mod:`tomllib` reads back to equal ones; None, which TOML has not, is left out.

    Args:
        values: plain values, lists, tables, and lists of tables.
        path: of the table that they stand in.

    Raises:
        ConfigError: a value is of another type.
    """
    lines, tables = [], []
    for name, value in values.items():
        here = (*path, name)
        if isinstance(value, Mapping):
            tables.append(f"[{_key(here)}]\n{to_toml(value, path=here)}")
        elif isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
            tables += [f"[[{_key(here)}]]\n{to_toml(item, path=here)}" for item in value]
        elif value is not None:
            lines.append(f"{_key([name])} = {_value(value)}\n")
    return "\n".join(["".join(lines), *tables] if lines else tables)


def _key(names: Sequence[str]) -> str:
    return ".".join(name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name) for name in names)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key([name])} = {_value(item)}" for name, item in value.items()) + "}"
    raise ConfigError(f"{value!r} cannot stand in a TOML file: it is a {type(value).__name__}.")


def _text(text: str) -> str:
    # JSON's strings are TOML's, but for this one character, and for escapes beyond the basic plane.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
