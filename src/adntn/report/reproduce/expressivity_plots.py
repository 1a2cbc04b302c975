"""Plots of the expressivity experiment: error against numbers, and ranks against their bounds, a panel a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from adntn.experiments.reproduce.expressivity import Fits
from adntn.experiments.reproduce.fit_cells import Cell
from adntn.report.figures import short
from adntn.report.plots import COLOURS, write_figure

__all__ = ["captured_plot", "errors_plot", "ranks_plot"]

_FAMILIES = {
    "ttn": (COLOURS[1], "o", "-"),
    "attn": (COLOURS[6], "s", "-"),
    "mera": (COLOURS[3], "^", "-"),
    "brickwall": (COLOURS[5], "D", "-"),
    "lowrank": (COLOURS[2], "P", "--"),
    "tt": (COLOURS[4], "X", "--"),
    "subspace": (COLOURS[0], ".", "--"),
}
_TITLES = {"lowrank": "low rank"}
_COLUMNS = 5
_LEAST = 1e-4  # errors below it are met, as far as a plot tells
_NEAR = 0.1
_RANK_COLOURS = (COLOURS[0], COLOURS[5], COLOURS[1], COLOURS[4], COLOURS[3], COLOURS[2], COLOURS[6], COLOURS[7])


def errors_plot(found: Sequence[Fits], path: Path) -> None:
    """Plot every fit's error against the numbers stored, a panel a target; lines join the least errors so far.

    Where something comes near the target the errors are on a logarithmic axis, which ends at 0.0001.
    """
    _fronts(found, "relative error", lambda cell: max(cell.error, _LEAST), path)


def captured_plot(found: Sequence[Fits], path: Path) -> None:
    """Plot the share of the target's squared norm that a fit captures, as :func:`errors_plot`, both axes logarithmic.

    The dotted line is a share as large as that of the numbers: what a random subspace captures.
    """
    _fronts(found, "captured share of the squared norm", lambda cell: 1.0 - cell.error**2, path, shares=True)


def _fronts(
    found: Sequence[Fits], label: str, value: Callable[[Cell], float], path: Path, *, shares: bool = False
) -> None:
    figure, panels = _panels(found)
    shown: dict[str, Line2D] = {}
    for fits, axes in panels:
        for family, (colour, marker, style) in _FAMILIES.items():
            points = [(cell.numbers, value(cell)) for cell in fits.cells if cell.topology == family]
            points.sort(key=lambda point: (point[0], -point[1] if shares else point[1]))
            if not points:
                continue
            axes.plot(*zip(*points, strict=True), ".", color=colour, markersize=2.5, alpha=0.35)
            front: list[tuple[int, float]] = []
            for numbers, reached in points:
                if not front or (reached > front[-1][1] if shares else reached < front[-1][1]):
                    front.append((numbers, reached))
            (line,) = axes.plot(
                *zip(*front, strict=True), style, color=colour, marker=marker, markersize=4.5, linewidth=1.3
            )
            shown.setdefault(_TITLES.get(family, family), line)
        axes.set_xscale("log")
        if shares:
            counts = sorted(cell.numbers for cell in fits.cells)
            ends = [counts[0], counts[-1]]
            size = math.prod(fits.facts["shape"])
            (level,) = axes.plot(ends, [end / size for end in ends], ":", color="#888888", linewidth=1.2)
            shown["as its share of numbers"] = level
            axes.set_ylim(min(end / size for end in ends) / 2, 1.3)
        if shares or min(value(cell) for cell in fits.cells) < _NEAR:
            axes.set_yscale("log")
        _plain(axes, "numbers stored")
    _finish(figure, panels, label, shown, path)


def ranks_plot(found: Sequence[Fits], path: Path) -> None:
    """Plot ranks (hollow) and stable ranks (full) of the fits against what is allowed, a panel a target.

    What is allowed is Eq. 20 without an activation, and the cut through the readout with one.
    """
    figure, panels = _panels(found)
    names = list(dict.fromkeys(cell.activation for fits in found for cell in fits.cells if not cell.is_baseline))
    shown: dict[str, Line2D] = {}
    for fits, axes in panels:
        most = min(fits.facts["shape"][0], math.prod(fits.facts["shape"][1:]))
        for number, name in enumerate(names):
            cells = [cell for cell in fits.cells if cell.activation == name and not cell.is_baseline]
            colour = _RANK_COLOURS[number % len(_RANK_COLOURS)]
            # Side by side, since bounds are few and the same.
            beside = 1.09 ** (number - (len(names) - 1) / 2)
            bounds = [beside * (cell.linear_bound if name == "identity" else cell.rank_bound) for cell in cells]
            look: dict[str, Any] = {"linestyle": "none", "color": colour, "markersize": 4}
            axes.plot(bounds, [cell.rank for cell in cells], "o", mfc="none", alpha=0.5, **look)
            (line,) = axes.plot(bounds, [cell.stable_rank for cell in cells], "o", alpha=0.5, **look)
            shown.setdefault(name, line)
        (limit,) = axes.plot([1, most], [1, most], color="#888888", linewidth=1)
        level = axes.axhline(fits.facts["stable_rank"], color="#888888", linewidth=1.2, linestyle=":")
        shown.setdefault("as much as is allowed", limit)
        shown.setdefault("the target's stable rank", level)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        _plain(axes, "rank allowed")
    hollow = Line2D([], [], linestyle="none", marker="o", color="black", mfc="none", markersize=4)
    shown["rank (hollow)"] = hollow
    shown["stable rank (full)"] = Line2D([], [], linestyle="none", marker="o", color="black", markersize=4)
    _finish(figure, panels, "rank and stable rank of the fit", shown, path)


def _panels(found: Sequence[Fits]) -> tuple[Figure, list[tuple[Fits, Axes]]]:
    """Return a figure with a panel for the first seed of each target."""
    first: dict[str, Fits] = {}
    for fits in found:
        first.setdefault(fits.target, fits)
    columns = min(_COLUMNS, len(first))
    rows = -(-len(first) // columns)
    figure = Figure(figsize=(3.1 * columns + 1.9, 2.75 * rows + 0.3), layout="constrained")
    panels = [(fits, figure.add_subplot(rows, columns, place)) for place, fits in enumerate(first.values(), 1)]
    for fits, axes in panels:
        size = "×".join(map(str, fits.facts["shape"]))
        axes.set_title(f"{fits.target}, {size}", loc="left", fontsize=9.5)
    return figure, panels


def _plain(axes: Axes, title: str) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(title, fontsize=8.5)
    axes.tick_params(labelsize=8)
    axes.grid(True, linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _finish(
    figure: Figure, panels: Sequence[tuple[Fits, Axes]], label: str, shown: dict[str, Line2D], path: Path
) -> None:
    for _, axes in panels[::_COLUMNS]:
        axes.set_ylabel(label, fontsize=9)
    figure.legend([*shown.values()], [*shown], loc="outside right upper", frameon=False, fontsize=9)
    write_figure(figure, path)
