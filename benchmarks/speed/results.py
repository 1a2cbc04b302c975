"""The file of results: a case a line, written anew after every case, read again by a later run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adntn.checkpoint import writing
from benchmarks.speed.cases import Case
from benchmarks.speed.machine import same_machine

__all__ = ["Results"]

Row = dict[str, Any]

ABOUT = {
    "seconds": "median, first (low) and third quartile (high) over the rounds, a call; all variants of a case in turns",
    "inference": "evaluation mode, no gradients; generated layers under adntn.cached",
    "training": "forward, backward for a given gradient of the output to parameters and input, AdamW step",
    "dtype": "of parameters and input alike; no autocast",
    "peak": "bytes: parameters, buffers and the optimiser's state, and the most that the call had from torch's "
    "allocator at a time, gradients among them; without input, output and their gradients. In inference it is the "
    "first call under adntn.cached, which makes what is kept",
    "skipped": "why a variant was not measured; first, where given, is what its first call took",
}


class Results:
    """What was measured, case by case.

    Attributes:
        sessions: the machine, a description for each time that the benchmark was run.
        rows: by the cases' keys.
    """

    def __init__(self, path: Path, about: dict[str, Any] | None = None) -> None:
        self.path = path
        self.about = {**ABOUT, **(about or {})}
        self.sessions: list[dict[str, Any]] = []
        self.rows: dict[str, Row] = {}

    @classmethod
    def read(cls, path: Path, about: dict[str, Any] | None = None) -> Results:
        """Return the results there are, none where there is no file."""
        results = cls(path, about)
        if path.is_file():
            content = json.loads(path.read_text())
            results.sessions = content["sessions"]
            results.rows = {row["key"]: row for row in content["cases"]}
        return results

    def begin(self, session: dict[str, Any]) -> str | None:
        """Begin a session, and return in what the machine differs from that of the rows there are, if it does."""
        for earlier in self.sessions:
            differs = same_machine(earlier, session)
            if differs is not None:
                return differs
        self.sessions.append(session)
        return None

    def add(self, case: Case, results: dict[str, Any], seconds: float) -> None:
        """Add a case that is done, and write the file."""
        about = {"session": len(self.sessions) - 1, "took": round(seconds, 1)}
        self.rows[case.key] = {**self.describe(case), **about, "results": results}
        self.write()

    @staticmethod
    def describe(case: Case) -> Row:
        """Return what a row says of its case."""
        names = ("key", "line", "kind", "work", "mode", "dtype", "batch", "side")
        return {name: getattr(case, name) for name in names}

    def order(self, keys: list[str]) -> None:
        """Put the rows into the grid's order."""
        place = {key: number for number, key in enumerate(keys)}
        self.rows = dict(sorted(self.rows.items(), key=lambda item: place.get(item[0], len(place))))

    def write(self) -> None:
        """Write the file, whole or not at all; a line a case."""
        head = json.dumps({"about": self.about, "sessions": self.sessions}, indent=1)
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in self.rows.values())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with writing(self.path) as temporary:
            temporary.write_text(f'{head[:-2]},\n "cases": [\n{lines}\n ]\n}}\n')
