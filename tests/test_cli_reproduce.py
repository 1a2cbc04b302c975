"""`adntn reproduce` as a user runs it: rows on tiny settings, listed, in pieces, stopped, gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner, Result

from adntn.cli import app
from adntn.cli.screen import STOPPED
from adntn.experiments.reproduce import job, run

SMALL = ["--data", "digits", "--train-limit", "96", "--test-limit", "40", "--epochs", "1", "--precision", "float32"]
QUICK = [*SMALL, "--width", "0.0625", "--seeds", "1", "--threads", "1"]


def invoke(*arguments: str | Path, width: int = 80) -> Result:
    return CliRunner(env={"COLUMNS": str(width)}).invoke(app, ["reproduce", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Folders land in a temporary folder, and the threads stay as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adntn.experiments.reproduce.steps._TURN", 0.0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def trained(result: Result) -> list[str]:
    """The rows that a run says it has trained."""
    return [line.split()[1] for line in result.stdout.splitlines() if " in the layers " in line]


def failed(result: Result, *words: str) -> None:
    """The command ended with 2, one line on stderr with these words, and no traceback."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line, line


# --- the rows -------------------------------------------------------------------------------------------------------


def test_the_rows_are_listed_with_their_numbers_and_nothing_is_trained(tmp_path: Path) -> None:
    result = invoke("table3", "--list", "--rows", "vgg16-fc2/t*,vgg16/dense", width=40)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines() if "/" in line]
    assert lines[0] == ["vgg16/dense", *["28,573,696"] * 3, *["33,642,442"] * 2]
    assert lines[1] == ["vgg16-fc2/ttn", "16,777,216", "216", "216", "16,865,442", "16,865,442"]
    assert [line[0] for line in lines[2:]] == [f"vgg16-fc2/{v}" for v in ("ttn-conformal", "tt", "ttn-linear")]
    assert not list(tmp_path.iterdir())


def test_the_list_follows_the_settings_and_is_json_on_demand() -> None:
    result = invoke("table3", "--list", "--width", "0.25", "--rows", "vgg16-conv/deleted", "--json")
    (row,) = json.loads(result.stdout)
    assert (row["row"], row["layer_dense"], row["layer_stored"]) == ("vgg16-conv/deleted", 5 * 9 * 128**2, 0)


def test_the_rows_of_whole_networks_are_listed_with_what_their_budgets_buy() -> None:
    result = invoke("whole", "--list", "--json", "--width", "0.125", "--rows", "*/narrow-dense-*,resnet20/dense")
    rows = {row["row"]: row for row in json.loads(result.stdout)}
    assert "resnet20/dense" in rows
    narrow = {int(name.rpartition("-")[2]): row["model_trained"] for name, row in rows.items() if "narrow" in name}
    assert len(narrow) > 2
    assert all(0.8 * budget < count <= budget for budget, count in narrow.items())


# --- a run ----------------------------------------------------------------------------------------------------------


def test_table3_runs_on_tiny_settings_and_says_it_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "vgg16/dense,vgg16-fc2/ttn,vgg16-fc2/deleted"
    result = invoke("table3", *QUICK, "--rows", rows)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    first = result.stdout.splitlines()[0]
    assert first == "table3 on digits: width 0.0625, 1 epoch, seeds 0, float32, on cpu; into runs/table3"
    assert trained(result) == rows.split(",")
    timed = [line.split()[0] for line in result.stdout.splitlines() if " a step " in line]
    assert timed == rows.split(",")
    for name in ("settings.json", "rows/ (3 files)", "models/ (3 files)", "timings.json"):
        assert name in result.stdout
    folder = Path("runs/table3")
    reports = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.md")}
    assert reports
    monkeypatch.setattr(run, "fit", lambda *_, **__: pytest.fail("it was trained again"))
    again = invoke("table3", *QUICK, "--rows", rows)
    assert again.exit_code == 0, again.output
    assert "3 of 3 were finished before" in again.stdout
    assert trained(again) == []
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.md")} == reports


@pytest.mark.slow
def test_whole_runs_on_tiny_settings() -> None:
    rows = "resnet20/dense,resnet20/narrow-dense-5500,resnet20/ttn-blocked-5500"
    result = invoke("whole", *SMALL, "--width", "0.25", "--rows", rows, "--seeds", "1", "--threads", "1", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    variants = {each["variant"]: each for each in content["results"]}
    assert {"dense", "narrow-dense-5500", "ttn-blocked-5500"} == variants.keys()
    assert all(each["model_trained"] <= 5500 for name, each in variants.items() if name.endswith("-5500"))
    assert content["timings"]["resnet20"]["rows"].keys() == {f"resnet20/{name}" for name in variants}
    assert content["headline"]
    assert (Path("runs/whole") / "settings.json").is_file()


def test_a_folder_goes_on_with_its_own_settings() -> None:
    result = invoke("table3", *QUICK, "--rows", "alexnet/dense", "--out", "mine", "--json", "--no-times")
    first = json.loads(result.stdout)
    assert (first["folder"], first["settings"]["width"], first["timings"]) == ("mine", 0.0625, {})
    more = ["--data", "digits", "--seeds", "0,4", "--rows", "alexnet/dense", "--no-times", "--threads", "1"]
    second = json.loads(invoke("table3", *more, "--resume", "mine", "--json").stdout)
    assert second["settings"] == first["settings"]
    assert [(each["variant"], each["seed"]) for each in second["results"]] == [("dense", 0), ("dense", 4)]
    assert second["results"][0] == first["results"][0]
    assert second["headline"]
    failed(invoke("table3", *more, "--out", "mine", "--width", "0.125"), "width was 0.0625 and is 0.125", "--out")
    failed(invoke("whole", *more, "--out", "mine"), "mine holds table3, not whole")


def test_a_time_limit_ends_with_75_and_a_report_and_the_same_command_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["table3", *QUICK, "--rows", "vgg16/dense,vgg16-conv/deleted", "--minutes", "1", "--no-times"]
    folder = Path("runs/table3")
    first = folder / "rows" / "vgg16" / "dense-seed0.json"
    clock = SimpleNamespace(monotonic=lambda: 1000.0 if first.is_file() else 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(run, "time", clock)
        patch.setattr(job, "time", clock)
        stopped = invoke(*command)
    assert stopped.exit_code == STOPPED, stopped.output
    assert stopped.stderr == (
        "stopped: the time was over before vgg16-conv/deleted, seed 0; 1 of 2 are finished. "
        "The same command goes on from there.\n"
    )
    assert "Everything is in runs/table3:" in stopped.stdout
    reports = {path: path.read_text() for path in folder.rglob("*.md")}
    assert reports
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.stdout.splitlines() if " in the layers " in line] == [
        "vgg16-conv/deleted"
    ]
    assert {path: path.read_text() for path in folder.rglob("*.md")} != reports


def test_nothing_finished_is_no_report() -> None:
    stopped = invoke("table3", *QUICK, "--minutes", "1e-9", "--json")
    assert stopped.exit_code == STOPPED, stopped.output
    content = json.loads(stopped.stdout)
    assert (content["results"], content["headline"]) == ([], "")


# --- expressivity ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_expressivity_runs_on_tiny_settings_and_says_it_again(tmp_path: Path) -> None:
    few = ["--targets", "gaussian", "--topologies", "ttn", "--orders", "blocked", "--activations", "elu"]
    command = ["expressivity", "--width", "0.0625", "--steps", "3", "--polish", "1", "--restarts", "1", *few]
    result = invoke(*command, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["folder"] == "runs/expressivity"
    assert content["headline"]
    assert content["results"]
    again = json.loads(invoke(*command, "--json").stdout)
    assert again == content
    failed(invoke(*command[:-1], "sine(omega=3)"), "other settings")


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--rows", "vgg16-fc2/merra"), ("no row is named 'vgg16-fc2/merra'", "Did you mean 'vgg16-fc2/mera'")),
        (("--seeds", "two"), ("seeds='two' is neither a number of seeds",)),
        (("--width", "-1"), ("width=-1.0 is not possible",)),
        (("--precision", "half"), ("precision='half' is not known",)),
        (("--device", "tpu"), ("device='tpu' is not known",)),
        (("--minutes", "0"), ("minutes=0.0 is not possible",)),
        (("--resume", "nowhere"), ("nothing to go on with",)),
        (("--resume", "nowhere", "--out", "here"), ("leave --out away",)),
        (("--data", "digit"), ("Did you mean 'digits'",)),
    ],
    ids=str,
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path) -> None:
    given = arguments if "--data" in arguments else ("--data", "digits", *arguments)
    failed(invoke("table3", *given), *words)
    assert not list(tmp_path.iterdir())
