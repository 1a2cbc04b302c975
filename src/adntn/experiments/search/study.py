"""The trials of a search: which is next, what became of it, and what is to be done again.

There is one Optuna study for each budget, in one storage. Optuna cannot prune trials of several objectives, and a
search for accuracy alone would crowd at the largest sizes; so every budget is searched for the best validation accuracy
within it, trials are pruned against those of the same budget, and the front is computed over all of them.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adntn.errors import AdntnError, ConfigError, TrainingStopped
from adntn.experiments.locks import locked
from adntn.experiments.search.options import SearchOptions
from adntn.experiments.search.points import Measured, Point
from adntn.experiments.search.space import Space, optimization_of, with_settings
from adntn.experiments.search.storage import Presence, open_storage
from adntn.training.seeds import derive_seed

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

__all__ = ["Evaluator", "OutOfTime", "Report", "Search", "Trials", "model_file", "work"]

#: Takes the epoch that is done, how many there are, and the validation accuracy after it; ends hopeless trials.
Report = Callable[[int, int, float], None]

# So many in a row that are impossible, too large or known already mean that there is nothing left to try.
_SKIPS = 100


class OutOfTime(Exception):
    """The search's minutes are over in the middle of a trial."""


class Evaluator(Protocol):
    """Trains and measures configurations. It is pickled to reach other processes."""

    def prepare(self) -> Measured:
        """Make the dense teacher, once, before any trial, and return what it measures."""

    def parameters(self, recipe: Mapping[str, Any]) -> int:
        """Return the parameters of the whole model that a recipe would make, without making it.

        Raises:
            AdntnError: the configuration is impossible for the model, or would not fit into memory.
        """

    def evaluate(self, recipe: Mapping[str, Any], seed: int, file: Path, report: Report) -> Measured:
        """Train what a recipe says, save the model to a file, and measure it.

        Raises:
            AdntnError: the training failed, as by a loss that is not finite.
        """

    def latency(self, file: Path) -> tuple[float, float]:
        """Return milliseconds of a saved model's forward pass and their ratio to the dense model's."""


@dataclass(frozen=True)
class Search:
    """What every process of a search knows.

    Attributes:
        recipe: to start from, as plain values.
        options: of the search.
        budgets: parameters of the whole model at most, rising.
        defaults: the recipe's own configuration in the size of each budget, or None where nothing of it fits. It is
            what the search is compared with, and each budget's first trial if the space has it.
        folder: of the search.
        evaluator: trains and measures.
        deadline: of :func:`time.monotonic`; None means never.
        parent: process that this one works for, and does not outlive; None where it works for itself.
    """

    recipe: dict[str, Any]
    options: SearchOptions
    budgets: tuple[int, ...]
    defaults: Mapping[int, dict[str, Any] | None]
    folder: Path
    evaluator: Evaluator
    deadline: float | None = None
    parent: int | None = None

    @property
    def seed(self) -> int:
        return int(self.recipe.get("seed", 0))

    @property
    def storage(self) -> Path:
        return self.folder / "study.journal" if self.options.storage is None else Path(self.options.storage)

    @property
    def workers(self) -> Path:
        return self.storage.with_name(f"{self.storage.name}.workers")

    def out_of_time(self) -> bool:
        alone = self.parent is not None and os.getppid() != self.parent
        return alone or (self.deadline is not None and time.monotonic() >= self.deadline)


@dataclass(frozen=True)
class Claimed:
    """A trial that a process has taken on."""

    trial: Trial
    budget: int
    recipe: dict[str, Any]


@dataclass
class Counts:
    """What became of the trials.

    Attributes:
        done: trained to their end.
        pruned: ended early as hopeless.
        failed: ended by an error of the library's, as a loss that is not finite; or their process was killed twice.
        running: now.
        again: ended from outside, and tried again under another number.
        skipped: never trained, by the reason in short.
        seconds: of all trials, ended ones too.
    """

    done: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    again: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def counted(self) -> int:
        """Trials that count against those that were asked for."""
        return self.done + self.pruned + self.failed + self.running


class Trials:
    """The studies of a search in their storage.

    Args:
        search: whose they are.
    """

    def __init__(self, search: Search) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self.search = optuna, search
        space = Space.read(search.options.space)
        self.spaces = {budget: space.with_groups_of(default) for budget, default in search.defaults.items()}
        storage = open_storage(search.storage)
        kwargs: dict[str, Any] = {"storage": storage, "direction": "maximize", "load_if_exists": True}
        with locked(self._gate):
            self.studies: dict[int, Study] = {
                budget: optuna.create_study(study_name=f"budget {budget}", pruner=self._pruner(), **kwargs)
                for budget in search.budgets
            }
            for budget, study in self.studies.items():
                default = search.defaults[budget]
                first = None if default is None else self.spaces[budget].settings_of(default)
                if first is not None and not study.get_trials(deepcopy=False):
                    study.enqueue_trial(first)

    @property
    def _gate(self) -> Path:
        self.search.workers.mkdir(parents=True, exist_ok=True)
        return self.search.workers / "gate"

    def _pruner(self) -> Any:
        pruners = self._optuna.pruners
        if self.search.options.pruner == "median":
            # While the rate rises, which it does in a fifth of the epochs, accuracies are those of chance.
            patience = max(1, optimization_of(self.search.recipe).epochs // 3)
            return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=patience)
        return pruners.HyperbandPruner() if self.search.options.pruner == "hyperband" else pruners.NopPruner()

    def all(self) -> list[tuple[int, FrozenTrial]]:
        """Return every trial with its budget."""
        return [(b, trial) for b, study in self.studies.items() for trial in study.get_trials(deepcopy=False)]

    def counts(self, budget: int | None = None) -> Counts:
        counts = Counts()
        for of, trial in self.all():
            if budget is not None and of != budget:
                continue
            state, attributes = trial.state.name, trial.user_attrs
            counts.seconds += attributes.get("seconds", 0.0)
            if "skipped" in attributes:
                reason = attributes["skipped"].partition(":")[0]
                counts.skipped[reason] = counts.skipped.get(reason, 0) + 1
            elif state == "RUNNING":
                counts.running += 1
            elif state == "FAIL":
                counts.again += 1
            elif "failed" in attributes:
                counts.failed += 1
            elif state == "PRUNED":
                counts.pruned += 1
            elif state == "COMPLETE":
                counts.done += 1
        return counts

    def points(self) -> list[Point]:
        """Return the finished trials, budget by budget."""
        return [
            Point(
                **{**a["measured"], "curve": tuple(a["measured"]["curve"])},
                trial=trial.number,
                budget=budget,
                settings=dict(trial.params),
                recipe=a["recipe"],
                file=model_file(budget, trial.number),
            )
            for budget, trial in self.all()
            if "measured" in (a := trial.user_attrs) and trial.state.name == "COMPLETE"
        ]

    def claim(self, presence: Presence) -> Claimed | None:
        """Take on the next trial; None when there is none, or no time.

        Raises:
            ConfigError: nothing in the space is possible within a budget.
        """
        # One process at a time: so the count is exact, and whoever is next knows what the others are at.
        with locked(self._gate):
            self._clear_up(presence)
            while not self.search.out_of_time():
                counts = {budget: self.counts(budget) for budget in self.studies}
                open_budgets = [b for b in counts if self._skips_at_the_end(b) < _SKIPS]
                if sum(c.counted for c in counts.values()) >= self.search.options.trials or not open_budgets:
                    return None
                budget = min(open_budgets, key=lambda b: (counts[b].counted, b))
                claimed = self._ask(budget, presence)
                if claimed is not None:
                    return claimed
                if not counts[budget].counted and self._skips_at_the_end(budget) >= _SKIPS:
                    self._nothing_possible(budget)
        return None

    def _clear_up(self, presence: Presence) -> None:
        """Fail what processes that are gone were at, and put it back into the queue."""
        for budget, trial in self.all():
            if trial.state.name == "RUNNING" and not presence.is_alive(trial.user_attrs.get("worker")):
                deaths = trial.user_attrs.get("deaths", 0) + 1
                if deaths > 1:
                    self._end(budget, trial, "PRUNED", failed="its process was killed twice", deaths=deaths)
                else:
                    self._again(budget, trial, deaths)

    def _again(self, budget: int, trial: FrozenTrial, deaths: int) -> None:
        self.studies[budget].tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        if trial.params:
            self.studies[budget].enqueue_trial(trial.params, user_attrs={"deaths": deaths})

    def _end(self, budget: int, trial: Trial | FrozenTrial, state: str, **attributes: Any) -> None:
        study = self.studies[budget]
        for name, value in attributes.items():
            study._storage.set_trial_user_attr(trial._trial_id, name, json.loads(json.dumps(value)))
        study.tell(trial.number, state=self._optuna.trial.TrialState[state])

    def _skips_at_the_end(self, budget: int) -> int:
        count = 0
        for trial in reversed(self.studies[budget].get_trials(deepcopy=False)):
            if "skipped" in trial.user_attrs:
                count += 1
            elif trial.state.name not in ("FAIL", "WAITING"):
                break
        return count

    def _nothing_possible(self, budget: int) -> None:
        reasons = Counter(t.user_attrs.get("skipped", "") for of, t in self.all() if of == budget)
        ((reason, _),) = reasons.most_common(1)
        raise ConfigError(
            f"none of {_SKIPS} configurations from this space can be trained within a budget of {budget:,} parameters; "
            f"most often: {reason}"
        )

    def _ask(self, budget: int, presence: Presence) -> Claimed | None:
        study = self.studies[budget]
        before = study.get_trials(deepcopy=False)
        # What was ended from outside does not count: so an interrupted search draws what an undisturbed one does.
        counted = sum(trial.state.name not in ("FAIL", "WAITING") for trial in before)
        study.sampler = self._sampler(derive_seed(self.search.seed, "sampler", budget, counted) % 2**32)
        trial = study.ask()
        trial.set_user_attr("worker", presence.name)
        settings = self.spaces[budget].suggest(trial)
        try:
            recipe = with_settings(self.search.recipe, settings)
            size = self.search.evaluator.parameters(recipe)
        except AdntnError as error:
            self._end(budget, trial, "PRUNED", skipped=f"impossible: {error}")
            return None
        if size > budget:
            self._end(budget, trial, "PRUNED", skipped=f"over the budget: the model has {size:,} parameters")
            return None
        twin = next((t for t in before if t.user_attrs.get("recipe") == recipe and t.state.name != "FAIL"), None)
        if twin is not None:
            self._end(budget, trial, "PRUNED", skipped=f"known already: equal to trial {twin.number}")
            return None
        trial.set_user_attr("parameters", size)
        trial.set_user_attr("recipe", recipe)
        return Claimed(trial, budget, recipe)

    def _sampler(self, seed: int) -> Any:
        # A third of the trials is drawn blindly before the model of what is good is trusted.
        share = self.search.options.trials / len(self.studies)
        return self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=int(min(10, max(3, share / 3))))

    def run(self, claimed: Claimed) -> None:
        """Train and measure a trial, and write down what became of it."""
        search, trial, budget = self.search, claimed.trial, claimed.budget
        started = time.perf_counter()

        def report(epoch: int, epochs: int, accuracy: float) -> None:
            trial.report(accuracy, epoch)
            if epoch < epochs and search.out_of_time():
                raise OutOfTime
            if epoch < epochs and trial.should_prune():
                raise self._optuna.TrialPruned

        file = search.folder / model_file(budget, trial.number)
        file.parent.mkdir(parents=True, exist_ok=True)
        outcome: dict[str, Any] = {}
        measured: Measured | None = None
        try:
            measured = search.evaluator.evaluate(claimed.recipe, search.seed, file, report)
            outcome = {"measured": measured.to_dict()}
        except self._optuna.TrialPruned:
            pass
        except (OutOfTime, TrainingStopped, KeyboardInterrupt) as ended:
            trial.set_user_attr("seconds", time.perf_counter() - started)
            with locked(self._gate):
                self._again(budget, self._frozen(trial, budget), trial.user_attrs.get("deaths", 0))
            if isinstance(ended, OutOfTime):
                return
            raise
        except AdntnError as error:
            outcome = {"failed": f"{type(error).__name__}: {error}"}
        outcome["seconds"] = time.perf_counter() - started
        for name, value in outcome.items():
            trial.set_user_attr(name, json.loads(json.dumps(value)))
        if measured is None:
            self._end(budget, trial, "PRUNED")
        else:
            self.studies[budget].tell(trial, measured.validation_accuracy)

    def _frozen(self, trial: Trial, budget: int) -> FrozenTrial:
        return self.studies[budget].get_trials(deepcopy=False)[trial.number]


def model_file(budget: int, trial: int) -> str:
    """Return a trained model's file, relative to its search folder."""
    return f"models/{budget}-{trial:02d}.safetensors"


def work(search: Search, after: Callable[[Trials], None] = lambda trials: None) -> None:
    """Try configurations until there are enough or the time is over; any number of processes may do so at once.

    Args:
        search: what to search.
        after: called after each trial.
    """
    trials = Trials(search)
    with Presence(search.workers) as presence:
        while (claimed := trials.claim(presence)) is not None:
            trials.run(claimed)
            after(trials)
