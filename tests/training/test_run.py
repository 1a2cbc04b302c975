"""Whole runs: what is written, what is done again, and what is not."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_runs import Deaf, Shift, StopsOnce, small_model, two_classes
from torch import nn

import adntn
from adntn.errors import ConfigError, TrainingStopped
from adntn.training.folder import RunFolder, RunFolderError
from adntn.training.recipe import Recipe, Teacher
from adntn.training.run import Finished, Tell, run_stages


class Heard(Tell):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def begins(self, number: int, kind: str) -> None:
        self.lines.append(f"begins {number} {kind}")

    def moves(self, event: Any) -> None:
        self.lines.append(event.text)

    def ends(self, finished: Finished) -> None:
        self.lines.append(f"ends {finished.number} {finished.kind}")


def run(path: Path, *stages: Any, teacher: Teacher | None = None, **options: Any) -> list[Finished]:
    folder = RunFolder(path)
    path.mkdir(exist_ok=True)
    return run_stages(Recipe(teacher=teacher, stages=stages), small_model, two_classes(), folder, **options)


def weights(finished: Finished) -> dict[str, torch.Tensor]:
    return adntn.load(small_model(), finished.file).state_dict()


def test_stages_follow_each_other_and_each_is_kept(tmp_path: Path) -> None:
    heard = Heard()
    first, second = run(tmp_path, Shift(by=1.0), Shift(by=2.0), tell=heard)
    events = ("begins 1 shift", "shifted by 1.0", "ends 1 shift", "begins 2 shift", "shifted by 2.0", "ends 2 shift")
    assert heard.lines == [*events]
    assert (first.outcome["by"], second.outcome["by"]) == (1.0, 2.0)
    assert first.outcome["noise"] != second.outcome["noise"]  # each stage has a seed of its own
    before, after = weights(first), weights(second)
    torch.testing.assert_close(after["3.bias"], before["3.bias"] + 2.0, rtol=0, atol=0)
    assert torch.equal(after["1.weight"], before["1.weight"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01-shift", "02-shift"]
    result = json.loads((tmp_path / "02-shift" / "result.json").read_text())
    assert result["measures"]["numbers"] == sum(p.numel() for p in small_model().parameters())
    assert result["measures"]["file_bytes"] == second.file.stat().st_size


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    run(tmp_path, Shift(by=1.0))
    (before,) = run(tmp_path, Shift(by=1.0))
    Shift.calls.clear()
    heard = Heard()
    (after,) = run(tmp_path, Shift(by=1.0), tell=heard)
    assert Shift.calls == []
    assert heard.lines == ["ends 1 shift"]
    assert before == after


@pytest.mark.slow
@pytest.mark.parametrize("how", ["time", "signal", "fault"])
def test_an_interrupted_stage_begins_anew_with_the_model_as_it_was(tmp_path: Path, how: str) -> None:
    error = ZeroDivisionError if how == "fault" else TrainingStopped
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error):
        run(tmp_path, Shift(by=1.0), StopsOnce(how=how))
    assert signal.getsignal(signal.SIGTERM) is handler
    first, second = run(tmp_path, Shift(by=1.0), StopsOnce(how=how))
    for name, value in weights(second).items():
        torch.testing.assert_close(value, weights(first)[name] + 1.0, rtol=0, atol=0)


def test_a_signal_in_a_stage_that_does_not_look_ends_the_run_after_it(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match="before stage 2, shift, which has not begun"):
        run(tmp_path, Deaf(), Shift(by=1.0))
    assert (tmp_path / "01-deaf" / "result.json").is_file()
    assert not (tmp_path / "02-shift" / "result.json").exists()
    heard = Heard()
    run(tmp_path, Deaf(), Shift(by=1.0), tell=heard)
    assert heard.lines[:2] == ["ends 1 deaf", "begins 2 shift"]


def test_the_time_of_a_stage_is_that_of_all_its_sessions(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped):
        run(tmp_path, StopsOnce())
    spent = tmp_path / "01-stops-once" / "spent.json"
    assert json.loads(spent.read_text())["seconds"] > 0
    spent.write_text('{"seconds": 100.0}')
    (finished,) = run(tmp_path, StopsOnce())
    assert 100.0 < finished.seconds < 110.0
    assert not spent.exists()


@pytest.mark.parametrize("written", ["by adntn", "plain"])
def test_a_teacher_comes_from_a_file(tmp_path: Path, written: str) -> None:
    model, file = small_model(), tmp_path / "teacher.safetensors"
    if written == "plain":
        save_file(model.state_dict(), file)
    else:
        adntn.save(model, file)
    teacher, shifted = run(tmp_path / "run", Shift(by=0.5), teacher=Teacher(file=str(file)))
    assert (teacher.number, teacher.kind) == (0, "teacher")
    assert torch.equal(weights(teacher)["1.weight"], model.state_dict()["1.weight"])
    torch.testing.assert_close(weights(shifted)["3.bias"], model.state_dict()["3.bias"] + 0.5, rtol=0, atol=0)


def test_a_teachers_file_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file(nn.Linear(2, 3).state_dict(), other)
    with pytest.raises(ConfigError, match=r"other\.safetensors does not fit the model"):
        run(tmp_path / "one", teacher=Teacher(file=str(other)))
    with pytest.raises(ConfigError, match="there is no file"):
        run(tmp_path / "two", teacher=Teacher(file=str(tmp_path / "none.safetensors")))


@pytest.mark.slow
def test_a_teacher_as_built_is_the_model_of_the_seed(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "one", Shift(), teacher=Teacher(as_built=True))
    torch.manual_seed(123)  # nothing depends on it
    two, _ = run(tmp_path / "two", Shift(), teacher=Teacher(as_built=True))
    assert torch.equal(weights(one)["1.weight"], weights(two)["1.weight"])


def test_a_folder_is_one_recipes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(Recipe(seed=1), {"torch": "?"})
    folder.claim(Recipe(seed=1), {"torch": "!"})
    assert folder.recipe() == Recipe(seed=1)
    assert json.loads((folder.path / "environment.json").read_text()) == {"torch": "?"}  # where it began
    with pytest.raises(RunFolderError, match=r"a run with other settings \(see its recipe\.json\)"):
        folder.claim(Recipe(seed=2), {})
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="not empty"):
        RunFolder(foreign).claim(Recipe(), {})
    with pytest.raises(RunFolderError, match="no run folder"):
        RunFolder(foreign).recipe()
    (folder.path / "recipe.json").write_text("{")
    with pytest.raises(RunFolderError, match="cannot be read"):
        folder.recipe()
