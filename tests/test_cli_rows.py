"""How an experiment shows itself: a line a row in a pipe, a bar on a terminal, nothing when quiet."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from adntn.cli.rows import FitScreen, RowScreen
from adntn.experiments.reproduce.rows import Result
from adntn.experiments.reproduce.run import Told
from adntn.experiments.reproduce.steps import Timed
from adntn.training.stages.base import Event


def written(*, terminal: bool, width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=width, color_system=None, legacy_windows=False), file


def result(seed: int) -> Result:
    values: dict[str, Any] = {
        "group": "vgg16-fc2",
        "variant": "ttn",
        "seed": seed,
        "accuracy": 0.7771,
        "loss": 0.5,
        "curve": (0.7771,),
        "layer_dense": 1048576,
        "layer_stored": 216,
        "layer_trained": 216,
        "model_stored": 1978234,
        "model_trained": 1978234,
        "stable_rank_start": {},
        "stable_rank_end": {},
        "rank_bound": {},
        "steps": 4,
        "train_seconds": 185.0,
        "optimization": {},
        "about": {},
        "environment": {},
    }
    return Result(**values)


def drive(screen: RowScreen) -> None:
    with screen:
        for seed in (0, 1):
            screen(Told("vgg16-fc2/ttn", seed, seed + 1, 5, result=result(seed), earlier=True))
        screen(Told("vgg16-fc2/ttn", 2, 3, 5))
        screen(Told("vgg16-fc2/ttn", 2, 3, 5, event=Event(3, 4, "loss [0.3]")))
        screen(Told("vgg16-fc2/ttn", 2, 3, 5, result=result(2)))
        screen(Told("vgg16-fc2/mera", 2, 4, 5))
        screen(Told("vgg16-fc2/mera", 2, 4, 5, failed="the loss is NaN"))
        screen(Told("vgg16-fc2/ttn", 3, 5, 5, result=result(3), earlier=True))
        screen(Timed(None, 0, 0, text="vgg16: of another [machine]"))
        screen(Timed("vgg16-fc2/ttn", 1, 1))
        screen(Timed("vgg16-fc2/ttn", 1, 1, values={"milliseconds": 98.123, "dense_ratio": 0.51}))


@pytest.mark.parametrize("width", [20, 200])
def test_in_a_pipe_there_is_a_line_a_row_and_earlier_ones_are_counted(width: int) -> None:
    console, file = written(terminal=False, width=width)
    drive(RowScreen(console))
    assert [re.sub(" +", " ", line).strip() for line in file.getvalue().splitlines()] == [
        "2 of 5 were finished before",
        "3/5 vgg16-fc2/ttn seed 2 77.7 % 216 in the layers 1,978,234 in all 3 min 05 s",
        "4/5 vgg16-fc2/mera seed 2 the loss is NaN",
        "1 of 5 were finished before",
        "vgg16: of another [machine]",
        "vgg16-fc2/ttn a step 98.12 ms 0.51x dense",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_is_quiet(terminal: bool) -> None:
    console, file = written(terminal=terminal)
    drive(RowScreen(console, quiet=True))
    assert file.getvalue() == ""


def test_on_a_terminal_a_bar_shows_how_far_a_row_is() -> None:
    console, file = written(terminal=True, width=140)
    now = iter(range(100, 200, 2))
    with RowScreen(console, clock=lambda: float(next(now))) as screen:
        screen(Told("vgg16-fc2/ttn", 2, 3, 5))
        for step in (300, 310, 320):
            text = "epoch 1/4, loss 0.31" if step == 310 else ""
            screen(Told("vgg16-fc2/ttn", 2, 3, 5, event=Event(step, 400, text)))
        screen.bars.refresh()
        shown = file.getvalue()
        assert re.search(r"3/5 vgg16-fc2/ttn, seed 2 .* 320/400 .* 5\.0 steps/s, 16\.0 s left epoch 1/4, loss", shown)
        screen(Told("vgg16-fc2/ttn", 2, 3, 5, result=result(2)))
        screen(Timed("vgg16-fc2/ttn", 1, 1))
        screen.bars.refresh()
        last = file.getvalue()[len(shown) :]
        assert "1/1 vgg16-fc2/ttn, a step" in last
        assert "loss" not in last.rpartition("1/1")[2]  # the next bar begins with nothing of the one before


def drive_fits(screen: Any) -> None:
    with screen:
        screen(SimpleNamespace(target="trained-fc", seed=0, number=0, total=0, note="no trained network is given"))
        for number in range(1, 10):
            target = "gaussian" if number < 6 else "smooth"
            screen(SimpleNamespace(target=target, seed=0, number=number, total=9, note="", earlier=number < 3))
        if screen.live:
            screen.bars.refresh()


def test_fits_are_a_line_a_target_in_a_pipe() -> None:
    console, file = written(terminal=False, width=20)
    drive_fits(FitScreen(console))
    assert [line.strip() for line in file.getvalue().splitlines()] == [
        "trained-fc, seed 0: no trained network is given",
        "3/9  gaussian, seed 0",
        "6/9  smooth, seed 0",
    ]


def test_fits_are_a_bar_on_a_terminal_and_nothing_when_quiet() -> None:
    console, file = written(terminal=True, width=120)
    drive_fits(FitScreen(console))
    assert re.search(r"fits .* 9/9 .* smooth, seed 0", file.getvalue())
    console, file = written(terminal=True)
    drive_fits(FitScreen(console, quiet=True))
    assert file.getvalue() == ""
