"""Runs that are ended before their end, and go on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from profiles import DEAR_CALLS, FREE_CALLS
from torch import nn
from training_cases import DATA, fitted, generated, in_pieces, same, stopping, table

import adntn
from adntn.errors import CheckpointError, TrainingStopped
from adntn.execution.machine import using
from adntn.training.checkpoints import EPOCH, PAUSE
from adntn.training.optimization import Optimization

HOW = Optimization(epochs=3, batch_size=20, augment=True)  # five steps an epoch, the last of them short


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "how",
    [
        {"ema": 0.9},
        {"optimizer": "sgd", "lr": 0.1, "schedule": "cosine"},
        {"schedule": "constant", "core_lr": 1e-3, "clip": None, "precision": "bfloat16"},
    ],
    ids=str,
)
def test_it_comes_to_the_same_weights_as_without_interruptions(tmp_path: Path, how: dict[str, Any], every: int) -> None:
    how_ = replace(HOW, **how)
    model = generated()
    whole = fitted(model, how_, folder=tmp_path / "whole")
    pieces, resumed = in_pieces(generated, how_, tmp_path / "pieces", every)
    assert same(model.state_dict(), resumed.state_dict())
    assert replace(pieces, seconds=whole.seconds) == whole
    assert table(tmp_path / "pieces") == table(tmp_path / "whole")
    assert not (tmp_path / "pieces" / PAUSE).exists()


def test_a_run_that_is_over_is_not_run_again(tmp_path: Path) -> None:
    how = replace(HOW, ema=0.9)
    model = generated()
    first = fitted(model, how, folder=tmp_path)
    (tmp_path / "metrics" / "metrics.csv").write_text("cut off")
    rows: list[int] = []

    def never(step: int, total: int) -> None:
        raise AssertionError("a step was made")

    again = generated()
    second = fitted(again, how, folder=tmp_path, on_step=never, log=lambda step, row: rows.append(step))
    assert second == first
    assert same(model.state_dict(), again.state_dict())
    assert rows == [5, 10, 15]
    assert len(table(tmp_path).splitlines()) == 4


def test_rows_of_earlier_epochs_are_logged_first(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped):
        fitted(generated(), HOW, folder=tmp_path, on_step=stopping(12))
    rows: list[int] = []
    fitted(generated(), HOW, folder=tmp_path, log=lambda step, row: rows.append(step))
    assert rows == [5, 10, 15]


@pytest.mark.slow
def test_patience_counts_on(tmp_path: Path) -> None:
    how = replace(HOW, epochs=20, lr=1e-9, patience=2)
    whole = fitted(generated(), how)
    assert whole.stopped_early
    pieces, _ = in_pieces(generated, how, tmp_path, 4)
    assert replace(pieces, seconds=whole.seconds) == whole


def test_the_deadline_ends_it_as_a_signal_does(tmp_path: Path) -> None:
    model = generated()
    whole = fitted(model, HOW)
    with pytest.raises(TrainingStopped, match="its time was over"):
        fitted(generated(), HOW, folder=tmp_path, deadline=time.monotonic())
    resumed = generated()
    assert fitted(resumed, HOW, folder=tmp_path).curve == whole.curve
    assert same(model.state_dict(), resumed.state_dict())


def test_without_a_folder_nothing_is_kept() -> None:
    with pytest.raises(TrainingStopped, match="nothing was kept"):
        fitted(generated(), HOW, on_step=stopping(2))


def test_layers_run_as_they_did_before(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
        adntn.compress_(model, targets=["2"])
        return model

    with using(FREE_CALLS), pytest.raises(TrainingStopped):
        fitted(model := build(), HOW, folder=tmp_path, on_step=stopping(7))
    with using(DEAR_CALLS):
        other = build()
        assert other[2].choices != model[2].choices
        fitted(other, HOW, folder=tmp_path)
    assert other[2].choices == model[2].choices


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, said",
    [
        ({"how": replace(HOW, lr=0.5)}, r"options 'lr' was 0\.02 and is 0\.5"),
        ({"how": replace(HOW, epochs=4)}, "options 'epochs' was 3 and is 4"),
        ({"seed": 3}, "seed was 0 and is 3"),
        ({"model": lambda: generated(topology="mera")}, "generators '1' 'topology' was 'attn' and is 'mera'"),
        ({"data": replace(DATA, train=DATA.test)}, "images was"),
    ],
    ids=["rate", "epochs", "seed", "model", "images"],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingStopped):
        fitted(generated(), HOW, folder=tmp_path, on_step=stopping(7))
    given = {"how": HOW, "model": generated} | change
    with pytest.raises(CheckpointError, match=f"belongs to another run: {said}.*another folder"):
        fitted(given.pop("model")(), given.pop("how"), folder=tmp_path, **given)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nothing of the kind", None])
def test_a_broken_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    with pytest.raises(TrainingStopped):
        fitted(generated(), HOW, folder=tmp_path, on_step=stopping(7))
    whole = (tmp_path / EPOCH).read_bytes()
    (tmp_path / EPOCH).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(CheckpointError, match=r"epoch\.ckpt is truncated or no checkpoint"):
        fitted(generated(), HOW, folder=tmp_path)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"adntn": Trap()}, tmp_path / EPOCH)
    with pytest.raises(CheckpointError, match=r"epoch\.ckpt"):
        fitted(generated(), HOW, folder=tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / EPOCH)
    with pytest.raises(CheckpointError, match="not of this library"):
        fitted(generated(), HOW, folder=tmp_path)


# --- folders that cannot be written ---------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = generated()
    fitted(model, HOW)
    written = Path.write_bytes
    count = 0

    def full(self: Path, content: Any) -> int:
        nonlocal count
        count += 1
        if count == 2:
            written(self, bytes(content)[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(self, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(CheckpointError, match=r"cannot write .*epoch\.ckpt.*No space left.*untouched"):
            fitted(generated(), HOW, folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {EPOCH, "metrics"}
    steps: list[int] = []
    resumed = generated()
    fitted(resumed, HOW, folder=tmp_path, on_step=lambda step, total: steps.append(step))
    assert steps[0] == 5  # of the first epoch's checkpoint
    assert same(model.state_dict(), resumed.state_dict())


LIMITED = """
import resource, sys
from pathlib import Path
from training_cases import fitted, generated
from adntn.errors import CheckpointError
from adntn.training.optimization import Optimization

folder = Path(sys.argv[1])
# What is written when the second epoch is done does not fit any more.
def log(step, row):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    fitted(generated(), Optimization(epochs=3, batch_size=20, augment=True), folder=folder, log=log)
except CheckpointError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.slow
def test_a_file_that_is_too_large_for_the_system_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    model = generated()
    fitted(model, HOW)
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, env=environment(), check=False
    )
    assert ended.returncode == 1
    assert f"refused: cannot write {tmp_path / EPOCH}" in ended.stderr
    resumed = generated()
    fitted(resumed, HOW, folder=tmp_path)
    assert same(model.state_dict(), resumed.state_dict())


def environment() -> dict[str, str]:
    """The environment of a process of its own that finds this repository's files."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"cannot write into .*file"):
        fitted(generated(), HOW, folder=tmp_path / "file" / "run")


def test_a_folder_that_becomes_read_only_is_named_and_its_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingStopped):
        fitted(generated(), HOW, folder=tmp_path, on_step=stopping(7))
    before = {name: (tmp_path / name).read_bytes() for name in (EPOCH, PAUSE)}

    def refused(*args: Any, **options: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    # Root may write everywhere, so that the folder's own mode would show nothing.
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "TemporaryFile", refused)
        with pytest.raises(CheckpointError, match=f"cannot write into {tmp_path}: Read-only file system"):
            fitted(generated(), HOW, folder=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "mkstemp", refused)
        with pytest.raises(CheckpointError, match=f"cannot write {tmp_path}.*: Read-only file system"):
            fitted(generated(), HOW, folder=tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_what_a_killed_write_left_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / f".{EPOCH}.abc.part").write_bytes(b"half")
    (tmp_path / "other.part").write_bytes(b"mine")
    fitted(generated(), HOW, folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {EPOCH, "metrics", "other.part"}
