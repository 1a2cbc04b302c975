"""The command: it runs, goes on where it was stopped, and writes tables and plots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from results_makers import made_rows, result

from benchmarks.speed import __main__ as command
from benchmarks.speed import machine, plots, report, tables
from benchmarks.speed.cases import Case
from benchmarks.speed.results import Results


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither threads nor the bound on memory outlast a test."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(machine, "limit_memory", lambda gib: None)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the cases that were run, which take no time; nor do tables and plots."""
    keys: list[str] = []

    def run(case: Case, limits: object, skips: object) -> dict[str, Any]:
        keys.append(case.key)
        return {"dense": result(1.0), "ttn auto": result(0.5)}

    monkeypatch.setattr(command, "run_case", run)
    monkeypatch.setattr(report, "write", lambda results, folder: [])
    return keys


def quick(path: Path, *options: str) -> int:
    return command.main(["--quick", "--threads", "1", "--out", str(path), *options])


def keys_in(path: Path) -> list[str]:
    return [row["key"] for row in json.loads(path.read_text())["cases"]]


@pytest.mark.slow
def test_the_smoke_run_measures_every_kind_and_writes_tables_and_plots(tmp_path: Path) -> None:
    assert quick(tmp_path / "speed.json") == 0
    assert len(keys_in(tmp_path / "speed.json")) == 16
    assert {p.name for p in tmp_path.iterdir()} == {
        *("speed.json", "speed.md", "speed-linear.png", "speed-conv.png", "speed-regret.png", "speed-models.png")
    }


def test_a_second_run_does_what_is_left(tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speed.json"
    assert quick(path, "--only", "training, batch 32") == 0
    first = list(ran)
    assert len(first) == 4
    assert set(keys_in(path)) == set(first)
    assert quick(path, "--only", "batch 32") == 0
    assert len(set(ran)) == len(ran) == 8
    before = path.read_bytes()
    assert quick(path, "--only", "batch 32") == 0
    assert len(ran) == 8
    assert path.read_bytes() == before
    assert quick(path, "--only", "training, batch 32", "--fresh") == 0
    assert sorted(ran[8:]) == sorted(first)
    assert set(keys_in(path)) == set(first)
    capsys.readouterr()
    assert quick(path, "--list", "--only", "conv") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("done") for line in lines) == 2
    assert len(lines) == 8


def test_rows_stand_in_the_grids_order_whatever_the_order_of_runs(tmp_path: Path, ran: list[str]) -> None:
    path = tmp_path / "speed.json"
    for words in ("training", "inference", "making"):
        quick(path, "--only", words)
    parts = keys_in(path)
    quick(tmp_path / "other.json")
    assert parts == keys_in(tmp_path / "other.json")


def test_after_the_minutes_no_case_is_begun(tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speed.json"
    assert quick(path, "--minutes", "-1") == 0
    assert ran == []
    assert "16 cases are left" in capsys.readouterr().out
    assert quick(path) == 0
    assert len(ran) == 16


def test_what_was_done_before_a_failure_is_kept(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = tmp_path / "speed.json", command.run_case

    def fails(case: Case, *rest: Any) -> Any:
        if len(ran) == 3:
            raise RuntimeError("power cut")
        return run(case, *rest)

    monkeypatch.setattr(command, "run_case", fails)
    with pytest.raises(RuntimeError, match="power cut"):
        quick(path)
    monkeypatch.setattr(command, "run_case", run)
    assert keys_in(path) == ran
    quick(path)
    assert len(set(ran)) == len(ran) == 16


def test_times_of_another_machine_are_not_added_to(
    tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "speed.json"
    quick(path, "--only", "conv")
    count = len(ran)
    assert quick(path, "--threads", "2") == 2
    assert "threads: 1 and 2" in capsys.readouterr().err
    assert len(ran) == count
    assert quick(path, "--threads", "2", "--fresh") == 0
    assert [session["threads"] for session in json.loads(path.read_text())["sessions"]] == [2]


def test_the_report_alone_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(command, "run_case")
    results = Results(tmp_path / "speed.json")
    results.rows = made_rows()
    results.write()
    before = results.path.read_bytes()
    assert command.main(["--report", "--out", str(results.path)]) == 0
    assert results.path.read_bytes() == before
    assert "yes, and the aim" in (tmp_path / "speed.md").read_text()
    drawn = sorted(tmp_path.glob("*.png"))
    assert [path.stem for path in drawn] == ["speed-conv", "speed-linear", "speed-models", "speed-regret"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    results = Results(tmp_path / "speed.json", {"note": "é"})
    assert results.begin({"cpu": "x"}) is None
    results.rows = made_rows()
    results.write()
    again = Results.read(tmp_path / "speed.json")
    assert (again.rows, again.sessions) == (results.rows, [{"cpu": "x"}])
    assert again.begin({"cpu": "y"}) == "cpu: x and y"
    assert results.path.stat().st_size < 1_000_000


def test_tables_are_made_of_whatever_there_is() -> None:
    rows = made_rows()
    for name, table in tables.TABLES.items():
        for some in (rows, {}):
            lines = table(some).splitlines()
            widths = {line.count("|") for line in lines}
            assert len(widths) == 1, name
    assert "| linear 4096x4096 | 128 | 1 s | ± 0 % | 100 | 100 | 100 |" in tables.TABLES["speed-linear"](rows)
    assert "| linear 4096x4096, ttn | 1 | factored | 0.01 | 0.01 |" in tables.TABLES["times"](rows)
    assert "| vgg16, float32, ttn: FC2 | 20 (20.0x) | 640 (20.0x) |" in tables.TABLES["speed-models"](rows)


@pytest.mark.parametrize(
    "value, shown", [(0.012, "0.01"), (1.0, "1.00"), (9.96, "10.0"), (99.4, "99.4"), (123.4, "123"), (None, "–")]
)
def test_numbers_have_three_digits(value: float | None, shown: str) -> None:
    assert tables.number(value) == shown


@pytest.mark.parametrize("value, shown", [(1.5, "1.5 s"), (0.0123, "12.3 ms"), (4e-6, "4 µs"), (5e-8, "50 ns")])
def test_seconds_have_units(value: float, shown: str) -> None:
    assert tables.seconds(value) == shown


def test_the_same_results_give_the_same_picture_and_none_give_none(tmp_path: Path) -> None:
    rows = {key: row for key, row in made_rows().items() if row["kind"] == "model"}
    (first,) = plots.write(rows, tmp_path)
    before = first.read_bytes()
    assert plots.write(rows, tmp_path) == [first]
    assert first.read_bytes() == before
    assert plots.write({}, tmp_path) == []
