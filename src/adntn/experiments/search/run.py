"""A search from its recipe to its files."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from adntn.checkpoint import writing
from adntn.errors import AdntnError, TrainingStopped
from adntn.experiments.search.comparison import Comparison, compare, default_for
from adntn.experiments.search.options import SearchOptions
from adntn.experiments.search.points import Measured, Point, front
from adntn.experiments.search.study import Counts, Evaluator, Search, Trials, work
from adntn.experiments.search.toml import to_toml
from adntn.training.folder import RunFolderError, claim_folder, write_json

__all__ = ["Ended", "SearchError", "SearchOutcome", "run_search", "stored_search"]

_FREE = ("trials", "minutes", "processes")  # what may change when a search goes on


class SearchError(AdntnError, RuntimeError):
    """The processes of a search ended before it was done."""


@dataclass(frozen=True)
class Ended:
    """Told when a trial has ended.

    Attributes:
        name: of the trial, ``budget-number``.
        state: ``"done"``, ``"pruned"`` or ``"failed"``.
        parameters: of the whole model.
        accuracy: the last validation accuracy, if there is one.
        best: the greatest of a finished trial of this budget.
        count: trials that have ended.
        total: asked for.
    """

    name: str
    state: str
    parameters: int | None
    accuracy: float | None
    best: float | None
    count: int
    total: int


Tell = Callable[[Ended | str], None]


@dataclass(frozen=True)
class SearchOutcome:
    """What a search came to.

    Attributes:
        options: of the search.
        budgets: that were searched.
        dense: the teacher.
        points: every finished trial.
        front: those on the front.
        counts: of the trials, by budget.
        comparisons: searched against default, by budget; empty if left out.
    """

    options: SearchOptions
    budgets: tuple[int, ...]
    dense: Measured
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    counts: Mapping[int, Counts]
    comparisons: tuple[Comparison, ...]

    @property
    def energy_note(self) -> str:
        """How the energy was measured, or why it was not."""
        return ", ".join(dict.fromkeys(point.energy_note for point in self.points)) or "no trial was finished"

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": 1,
            "budgets": self.budgets,
            "measures_of_the_front": self.options.front,
            "dense": self.dense.to_dict(),
            "front": [point.name for point in self.front],
            "trials": {str(budget): asdict(counts) for budget, counts in self.counts.items()},
            "search_seconds": sum(counts.seconds for counts in self.counts.values()),
            "energy": self.energy_note,
            "comparison": [each.to_dict() for each in self.comparisons],
            "points": [{"name": point.name, **asdict(point)} for point in self.points],
        }


def run_search(
    recipe: Mapping[str, Any],
    options: SearchOptions,
    folder: Path,
    *,
    evaluator: Evaluator | None = None,
    download: bool = False,
    tell: Tell = lambda event: None,
) -> SearchOutcome:
    """Search, measure, compare, and write everything but tables and plots into a folder.

    A search that was stopped goes on in its folder. Trials that were under way are done again; the storage is whole at
    any time.

    Args:
        recipe: for training, as plain values, with a select and a fine-tune stage.
        options: of the search.
        folder: new, empty, or of the same search.
        evaluator: trains and measures; None means :class:`adntn.experiments.search.evaluator.TrainingEvaluator`.
        download: whether the data may be fetched over the network.
        tell: called with each trial that has ended, and with what is done besides.

    Raises:
        RunFolderError: the folder holds something else, or another search.
        ConfigError: an option is impossible, or nothing in the space is.
        SearchError: processes ended before the search was done.
    """
    recipe = dict(recipe)
    _claim(folder, recipe, options)
    if evaluator is None:
        from adntn.experiments.search.evaluator import TrainingEvaluator

        threads = 1 if options.processes > 1 or recipe.get("data", "digits") == "digits" else None
        evaluator = TrainingEvaluator(recipe, folder, energy=options.energy, threads=threads, download=download)
    tell("dense teacher")
    dense = evaluator.prepare()
    budgets = options.budget if isinstance(options.budget, tuple) else (evaluator.parameters(recipe),)
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    defaults = {budget: default_for(recipe, budget, evaluator.parameters) for budget in budgets}
    search = Search(recipe, options, budgets, defaults, folder, evaluator, deadline)
    trials = Trials(search)
    watch = _Watch(tell, trials, options.trials)
    try:
        if options.processes == 1:
            work(search, watch.look)
        else:
            _in_processes(search, trials, watch)
        points = _timed(search, trials.points(), tell)
    except (KeyboardInterrupt, TrainingStopped):
        _write(folder, _outcome(search, trials, dense, trials.points(), []))
        raise
    comparisons = compare(search, points, tell) if options.seeds else []
    outcome = _outcome(search, trials, dense, points, comparisons)
    _write(folder, outcome)
    return outcome


def stored_search(folder: Path) -> tuple[dict[str, Any], SearchOptions]:
    """Read what a folder's search was asked for.

    Raises:
        RunFolderError: the folder holds no search.
    """
    file = folder / "search.json"
    try:
        values = json.loads(file.read_text())
        return values["recipe"], SearchOptions.from_dict(values["options"])
    except OSError:
        raise RunFolderError(f"{folder} is no search folder: it has no search.json.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"{file} cannot be read: {error!r}") from None


def _claim(folder: Path, recipe: dict[str, Any], options: SearchOptions) -> None:
    def is_same() -> bool:
        old_recipe, old = stored_search(folder)
        same = replace(old, **{name: getattr(options, name) for name in _FREE})
        return (old_recipe, same) == (json.loads(json.dumps(recipe)), options)

    claim_folder(folder, "search", "search.json", is_same)
    write_json(folder / "search.json", {"version": 1, "recipe": recipe, "options": options.to_dict()})


class _Watch:
    """Tells of trials that end, each once; of those that had ended before, not."""

    def __init__(self, tell: Tell, trials: Trials, total: int) -> None:
        self.tell, self.total = tell, total
        self.told = {(budget, trial.number) for budget, trial in self._ended(trials)}

    @staticmethod
    def _ended(trials: Trials) -> list[tuple[int, Any]]:
        states = ("COMPLETE", "PRUNED")
        return [(b, t) for b, t in trials.all() if t.state.name in states and "skipped" not in t.user_attrs]

    def look(self, trials: Trials) -> None:
        ended = self._ended(trials)
        for budget, trial in ended:
            if (budget, trial.number) in self.told:
                continue
            self.told.add((budget, trial.number))
            done = trial.state.name == "COMPLETE"
            curve = trial.intermediate_values
            finished = [t.value for of, t in ended if of == budget and t.state.name == "COMPLETE"]
            self.tell(
                Ended(
                    name=f"{budget}-{trial.number:02d}",
                    state="failed" if "failed" in trial.user_attrs else "done" if done else "pruned",
                    parameters=trial.user_attrs.get("parameters"),
                    accuracy=trial.value if done else curve[max(curve)] if curve else None,
                    best=max(finished, default=None),
                    count=len(self.told),
                    total=self.total,
                )
            )


def _in_processes(search: Search, trials: Trials, watch: _Watch) -> None:
    """Let several processes work on one storage, until all of them have ended.

    Raises:
        AdntnError: of a process.
        SearchError: a process was killed or met a bug before the trials were done.
    """
    # A forked process would share torch's threads and locks in whatever state they are.
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    shared = replace(search, parent=os.getpid())
    children = [
        context.Process(target=_child, args=(shared, errors), daemon=True) for _ in range(search.options.processes)
    ]
    try:
        for child in children:
            child.start()
        while any(child.is_alive() for child in children):
            time.sleep(0.2)
            watch.look(trials)
    finally:
        # A trial that is broken off here is found and done again by whoever goes on.
        for child in children:
            child.kill()
            child.join()
    watch.look(trials)
    if not errors.empty():
        raise errors.get()
    codes = [child.exitcode for child in children if child.exitcode]
    counts = [trials.counts(budget) for budget in search.budgets]
    done = sum(count.counted - count.running for count in counts)  # what the killed were at still counts as running
    if codes and done < search.options.trials and not search.out_of_time():
        raise SearchError(
            f"{len(codes)} of {len(children)} processes ended with {codes} after {done} of {search.options.trials} "
            f"trials; what is done is kept: go on with --resume {search.folder}."
        )


def _child(search: Search, errors: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches every process; the first one ends the others
    try:
        work(search)
    except AdntnError as error:
        errors.put(error)


def _timed(search: Search, points: list[Point], tell: Tell) -> list[Point]:
    """Measure latencies, now that nothing else runs; those that are known are not measured again."""
    file = search.folder / "latency.json"
    known: dict[str, list[float]] = json.loads(file.read_text()) if file.is_file() else {}
    missing = [point for point in points if point.name not in known]
    if missing:
        tell(f"latency of {len(missing)} points")
        for point in missing:
            known[point.name] = list(search.evaluator.latency(search.folder / point.file))
        write_json(file, known)
    return [replace(point, latency_ms=known[point.name][0], latency_ratio=known[point.name][1]) for point in points]


def _outcome(
    search: Search, trials: Trials, dense: Measured, points: list[Point], comparisons: list[Comparison]
) -> SearchOutcome:
    return SearchOutcome(
        options=search.options,
        budgets=search.budgets,
        dense=dense,
        points=tuple(points),
        front=tuple(front(points, search.options.front)),
        counts={budget: trials.counts(budget) for budget in search.budgets},
        comparisons=tuple(comparisons),
    )


def _write(folder: Path, outcome: SearchOutcome) -> None:
    """Write ``points.json``, ``points.csv``, ``pareto.json`` and ``recipes/point-….toml``."""
    content = outcome.to_dict()
    write_json(folder / "points.json", content)
    on_front = [point.name for point in outcome.front]
    rows = {row["name"]: row for row in content["points"]}
    write_json(folder / "pareto.json", [rows[name] for name in on_front])
    knobs = list(dict.fromkeys(knob for point in outcome.points for knob in point.settings))
    measures = [f.name for f in fields(Point) if f.name not in ("settings", "recipe", "curve")]
    with writing(folder / "points.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "front", *measures, *knobs])
        for point in outcome.points:
            values = [getattr(point, name) for name in measures]
            table.writerow([point.name, point.name in on_front, *values, *map(point.settings.get, knobs)])
    (folder / "recipes").mkdir(exist_ok=True)
    for point in outcome.points:
        with writing(folder / "recipes" / f"point-{point.name}.toml") as temporary:
            temporary.write_text(to_toml(point.recipe), encoding="utf-8")
