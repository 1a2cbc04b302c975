"""Whether the search changed anything: its best configuration against the default one of the same size, fresh seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adntn.checkpoint import writing
from adntn.errors import AdntnError, TrainingStopped
from adntn.experiments.search.points import Measured, Point
from adntn.experiments.search.space import with_settings
from adntn.experiments.search.study import Search
from adntn.training.seeds import derive_seed

__all__ = ["Comparison", "Trained", "compare", "default_for"]

_MOST_GROUPS = 256


@dataclass(frozen=True)
class Trained:
    """One network of the comparison.

    Attributes:
        kind: ``"searched"``, ``"default"`` or ``"finalist"``.
        budget: parameters of the whole model at most.
        seed: of its start and its batches.
        recipe: that it was trained by.
        measured: what it came to; None where its training failed.
        failed: why.
    """

    kind: str
    budget: int
    seed: int
    recipe: dict[str, Any]
    measured: Measured | None
    failed: str = ""


@dataclass(frozen=True)
class Comparison:
    """The best configuration of a budget and the default one, over the same fresh seeds.

    Attributes:
        budget: parameters of the whole model at most.
        trial: the best configuration's name, which may be ``"default"``; None where no trial was finished.
        searched: test accuracy a seed; None where its training failed.
        default: likewise; empty where the default configuration does not fit into the budget.
        searched_parameters: of the whole model.
        default_parameters: likewise.
        searched_seconds: of training, mean.
        default_seconds: likewise.
        same: whether both are one configuration.
    """

    budget: int
    trial: str | None
    searched: tuple[float | None, ...]
    default: tuple[float | None, ...]
    searched_parameters: int | None
    default_parameters: int | None
    searched_seconds: float | None
    default_seconds: float | None
    same: bool

    @property
    def differences(self) -> tuple[float, ...]:
        """Searched less default, seed by seed."""
        pairs = zip(self.searched, self.default, strict=False)
        return tuple(a - b for a, b in pairs if a is not None and b is not None)

    @property
    def failures(self) -> int:
        """Trainings that failed."""
        return (*self.searched, *self.default).count(None)

    def to_dict(self) -> dict[str, Any]:
        both = {"difference": spread(self.differences), "differences": self.differences}
        return asdict(self) | {"searched_mean": spread(self.searched), "default_mean": spread(self.default)} | both


def spread(given: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Return mean and standard deviation (n - 1) of what is there; None for what is not."""
    values = [value for value in given if value is not None]
    if not values:
        return None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def default_for(
    recipe: Mapping[str, Any],
    budget: int,
    parameters: Callable[[Mapping[str, Any]], int],
) -> dict[str, Any] | None:
    """Return the recipe's own configuration, as large by its groups as a budget allows.

    Where one group is too large already, the root is made shorter.

    Args:
        recipe: as it stands.
        budget: parameters of the whole model at most.
        parameters: counts them.

    Returns:
        The recipe; None where nothing of it fits.
    """

    def largest(candidates: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
        fitting: list[tuple[int, dict[str, Any]]] = []
        for settings in candidates:
            try:
                made = with_settings(recipe, settings)
                fitting.append((parameters(made), made))
            except AdntnError:
                continue
        fitting = [each for each in fitting if each[0] <= budget]
        return max(fitting, key=lambda each: each[0])[1] if fitting else None

    found = largest({"groups": count} for count in range(1, _MOST_GROUPS + 1))
    return found or largest({"groups": 1, "latent_order": order} for order in range(1, 8))


def compare(
    search: Search, points: Sequence[Point], tell: Callable[[str], None] = lambda text: None
) -> list[Comparison]:
    """Train best and default configuration of every budget on fresh seeds; what is trained already is not again.

    Which one is best is decided among the finalists, by their mean validation accuracy over other seeds: the highest of
    many trials owes a part of its rank to luck.

    Args:
        search: that is finished.
        points: of it.
        tell: called with each network's name before it is trained.
    """
    networks = _Networks(search, tell)
    found: list[Comparison] = []
    for budget in search.budgets:
        name, recipe = _best(search, budget, points, networks)
        default = search.defaults[budget]
        runs = {
            "searched": networks.over("comparison", "searched", budget, recipe),
            "default": networks.over("comparison", "default", budget, default),
        }
        found.append(_comparison(budget, name, runs, same=recipe == default))
    return found


def _best(
    search: Search, budget: int, points: Sequence[Point], networks: _Networks
) -> tuple[str | None, dict[str, Any] | None]:
    """Return name and recipe of the best configuration of a budget; the default's may be it."""
    fitting = [point for point in points if point.parameters <= budget]
    fitting.sort(key=lambda point: (-point.validation_accuracy, point.parameters))
    finalists = {point.name: point.recipe for point in fitting[: search.options.finalists]}
    if not finalists:
        return None, None
    default = search.defaults[budget]
    if len(finalists) > 1 and default is not None and default not in finalists.values():
        finalists["default"] = default
    if len(finalists) == 1:
        return next(iter(finalists.items()))

    def score(name: str) -> float:
        runs = networks.over("finalists", "finalist", budget, finalists[name])
        return statistics.mean(0.0 if run.measured is None else run.measured.validation_accuracy for run in runs)

    best = max(finalists, key=score)
    return best, finalists[best]


class _Networks:
    """The networks that are trained after a search, each kept as soon as it is trained."""

    def __init__(self, search: Search, tell: Callable[[str], None]) -> None:
        self.search, self.tell = search, tell
        self._file = search.folder / "comparison.json"
        self._rows: list[dict[str, Any]] = json.loads(self._file.read_text()) if self._file.is_file() else []

    def over(self, purpose: str, kind: str, budget: int, recipe: dict[str, Any] | None) -> list[Trained]:
        """Train a recipe once with each of a purpose's seeds."""
        # Far from the seed that every trial had, and from those of a user's other runs.
        search = self.search
        seeds = [derive_seed(search.seed, purpose, number) % 2**31 for number in range(search.options.seeds)]
        return [] if recipe is None else [self._trained(kind, budget, seed, recipe) for seed in seeds]

    def _trained(self, kind: str, budget: int, seed: int, recipe: dict[str, Any]) -> Trained:
        for row in self._rows:
            if row["seed"] == seed and row["recipe"] == recipe:  # of either kind: they may be one
                measured = None if row["measured"] is None else Measured.from_dict(row["measured"])
                return Trained(kind, budget, seed, recipe, measured, row["failed"])
        self.tell(f"{kind}, budget {budget:,}, seed {seed}")
        path = self.search.folder / "models" / f"{kind}-{budget}-seed{seed}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        measured, failed = None, ""
        try:
            measured = self.search.evaluator.evaluate(recipe, seed, path, lambda epoch, epochs, accuracy: None)
        except TrainingStopped:
            raise
        except AdntnError as error:
            failed = f"{type(error).__name__}: {error}"
        trained = Trained(kind, budget, seed, recipe, measured, failed)
        self._rows.append(asdict(trained))
        with writing(self._file) as temporary:
            temporary.write_text(json.dumps(self._rows, indent=1) + "\n")
        return trained


def _comparison(budget: int, name: str | None, runs: Mapping[str, Sequence[Trained]], same: bool) -> Comparison:
    def values(kind: str, name: str) -> tuple[Any, ...]:
        return tuple(None if run.measured is None else getattr(run.measured, name) for run in runs[kind])

    def mean(kind: str, name: str) -> Any:
        found = spread(values(kind, name))
        return None if found is None else found[0]

    return Comparison(
        budget=budget,
        trial=name,
        searched=values("searched", "test_accuracy"),
        default=values("default", "test_accuracy"),
        searched_parameters=_parameters(runs["searched"]),
        default_parameters=_parameters(runs["default"]),
        searched_seconds=mean("searched", "train_seconds"),
        default_seconds=mean("default", "train_seconds"),
        same=same,
    )


def _parameters(runs: Sequence[Trained]) -> int | None:
    return next((run.measured.parameters for run in runs if run.measured is not None), None)
