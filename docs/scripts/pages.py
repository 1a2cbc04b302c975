"""Pages are programs: their blocks of Python run one after the other, and what a block prints stands below it.

    python docs/scripts/pages.py     # runs them all and writes what they print into the pages

A test runs them too and compares.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path

from adntn.execution.machine import shipped, using

DOCS = Path(__file__).parents[1]
GUIDES = ("choosing", "how-it-runs", "split", "gpu")
PAGES = (*(DOCS / f"{name}.md" for name in GUIDES), *sorted((DOCS / "tutorials").glob("*.md")))

#: A block of code, and the block of output below it if there is one.
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?P<shown>\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)


def run(page: Path) -> list[str]:
    """Run a page's blocks in an empty folder; return what each printed."""
    names: dict[str, object] = {"__name__": page.stem}
    printed = []
    before = Path.cwd()
    # One page shows what is chosen by the profile that the library brings along; the others leave machines out of it.
    profile = shipped() if page.stem == "how-it-runs" else None
    with tempfile.TemporaryDirectory() as folder, using(profile):
        os.chdir(folder)
        try:
            for block in BLOCK.finditer(page.read_text()):
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(compile(block["code"], page.name, "exec"), names)
                printed.append(out.getvalue())
        finally:
            os.chdir(before)
    return printed


def filled(page: Path) -> str:
    """Return a page with what its blocks print now."""
    outputs = iter(run(page))

    def fill(block: re.Match[str]) -> str:
        output = next(outputs)
        return f"```python\n{block['code']}```\n" + (f"\n```text\n{output}```\n" if output else "")

    return BLOCK.sub(fill, page.read_text())


def main() -> None:
    for page in PAGES:
        page.write_text(filled(page))


if __name__ == "__main__":
    main()
