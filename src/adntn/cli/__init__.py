"""The command line: ``adntn compress`` and ``adntn inspect``. Only this room knows the screen."""

from __future__ import annotations

import sys

try:
    import rich  # noqa: F401
    import typer  # noqa: F401
except ImportError as error:  # pragma: no cover - the extra is there in every environment that runs the tests
    sys.exit(f"The adntn command needs more than the library does ({error.name} is missing): pip install 'adntn[run]'")

from adntn.cli.app import app

__all__ = ["app"]
