"""What a generator can represent: every topology, order, activation and size, fitted to weights of several kinds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adntn import activations
from adntn.checkpoint import writing
from adntn.errors import ConfigError, TrainingStopped, check_choice
from adntn.experiments.reproduce.fit_cells import BASELINE, SIZES, Cell, Fitting, fit_cell, wanted_cells
from adntn.experiments.reproduce.fit_targets import TARGETS, TRAINED, Target, make_target
from adntn.experiments.reproduce.rows import Folder
from adntn.options import Options, check_number, check_whole
from adntn.tensorize import ORDERS
from adntn.topology import TREES
from adntn.training.folder import RunFolderError, describe_machine

__all__ = ["CellFolder", "ExpressivitySettings", "Fits", "ToldFit", "run_expressivity"]

_TOPOLOGIES = (*TREES, "brickwall")


@dataclass(frozen=True, kw_only=True)
class ExpressivitySettings(Options):
    """What is fitted to what, and how.

    Attributes:
        width: share of the reference models' channels; see :data:`~adntn.experiments.reproduce.fit_targets.TARGETS`.
        targets: by name, of those.
        topologies: trees and the brick wall; low rank, tensor train and subspace are always beside them.
        orders: of the modes.
        activations: between levels.
        sizes: by name, of :data:`~adntn.experiments.reproduce.fit_cells.SIZES`.
        restarts: random starts of each fit, of which the best after a short trial goes on.
        steps: of Adam.
        polish: iterations of L-BFGS after them.
        seeds: of random targets and of the starts.

    Raises:
        ConfigError: an option is impossible.
    """

    width: float = 0.25
    targets: tuple[str, ...] = tuple(TARGETS)
    topologies: tuple[str, ...] = _TOPOLOGIES
    orders: tuple[str, ...] = ("blocked", "paired", "block_paired", "flat")
    activations: tuple[str, ...] = ("identity", "elu", "sine(omega=3)", "sine(omega=10)")
    sizes: tuple[str, ...] = tuple(SIZES)
    restarts: int = 2
    steps: int = 100
    polish: int = 20
    seeds: tuple[int, ...] = (0,)

    what = "the expressivity experiment"

    def __post_init__(self) -> None:
        check_number("width", self.width, above=0)
        known = {"targets": tuple(TARGETS), "topologies": _TOPOLOGIES, "orders": ORDERS, "sizes": tuple(SIZES)}
        for name in (*known, "activations", "seeds"):
            given = getattr(self, name)
            if not isinstance(given, tuple) or not given or len(set(given)) < len(given):
                raise ConfigError(f"{name}={given!r} is not possible; name at least one, and none twice.")
            for each in given if name in known else ():
                check_choice(name, each, known[name])
        object.__setattr__(self, "activations", tuple(map(activations.canonical, self.activations)))
        for seed in self.seeds:
            check_whole("seeds", seed, 0)
        check_whole("restarts", self.restarts, 1)
        check_whole("steps", self.steps, 1)
        check_whole("polish", self.polish, 0)


@dataclass(frozen=True)
class Fits:
    """What was fitted to one target with one seed.

    Attributes:
        seed: of the target and of the starts.
        facts: of the target: name, shape, ranks, what the best weights of each rank leave.
        cells: what was fitted to it.
    """

    seed: int
    facts: dict[str, Any]
    cells: list[Cell]

    @property
    def target(self) -> str:
        """The target's name."""
        return str(self.facts["target"])


@dataclass(frozen=True)
class ToldFit:
    """What is said while fits are made.

    Attributes:
        target: its name.
        seed: of it.
        number: of this fit among those asked for, from 1.
        total: of those.
        cell: what it came to; None where the target is left out.
        earlier: whether that was known before.
        note: why the target is left out.
    """

    target: str
    seed: int
    number: int
    total: int
    cell: Cell | None = None
    earlier: bool = False
    note: str = ""


class CellFolder(Folder):
    """The folder of the experiment. Every file in it is whole at any time.

    settings.json      what was asked for
    environment.json   where it was begun
    cells/             a file of JSON lines a target and seed: what the target is, then a line a fit
    checkpoints/       the locks of the processes that fit
    """

    def claim_for(self, settings: ExpressivitySettings) -> None:
        """Make the folder this experiment's, or make sure that it is.

        Raises:
            RunFolderError: it holds another experiment, other settings, or something else.
        """
        self._claim({"experiment": "expressivity", **settings.to_dict()}, describe_machine())

    def fits_file(self, target: str, seed: int) -> Path:
        """Return where the fits to a target and seed stand, or will."""
        return self.path / "cells" / f"{target}-seed{seed}.jsonl"

    def fits(self, target: str, seed: int) -> Fits | None:
        """Read what is fitted to a target and seed, or None where nothing is.

        Raises:
            RunFolderError: the file is damaged.
        """
        file = self.fits_file(target, seed)
        if not file.is_file():
            return None
        try:
            facts, *cells = map(json.loads, file.read_text().splitlines())
            return Fits(seed, dict(facts), [Cell.from_dict(each) for each in cells])
        except ValueError as error:
            raise RunFolderError(f"{file} cannot be read: {error}") from None

    def all_fits(self) -> list[Fits]:
        """Read all fits, in the order of the settings' targets and seeds.

        Raises:
            RunFolderError: the folder holds no such experiment, or a file is damaged.
        """
        settings = self.settings()
        if settings.get("experiment") != "expressivity":
            raise RunFolderError(f"{self.path} holds no expressivity experiment, but {settings.get('experiment')!r}.")
        found = [self.fits(target, seed) for target in settings["targets"] for seed in settings["seeds"]]
        return [fits for fits in found if fits is not None]

    def write(self, fits: Fits) -> None:
        """Write what is fitted to a target and seed."""
        file = self.fits_file(fits.target, fits.seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [fits.facts, *(cell.to_dict() for cell in fits.cells)]
        with writing(file) as temporary:
            temporary.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def run_expressivity(
    settings: ExpressivitySettings,
    folder: Path,
    *,
    models: Path | None = None,
    deadline: float | None = None,
    threads: int | None = None,
    tell: Callable[[ToldFit], None] = lambda told: None,
) -> list[Fits]:
    """Make the fits that are not made yet: baselines first, then all targets at one size after the other.

    Several processes may work on one folder: a target that another one fits to is passed over.

    Args:
        settings: what to fit to what.
        folder: in which the fits are kept; new, or of the same settings.
        models: where trained networks are kept, as :func:`~adntn.experiments.reproduce.fit_targets.make_target`'s;
            without it, trained targets are left out, and the same call with it adds them.
        deadline: of :func:`time.monotonic`, at which to stop; None means never.
        threads: of torch, while it runs; None leaves them.
        tell: is told the progress.

    Returns:
        All that is in the folder.

    Raises:
        TrainingStopped: the time was up. Run again to go on.
        RunFolderError: the folder is another experiment's, or its trained targets are of other networks.
        ConfigError: there are no trained networks where they should be.
    """
    kept = CellFolder(folder)
    kept.claim_for(settings)
    how = Fitting(settings.restarts, settings.steps, settings.polish)
    targets: dict[tuple[str, int], Target] = {}
    for seed in settings.seeds:
        for name in settings.targets:
            if name in TRAINED and models is None:
                tell(ToldFit(name, seed, 0, 0, note="no trained network is given"))
            else:
                targets[name, seed] = make_target(name, settings.width, seed, models)
    todo = {
        (size, name, seed): wanted_cells(
            tuple(target.weight.shape), size, settings.topologies, settings.orders, settings.activations
        )
        for size in (BASELINE, *settings.sizes)
        for (name, seed), target in targets.items()
    }
    number, total = 0, sum(map(len, todo.values()))
    with _threads(threads):
        for (_, name, seed), wanted in todo.items():
            with kept.holding(name, seed) as mine:
                if not mine:
                    number += len(wanted)
                    continue
                target = targets[name, seed]
                fits = _begun(kept, target, seed)
                known = {cell.key: cell for cell in fits.cells}
                for each in wanted:
                    number += 1
                    cell = known.get(each.key)
                    if cell is None:
                        if deadline is not None and time.monotonic() >= deadline:
                            raise TrainingStopped(
                                f"the time was over before fit {number} of {total}, {' '.join(each.key[:4])} to "
                                f"{name}; what is made is in {folder}; the same command goes on from there."
                            )
                        cell = fit_cell(each, target, how, seed)
                        fits.cells.append(cell)
                        kept.write(fits)
                    tell(ToldFit(name, seed, number, total, cell, earlier=each.key in known))
    return kept.all_fits()


def _begun(folder: CellFolder, target: Target, seed: int) -> Fits:
    """Return what is fitted to a target already.

    Raises:
        RunFolderError: that was to the weights of another trained network.
    """
    facts = target.facts()
    fits = folder.fits(target.name, seed)
    if fits is None:
        return Fits(seed, facts, [])
    if fits.facts["digest"] != facts["digest"]:
        raise RunFolderError(
            f"{folder.fits_file(target.name, seed)} has fits to another network's weights; name that one, or choose "
            "another folder."
        )
    return fits


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count if count is not None else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
