"""How an experiment is going: a bar on a terminal, a line a finished row everywhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from adntn.cli.progress import Pace, make_bars
from adntn.experiments.reproduce.run import Told
from adntn.experiments.reproduce.steps import Timed
from adntn.report.figures import duration

if TYPE_CHECKING:
    from adntn.experiments.reproduce.expressivity import ToldFit

__all__ = ["FitScreen", "RowScreen"]


class RowScreen:
    """Shows which row is trained or timed, and what each came to; a context manager.

    Rows that were finished before are counted, not listed.

    Args:
        console: to write to.
        quiet: whether to show nothing.
        clock: that tells the seconds.
    """

    def __init__(self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.quiet, self.clock = console, quiet, clock
        self.bars = make_bars(console, live=console.is_terminal and not quiet)
        self.pace = Pace(clock)
        self._earlier = self._total = 0

    def __enter__(self) -> RowScreen:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self.bars.stop()

    def __call__(self, told: Told | Timed) -> None:
        if isinstance(told, Timed):
            self._timed(told)
        elif told.failed:
            self._clear()
            self._print(f"{self._place(told)}  {told.row:<26} seed {told.seed}  {told.failed}")
        elif told.event is not None:
            self._moves(told)
        elif told.result is None:
            self._begins(f"{told.number}/{told.total} {told.row}, seed {told.seed}")
        elif told.earlier:
            self._earlier, self._total = self._earlier + 1, told.total
        else:
            self._ends(told)

    def _moves(self, told: Told) -> None:
        if told.event is None or not self.bars.task_ids:
            return
        self.pace.see(told.event.step, told.event.total)
        (task,) = self.bars.tasks
        text = told.event.text or task.fields["text"]
        self.bars.update(task.id, completed=told.event.step, total=told.event.total, pace=str(self.pace), text=text)

    def _begins(self, what: str) -> None:
        self._flush()
        self.pace = Pace(self.clock)
        self._clear()
        self.bars.add_task(what, total=None, pace="", text="")

    def _ends(self, told: Told) -> None:
        self._clear()
        self._flush()
        result = told.result
        assert result is not None
        self._print(
            f"{self._place(told)}  {told.row:<26} seed {told.seed}  {100 * result.accuracy:5.1f} %  "
            f"{result.layer_stored:>10,} in the layers  {result.model_stored:>10,} in all  "
            f"{duration(result.train_seconds):>12}"
        )

    def _timed(self, told: Timed) -> None:
        if told.row is None:
            self._flush()
            self._print(f"  {told.text}")
        elif told.values is None:
            self._begins(f"{told.number}/{told.total} {told.row}, a step")
        else:
            self._clear()
            milliseconds, ratio = told.values["milliseconds"], told.values["dense_ratio"]
            self._print(f"         {told.row:<26} a step  {milliseconds:9.2f} ms  {ratio:6.2f}x dense")

    @staticmethod
    def _place(told: Told) -> str:
        return f"{told.number}/{told.total}".rjust(7)

    def _flush(self) -> None:
        """Say how many were finished before, where some were since that was last said."""
        if self._earlier:
            self._print(f"         {self._earlier} of {self._total} were finished before")
            self._earlier = 0

    def _clear(self) -> None:
        for task in self.bars.task_ids:
            self.bars.remove_task(task)

    def _print(self, line: str) -> None:
        if not self.quiet:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class FitScreen:
    """Shows how many fits are made; a context manager. Elsewhere than on a terminal a line a target, as it is begun.

    Args:
        console: to write to.
        quiet: whether to show nothing.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.live = console.is_terminal and not quiet
        self.bars = make_bars(console, live=self.live)
        self.pace = Pace()
        self._last = ""

    def __enter__(self) -> FitScreen:
        self.bars.start()
        self.task = self.bars.add_task("fits", total=None, pace="", text="")
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, told: ToldFit) -> None:
        what = f"{told.target}, seed {told.seed}"
        if told.note:
            self._print(f"         {what}: {told.note}")
            return
        self.pace.see(told.number, told.total)
        self.bars.update(self.task, completed=told.number, total=told.total, pace=str(self.pace), text=what)
        if not self.live and not told.earlier and what != self._last:
            self._print(f"{told.number}/{told.total}  {what}")
            self._last = what

    def _print(self, line: str) -> None:
        if not self.quiet:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
