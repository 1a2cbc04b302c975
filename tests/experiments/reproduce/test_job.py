"""An experiment as a whole, in pieces, in several processes, killed."""

from __future__ import annotations

import os
import pkgutil
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_rows import SETTINGS, STEPS, Heard

from adntn.errors import AdntnError, ConfigError, TrainingStopped
from adntn.experiments.data import DataError
from adntn.experiments.reproduce import job
from adntn.experiments.reproduce.job import reproduce, settings_for
from adntn.experiments.reproduce.rows import Folder, Result
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.reproduce.steps import read_timings
from adntn.training.folder import RunFolderError

TESTS = Path(__file__).parents[2]
EXPERIMENTS = dict(job.EXPERIMENTS)
NAMES = ("small/dense", "small-fc/ttn", "small-fc/deleted", "small-fc/frozen-dense")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(job, "EXPERIMENTS", {"small": "small_rows:small_rows"})
    monkeypatch.setattr("adntn.experiments.reproduce.steps._TURN", 0.0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(path: Path, **options: Any) -> tuple[list[Result], Heard]:
    heard = Heard()
    how: dict[str, Any] = {"settings": replace(SETTINGS, epochs=1), "data": "digits", "seeds": (0,), "threads": 1}
    return reproduce("small", path=path, tell=heard, **{**how, **options}), heard


def test_pieces_come_together_in_one_folder(tmp_path: Path) -> None:
    results, heard = run(tmp_path / "run", rows=("*/dense",))
    assert [each.name for each in results] == ["small/dense"]
    assert (heard.begun(), heard.timed()) == ([("small/dense", 0)], ["small/dense"])
    # Other rows and seeds, other threads, without times.
    results, heard = run(tmp_path / "run", rows=("*/dense", "*/ttn"), seeds=(1, 0), threads=2, times=False)
    assert [(each.name, each.seed) for each in results] == [(n, s) for s in (1, 0) for n in NAMES[:2]]
    assert heard.begun() == [("small/dense", 1), ("small-fc/ttn", 1), ("small-fc/ttn", 0)]
    assert heard.timed() == []
    assert torch.get_num_threads() == 2
    results, heard = run(tmp_path / "run")
    assert [each.name for each in results] == list(NAMES)
    assert heard.begun() == [("small-fc/deleted", 0), ("small-fc/frozen-dense", 0)]
    assert heard.timed() == list(NAMES[1:])
    assert read_timings(Folder(tmp_path / "run"))["small"]["rows"].keys() == set(NAMES)
    assert Folder(tmp_path / "run").settings()["source"].endswith("stratified sub-sample of 96 + 40 images, seed 0")


def test_a_choice_can_be_made_without_the_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, epochs=1, held_out=40, core_lr=0.3)
    (usual,), _ = run(tmp_path / "usual", rows=("*/ttn",), times=False)
    (first,), _ = run(tmp_path / "first", rows=("*/ttn",), settings=settings, times=False)
    # 96 images in batches of 32, or 56 of them, and the rate of the cores alone is another one.
    assert (usual.steps, first.steps) == (3, 2)
    assert {**usual.optimization, "core_lr": 0.3} == first.optimization
    assert usual.optimization["core_lr"] != 0.3
    loaded = job.load_data

    def others(name: str, **options: Any) -> Any:
        images = loaded(name, **options)
        blank = replace(images.test, images=torch.zeros_like(images.test.images))
        return replace(images, test=blank)

    monkeypatch.setattr(job, "load_data", others)
    (again,), _ = run(tmp_path / "again", rows=("*/ttn",), settings=settings, times=False)
    assert (first.accuracy, first.loss) == (again.accuracy, again.loss)
    (usual_again,), _ = run(tmp_path / "usual again", rows=("*/ttn",), times=False)
    assert usual_again.loss != usual.loss
    with pytest.raises(RunFolderError, match="held_out was 40 and is None"):
        run(tmp_path / "first", rows=("*/ttn",))
    with pytest.raises(ConfigError, match="leaves none to learn from"):
        run(tmp_path / "none", settings=replace(settings, held_out=96))


@pytest.mark.parametrize("option, value", [("held_out", 0), ("held_out", 0.1), ("core_lr", 0.0)])
def test_settings_that_are_impossible_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{option}={value} is not possible"):
        Settings.from_dict({option: value})


def test_all_that_cannot_be_done_is_said_before_anything_is_written(tmp_path: Path) -> None:
    impossible: list[tuple[dict[str, Any], type[AdntnError], str]] = [
        ({"rows": ("small-fc/tt",)}, ConfigError, "Did you mean 'small-fc/ttn'"),
        ({"seeds": ()}, ConfigError, "give at least one"),
        ({"seeds": (1, 1)}, ConfigError, "each once"),
        ({"seeds": (-1,)}, ConfigError, r"seeds=\(-1,\) is not possible"),
        ({"device": "gpu"}, ConfigError, "device='gpu' is not known; choose one of cpu, cuda"),
        ({"threads": 0}, ConfigError, "threads=0 is not possible"),
        ({"minutes": 0}, ConfigError, "minutes=0 is not possible"),
        ({"data": "digit"}, DataError, "Did you mean 'digits'"),
    ]
    for options, kind, words in impossible:
        with pytest.raises(kind, match=words):
            run(tmp_path / "run", **options)
    with pytest.raises(ConfigError, match=r"experiment='smal' is not known.*Did you mean 'small'"):
        reproduce("smal", SETTINGS, tmp_path / "run", data="digits")
    assert not (tmp_path / "run").exists()


def test_another_experiments_settings_are_refused(tmp_path: Path) -> None:
    run(tmp_path, rows=("small/dense",), times=False)
    with pytest.raises(RunFolderError, match=r"epochs was 1 and is 2; precision was 'float32' and is 'bfloat16'\. "):
        run(tmp_path, settings=replace(SETTINGS, epochs=2, precision="bfloat16"))
    with pytest.raises(RunFolderError, match=r"source was .* 96 \+ 40 images"):
        run(tmp_path, settings=replace(SETTINGS, epochs=1, train_limit=97))


def test_what_is_not_said_is_what_the_folder_was_made_for(tmp_path: Path) -> None:
    assert settings_for("small", tmp_path / "run", {"epochs": 4}, Settings) == Settings(epochs=4)
    run(tmp_path / "run", rows=("small/dense",), times=False)
    made_for = replace(SETTINGS, epochs=1)
    assert settings_for("small", tmp_path / "run", {}, Settings) == made_for
    assert settings_for("small", tmp_path / "run", {"width": 0.5}, Settings) == replace(made_for, width=0.5)
    with pytest.raises(RunFolderError, match="holds small, not table3"):
        settings_for("table3", tmp_path / "run", {}, Settings)
    with pytest.raises(ConfigError, match=r"no option 'epoch'.*Did you mean 'epochs'"):
        settings_for("small", tmp_path / "run", {"epoch": 1}, Settings)


def test_a_time_limit_stops_it(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match="0 of 4 are finished"):
        run(tmp_path, minutes=1e-9)
    assert Folder(tmp_path).settings()["experiment"] == "small"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_row_of_an_experiment_has_a_name_of_its_own_and_stands_beside_a_dense_network(experiment: str) -> None:
    resolved = pkgutil.resolve_name(EXPERIMENTS[experiment])(Settings(width=0.125), (3, 32, 32), 10)
    rows = {row.name: row for row in resolved}
    assert len(rows) == len(resolved) > 10
    for row in resolved:
        assert rows[f"{row.network}/dense"].variant == "dense"
        assert row.optimization.epochs == Settings().epochs


# --- processes ------------------------------------------------------------------------------------------------------


def start(folder: Path, kill: int = 0, minutes: float = 60) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "small_rows.py"), str(folder), str(minutes), str(kill)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Wait; returns how many steps it took, and what it began."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    steps, *begun = out.split()
    return int(steps), begun


def assert_same_run(one: Folder, other: Folder) -> None:
    first, second = one.results(), other.results()
    assert len(first) == len(second) == 2 * len(NAMES)
    for expected, found in zip(first, second, strict=True):
        assert replace(found, train_seconds=0, environment={}) == replace(expected, train_seconds=0, environment={})
        files = [folder.model_file(found.name, found.seed) for folder in (one, other)]
        weights, others = map(load_file, files)
        assert weights.keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in weights.items()), found.name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    steps, begun = ended(start(folder))
    assert (steps, len(begun)) == (STEPS * 2 * len(NAMES), 2 * len(NAMES))
    return Folder(folder)


@pytest.mark.slow
def test_five_kills_lose_an_epoch_each_at_most(undisturbed: Folder, tmp_path: Path) -> None:
    chance, taken = random.Random(3), 0
    # In the first epoch, where nothing is kept yet; in the middle; over the end of a row.
    kills = [2, STEPS - 1, STEPS + 2, *(chance.randrange(2, 2 * STEPS) for _ in range(2))]
    for kill in kills:
        process = start(tmp_path / "run", kill)
        _, err = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, err
        taken += kill
    steps, _ = ended(start(tmp_path / "run"))
    needed, epoch = STEPS * 2 * len(NAMES), STEPS // 3
    assert needed <= taken + steps <= needed + len(kills) * epoch
    assert_same_run(undisturbed, Folder(tmp_path / "run"))


@pytest.mark.slow
def test_two_processes_share_the_rows_of_a_folder(undisturbed: Folder, tmp_path: Path) -> None:
    (one, first), (other, second) = map(ended, [start(tmp_path / "run") for _ in range(2)])
    assert not set(first) & set(second)
    assert {*first, *second} == {f"{name}:{seed}" for name in NAMES for seed in (0, 1)}
    assert one + other == STEPS * 2 * len(NAMES)
    assert_same_run(undisturbed, Folder(tmp_path / "run"))
