"""What README and docs show is what the commands wrote, and their code runs."""

from __future__ import annotations

import doctest
import json
import re
import runpy
from pathlib import Path

import pytest

import adntn
from adntn.experiments.runs import Row, Timing
from adntn.report.summary import markdown, summarize

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "docs" / "results" / "demo"


def between(text: str, mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n(.*?)<!-- /{mark} -->", text, re.DOTALL)
    assert found is not None
    return found[1].strip()


def test_readme_shows_the_demo_runs_table() -> None:
    metrics = json.loads((DEMO / "metrics.json").read_text())
    rows = [Row(**row) for row in metrics["runs"]]
    table = markdown(summarize(rows, [Timing(**timing) for timing in metrics["forward_times"]]))
    assert between((ROOT / "README.md").read_text(), "demo") == table
    assert (DEMO / "table.md").read_text().strip() == table


def test_the_initialization_page_shows_the_studys_table() -> None:
    study = runpy.run_path(str(ROOT / "benchmarks" / "initialization.py"))
    page = (ROOT / "docs" / "initialization.md").read_text()
    assert between(page, "table") == study["table"]()


def test_the_adjoint_page_shows_the_benchmarks_table_and_its_code_runs() -> None:
    page = (ROOT / "docs" / "adjoint.md").read_text()
    assert between(page, "table") == runpy.run_path(str(ROOT / "benchmarks" / "adjoint.py"))["table"]()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "adjoint.md", "exec"), {})


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "model.safetensors").is_file()
    assert isinstance(names["report"], adntn.CompressionReport)


def test_readme_names_files_that_are_there() -> None:
    docs = (ROOT / "docs" / name for name in ("initialization.md", "adjoint.md"))
    for page in (ROOT / "README.md", *docs, ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} names {target}"


def test_readme_counts_are_the_librarys() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \| ([\d,]+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [name for name, _, _ in rows] == ["ttn", "attn", "mera"]
    for topology, linear, conv in rows:
        config = adntn.GeneratorConfig(topology=topology)
        assert f"{adntn.Generator((4096, 4096), config, device='meta').num_parameters:,}" == linear
        assert f"{adntn.Generator((512, 512, 3, 3), config, device='meta').num_parameters:,}" == conv


def test_the_docstring_of_generator_tells_the_truth() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(adntn.Generator, "Generator", globs={"adntn": adntn})
    assert doctest.DocTestRunner().run(example).failed == 0
