"""The report of `adntn reproduce levers`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from reproduce_makers import folder, result

from adntn.experiments.reproduce.rows import Result
from adntn.report.reproduce.levers import levers_text, write_levers
from adntn.training.folder import RunFolderError


def lever(
    name: str, size: str | None, seed: int, accuracy: float, *, ours: bool = True, trained: int = 15_000
) -> Result:
    about = {"size": size, "says": f"what {name} is", "ours": ours}
    variant = name if size is None else f"{name}-{size}"
    return result("vgg16", variant, seed, accuracy, about=about, model_trained=trained)


RESULTS = [
    *(lever("ttn", "large", seed, 0.50 + 0.01 * seed) for seed in (0, 1)),
    *(lever("elu", "large", seed, 0.45 + 0.01 * seed) for seed in (0, 1)),
    *(lever("subspace", "large", seed, 0.55, ours=False) for seed in (0, 1)),
    lever("ttn", "small", 0, 0.40, trained=5_000),
    lever("dense", None, 0, 0.64, ours=False, trained=900_000),
]


def test_rows_stand_by_size_and_accuracy_with_differences_by_seed(tmp_path: Path) -> None:
    text = levers_text(folder(tmp_path / "run", "levers", RESULTS))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    places = [next(i for i, line in enumerate(lines) if name in line) for name in ("| dense", "**ttn** |")]
    assert places == sorted(places)
    large = text.split("## Large")[1]
    order = [large.index(name) for name in ("| subspace ", "| **ttn** ", "| **elu** ")]
    assert order == sorted(order)
    elu = next(line for line in large.splitlines() if "**elu**" in line)
    assert "45.50 ± 0.71 (2)" in elu
    assert "\u22125.00 ± 0.00" in elu
    assert text.index("## Small") < text.index("## Large")


def test_files_and_headline(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", "levers", RESULTS)
    headline = write_levers(path)
    assert "large: `ttn` 50.50 ± 0.71 (2), best rival `subspace` 55.00 ± 0.00 (2)" in headline
    assert "# Levers" in (path / "table.md").read_text()
    with (path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(RESULTS)
    assert {row["size"] for row in rows} == {"large", "small", ""}


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no finished row"):
        write_levers(folder(tmp_path / "run", "levers", []))
