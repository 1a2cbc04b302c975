"""What a row is, what it came to, and the folder that many processes may work in."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_rows import SETTINGS, bright_halves, small_rows

from adntn.errors import ConfigError
from adntn.experiments.reproduce.counts import count_numbers
from adntn.experiments.reproduce.rows import Folder, Result, chosen_rows
from adntn.training.folder import RunFolderError

DATA = bright_halves()
ROWS = small_rows(SETTINGS, DATA.image_shape, DATA.num_classes)


def result(variant: str = "ttn", seed: int = 0, **changes: Any) -> Result:
    values: dict[str, Any] = {
        "group": "small-fc",
        "variant": variant,
        "seed": seed,
        "accuracy": 0.75,
        "loss": 0.5,
        "curve": (0.5, 0.75),
        "layer_dense": 1024,
        "layer_stored": 96,
        "layer_trained": 96,
        "model_stored": 5000,
        "model_trained": 5000,
        "stable_rank_start": {"7": 2.5},
        "stable_rank_end": {"7": 3.5},
        "rank_bound": {"7": 8},
        "steps": 9,
        "train_seconds": 1.5,
        "optimization": {},
        "about": {},
        "environment": {"device": "cpu"},
    }
    return Result(**{**values, **changes})


def write(folder: Folder, each: Result) -> None:
    file = folder.result_file(each.name, each.seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(each.to_dict()))


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patterns, names",
    [
        ((), ["small/dense", "small-fc/ttn", "small-fc/deleted", "small-fc/frozen-dense"]),
        (("small/*",), ["small/dense"]),
        (("*/d*",), ["small/dense", "small-fc/deleted"]),
        (("small-fc/ttn", "small/dense", "*/ttn"), ["small/dense", "small-fc/ttn"]),
    ],
    ids=str,
)
def test_rows_are_chosen_by_patterns_each_once_and_in_their_order(patterns: tuple[str, ...], names: list[str]) -> None:
    assert [row.name for row in chosen_rows(ROWS, patterns)] == names


def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(
        ConfigError, match=r"'smal-fc/ttn'; there are small/\.\.\., small-fc/.* Did you mean 'small-fc/ttn'\?"
    ):
        chosen_rows(ROWS, ("small/dense", "smal-fc/ttn"))


def test_numbers_are_counted_without_making_the_network() -> None:
    counts = {row.variant: count_numbers(row) for row in ROWS}
    rest = 8 * 9 + 2 * 8 + 128 * 32 + 32 + 32 + 32 * 2 + 2
    dense = 32 * 32
    found = {name: (c.layer_stored, c.layer_trained, c.model_stored, c.model_trained) for name, c in counts.items()}
    tree = counts["ttn"].layer_stored
    assert 0 < tree < dense / 4
    assert {c.layer_dense for c in counts.values()} == {dense}
    assert found == {
        "dense": (dense, dense, rest + dense, rest + dense),
        "ttn": (tree, tree, rest + tree, rest + tree),
        "deleted": (0, 0, rest - 32, rest - 32),  # its bias goes with it
        "frozen-dense": (dense, 0, rest + dense, rest),
    }
    for row in ROWS:
        assert count_numbers(row, row.make(1)) == counts[row.variant]


# --- results --------------------------------------------------------------------------------------------------------


def test_a_result_goes_through_json() -> None:
    assert Result.from_dict(json.loads(json.dumps(result().to_dict()))) == result()


@pytest.mark.parametrize("values", [{}, {**result().to_dict(), "curve": None}, []], ids=["empty", "no curve", "list"])
def test_what_is_no_result_is_refused(values: Any) -> None:
    with pytest.raises(RunFolderError, match="not the values of a result"):
        Result.from_dict(values)


def test_a_folder_reads_its_results_by_name_and_seed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.results() == []
    kept = [result("deleted", 1), result("ttn", 0), result("ttn", 3)]
    for each in reversed(kept):
        write(folder, each)
    assert folder.results() == kept
    assert folder.result("small-fc/ttn", 3) == kept[2]
    assert folder.result("small-fc/ttn", 1) is None


# --- a claim --------------------------------------------------------------------------------------------------------


def test_a_folder_is_claimed_and_found_again(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "runs" / "new")
    with pytest.raises(RunFolderError, match="holds no reproduction"):
        folder.settings()
    folder.claim("small", SETTINGS, DATA)
    before = (folder.path / "settings.json").stat().st_mtime_ns
    folder.claim("small", SETTINGS, DATA)
    assert (folder.path / "settings.json").stat().st_mtime_ns == before
    assert folder.settings() == {
        "experiment": "small",
        "data": "Bright halves",
        "source": "made by hand",
        **SETTINGS.to_dict(),
    }


def test_other_settings_are_refused_and_the_error_says_which(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.claim("small", SETTINGS, DATA)
    other = replace(SETTINGS, width=0.5, epochs=7)
    with pytest.raises(
        RunFolderError, match=r"width was 1\.0 and is 0\.5; epochs was 3 and is 7\. .*another --out"
    ) as no:
        folder.claim("small", other, DATA)
    assert "batch_size" not in str(no.value)
    with pytest.raises(RunFolderError, match="source was 'made by hand' and is 'elsewhere'"):
        folder.claim("small", SETTINGS, replace(DATA, source="elsewhere"))
    with pytest.raises(RunFolderError, match="experiment was 'small' and is 'table3'"):
        folder.claim("table3", SETTINGS, DATA)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not empty and is no reproduction folder"):
        Folder(tmp_path).claim("small", SETTINGS, DATA)
    with pytest.raises(RunFolderError, match="cannot make the folder"):
        Folder(tmp_path / "mine.txt").claim("small", SETTINGS, DATA)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_many_may_claim_a_folder_at_once(tmp_path: Path) -> None:
    failures: list[Exception] = []
    together = threading.Barrier(8)

    def claim() -> None:
        together.wait()
        try:
            Folder(tmp_path / "new").claim("small", SETTINGS, DATA)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- who trains what ------------------------------------------------------------------------------------------------


def test_a_row_and_seed_are_held_by_one_at_a_time(tmp_path: Path) -> None:
    folder, other = Folder(tmp_path), Folder(tmp_path)
    with folder.holding("small/half-0.5", 0) as mine:
        assert mine
        with other.holding("small/half-0.5", 0) as its:
            assert not its
        for name, seed in (("small/half-0.5", 1), ("small/half-0.25", 0), ("timings", None)):
            with other.holding(name, seed) as its:
                assert its, name
    with other.holding("small/half-0.5", 0) as its:
        assert its
