"""Tables, the file of all fits and plots say what the fits say."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from adntn.experiments.reproduce.expressivity import CellFolder, ExpressivitySettings, Fits, run_expressivity
from adntn.experiments.reproduce.fit_cells import BASELINE, Cell
from adntn.report.pages import Table
from adntn.report.reproduce.expressivity import (
    RANKS,
    activations_table,
    equal_count_table,
    gains_table,
    headline,
    orders_table,
    own_count_table,
    ranks_table,
    read_fits,
    starts_table,
    targets_table,
    write_expressivity,
)
from adntn.training.folder import RunFolderError

SETTINGS = ExpressivitySettings(
    width=1 / 32, targets=("gaussian", "lowrank"), sizes=("base",), restarts=1, steps=1, polish=0, orders=("blocked",)
)


def cell(topology: str, numbers: int, error: float, **more: Any) -> Cell:
    baseline = topology in ("lowrank", "tt", "subspace")
    given = {
        "size": BASELINE if baseline else "base",
        "order": "blocked",
        "activation": "identity",
        "config": {"bond_dim": numbers} if baseline else {},
        "rank": 4,
        "stable_rank": 2.25,
        "linear_bound": 4,
        "rank_bound": 16,
        "start": "decomposed",
        "starts": {},
        "steps": 10,
        "seconds": 1.0,
    }
    return Cell(topology=topology, numbers=numbers, error=error, **(given | more))


def fits(name: str, cells: list[Cell], seed: int = 0) -> Fits:
    facts = {
        "target": name,
        "says": "made up",
        "shape": [10, 10],
        "digest": None,
        "rank": 10,
        "stable_rank": 5.0,
        "svd_errors": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0],
    }
    return Fits(seed, facts, cells)


def row(table: Table, *names: str) -> tuple[str, ...]:
    (found,) = [each for each in table.rows if each[: len(names)] == names]
    return found[len(names) :]


def test_at_equal_count_the_least_error_counts_and_none_that_stores_more() -> None:
    one = fits("a", [cell("ttn", 20, 0.7), cell("ttn", 10, 0.8), cell("ttn", 21, 0.1), cell("lowrank", 20, 0.9)])
    two = fits("b", [cell("ttn", 30, 0.7), cell("lowrank", 20, 0.5), cell("lowrank", 80, 0.2)])
    table = equal_count_table([one, two], 1)
    assert table.titles == ("", "a", "b")
    assert row(table, "numbers") == ("20", "20")
    assert row(table, "ttn") == ("0.700", "–")
    assert row(table, "low rank") == ("0.900", "0.500")
    assert row(table, "nearest") == ("ttn", "low rank")
    assert "comes nearest to a; a baseline to b." in headline([one, two])
    assert headline([one]).startswith("4 fits to 1 targets.")


def test_several_seeds_are_mean_and_deviation() -> None:
    found = [fits("a", [cell("ttn", 10, error)], seed) for seed, error in enumerate((0.5, 0.7))]
    assert row(equal_count_table(found, 1), "ttn") == ("0.600 ± 0.141",)
    assert row(targets_table(found), "a")[-1] == "0.000 ± 0.000"  # of rank 16, of ten


def test_a_gain_is_the_captured_share_over_the_share_of_numbers() -> None:
    table = gains_table([fits("a", [cell("ttn", 10, 0.8), cell("subspace", 50, 0.5**0.5)])])
    assert row(table, "ttn") == ("3.60",)  # 0.36 of the norm by 0.1 of the numbers
    assert row(table, "subspace") == ("1.00",)


def test_activations_and_orders_are_compared_all_else_alike() -> None:
    base = cell("ttn", 10, 0.8)
    other = {"order": "paired"}
    cells = [
        base,
        replace(base, activation="elu", error=0.7),
        replace(base, **other, error=0.5),
        replace(base, **other, activation="elu", error=0.6),
        cell("mera", 20, 0.5, activation="elu"),  # has none to be compared with
        cell("tt", 10, 0.1, **other),  # a baseline
    ]
    found = [fits("a", cells)]
    assert row(activations_table(found), "elu") == ("1.14 (50 %)",)  # 0.51 / 0.36 and 0.64 / 0.75
    assert row(orders_table(found), "paired") == ("1.67 (100 %)",)  # 0.75 / 0.36 and 0.64 / 0.51


def test_at_its_own_count_a_tree_stands_beside_as_much_of_low_rank() -> None:
    cells = [cell("ttn", 30, 0.8), cell("ttn", 30, 0.9, activation="elu"), cell("mera", 10, 0.9)]
    table = own_count_table([fits("a", cells)])
    # Ranks 1 and 2 have 20 and 40 numbers, and capture 0.19 and 0.36.
    assert row(table, "ttn", "base") == (f"{0.36 / 0.275:.2f}",)
    assert row(table, "mera", "base") == ("2.00",)


def test_starts_are_counted_where_all_were_tried() -> None:
    tried = {"isometric-0": 0.9, "conformal-1": 0.8, "decomposed": 0.7}
    cells = [
        cell("ttn", 10, 0.5, starts=tried),
        cell("ttn", 10, 0.5, starts=tried, start="conformal", activation="elu"),
        cell("ttn", 10, 0.5, starts={"isometric-0": 0.9}, start="isometric", activation="tanh"),
    ]
    assert row(starts_table([fits("a", cells)]), "a") == ("2", "0", "50", "50")


def test_ranks_stand_beside_their_bounds() -> None:
    cells = [cell("ttn", 10, 0.5), cell("ttn", 10, 0.5, activation="elu", rank=15, stable_rank=3.0)]
    table = ranks_table([fits("a", cells)])
    assert row(table, "blocked", "ttn", "base") == ("10", "4", "4", "15", "16", "2.2", "3.0")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    settings = replace(SETTINGS, topologies=("ttn", "brickwall"), activations=("identity", "elu"))
    run_expressivity(settings, folder)
    return folder


def test_a_run_is_written_whole(made: Path) -> None:
    said = write_expressivity(made)
    found = read_fits(made)
    assert said == headline(found)
    page = (made / "table.md").read_text()
    assert said in page
    for name in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert matplotlib.image.imread(made / name).std() > 0
    assert len(re.findall("At most as many numbers", page)) == len(RANKS)
    with (made / "cells.csv").open() as file:
        lines = list(csv.DictReader(file))
    cells = [each for fits in found for each in fits.cells]
    assert [(float(line["error"]), int(line["numbers"])) for line in lines] == [(c.error, c.numbers) for c in cells]
    for line in lines:  # Eckart and Young, and the bounds
        assert float(line["error"]) >= float(line["svd_error_at_bound"]) - 1e-6
        assert int(line["rank"]) <= int(line["linear_bound" if line["activation"] == "identity" else "rank_bound"])


def test_a_folder_without_fits_or_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no reproduction"):
        write_expressivity(tmp_path)
    CellFolder(tmp_path).claim_for(SETTINGS)
    with pytest.raises(RunFolderError, match="no fits yet"):
        write_expressivity(tmp_path)
    (tmp_path / "settings.json").write_text('{"experiment": "table3"}')
    with pytest.raises(RunFolderError, match="'table3'"):
        write_expressivity(tmp_path)
