"""The options of a search, and the recipe that they stand in."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adntn.errors import ConfigError, check_choice
from adntn.experiments.search.points import MEASURES
from adntn.experiments.search.space import Space, config_of, optimization_of
from adntn.options import Options, check_flag, check_number, check_whole

__all__ = ["PRUNERS", "SearchOptions", "read_recipe"]

PRUNERS = ("median", "hyperband", "none")


@dataclass(frozen=True, kw_only=True)
class SearchOptions(Options):
    """How to search: the ``[search]`` table of a recipe.

    Attributes:
        trials: configurations that are trained, pruned ones among them, over all budgets; those that are skipped
            because they are impossible or too large do not count.
        minutes: of searching, after which no trial goes on; None means until the trials are done.
        processes: that try configurations side by side on this machine.
        budget: parameters of the whole model at most, or a list of such sizes, each of which is searched for the best
            accuracy on its own; None means as many as the recipe has as it stands.
        space: the knobs (see :mod:`adntn.experiments.search.space`); None means the usual ones.
        pruner: what stops hopeless trials by the validation accuracy after an epoch: ``"median"``, ``"hyperband"``, or
            ``"none"``.
        storage: file that the processes share; None means ``study.journal`` in the search folder.
        seeds: fresh ones, with which the best configuration and the default one of the same budget are trained in the
            end; 0 leaves the comparison out.
        finalists: the best trials of a budget that, with the default, are trained with as many other seeds, by which
            one of them is chosen; 1 takes the best trial at its word.
        front: the measures that decide which points are on the front.
        energy: whether to measure it, where codecarbon is installed.

    Raises:
        ConfigError: an option is impossible.
    """

    trials: int = 30
    minutes: float | None = None
    processes: int = 1
    budget: int | tuple[int, ...] | None = None
    space: dict[str, Any] | None = None
    pruner: str = "median"
    storage: str | None = None
    seeds: int = 3
    finalists: int = 3
    front: tuple[str, ...] = ("parameters", "validation_accuracy")
    energy: bool = True

    what = "a search"

    def __post_init__(self) -> None:
        check_whole("trials", self.trials, 1)
        check_whole("processes", self.processes, 1)
        check_whole("seeds", self.seeds, 0)
        check_whole("finalists", self.finalists, 1)
        if self.minutes is not None:
            check_number("minutes", self.minutes, above=0)
        check_choice("pruner", self.pruner, PRUNERS)
        check_flag("energy", self.energy)
        if self.budget is not None:
            budgets = self.budget if isinstance(self.budget, tuple) else (self.budget,)
            for each in budgets:
                check_whole("budget", each, 1)
            if not budgets or len(set(budgets)) != len(budgets):
                raise ConfigError(f"budget={self.budget!r} is not possible; give a number, or several, each once.")
            object.__setattr__(self, "budget", tuple(sorted(budgets)))
        if not isinstance(self.front, tuple) or not self.front:
            raise ConfigError(f"front={self.front!r} is not possible; give a list of some of {', '.join(MEASURES)}.")
        for name in self.front:
            check_choice("front", name, MEASURES)
        if self.storage is not None and not (isinstance(self.storage, str) and self.storage):
            raise ConfigError(f"storage={self.storage!r} is not the name of a file.")
        Space.read(self.space)


def read_recipe(path: Path) -> tuple[dict[str, Any], SearchOptions]:
    """Read a search recipe: a training recipe with a ``[search]`` table.

    Returns:
        The recipe without that table, as plain values, and the table.

    Raises:
        ConfigError: the file cannot be read, or what stands in it is impossible.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from None
    options = SearchOptions.from_dict(values.pop("search", {}))
    config_of(values), optimization_of(values)
    return values, options
