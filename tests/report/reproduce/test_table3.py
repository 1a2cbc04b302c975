"""The report of Table 3 says what its files say: paired differences, ratios, verdicts, and nothing beyond them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import matplotlib.image
import matplotlib.pyplot as plt
import pytest
import reproduce_makers as made
from matplotlib.figure import Figure

from adntn.experiments.reproduce.rows import Result
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.reproduce.table3 import PAPER, table3_rows
from adntn.report.reproduce import drawings
from adntn.report.reproduce.sections import CONTROLS
from adntn.report.reproduce.table3 import table3_text, write_table3
from adntn.training.folder import RunFolderError, write_json

FC2 = "vgg16-fc2"


def fc2(seeds: int = 2) -> list[Result]:
    """Rows of FC2: mera beats both controls, attn only frozen-dense, ttn neither."""
    accuracies = {
        "ttn": (0.880, 0.881, 0.882),
        "attn": (0.893, 0.894, 0.896),
        "mera": (0.912, 0.913, 0.916),
        "ttn-conformal": (0.85, 0.92, 0.88),
    }
    results = [
        made.result(FC2, name, seed, values[seed]) for name, values in accuracies.items() for seed in range(seeds)
    ]
    for seed in range(seeds):
        results.append(made.result("vgg16", "dense", seed, (0.910, 0.912, 0.914)[seed], layer_dense=5_000_000))
        results.append(made.deleted(FC2, seed, (0.900, 0.901, 0.902)[seed]))
        results.append(made.frozen_dense(FC2, seed, (0.885, 0.886, 0.887)[seed]))
    return results


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Keep figures instead of writing them, which takes most of the time."""
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(drawings, "write_figure", lambda figure, path: drawn.update({path.name: figure}))
    return drawn


def rows_of(text: str, title: str, number: int = 0) -> dict[str, list[str]]:
    """Return the cells of a table below a heading, by the name of the row."""
    section = text.partition(f"{title}\n")[2].partition("\n## ")[0]
    table = [block for block in section.strip().split("\n\n") if block.startswith("| network")][number]
    return {
        cells[0]: cells[1:] for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines())
    }


@pytest.mark.usefixtures("undrawn")
def test_accuracies_differences_and_the_papers_figures_stand_side_by_side(tmp_path: Path) -> None:
    write_table3(made.folder(tmp_path / "run", "table3", fc2()))
    rows = rows_of((tmp_path / "run" / "table.md").read_text(), "## VGG-16, FC2")
    assert list(rows)[2:] == ["dense", "ttn", "attn", "mera", "ttn-conformal", "deleted", "frozen-dense"]
    assert rows["dense"] == ["dense", "91.10 ± 0.14 (2)", "–", "+1.05 ± 0.07", "+2.55 ± 0.07", "–", "–"]
    assert rows["ttn"] == [
        "the paper's",
        "88.05 ± 0.07 (2)",
        "−3.05 ± 0.07",
        "−2.00 ± 0.00",
        "−0.50 ± 0.00",
        "90.12 ± 0.19",
        "−0.07",
    ]
    assert rows["ttn-conformal"][0] == "generator"
    assert rows["deleted"][0] == rows["frozen-dense"][0] == "control"
    assert rows["deleted"][3] == "–"


def test_sizes_ratios_ranks_and_times(tmp_path: Path) -> None:
    folder = made.folder(tmp_path, "table3", fc2())
    times = {"vgg16/dense": {"milliseconds": 98.1, "dense_ratio": 1.0}, f"{FC2}/ttn": {"milliseconds": 41.2}}
    times[f"{FC2}/mera"] = {"milliseconds": 50.0, "dense_ratio": 0.5097}
    write_json(
        folder / "timings.json",
        {"vgg16": {"batch": 128, "rounds": 7, "environment": made.CPU, "rows": times}, "alexnet": {}},
    )
    text = table3_text(folder)
    rows = rows_of(text, "## VGG-16, FC2", 1)
    same = "2,113,786"
    assert rows["dense"] == [
        "1,048,576",
        "16,777,216",
        "1,048,576",
        "1x",
        same,
        same,
        "1x",
        "98.1 ms (1.00x)",
        "4.0 → 3.0",
        "–",
    ]
    assert rows["ttn"][:7] == ["216", "216", "216", "4,855x", "1,065,426", "1,065,426", "1.98x"]
    assert rows["ttn"][7:] == ["41.2 ms", "4.0 → 3.0", "64"]
    assert rows["mera"][7] == "50.0 ms (0.51x)"
    assert rows["attn"][7] == "–"
    assert rows["deleted"][:4] == ["0", "–", "0", "–"]
    assert rows["deleted"][8:] == ["–", "–"]
    assert rows["frozen-dense"][:4] == ["1,048,576", "–", "0", "1x"]
    assert "on one batch of 128, median of 7 rounds in turns" in text
    assert "Measured on: EPYC, 1 thread, torch 2.13.0." in text
    assert "Time per step" not in table3_text(made.folder(tmp_path / "untimed", "table3", fc2()))


def test_the_dense_rows_stable_rank_is_that_of_the_groups_layers(tmp_path: Path) -> None:
    ranks = {"classifier.3": 10.0, "features.27": 20.0, "features.40": 40.0, "features.4": 999.0}
    dense = made.result("vgg16", "dense", 0, 0.9, stable_rank_start=ranks, stable_rank_end=ranks)
    # A parameter of a layer counts as the layer.
    own = {"features.27.weight": 3.0, "features.40.weight": 5.0}
    conv = made.result("vgg16-conv", "ttn", 0, 0.9, stable_rank_start=own)
    text = table3_text(made.folder(tmp_path, "table3", [dense, made.result(FC2, "ttn", 0, 0.9), conv]))
    assert rows_of(text, "## VGG-16, FC2", 1)["dense"][8] == "10.0 → 10.0"
    convolutions = rows_of(text, "## VGG-16, five 512x512 convolutions", 1)
    assert convolutions["dense"][8] == "30.0 → 30.0"
    assert convolutions["ttn"][8] == "4.0 → 3.0"


def verdict(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("**Verdict.**"))


def test_the_verdict_goes_by_paired_differences_and_their_spread(tmp_path: Path) -> None:
    said = verdict(table3_text(made.folder(tmp_path, "table3", fc2(3))))
    assert "Deleting the layers changes the accuracy by −1.10 ± 0.10 points." in said
    assert "cannot tell" not in said
    assert "Above both controls: `mera`." in said
    assert "Above `frozen-dense`, not above `deleted`: `attn`." in said
    # ttn-conformal is above frozen-dense in one seed of three, and on average, by less than the spread.
    assert "Above neither: `ttn`, `ttn-conformal`." in said


@pytest.mark.parametrize("shift", [0.02, 0.0])
def test_layers_that_nobody_needs_are_named_so(tmp_path: Path, shift: float) -> None:
    rows = [row for row in fc2(3) if row.variant != "deleted"]
    rows += [made.deleted(FC2, seed, (0.911, 0.911, 0.914)[seed] + shift) for seed in range(3)]
    text = table3_text(made.folder(tmp_path, "table3", rows))
    assert "no loss beyond the spread: accuracy here cannot tell a good generator from none." in verdict(text)


@pytest.mark.usefixtures("undrawn")
def test_one_seed_judges_nothing(tmp_path: Path) -> None:
    folder = made.folder(tmp_path, "table3", fc2(1))
    said = verdict(table3_text(folder))
    assert (
        "One seed, which says nothing about the spread, so not judged: `ttn`, `attn`, `mera`, `ttn-conformal`." in said
    )
    assert "Above" not in said
    assert "cannot tell" not in said
    headline = write_table3(folder)
    assert "One seed says nothing about the spread." in headline
    assert "above both" not in headline


@pytest.mark.usefixtures("undrawn")
def test_the_headline_says_what_came_out(tmp_path: Path) -> None:
    assert write_table3(made.folder(tmp_path, "table3", fc2(3))) == (
        "Table 3 (CIFAR-10 (JPEG), width 0.25, 8 epochs, seeds 0, 1, 2): 7 rows, 21 trainings finished. "
        "VGG-16, FC2: without these layers −1.10 ± 0.10 points, with the best generator, mera, +0.17 ± 0.06, "
        "1 of 4 generated rows above both deleted and frozen-dense."
    )


def test_differences_are_taken_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    rows = [made.result("vgg16", "dense", seed, 0.90 + 0.01 * seed) for seed in (0, 1)]
    rows += [made.result(FC2, "ttn", seed, 0.80 + 0.05 * seed) for seed in (1, 2)]
    rows += [made.result(FC2, "attn", 2, 0.80)]
    cells = rows_of(table3_text(made.folder(tmp_path, "table3", rows)), "## VGG-16, FC2")
    assert cells["ttn"][1:3] == ["87.50 ± 3.54 (2)", "−6.00"]
    assert cells["attn"][2] == "–"


PARTS: dict[str, Any] = {
    "dense alone": lambda row: row.variant == "dense",
    "without dense": lambda row: row.variant != "dense",
    "one generator": lambda row: row.variant == "ttn",
    "a control": lambda row: row.variant == "deleted",
    "without deleted": lambda row: row.variant != "deleted",
    "uneven": lambda row: row.seed == 0 or row.variant in ("dense", "ttn"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_report_is_made_of_whatever_is_finished(tmp_path: Path, part: str) -> None:
    folder = made.folder(tmp_path, "table3", filter(PARTS[part], fc2()))
    assert write_table3(folder).startswith("Table 3 (CIFAR-10 (JPEG), width 0.25, 8 epochs, seed")
    for name in ("figure4.png", "figure5.png"):
        assert matplotlib.image.imread(folder / name)[..., :3].std() > 0.02
    assert "nan" not in (folder / "table.md").read_text()
    assert {file.name for file in folder.iterdir()} == {
        "settings.json", "rows", "table.md", "table.csv", "figure4.png", "figure5.png"
    }  # fmt: skip


def test_a_control_that_is_missing_is_named(tmp_path: Path) -> None:
    rows = [row for row in fc2() if row.variant != "deleted"]
    said = verdict(table3_text(made.folder(tmp_path, "table3", rows)))
    assert "Not finished: `deleted`." in said
    assert "Above `frozen-dense`: `attn`, `mera`." in said


@pytest.mark.usefixtures("undrawn")
def test_the_csv_has_every_row_with_plain_numbers(tmp_path: Path) -> None:
    write_table3(made.folder(tmp_path, "table3", fc2(), width=1.0))
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert len(rows) == 7
    assert float(rows["ttn"]["accuracy"]) == pytest.approx(0.8805)
    assert float(rows["ttn"]["delta_dense"]) == pytest.approx(-0.0305)
    assert float(rows["ttn"]["layer_ratio"]) == pytest.approx(1_048_576 / 216)
    assert rows["ttn"]["paper_stored"] == "216"
    assert rows["deleted"]["layer_ratio"] == rows["deleted"]["paper_delta"] == rows["dense"]["delta_dense"] == ""


def test_the_notes_name_width_limits_and_machines(tmp_path: Path) -> None:
    rows = fc2()
    gpu = {"device": "cuda", "gpu": "H200", "processor": "EPYC", "threads": 8, "torch": "2.13.0"}
    rows[0] = made.result(FC2, "ttn", 0, 0.88, environment=gpu)
    narrow = table3_text(made.folder(tmp_path / "a", "table3", rows, train_limit=5000))
    assert "5,000 training images" in narrow
    assert "Its counts belong to width 1, ours to width 0.25." in narrow
    assert "Trained on: H200, torch 2.13.0; EPYC, 1 thread, torch 2.13.0." in narrow.replace(
        "EPYC, 1 thread, torch 2.13.0; H200, torch 2.13.0", "H200, torch 2.13.0; EPYC, 1 thread, torch 2.13.0"
    )
    assert "Its counts" not in table3_text(made.folder(tmp_path / "b", "table3", rows, width=1.0))


def test_rows_that_were_not_trained_alike_are_told(tmp_path: Path) -> None:
    assert "One recipe for all rows" in table3_text(made.folder(tmp_path / "a", "table3", fc2()))
    rows = [*fc2(), made.result(FC2, "brickwall", 0, 0.8, optimization={"lr": 0.1})]
    text = table3_text(made.folder(tmp_path / "b", "table3", rows))
    assert "Not all rows of a network have the same recipe" in text
    assert "One recipe" not in text


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"holds no reproduction: it has no settings\.json"):
        write_table3(tmp_path)
    with pytest.raises(RunFolderError, match=r"holds no finished row yet.*adntn reproduce table3"):
        write_table3(made.folder(tmp_path / "empty", "table3", []))
    with pytest.raises(RunFolderError, match="holds the experiment 'whole', not 'table3'"):
        write_table3(made.folder(tmp_path / "other", "whole", fc2()))
    assert [file.name for file in (tmp_path / "empty").iterdir()] == ["settings.json"]


def test_every_row_of_the_experiment_is_the_papers_a_control_or_a_known_generator() -> None:
    names = {row.variant for row in table3_rows(Settings(width=0.05), (3, 32, 32), 10)}
    paper = {variant for _, variant in PAPER}
    assert set(CONTROLS) <= names
    assert names - set(CONTROLS) - paper - {"dense"} == {"ttn-conformal"}


def test_figure_5_shows_means_deviations_the_dense_line_and_the_papers_claims(
    tmp_path: Path, undrawn: dict[str, Figure]
) -> None:
    write_table3(
        made.folder(tmp_path, "table3", [*fc2(3), *(made.result(FC2, "brickwall", n, 0.1) for n in (0, 1, 2))])
    )
    (axes,) = undrawn["figure5.png"].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["ttn", "attn", "mera", "brickwall", "ttn-conformal", "deleted", "frozen-dense"]
    verticals = [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]]
    assert verticals == [pytest.approx(91.2)]
    claims = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 9}
    assert claims == {0: pytest.approx(91.13), 1: pytest.approx(91.74), 2: pytest.approx(90.95)}
    # A row that failed stands at the edge with its figure, and does not press the others together.
    assert [text.get_text() for text in axes.texts if text.get_text() == "10.0"] == ["10.0"]
    assert axes.get_xlim()[0] > 80
    (bars,) = undrawn["figure4.png"].axes
    assert bars.get_xscale() == "log"
    figures = {text.get_text() for text in bars.texts}
    assert {"4,855", "1.98", "nothing stored"} <= figures
    assert not plt.get_fignums()
