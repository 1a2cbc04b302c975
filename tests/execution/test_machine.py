"""The machine's profile: measured once, kept in a file, and never trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import adntn
from adntn.execution import calibration, machine
from adntn.execution.machine import BYTES, Profile, machine_name, profile_file, profile_for, read_profiles, shipped

CPU = torch.device("cpu")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(adntn.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that was never measured, and its file."""
    file = tmp_path / "cache" / "machine.json"
    monkeypatch.setenv("ADNTN_MACHINE", str(file))
    monkeypatch.setattr(machine, "_KNOWN", {})
    return file


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Note measurements instead of making them."""
    devices: list[torch.device] = []

    def measure(device: torch.device) -> Profile:
        devices.append(device)
        machine.remember(device, shipped())
        return shipped()

    monkeypatch.setattr(calibration, "measure", measure)
    return devices


def test_the_first_need_measures_and_the_next_process_reads(fresh: Path, measured: list[torch.device]) -> None:
    assert profile_for(CPU) == shipped()
    assert fresh.is_file()
    machine._KNOWN.clear()  # as in another process
    assert profile_for(CPU) == shipped()
    assert measured == [CPU]
    assert [path.name for path in fresh.parent.iterdir()] == ["machine.json"]


def test_profiles_of_other_machines_stay_in_the_file(fresh: Path, measured: list[torch.device]) -> None:
    fresh.parent.mkdir()
    fresh.write_text(json.dumps({"format": 1, "machines": {"another": shipped().to_dict()}}))
    profile_for(CPU)
    assert set(read_profiles(fresh)) == {"another", machine_name(CPU)}


def test_a_profile_for_any_machine_is_not_measured_anew(fresh: Path, measured: list[torch.device]) -> None:
    fresh.parent.mkdir()
    fresh.write_text(json.dumps({"format": 1, "machines": {"any": shipped().to_dict()}}))
    assert profile_for(CPU) == shipped()
    assert measured == []


def test_another_number_of_threads_is_another_machine() -> None:
    before, name = torch.get_num_threads(), machine_name(CPU)
    try:
        torch.set_num_threads(before + 1)
        assert machine_name(CPU) != name
    finally:
        torch.set_num_threads(before)


def test_the_meta_device_is_never_measured(fresh: Path, measured: list[torch.device]) -> None:
    assert profile_for(torch.device("meta")) == shipped()
    assert measured == []
    assert not fresh.exists()


def test_none_means_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADNTN_MACHINE", "none")
    assert profile_for(CPU) is None
    assert profile_file() is None


def spoil(change: Callable[[dict[str, Any]], object]) -> str:
    values = {"format": 1, "machines": {"any": shipped().to_dict()}}
    change(values)
    return json.dumps(values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "[" * 5000,
        "\x00\xff",
        '{"format": 2, "machines": {}}',
        '{"format": 1}',
        '{"format": 1, "machines": []}',
        spoil(lambda v: v["machines"]["any"].pop("view")),
        spoil(lambda v: v["machines"]["any"].update(more=1.0)),
        spoil(lambda v: v["machines"]["any"].update(view=-1.0)),
        spoil(lambda v: v["machines"]["any"].update(view=float("nan"))),
        spoil(lambda v: v["machines"]["any"].update(view=True)),
        spoil(lambda v: v["machines"]["any"].update(view="1")),
        spoil(lambda v: v["machines"]["any"]["read"].pop()),
        spoil(lambda v: v["machines"]["any"]["float32"].pop("tall")),
        spoil(lambda v: v["machines"]["any"]["float32"]["tall"][0].append(1.0)),
        spoil(lambda v: v["machines"]["any"].update(float32=[])),
        spoil(lambda v: v["machines"].update(any=[])),
        " " * (1 << 21),
    ],
    ids=lambda text: repr(text[:24]) if len(text) < 100 else None,
)
def test_a_foreign_file_is_left_out_with_a_warning_and_measured_anew(
    fresh: Path, measured: list[torch.device], text: str
) -> None:
    fresh.parent.mkdir()
    fresh.write_text(text, encoding="latin-1")
    with pytest.warns(UserWarning, match="not a file of machine profiles"):
        assert profile_for(CPU) == shipped()
    assert measured == [CPU]
    assert set(read_profiles(fresh)) == {machine_name(CPU)}


@pytest.mark.parametrize("where", ["a file is in the way", "nobody is at home"])
def test_a_place_that_cannot_be_written_is_no_error(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    if where == "nobody is at home":
        monkeypatch.delenv("ADNTN_MACHINE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.delenv("LOCALAPPDATA", raising=False)

        def home() -> Path:
            raise RuntimeError("no home")

        monkeypatch.setattr(Path, "home", home)
        assert profile_file() is None
    else:
        (tmp_path / "cache").write_text("")
    machine.remember(CPU, shipped())
    assert profile_for(CPU) == shipped()


@pytest.mark.parametrize(
    "platform, variable, expected",
    [
        ("linux", "XDG_CACHE_HOME", "adntn/machine.json"),
        ("win32", "LOCALAPPDATA", "adntn/machine.json"),
        ("darwin", "HOME", "Library/Caches/adntn/machine.json"),
    ],
)
def test_the_file_is_in_the_users_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, variable: str, expected: str
) -> None:
    monkeypatch.delenv("ADNTN_MACHINE")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert profile_file() == tmp_path / expected


def test_a_profile_comes_back_from_its_numbers() -> None:
    assert Profile.from_dict(json.loads(json.dumps(shipped().to_dict()))) == shipped()
    assert len(shipped().read) == len(BYTES)


@pytest.mark.slow
def test_import_measures_nothing_and_the_first_layer_does(tmp_path: Path) -> None:
    code = """
import sys
import adntn
from adntn.execution.machine import profile_file
assert not profile_file().exists()
layer = adntn.nn.Linear(128, 128)
assert profile_file().is_file()
assert "torch._dynamo" not in sys.modules  # which takes seconds to import
print(layer.choices)
"""
    environment = {**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    del environment["ADNTN_MACHINE"]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("training: ")


def test_calibrate_measures_this_machine_and_leaves_random_numbers_alone(fresh: Path) -> None:
    state = torch.get_rng_state()
    profile = adntn.calibrate()
    assert torch.equal(torch.get_rng_state(), state)
    assert read_profiles(fresh) == {machine_name(CPU): profile}
    assert profile_for(CPU) is profile
    # What holds on every machine: a matrix product takes longer than a view, and a large one runs faster than a thin.
    assert profile.product > profile.view
    assert profile.float32.wide[-1][-1] > profile.float32.wide[0][0]
