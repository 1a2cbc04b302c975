"""How a run of ``adntn train`` is going: a bar with rate and remaining time on a terminal, a line a stage elsewhere."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from adntn.report.figures import duration
from adntn.training.recipe import Recipe
from adntn.training.run import Finished, Tell
from adntn.training.stages.base import Event

__all__ = ["Pace", "Screen", "make_bars"]

# Seconds over which a rate is measured: long enough for a look at the validation images not to make it jump.
_WINDOW = 30.0


class Pace:
    """The rate at which steps are done, and the time that the rest will take.

    Args:
        clock: that tells the seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.total = 0
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, step: int, total: int) -> None:
        """Take note of how far the work is. What goes on from a checkpoint begins with its step, not with 0."""
        if total != self.total or (self._seen and step < self._seen[-1][1]):
            self._seen.clear()  # other work has begun
        self.total = total
        now = self.clock()
        self._seen.append((now, step))
        while len(self._seen) > 2 and self._seen[1][0] < now - _WINDOW:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """Steps a second; None while there is nothing to tell it by."""
        if len(self._seen) < 2:
            return None
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - began) if now > began and last > first else None

    @property
    def remaining(self) -> float | None:
        """Seconds that the rest will take; None while that is not known."""
        rate = self.rate
        return None if rate is None else (self.total - self._seen[-1][1]) / rate

    def __str__(self) -> str:
        rate, remaining = self.rate, self.remaining
        if rate is None or remaining is None:
            return ""
        speed = f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"
        return f"{speed}, {duration(remaining)} left"


def make_bars(console: Console, *, live: bool) -> Progress:
    """Return what shows tasks with fields ``pace`` and ``text``: a bar, steps, time, pace and text a task.

    Args:
        console: to write to.
        live: whether to show anything.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
        TextColumn(
            "{task.fields[text]}",
            markup=False,
            style="dim",
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
        console=console,
        transient=True,
        expand=True,
        disable=not live,
    )


class Screen(Tell):
    """Shows a run; a context manager.

    Args:
        console: to write to.
        recipe: that is run.
        folder: of the run.
        quiet: whether to show nothing. Of the processes of a torchrun, all but the first are quiet.
        clock: that tells the seconds.
    """

    def __init__(
        self,
        console: Console,
        recipe: Recipe,
        folder: Path,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self.recipe, self.folder, self.clock = console, recipe, folder, clock
        self.quiet = quiet or os.environ.get("RANK", "0") != "0"
        self.live = console.is_terminal and not self.quiet
        self.progress = make_bars(console, live=self.live)
        self.pace = Pace(clock)
        self._began: set[tuple[int, str]] = set()

    def __enter__(self) -> Screen:
        if self.live:
            kinds = ", ".join(stage.kind for stage in self.recipe.stages)
            self.console.print(
                f"[bold]{escape(self.recipe.model)}[/] on {escape(Path(self.recipe.data).name)}: {escape(kinds)}; "
                f"into {escape(str(self.folder))}",
                highlight=False,
            )
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begins(self, number: int, kind: str) -> None:
        self._began.add((number, kind))
        self.pace = Pace(self.clock)
        self._clear()
        place = escape(f"{self._place(number, kind)} {kind}".strip())
        self.progress.add_task(place, total=None, pace="", text="")

    def moves(self, event: Event) -> None:
        if not self.live or not self.progress.task_ids:
            return
        self.pace.see(event.step, event.total)
        # A text says how it went when there was something to say; it stands until the next one.
        (task,) = self.progress.tasks
        text = event.text or task.fields["text"]
        self.progress.update(task.id, completed=event.step, total=event.total, pace=str(self.pace), text=text)

    def ends(self, finished: Finished) -> None:
        self._clear()
        if self.quiet:
            return
        measures = finished.measures
        validation, test = (100 * measures[f"{part}_accuracy"] for part in ("validation", "test"))
        line = (
            f"{self._place(finished.number, finished.kind):>5} {finished.kind:<22} "
            f"validation {validation:5.1f} %  test {test:5.1f} %  "
            f"{measures['numbers']:>11,} numbers  {duration(finished.seconds):>12}"
        )
        kept = "" if (finished.number, finished.kind) in self._began else "  (from before)"
        # In a pipe a line stays one line, however wide.
        self.console.print(escape(line + kept), highlight=False, soft_wrap=True)

    def _clear(self) -> None:
        for task in self.progress.task_ids:
            self.progress.remove_task(task)

    def _place(self, number: int, kind: str) -> str:
        """Return which of the stages this is; nothing for the teacher and the controls."""
        stages = self.recipe.stages
        is_stage = 0 < number <= len(stages) and stages[number - 1].kind == kind
        return f"{number}/{len(stages)}" if is_stage else ""
