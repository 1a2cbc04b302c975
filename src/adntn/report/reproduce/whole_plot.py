"""Accuracy against trained numbers, a line a rival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from adntn.report.figures import short
from adntn.report.plots import COLOURS, write_figure
from adntn.report.reproduce.drawings import wrapped

__all__ = ["Series", "whole_figure"]

_OURS = (COLOURS[1], COLOURS[3], COLOURS[6])
_RIVALS = (COLOURS[2], COLOURS[5], COLOURS[4], COLOURS[7])
_LINES = {True: ("-", (0, (4, 1))), False: ("--", ":")}
_MARKERS = ("o", "s", "D", "^", "X", "P", "v", "*")


@dataclass(frozen=True)
class Series:
    """A line of the plot.

    Attributes:
        name: of the rival.
        ours: whether it is one of ours.
        dense: whether it is the dense network, drawn as a horizontal line.
        points: trained numbers of the whole model, mean accuracy, deviation or None; by size.
    """

    name: str
    ours: bool
    dense: bool
    points: tuple[tuple[int, float, float | None], ...]


def whole_figure(networks: Mapping[str, Sequence[Series]], title: str, path: Path) -> None:
    """Draw a panel a network; a name has one look in all of them."""
    names = {kind: list(_names(networks, kind)) for kind in (True, False)}
    figure = Figure(figsize=(1.0 + 5.2 * len(networks), 5.2), layout="constrained")
    handles: dict[str, Line2D] = {}
    for number, (network, series) in enumerate(networks.items()):
        axes = figure.add_subplot(1, len(networks), number + 1)
        for each in series:
            handles.setdefault(each.name, _draw(axes, each, names))
        axes.set_title(network, fontsize=10)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("trained numbers of the whole model, log")
        if number == 0:
            axes.set_ylabel("accuracy, %")
        axes.grid(True, linewidth=0.4, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(wrapped(title, figure), x=0.01, ha="left", fontsize=11)
    order = [name for kind in (True, False) for name in names[kind]]
    shown = [handles[name] for name in sorted(handles, key=lambda name: order.index(name) if name in order else 99)]
    columns = max(1, min(len(shown), round(figure.get_figwidth() / 2.2)))
    figure.legend(handles=shown, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    write_figure(figure, path)


def _names(networks: Mapping[str, Sequence[Series]], ours: bool) -> list[str]:
    return list(dict.fromkeys(s.name for series in networks.values() for s in series if s.ours is ours and not s.dense))


def _draw(axes: Axes, series: Series, names: Mapping[bool, Sequence[str]]) -> Line2D:
    """Draw a line; returns its place in the legend."""
    if series.dense:
        _, mean, deviation = series.points[0]
        axes.axhline(100 * mean, color=COLOURS[0], linewidth=1.2, linestyle=":", zorder=1)
        if deviation is not None:
            low, high = 100 * (mean - deviation), 100 * (mean + deviation)
            axes.axhspan(low, high, color=COLOURS[0], alpha=0.1, linewidth=0, zorder=0.5)
        return Line2D([], [], color=COLOURS[0], linewidth=1.2, linestyle=":", label=f"{series.name} network")
    number = names[series.ours].index(series.name)
    colours = _OURS if series.ours else _RIVALS
    # Ours and rivals begin at different markers, so that greys and prints can tell them apart too.
    look: dict[str, Any] = {
        "color": colours[number % len(colours)],
        "marker": _MARKERS[(number + (0 if series.ours else 3)) % len(_MARKERS)],
        # Where there are more names than colours, the line tells them apart.
        "linestyle": _LINES[series.ours][number // len(colours) % 2],
        "linewidth": 2.6 if series.ours else 1.2,
        "markersize": 7 if series.ours else 6,
    }
    axes.errorbar(
        [size for size, _, _ in series.points],
        [100 * mean for _, mean, _ in series.points],
        yerr=[100 * (deviation or 0.0) for _, _, deviation in series.points],
        capsize=3,
        elinewidth=1.2,
        zorder=3 if series.ours else 2,
        **look,
    )
    return Line2D([], [], label=f"{series.name} (ours)" if series.ours else series.name, **look)
