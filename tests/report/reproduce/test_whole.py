"""The report of whole networks: accuracies by budget, and who is ahead by more than the spread."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib.image
import pytest
import reproduce_makers as made
from matplotlib.figure import Figure

from adntn.experiments.reproduce.rows import Result
from adntn.report.reproduce import whole_plot
from adntn.report.reproduce.whole import whole_text, write_whole
from adntn.training.folder import RunFolderError


def finished(seeds: int = 3, network: str = "resnet20") -> list[Result]:
    """Ours is ahead at 5,000, level at 10,000 and behind at 20,000; low rank is not possible at 5,000."""
    means = {
        ("seeded", True): {5_000: 0.50, 10_000: 0.599, 20_000: 0.65},
        ("tree", True): {5_000: 0.40, 10_000: 0.45},
        ("narrow", False): {5_000: 0.45, 10_000: 0.600, 20_000: 0.70},
        ("lowrank", False): {10_000: 0.3, 20_000: 0.4},
    }
    results = [
        made.rival(network, name, budget, seed, mean + (0.01 if ours else 0.002) * seed, ours)
        for (name, ours), budgets in means.items()
        for budget, mean in budgets.items()
        for seed in range(seeds)
    ]
    results += [made.rival(network, "dense", None, seed, 0.90 + 0.001 * seed) for seed in range(seeds)]
    return results + [made.rival(network, "frozen-dense", None, seed, 0.42) for seed in range(seeds)]


def tables(text: str) -> list[dict[str, list[str]]]:
    blocks = [block for block in text.split("\n\n") if block.startswith("| network")]
    split = [[[c.strip() for c in line.split("|")[1:-1]] for line in block.splitlines()] for block in blocks]
    return [{cells[0]: cells[1:] for cells in table} for table in split]


def test_a_row_a_rival_and_a_column_a_budget(tmp_path: Path) -> None:
    accuracies, numbers = tables(whole_text(made.folder(tmp_path, "whole", finished())))
    assert accuracies["network"] == ["5,000", "10,000", "20,000", "own size"]
    names = ["**seeded**", "**tree**", "lowrank", "narrow", "dense", "frozen-dense"]
    assert list(accuracies)[2:] == list(numbers)[2:] == names
    assert accuracies["**seeded**"][:2] == ["51.00 ± 1.00 (3)", "60.90 ± 1.00 (3)"]
    assert accuracies["lowrank"][0] == "–"
    assert accuracies["**tree**"][2] == "–"
    assert accuracies["dense"] == ["–", "–", "–", "90.10 ± 0.10 (3)"]
    assert numbers["narrow"] == ["5,000", "10,000", "20,000", "–"]
    assert numbers["frozen-dense"][3] == "3,800 (2,113,786)"
    assert numbers["dense"][3] == "2,113,786"


def verdicts(text: str) -> dict[str, str]:
    lines = [
        (line[2:].partition(": ")[0], line.partition(": ")[2]) for line in text.splitlines() if line.startswith("- ")
    ]
    return dict(lines)


def test_the_verdict_is_paired_by_seed_and_goes_by_the_spread(tmp_path: Path) -> None:
    said = verdicts(whole_text(made.folder(tmp_path, "whole", finished())))
    assert said["5,000"] == (
        "best of ours `seeded` 51.00 ± 1.00 (3), best rival `narrow` 45.20 ± 0.20 (3); "
        "+5.80 ± 0.80 points over 3 seeds: **ours is above by more than the spread**."
    )
    assert said["10,000"].endswith("+0.70 ± 0.80 points over 3 seeds: no more than the spread.")
    assert said["20,000"].endswith("points over 3 seeds: the rival is above by more than the spread.")


def test_a_rival_of_one_size_counts_where_it_fits_but_dense_never_does(tmp_path: Path) -> None:
    rows = [*finished(), *(made.rival("resnet20", "tiny", 1_000, seed, 0.2, ours=True) for seed in range(3))]
    rows = [row for row in rows if row.about["rival"] not in ("narrow", "lowrank")]
    said = verdicts(whole_text(made.folder(tmp_path, "whole", rows)))
    assert "best rival `frozen-dense` 42.00 ± 0.00 (3)" in said["5,000"]
    assert said["1,000"] == "no rival is finished."


def test_a_teacher_is_no_rival_and_its_epochs_are_said(tmp_path: Path) -> None:
    rows = [*finished(), *(made.rival("resnet20", "teacher", None, seed, 0.95) for seed in range(3))]
    rows = [row for row in rows if row.about["rival"] not in ("narrow", "lowrank")]
    text = whole_text(made.folder(tmp_path, "whole", rows, epochs=2, teacher_epochs=8))
    assert "2 epochs after a teacher's 8, seeds 0, 1, 2" in text
    assert "best rival `frozen-dense`" in verdicts(text)["5,000"]
    assert tables(text)[0]["teacher"][3] == "95.00 ± 0.00 (3)"


def test_what_it_was_judged_by_and_a_rate_of_its_own_are_said(tmp_path: Path) -> None:
    usual = whole_text(made.folder(tmp_path / "usual", "whole", finished(), epochs=2))
    assert "2 epochs, seeds" in usual
    assert "the accuracy is that of the last epoch on the test images." in usual
    text = whole_text(made.folder(tmp_path / "held", "whole", finished(), epochs=2, held_out=5_000, core_lr=0.03))
    assert "2 epochs, cores at 0.03, seeds 0, 1, 2, judged by training images kept out" in text
    assert "that of the last epoch on 5,000 training images that were kept out of training." in text
    assert "test images" not in text


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    folder = made.folder(tmp_path, "whole", finished(1))
    assert all(
        says.endswith("one seed, which says nothing about the spread.")
        for says in verdicts(whole_text(folder)).values()
    )
    assert "not judged (one seed) at 5k, 10k, 20k" in write_whole(folder)


def test_seeds_that_are_not_common_are_not_compared(tmp_path: Path) -> None:
    rows = [made.rival("vgg16", "tree", 5_000, 0, 0.4, ours=True), made.rival("vgg16", "narrow", 5_000, 1, 0.5)]
    assert verdicts(whole_text(made.folder(tmp_path, "whole", rows)))["5,000"].endswith("no seed is common to both.")


@pytest.mark.parametrize(
    "rivals", [("dense",), ("tree",), ("narrow", "frozen-dense"), ("frozen-dense",), ("lowrank", "dense")]
)
def test_a_report_is_made_of_whatever_is_finished(tmp_path: Path, rivals: tuple[str, ...]) -> None:
    rows = [row for row in [*finished(2), *finished(1, "vgg16")] if row.about["rival"] in rivals]
    folder = made.folder(tmp_path, "whole", rows)
    assert write_whole(folder).startswith("Whole networks (CIFAR-10 (JPEG), width 0.25, 8 epochs, seeds 0, 1): ")
    assert matplotlib.image.imread(folder / "accuracy.png")[..., :3].std() > 0.02
    assert "nan" not in (folder / "table.md").read_text()
    text = (folder / "table.md").read_text()
    assert text.index("## VGG-16") < text.index("## ResNet-20")


def test_the_headline_says_where_ours_is_ahead(tmp_path: Path) -> None:
    assert write_whole(made.folder(tmp_path, "whole", finished())) == (
        "Whole networks (CIFAR-10 (JPEG), width 0.25, 8 epochs, seeds 0, 1, 2): 12 rows, 36 trainings finished. "
        "ResNet-20, the best of ours: above the best rival at 5k; level with it at 10k; below it at 20k."
    )


def test_the_csv_has_every_training(tmp_path: Path) -> None:
    write_whole(made.folder(tmp_path, "whole", finished()))
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 36
    seeded = [row for row in rows if row["rival"] == "seeded" and row["budget"] == "5000"]
    assert [float(row["accuracy"]) for row in seeded] == pytest.approx([0.50, 0.51, 0.52])
    assert {row["ours"] for row in seeded} == {"True"}
    assert {row["budget"] for row in rows if row["rival"] == "dense"} == {""}


def test_the_plot_has_a_line_a_rival_and_the_dense_network_across(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(whole_plot, "write_figure", lambda figure, path: drawn.append(figure))
    write_whole(made.folder(tmp_path, "whole", [*finished(), *finished(2, "vgg16")]))
    panels = drawn[0].axes
    assert [axes.get_title() for axes in panels] == ["VGG-16", "ResNet-20"]
    for axes in panels:
        assert axes.get_xscale() == "log"
        assert sum(list(line.get_xdata()) == [0, 1] for line in axes.lines) == 1
        widths = {
            container.lines[0].get_linewidth(): len(container.lines[0].get_xdata()) for container in axes.containers
        }
        assert len(axes.containers) == 5
        assert set(widths) == {1.2, 2.6}
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["seeded (ours)", "tree (ours)", "lowrank", "narrow", "frozen-dense", "dense network"]


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"it has no settings\.json"):
        write_whole(tmp_path)
    with pytest.raises(RunFolderError, match="holds no finished row yet"):
        write_whole(made.folder(tmp_path / "empty", "whole", []))
    with pytest.raises(RunFolderError, match="holds the experiment 'table3', not 'whole'"):
        write_whole(made.folder(tmp_path / "other", "table3", []))
