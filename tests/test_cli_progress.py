"""How a run shows itself: rates and remaining time, one line a stage in a pipe, nothing when quiet."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from adntn.cli.progress import Pace, Screen
from adntn.training.recipe import Recipe
from adntn.training.run import Finished
from adntn.training.stages import FineTune, Finish
from adntn.training.stages.base import Event

RECIPE = Recipe(stages=(FineTune(), FineTune(), Finish()))
MEASURES = {"validation_accuracy": 0.912, "test_accuracy": 0.9049, "numbers": 2018}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def finished(number: int, kind: str, seconds: float = 185.0) -> Finished:
    return Finished(number, kind, seconds, MEASURES, {}, Path("model.safetensors"))


def written(*, terminal: bool, width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=width, color_system=None, legacy_windows=False), file


# --- the pace -------------------------------------------------------------------------------------------------------


def test_rate_and_remaining_time_are_those_of_the_last_half_minute() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert str(pace) == ""
    pace.see(0, 1000)
    assert (pace.rate, pace.remaining) == (None, None)
    for step in range(1, 101):
        clock.now += 1.0 if step <= 50 else 0.5
        pace.see(step, 1000)
    assert pace.rate == pytest.approx(2.0, rel=0.15)
    for step in range(101, 200):
        clock.now += 0.5
        pace.see(step, 1000)
    assert pace.rate == pytest.approx(2.0)
    assert pace.remaining == pytest.approx((1000 - 199) / 2)
    assert str(pace) == "2.0 steps/s, 6 min 40 s left"


def test_a_run_that_goes_on_is_not_faster_for_what_was_done_before() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.see(900, 1000)
    clock.now += 10
    pace.see(902, 1000)
    assert pace.rate == pytest.approx(0.2)
    assert str(pace) == "5.0 s/step, 8 min 10 s left"
    clock.now += 10
    pace.see(1, 1000)  # back to an earlier state
    assert pace.rate is None
    clock.now += 10
    pace.see(2, 50)  # other work
    assert pace.rate is None


# --- the screen -----------------------------------------------------------------------------------------------------


def drive(screen: Screen) -> None:
    with screen:
        screen.ends(finished(0, "teacher"))
        for number, kind in ((1, "fine-tune"), (2, "fine-tune"), (3, "finish"), (0, "low-rank, seed 0")):
            screen.begins(number, kind)
            for step in range(5):
                screen.moves(Event(step, 4, "loss [0.3]" if step == 2 else ""))
            screen.ends(finished(number, kind))


@pytest.mark.parametrize("width", [20, 80, 200])
def test_in_a_pipe_there_is_one_line_a_stage(width: int) -> None:
    console, file = written(terminal=False, width=width)
    drive(Screen(console, RECIPE, Path("run")))
    lines = file.getvalue().splitlines()
    assert [re.sub(" +", " ", line).strip() for line in lines] == [
        f"{place}validation 91.2 % test 90.5 % 2,018 numbers 3 min 05 s{kept}"
        for place, kept in (
            ("teacher ", " (from before)"),
            ("1/3 fine-tune ", ""),
            ("2/3 fine-tune ", ""),
            ("3/3 finish ", ""),
            ("low-rank, seed 0 ", ""),
        )
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_is_quiet(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = written(terminal=terminal)
    drive(Screen(console, RECIPE, Path("run"), quiet=True))
    monkeypatch.setenv("RANK", "1")
    drive(Screen(console, RECIPE, Path("run")))
    assert file.getvalue() == ""
    monkeypatch.setenv("RANK", "0")
    drive(Screen(console, RECIPE, Path("run")))
    assert file.getvalue() != ""


def test_on_a_terminal_a_bar_shows_rate_time_and_text() -> None:
    console, file = written(terminal=True, width=140)
    clock = Clock()
    with Screen(console, RECIPE, Path("run"), clock=clock) as screen:
        assert "small-cnn on digits: fine-tune, fine-tune, finish; into run" in file.getvalue()
        screen.begins(2, "fine-tune")
        for step in (300, 310, 320):
            clock.now += 2
            screen.moves(Event(step, 400, "loss [0.31], validation 91.2 %" if step == 310 else ""))
        screen.progress.refresh()
        shown = file.getvalue()
        assert re.search(
            r"2/3 fine-tune .* 320/400 .* 5\.0 steps/s, 16\.0 s left loss \[0\.31\], validation 91\.2 %", shown
        )
        screen.begins(3, "finish")  # the next bar begins with nothing of the one before
        screen.progress.refresh()
        last = file.getvalue()[len(shown) :]
        assert "3/3 finish" in last
        assert "320" not in last
        assert "loss" not in last
        screen.ends(finished(3, "finish"))
    assert "3/3 finish                 validation  91.2 %" in file.getvalue()
