"""What the expressivity experiment came to: tables, a file of all fits, and plots."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from adntn.checkpoint import writing
from adntn.experiments.reproduce.expressivity import CellFolder, Fits
from adntn.experiments.reproduce.fit_cells import Cell
from adntn.report.figures import NONE, whole
from adntn.report.pages import Page, Picture, Section, Table, to_markdown
from adntn.report.reproduce.expressivity_plots import captured_plot, errors_plot, ranks_plot
from adntn.training.folder import RunFolderError

__all__ = [
    "RANKS",
    "activations_table",
    "equal_count_table",
    "gains_table",
    "headline",
    "orders_table",
    "own_count_table",
    "ranks_table",
    "read_fits",
    "starts_table",
    "targets_table",
    "write_expressivity",
]

#: Counts that are compared at: as many numbers as low rank of these ranks stores.
RANKS = (1, 4, 16)
_BASELINES = {"lowrank": "low rank", "tt": "tt", "subspace": "subspace"}


def write_expressivity(folder: Path) -> str:
    """Write ``table.md``, ``cells.csv`` and ``plots/`` of what is fitted so far, each whole or not at all.

    Args:
        folder: of :func:`adntn.experiments.reproduce.expressivity.run_expressivity`.

    Returns:
        What it came to, in a sentence or two.

    Raises:
        RunFolderError: it is no such folder, is damaged, or has no fits yet.
    """
    found = read_fits(folder)
    _write_csv(found, folder / "cells.csv")
    pictures = {name: folder / "plots" / f"{name}.png" for name in ("errors", "captured", "ranks")}
    errors_plot(found, pictures["errors"])
    captured_plot(found, pictures["captured"])
    ranks_plot(found, pictures["ranks"])
    equal = tuple(
        part
        for rank in RANKS
        for part in (f"At most as many numbers as low rank {rank} stores:", equal_count_table(found, rank))
    )
    page = Page(
        "What a generator can represent",
        f"{headline(found)} Errors are ‖W − target‖ / ‖target‖ in Frobenius norms; 1 is what zero has.",
        (
            Section("What is fitted to", (targets_table(found),)),
            Section("The nearest at equal count", equal),
            Section("Error against numbers", (Picture(pictures["errors"], "error against numbers, by target"),)),
            Section(
                "Captured, for its numbers",
                (
                    gains_table(found),
                    own_count_table(found),
                    Picture(pictures["captured"], "captured share against numbers, by target"),
                ),
            ),
            Section("Activations", (activations_table(found),)),
            Section("Orders", (orders_table(found),)),
            Section("Starts", (starts_table(found),)),
            Section("Ranks", (ranks_table(found), Picture(pictures["ranks"], "ranks reached against their bounds"))),
        ),
    )
    with writing(folder / "table.md") as temporary:
        temporary.write_text(to_markdown(page, folder))
    return headline(found)


def read_fits(folder: Path) -> list[Fits]:
    """Read the fits of a folder.

    Raises:
        RunFolderError: it is no such folder, is damaged, or has no fits yet.
    """
    found = [fits for fits in CellFolder(folder).all_fits() if fits.cells]
    if not found:
        raise RunFolderError(f"{folder} has no fits yet.")
    return found


def headline(found: Sequence[Fits]) -> str:
    """Say in a sentence or two what came out, the unwelcome too."""
    count = sum(len(fits.cells) for fits in found)
    wins: dict[str, list[str]] = {"tree": [], "baseline": []}
    for fits in found:
        best = _nearest(fits, RANKS[1])
        if best is not None:
            wins["baseline" if best.is_baseline else "tree"].append(fits.target)
    ours, theirs = (", ".join(dict.fromkeys(wins[kind])) or "none" for kind in ("tree", "baseline"))
    return (
        f"{count:,} fits to {len(_targets(found))} targets. With as many numbers as low rank {RANKS[1]} has, a tree or "
        f"brick wall comes nearest to {ours}; a baseline to {theirs}."
    )


# --- tables -----------------------------------------------------------------------------------------------------------


def targets_table(found: Sequence[Fits]) -> Table:
    """Return what the targets are, and what the best weights of some ranks leave of them (Eckart and Young)."""
    rows = []
    for name in _targets(found):
        facts = [fits.facts for fits in found if fits.target == name]
        first = facts[0]
        rows.append(
            (
                name,
                first["says"],
                "×".join(map(str, first["shape"])),
                whole(first["rank"]),
                _mean([each["stable_rank"] for each in facts], 1),
                *(_mean([_svd_error(each, rank) for each in facts]) for rank in RANKS),
            )
        )
    titles = ("target", "what it is", "shape", "rank", "stable rank", *(f"best of rank {rank}" for rank in RANKS))
    return Table(titles, tuple(rows), words=("what it is",))


def equal_count_table(found: Sequence[Fits], rank: int) -> Table:
    """Return the least error of each topology and baseline with at most the numbers that low rank of a rank stores."""
    names = _targets(found)

    def cell(family: str, name: str) -> str:
        known = [error for fits in found if fits.target == name and (error := _least(fits, rank, family)) is not None]
        return _mean(known) if known else NONE

    rows = [("numbers", *(whole(_numbers(_first(found, name), rank)) for name in names))]
    rows += [(_title(family), *(cell(family, name) for name in names)) for family in _families(found)]
    best = []
    for name in names:
        nearest = [each for fits in found if fits.target == name and (each := _nearest(fits, rank)) is not None]
        best.append(", ".join(dict.fromkeys(_title(each.topology) for each in nearest)) or NONE)
    return Table(("", *names), (*rows, ("nearest", *best)))


def gains_table(found: Sequence[Fits]) -> Table:
    """Return the captured share of the squared norm over the share of numbers, medians over all fits.

    1 is what a random subspace has, by its very nature: it captures a share as large as its own.
    """
    rows = []
    for family in _families(found):
        cells = []
        for name in _targets(found):
            gains = [
                _captured(cell) * _size(fits) / cell.numbers
                for fits in found
                if fits.target == name
                for cell in fits.cells
                if cell.topology == family
            ]
            cells.append(f"{statistics.median(gains):.2f}" if gains else NONE)
        rows.append((_title(family), *cells))
    return Table(("captured over stored", *_targets(found)), tuple(rows))


def own_count_table(found: Sequence[Fits]) -> Table:
    """Return what the best of each topology and size captures over what low rank captures with just as many numbers.

    Low rank is taken between two ranks in proportion, and below the first as a part of it.
    """
    kinds = list(dict.fromkeys((cell.topology, cell.size) for fits in found for cell in _ours(fits)))
    rows = []
    for topology, size in sorted(kinds, key=lambda kind: _families(found).index(kind[0])):
        cells = []
        for name in _targets(found):
            ratios = []
            for fits in found:
                mine = [cell for cell in _ours(fits) if (cell.topology, cell.size) == (topology, size)]
                if fits.target == name and mine:
                    best = min(mine, key=_error)
                    ratios.append(_captured(best) / _low_rank(fits, best.numbers))
            cells.append(_mean(ratios, 2) if ratios else NONE)
        rows.append((topology, size, *cells))
    return Table(("captured over low rank's", "size", *_targets(found)), tuple(rows), words=("size",))


def activations_table(found: Sequence[Fits]) -> Table:
    """Return what an activation makes of the captured share against none, all else alike."""
    return _changes(found, "activation", lambda cell: cell.activation, "identity")


def orders_table(found: Sequence[Fits]) -> Table:
    """Return what an order makes of the captured share against the blocked one, all else alike."""
    return _changes(found, "order", lambda cell: cell.order, "blocked")


def _changes(found: Sequence[Fits], title: str, what: Callable[[Cell], str], base: str) -> Table:
    """Return, by target, the median ratio of captured shares, and the share of fits that come nearer."""
    known = list(dict.fromkeys(what(cell) for fits in found for cell in _ours(fits)))
    rows = []
    for value in [each for each in known if each != base]:
        cells = []
        for name in _targets(found):
            pairs = [pair for fits in found if fits.target == name for pair in _pairs(fits, what, base, value)]
            if not pairs:
                cells.append(NONE)
                continue
            ratio = statistics.median(_captured(other) / _captured(one) for one, other in pairs)
            nearer = sum(other.error < one.error for one, other in pairs) / len(pairs)
            cells.append(f"{ratio:.2f} ({100 * nearer:.0f} %)")
        rows.append((value, *cells))
    return Table((f"{title}, against {base}", *_targets(found)), tuple(rows))


def _pairs(fits: Fits, what: Callable[[Cell], str], base: str, value: str) -> Iterator[tuple[Cell, Cell]]:
    def others(cell: Cell) -> tuple[str, ...]:
        return tuple(part for part in (cell.size, cell.topology, cell.order, cell.activation) if part != what(cell))

    bases = {others(cell): cell for cell in _ours(fits) if what(cell) == base}
    for cell in _ours(fits):
        if what(cell) == value and others(cell) in bases:
            yield bases[others(cell)], cell


def starts_table(found: Sequence[Fits]) -> Table:
    """Return how often each start ended nearest, of the fits that had all of them, per cent."""
    names = ("isometric", "conformal", "decomposed")
    rows = []
    for name in _targets(found):
        tried = [cell for fits in found if fits.target == name for cell in _ours(fits)]
        full = [cell for cell in tried if {each.rpartition("-")[0] or each for each in cell.starts} == {*names}]
        shares = [f"{100 * sum(cell.start == each for cell in full) / len(full):.0f}" for each in names] if full else []
        rows.append((name, whole(len(full)), *(shares or [NONE] * len(names))))
    return Table(("target", "fits", *(f"{name} %" for name in names)), tuple(rows))


def ranks_table(found: Sequence[Fits], target: str = "gaussian") -> Table:
    """Return ranks and stable ranks of the fits to one target, the smallest and the middle size, beside their bounds.

    Args:
        found: all fits.
        target: its name; the first one that there is, if there are no fits to it.
    """
    fits = _first(found, target if target in _targets(found) else _targets(found)[0])
    activations = list(dict.fromkeys(cell.activation for cell in _ours(fits)))
    by: dict[tuple[str, str, str], dict[str, Cell]] = {}
    for cell in _ours(fits):
        if cell.size in ("base", "wide"):
            by.setdefault((cell.order, cell.topology, cell.size), {})[cell.activation] = cell
    rows = []
    for key, cells in sorted(by.items()):
        linear = cells.get("identity")
        nonlinear = [cell for name, cell in cells.items() if name != "identity"]
        first = next(iter(cells.values()))
        rows.append(
            (
                *key,
                whole(first.numbers),
                NONE if linear is None else whole(linear.rank),
                whole(first.linear_bound),
                _span([cell.rank for cell in nonlinear]),
                whole(first.rank_bound),
                *(f"{cells[name].stable_rank:.1f}" if name in cells else NONE for name in activations),
            )
        )
    titles = ("order", "topology", "size", "numbers", "rank, identity", "Eq. 20 allows", "rank, others")
    stable = (f"stable rank, {name}" for name in activations)
    return Table((*titles, "the readout allows", *stable), tuple(rows), words=("topology", "size"))


# --- what tables are made of ------------------------------------------------------------------------------------------


def _targets(found: Sequence[Fits]) -> list[str]:
    return list(dict.fromkeys(fits.target for fits in found))


def _families(found: Sequence[Fits]) -> list[str]:
    """Return the topologies, trees first."""
    every = dict.fromkeys(cell.topology for fits in found for cell in fits.cells)
    return sorted(every, key=lambda name: name in _BASELINES)


def _title(family: str) -> str:
    return _BASELINES.get(family, family)


def _ours(fits: Fits) -> Iterable[Cell]:
    return (cell for cell in fits.cells if not cell.is_baseline)


def _first(found: Sequence[Fits], name: str) -> Fits:
    return next(fits for fits in found if fits.target == name)


def _size(fits: Fits) -> int:
    out, columns = _sides(fits)
    return out * columns


def _sides(fits: Fits) -> tuple[int, int]:
    out, *others = fits.facts["shape"]
    columns = 1
    for side in others:
        columns *= side
    return out, columns


def _numbers(fits: Fits, rank: int) -> int:
    """Return how many numbers low rank of a rank stores."""
    return rank * sum(_sides(fits))


def _nearest(fits: Fits, rank: int) -> Cell | None:
    cells = [cell for cell in fits.cells if cell.numbers <= _numbers(fits, rank)]
    return min(cells, key=_error, default=None)


def _least(fits: Fits, rank: int, family: str) -> float | None:
    most = _numbers(fits, rank)
    return min((cell.error for cell in fits.cells if cell.topology == family and cell.numbers <= most), default=None)


def _error(cell: Cell) -> float:
    return cell.error


def _captured(cell: Cell) -> float:
    """Return the captured share of the target's squared norm, not quite nothing where it is nothing."""
    return max(1.0 - cell.error**2, 1e-12)


def _low_rank(fits: Fits, numbers: int) -> float:
    """Return the captured share of the best low rank of so many numbers, between two ranks in proportion."""
    rank, rest = divmod(numbers, sum(_sides(fits)))
    below, above = (1.0 - _svd_error(fits.facts, each) ** 2 for each in (rank, rank + 1))
    return below + (above - below) * rest / sum(_sides(fits))


def _svd_error(facts: dict[str, list[float]], rank: int) -> float:
    errors = facts["svd_errors"]
    return errors[min(rank, len(errors) - 1)]


def _mean(values: Sequence[float], digits: int = 3) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _span(values: Sequence[int]) -> str:
    if not values:
        return NONE
    return whole(values[0]) if min(values) == max(values) else f"{min(values):,}-{max(values):,}"


def _write_csv(found: Sequence[Fits], path: Path) -> None:
    columns = ("size", "topology", "order", "activation", "numbers", "error")
    ranks = ("rank", "linear_bound", "rank_bound", "stable_rank", "start", "steps", "seconds")
    with writing(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        # The last column before the ranks: no weight of the rank that is allowed comes nearer.
        table.writerow(("target", "seed", *columns, "svd_error_at_bound", *ranks))
        for fits in found:
            for cell in fits.cells:
                bound = cell.linear_bound if cell.activation == "identity" else cell.rank_bound
                table.writerow(
                    (
                        fits.target,
                        fits.seed,
                        *(getattr(cell, name) for name in columns),
                        _svd_error(fits.facts, bound),
                        *(getattr(cell, name) for name in ranks),
                    )
                )
