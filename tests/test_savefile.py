"""What a file holds, and that it is whole or not there at all."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import CONFIG, ENVIRONMENT, Net, compressed, same, state
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from adntn import CheckpointError, GeneratorConfig, load, save

pytestmark = pytest.mark.usefixtures("few_objects")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_is_safetensors_with_the_names_of_the_state_dict(path: Path) -> None:
    model = compressed()
    save(model, path)
    assert same(load_file(path), state(model))
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["adntn"])
    assert header["format"] == 3
    assert set(header["layers"]) == {"conv", "head.0"}
    assert GeneratorConfig.from_dict(header["layers"]["conv"]["config"]) == CONFIG
    assert header["layers"]["conv"]["shape"] == [8, 3, 3, 3]


def test_the_file_has_the_permissions_of_any_new_file(path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(Net(), path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_an_older_file_is_replaced_and_nothing_else_is_left(path: Path) -> None:
    save(Net(), path)
    model = compressed()
    save(model, path)
    assert same(load_file(path), state(model))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# --- saving goes wrong ------------------------------------------------------------------------------------------------


def poison(value: float) -> Net:
    model = compressed()
    model.conv.root.data[0, 1] = value
    return model


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: poison(float("nan")), r"'conv\.root' has NaN"),
        (lambda: poison(float("inf")), r"'conv\.root' has NaN or infinite"),
        (lambda: compressed().to("meta"), "meta device"),
        (lambda: nn.Sequential(WithExtraState(2, 2)), "'0._extra_state' in the state_dict is a dict"),
    ],
    ids=["nan", "inf", "meta", "extra state"],
)
def test_what_cannot_be_stored_is_refused(path: Path, make: Callable[[], nn.Module], message: str) -> None:
    path.write_text("before")
    with pytest.raises(CheckpointError, match=message):
        save(make(), path)
    assert path.read_text() == "before"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("place", ["no folder/model.safetensors", "a file/model.safetensors", "folder"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        save(Net(), tmp_path / place)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a file", "folder"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*Permission"):
            save(Net(), path)
    finally:
        path.parent.chmod(0o700)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_written(tensors: object, temporary: Path, metadata: object) -> None:
    temporary.write_bytes(b"half a f")
    full_disk()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("before", [True, False], ids=["an older file", "no file"])
@pytest.mark.parametrize(
    "where, what, error",
    [
        ("adntn.savefile.save_file", half_written, CheckpointError),
        ("os.fsync", full_disk, CheckpointError),
        ("pathlib.Path.replace", full_disk, CheckpointError),
        ("os.fsync", interrupted, KeyboardInterrupt),
    ],
    ids=["while writing", "while flushing", "while renaming", "interrupted"],
)
def test_a_full_disk_leaves_what_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str, what: Callable[..., None], error: type, before: bool
) -> None:
    model = compressed()
    if before:
        save(model, path)
    with monkeypatch.context() as patch:
        patch.setattr(where, what)
        with pytest.raises(error) as caught:
            save(Net(), path)
    if error is CheckpointError:
        assert "No space left" in str(caught.value)
    assert [file.name for file in path.parent.iterdir()] == ([path.name] if before else [])
    if before:
        assert same(state(load(Net().eval(), path)), state(model))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_while_saving_leaves_a_whole_file(path: Path) -> None:
    script = """
import os, random, signal, sys, time, torch, adntn
torch.set_num_threads(1)
models = [torch.nn.Sequential(torch.nn.Linear(700, 700)) for _ in range(2)]
for number, model in enumerate(models):
    torch.nn.init.constant_(model[0].weight, float(number))
adntn.save(models[0], sys.argv[1])
random.seed(0)
for _ in range(15):
    pid = os.fork()
    if pid == 0:
        while True:
            for model in models:
                adntn.save(model, sys.argv[1])
    time.sleep(random.uniform(0.005, 0.03))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    weight = adntn.load(torch.nn.Sequential(torch.nn.Linear(700, 700)), sys.argv[1])[0].weight
    assert torch.equal(weight, torch.full_like(weight, weight[0, 0].item()))
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
