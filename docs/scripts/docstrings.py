"""What the docstrings say to a reader of the code, said to a reader of the site.

``:class:`Level` `` becomes a link to where ``Level`` is documented, and ``Example:`` a section of its own.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([\w.]+)`")
_EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            obj.docstring.value = _ROLE.sub(lambda match: link(obj, match[1]), text)


def link(obj: griffe.Object, name: str) -> str:
    """Return a cross-reference to what an object's docstring names, optional: not everything has a page."""
    head, _, rest = name.lstrip(".").partition(".")
    if head == obj.package.name:
        path = name
    else:
        scope = obj if (obj.is_class or obj.is_module) and head in obj.members else obj.parent
        try:
            path = f"{(scope or obj).resolve(head)}{rest and '.' + rest}"
        except griffe.NameResolutionError:
            return f"`{name.lstrip('.')}`"
    return f'<autoref identifier="{path}" optional><code>{name.lstrip(".")}</code></autoref>'
