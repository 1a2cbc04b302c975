"""What importing the library brings in, and which of its files may know which."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import adntn

PACKAGE = Path(adntn.__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
HEAVY = (
    *("pytorch_lightning", "torchmetrics", "rich", "typer", "matplotlib", "sklearn", "pyarrow", "datasets", "pandas"),
    *("optuna", "codecarbon"),
)


def modules_after(statement: str) -> set[str]:
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return set(json.loads(done.stdout))


def test_import_brings_in_nothing_that_only_training_needs() -> None:
    loaded = modules_after("import adntn, adntn.nn")
    assert "adntn.generator" in loaded
    assert loaded.isdisjoint(HEAVY)


# --- the house rule of CONTRIBUTING.md ------------------------------------------------------------

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"


def rooms() -> dict[str, int]:
    """The rooms of the house with their floor, counted from the top; a room's name ends in ``/`` or ``.py``."""
    text = CONTRIBUTING.read_text()
    listing = text[text.index("src/adntn/\n") : text.index("benchmarks/  tests/")]
    lines = [re.findall(r"(?:(?<=  )|(?<=^))\w+(?:\.py|/)(?=\s|$)", line) for line in listing.splitlines()[1:]]
    return {room: floor for floor, line in enumerate(lines) for room in line}


def room_of(module: str) -> str | None:
    """The room of a module of the package, given as ``adntn.nn.linear``; None for the package itself."""
    parts = module.split(".")[1:]
    if not parts or parts[0] == "_version":
        return None
    return f"{parts[0]}/" if (PACKAGE / parts[0]).is_dir() else f"{parts[0]}.py"


def imports_of(file: Path) -> set[str]:
    """The package's modules that a file imports, anywhere in it, as absolute names."""
    here = ["adntn", *file.relative_to(PACKAGE).with_suffix("").parts]
    package = here[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                target = PACKAGE.parent / Path(*source.split("."), alias.name)
                is_module = target.is_dir() or target.with_suffix(".py").is_file()
                found.add(f"{source}.{alias.name}" if is_module else source)
    return {name for name in found if name == "adntn" or name.startswith("adntn.")}


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE or file.name[0] != "_")


def test_the_house_is_read_from_contributing() -> None:
    floors = rooms()
    assert floors["errors.py"] < floors["tensorize.py"] < floors["generator.py"] < floors["execution/"] < floors["nn/"]
    assert floors["nn/"] < floors["compress.py"] <= floors["checkpoint.py"] < floors["training/"] < floors["cli/"]
    assert len(FILES) > 10


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_stands_in_a_room_and_imports_only_from_rooms_above(file: Path) -> None:
    floors = rooms()
    here = room_of("adntn." + ".".join(file.relative_to(PACKAGE).with_suffix("").parts))
    assert here in floors, f"{here} is not in the list of CONTRIBUTING.md"
    for module in imports_of(file):
        there = room_of(module)
        if module == "adntn._version" or there == here:
            continue
        assert there is not None, f"imports the whole package as {module!r}"
        assert there in floors, f"{there} is not in the list of CONTRIBUTING.md"
        # Two files may share a floor; then only one of them may know the other, which pytest would notice as a cycle.
        assert floors[there] <= floors[here], f"{here} imports {module}, which stands below it"


def test_no_two_files_import_each_other() -> None:
    known = {room_of("adntn." + ".".join(f.relative_to(PACKAGE).with_suffix("").parts)): set() for f in FILES}
    for file in FILES:
        here = room_of("adntn." + ".".join(file.relative_to(PACKAGE).with_suffix("").parts))
        known[here] |= {room_of(module) for module in imports_of(file)} - {here, None}
    assert [(a, b) for a, others in known.items() for b in others if a in known.get(b, ())] == []


def test_only_the_command_line_knows_the_screen() -> None:
    for file in FILES:
        if room_of("adntn." + ".".join(file.relative_to(PACKAGE).with_suffix("").parts)) == "cli/":
            continue
        tree = ast.parse(file.read_text())
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert "print" not in {call.id for call in calls if isinstance(call, ast.Name)}, file
