"""The time of a training step beside the dense network's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_rows import SETTINGS, Heard, bright_halves, small_rows
from torch import Tensor, nn

from adntn.errors import ConfigError, TrainingStopped
from adntn.experiments.reproduce import steps
from adntn.experiments.reproduce.rows import Folder, Row
from adntn.experiments.reproduce.steps import ROUNDS, Timed, read_timings, time_steps
from adntn.training.folder import read_json, write_json

DATA = bright_halves()
ALL = small_rows(SETTINGS, DATA.image_shape, DATA.num_classes)
DENSE, TTN = ALL[:2]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(steps, "_TURN", 0.0)
    return Folder(tmp_path)


class Watching(nn.Module):
    """A network that takes its time, and notes what it is run on."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.inner, self.seconds = DENSE.build(), seconds
        self.seen: list[tuple[Any, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        last = x.is_contiguous(memory_format=torch.channels_last)
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        self.seen.append((tuple(x.shape), self.training, last, autocast))
        out: Tensor = self.inner(x)
        return out


def row(name: str, make: Any, **changes: Any) -> Row:
    return replace(DENSE, group="small-fc", variant=name, make=lambda seed: make(), **changes)


def test_rows_are_timed_beside_their_dense_network(folder: Folder) -> None:
    heard = Heard()
    state = torch.get_rng_state()
    slow = row("slow", lambda: Watching(0.02))
    taught = replace(TTN, variant="taught", teacher=DENSE)  # left out: a step of its own is not what it takes
    time_steps([TTN, DENSE, slow, taught], [*ALL, slow, taught], DATA, folder, tell=heard)
    assert torch.equal(torch.get_rng_state(), state)
    assert heard.timed() == ["small-fc/ttn", "small/dense", "small-fc/slow"]
    found = read_json(folder.path / "timings.json")
    assert found == read_timings(folder)
    assert found.keys() == {"small"}
    assert (found["small"]["batch"], found["small"]["rounds"]) == (32, ROUNDS)
    assert found["small"]["environment"]["device"] == "cpu"
    times = found["small"]["rows"]
    assert times["small/dense"]["dense_ratio"] == 1
    assert times["small-fc/slow"]["milliseconds"] > 20
    assert times["small-fc/slow"]["dense_ratio"] > 2
    assert all(0.01 < each["milliseconds"] < 1000 for each in times.values())
    assert times["small-fc/ttn"]["dense_ratio"] == pytest.approx(
        times["small-fc/ttn"]["milliseconds"] / times["small/dense"]["milliseconds"], rel=0.9
    )


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_step_is_that_of_training(folder: Folder, precision: str) -> None:
    made: list[Watching] = []

    def make() -> Watching:
        made.append(Watching())
        return made[-1]

    start = {name: p.detach().clone() for name, p in Watching().named_parameters()}
    how = replace(DENSE.optimization, precision=precision, batch_size=20)
    time_steps([row("watched", make, optimization=how)], ALL, DATA, folder)
    (model,) = made
    autocast = torch.bfloat16 if precision == "bfloat16" else False
    assert set(model.seen) == {((20, 1, 8, 8), True, True, autocast)}
    assert len(model.seen) == 3 + ROUNDS
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert moved == set(start)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_what_is_timed_is_not_timed_again_and_more_is_added(folder: Folder) -> None:
    time_steps([TTN], ALL, DATA, folder)
    before = read_timings(folder)["small"]["rows"]
    heard = Heard()
    time_steps([DENSE, TTN], ALL, DATA, folder, tell=heard)
    assert heard.timed() == ["small/dense"]
    after = read_timings(folder)["small"]["rows"]
    assert after["small-fc/ttn"] == before["small-fc/ttn"]
    assert after.keys() == {"small-fc/ttn", "small/dense"}


def test_it_stops_in_time_and_keeps_what_it_has(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 100.0])
    monkeypatch.setattr(steps.time, "monotonic", lambda: next(now))
    with pytest.raises(TrainingStopped, match="1 of 2 rows still to be timed"):
        time_steps([TTN, DENSE], ALL, DATA, folder, deadline=50.0)
    monkeypatch.undo()
    assert read_timings(folder)["small"]["rows"].keys() == {"small-fc/ttn"}
    time_steps([TTN], ALL, DATA, folder, deadline=-math.inf)  # nothing is left to be done


def test_times_of_two_machines_are_not_mixed(folder: Folder) -> None:
    time_steps([TTN], ALL, DATA, folder)
    known = read_timings(folder)
    known["small"]["environment"]["threads"] = 64
    write_json(folder.timings_file, known)
    heard = Heard()
    time_steps([TTN, DENSE], ALL, DATA, folder, tell=heard)
    (told,) = heard.told
    assert isinstance(told, Timed)
    assert "small: the times so far are of another machine (threads was 64 and is 1), so 1 rows have none" in told.text
    assert read_timings(folder) == known
    time_steps([TTN], ALL, DATA, folder, tell=heard)
    assert len(heard.told) == 1


def test_one_process_times_at_a_time(folder: Folder) -> None:
    with Folder(folder.path).holding("timings"):
        time_steps([TTN], ALL, DATA, folder)
    assert read_timings(folder) == {}


def test_a_network_without_a_dense_row_is_named(folder: Folder) -> None:
    with pytest.raises(ConfigError, match="there is no row 'small/dense'"):
        time_steps([TTN], [TTN], DATA, folder)
