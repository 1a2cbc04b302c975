"""``python -m adntn`` is the ``adntn`` command."""

from __future__ import annotations

from adntn.cli import app

app(prog_name="adntn")
