"""`adntn train` as a user runs it: whole recipes in processes of their own, killed, resumed, two at a time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import adntn
from adntn.cli.screen import STOPPED
from adntn.experiments.data import FASHION_MNIST_FOLDER
from adntn.experiments.search.toml import to_toml

SOURCE = Path(adntn.__file__).parents[1]
ROOT = Path(__file__).parents[1]

RECIPE = """
model = "small-cnn"
data = "digits"
train_limit = 600
threads = 1

[teacher.optimization]
epochs = 8

[[stage]]
kind = "select"
targets = ["conv2", "conv3"]

[[stage]]
kind = "warm-start"
homotopy_epochs = 1

[[stage]]
kind = "blocks"
objective = "outputs"
steps = 10
workers = 1

[[stage]]
kind = "fine-tune"
[stage.optimization]
epochs = 30
lr = 0.01
ema = 0.9
[stage.losses]
cross_entropy = 1.0
distillation = { weight = 0.5, temperature = 2.0 }

[[stage]]
kind = "grow"
steps = 1
[stage.optimization]
epochs = 2
lr = 0.001

[[stage]]
kind = "quantize"
bits = 8
[stage.optimization]
epochs = 1
lr = 0.001

[[stage]]
kind = "finish"
"""


def start(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *(launcher or ()), *(("adntn",) if not launcher else ("-m", "adntn")), "train"]
    return subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )


def run(*arguments: str, launcher: tuple[str, ...] = ()) -> str:
    process = start(*arguments, launcher=launcher)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> Path:
    folder = recipe.parent / "undisturbed"
    out = run(str(recipe), "--out", str(folder), "--json")
    assert json.loads(out)["folder"] == str(folder)
    return folder


def last_model(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("07-finish/model.safetensors")
    return load_file(file)


def newest(folder: Path) -> int:
    """When a file in a folder was last written; 0 if there is none."""
    times = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it may be gone by now
            times.append(path.stat().st_mtime_ns)
    return max(times, default=0)


@pytest.mark.slow
def test_ten_kills_lose_nothing(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder, chance, kills = tmp_path / "killed", random.Random(0), 0
    arguments = [str(recipe), "--out", str(folder), "--json"]
    # Ten waits of this at most, so that a fast machine does not come to the end before the tenth kill.
    longest = sum(stage["seconds"] for stage in json.loads((undisturbed / "run.json").read_text())["stages"]) / 10
    while True:
        before, process = newest(folder), start(*arguments)
        if kills < 10:
            while newest(folder) == before and process.poll() is None:
                time.sleep(0.02)  # it has begun to work when it writes something
            try:
                process.wait(chance.uniform(0.0, longest))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL if kills % 3 else signal.SIGTERM)
                kills += 1
        _, err = process.communicate(timeout=500)
        if process.returncode == 0:
            break
        assert process.returncode in (-signal.SIGKILL, -signal.SIGTERM, STOPPED), err
        if (folder / "recipe.json").is_file():
            arguments = ["--resume", str(folder), "--json"]
    assert kills == 10
    expected, found = last_model(undisturbed), last_model(folder)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    left = [path.name for path in folder.rglob("*.part")]
    assert not left or all(name.startswith(".") for name in left)


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    run(str(recipe), "--out", str(folder), launcher=("torch.distributed.run", "--nproc-per-node", "2", "--standalone"))
    one, two = (json.loads((path / "run.json").read_text())["stages"] for path in (undisturbed, folder))
    assert [stage["kind"] for stage in one] == [stage["kind"] for stage in two]
    grown = [stage["kind"] for stage in one].index("grow")
    counts = [[stage["measures"]["numbers"] for stage in stages] for stages in (one, two)]
    assert counts[0][:grown] == counts[1][:grown]
    # Each process has norms of half the batch, and chance of its own: it is another run of the same kind. Both try one
    # growth, and whether it is kept is a matter of a few images.
    for stages, numbers in zip((one, two), counts, strict=True):
        outcome = stages[grown]["outcome"]
        assert len(outcome["legs"]) == 2
        assert numbers[grown:] == [outcome["legs"][outcome["kept"]]["parameters"]] * len(numbers[grown:])
    ends = [runs[-1]["measures"]["test_accuracy"] for runs in (one, two)]
    assert abs(ends[0] - ends[1]) <= 0.1, ends


@pytest.mark.slow
def test_a_finished_run_says_it_again_at_once(undisturbed: Path) -> None:
    def read() -> dict[str, Any]:
        return {str(path): path.stat().st_mtime_ns for path in undisturbed.glob("*/model.safetensors")}

    before, began = read(), time.monotonic()
    report = json.loads(run("--resume", str(undisturbed), "--json"))
    assert read() == before
    assert [stage["kind"] for stage in report["stages"]][:2] == ["teacher", "select"]
    assert report["stages"][-1]["measures"]["numbers"] < report["stages"][0]["measures"]["numbers"]
    assert time.monotonic() - began < 300


def shortened(table: Any) -> Any:
    """A recipe's tables with as little work as there can be."""
    least = {"epochs": 1, "steps": 2, "calibration": 64, "seeds": 1}
    if isinstance(table, dict):
        return {name: least[name] if name in least else shortened(value) for name, value in table.items()}
    return [shortened(value) for value in table] if isinstance(table, list) else table


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST_FOLDER.is_dir(), reason="Fashion-MNIST is not installed (dataset-fashion-mnist)")
def test_the_example_runs_on_a_sample(tmp_path: Path) -> None:
    recipe, folder = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(to_toml(shortened(tomllib.loads((ROOT / "examples" / "fashion-mnist.toml").read_text()))))
    run(str(recipe), "--train-limit", "600", "--test-limit", "200", "--threads", "1", "--out", str(folder))
    report = json.loads((folder / "report.json").read_text())
    kinds = ["select", "warm-start", "blocks", "fine-tune", "grow", "quantize", "finish"]
    assert [stage["kind"] for stage in report["stages"]] == kinds
    assert [control["name"] for control in report["controls"]] == ["from scratch", "low rank", "narrow dense"]
    end = report["stages"][-1]
    assert end["numbers"] <= 9000 < report["dense"]["numbers"]
    for control in report["controls"]:
        assert abs(control["numbers"] - end["numbers"]) < 0.2 * end["numbers"]
    assert "Fashion-MNIST" in (folder / "report.html").read_text()
