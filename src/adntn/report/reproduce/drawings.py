"""The paper's Figures 4 and 5, redrawn with whole-model ratios and with controls."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from adntn.report.figures import short
from adntn.report.plots import COLOURS, write_figure

__all__ = ["Mark", "accuracies_figure", "ratios_figure", "wrapped"]

_LAYERS, _MODEL, _PAPER = COLOURS[1], COLOURS[5], COLOURS[4]
#: Colour and marker of a kind of row.
_KINDS = {
    "the paper's": (COLOURS[1], "o", "the paper's generators"),
    "generator": (COLOURS[3], "D", "other generators"),
    "control": (COLOURS[2], "s", "controls"),
}
_SHADE = "#f1f1f1"
#: Points below the best that a panel has room for; what is lower stands at its left edge with its figure.
_ROOM = 15.0

_OFFSET: Mapping[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8}


@dataclass(frozen=True)
class Mark:
    """A row as it is drawn.

    Attributes:
        name: of the variant.
        kind: ``"dense"``, ``"the paper's"``, ``"generator"`` or ``"control"``.
        accuracies: one a seed, 0 ... 1.
        layer_ratio: numbers of the dense layers over the stored ones; None where nothing is stored.
        model_ratio: the same of the whole model; None where the dense one is not known.
        paper_ratio: the paper's ``layer_ratio``, or None.
        paper_delta: the paper's distance to its dense network, as a share, or None.
    """

    name: str
    kind: str
    accuracies: tuple[float, ...]
    layer_ratio: float | None
    model_ratio: float | None
    paper_ratio: float | None
    paper_delta: float | None


def ratios_figure(groups: Mapping[str, Sequence[Mark]], title: str, path: Path) -> None:
    """Draw compression ratios, a panel a layer group, two bars a row: of the layers and of the whole model."""
    drawn = _drawn(groups)
    names = _names(drawn)
    figure, panels = _panels(drawn, names, title)
    for axes, marks in zip(panels, drawn.values(), strict=True):
        axes.set_xscale("log")
        highest = 10.0
        for mark in marks:
            at = names.index(mark.name)
            highest = max(highest, mark.layer_ratio or 1, mark.paper_ratio or 1)
            if mark.paper_ratio is not None:
                axes.plot(mark.paper_ratio, at - 0.2, "D", color=_PAPER, mfc="none", mew=1.6, markersize=7)
            for ratio, colour, shift in ((mark.layer_ratio, _LAYERS, -0.2), (mark.model_ratio, _MODEL, 0.2)):
                if ratio is None:
                    if colour == _LAYERS:
                        _beside(axes, "nothing stored", 1.0, at + shift)
                    continue
                axes.barh(at + shift, max(ratio - 1, 1e-3), 0.36, left=1, color=colour)
                # The figure stands behind the paper's mark where that is near the end of the bar.
                claim = mark.paper_ratio if colour == _LAYERS else None
                near = claim is not None and ratio / 2 < claim < 6 * ratio
                end = max(ratio, claim) if claim is not None and near else max(ratio, 1.0)
                _beside(axes, f"{ratio:,.0f}" if ratio >= 99.5 else f"{ratio:.3g}", end, at + shift, 8 if near else 3)
        axes.set_xlim(1, highest**1.3)  # room for the figures beside the bars
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{short(value)}×"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("dense over stored numbers, log")
    _legend(
        figure,
        [
            Patch(color=_LAYERS, label="of the layers"),
            Patch(color=_MODEL, label="of the whole model"),
            *([_paper_mark("of the layers, in the paper")] if _any(drawn, "paper_ratio") else []),
        ],
    )
    write_figure(figure, path)


def accuracies_figure(groups: Mapping[str, Sequence[Mark]], title: str, path: Path) -> None:
    """Draw accuracies, a panel a layer group: a dot a seed, mean and deviation, the dense network as a line."""
    drawn = _drawn(groups)
    names = _names(drawn)
    figure, panels = _panels(drawn, names, title)
    for axes, (group, marks) in zip(panels, drawn.items(), strict=True):
        dense = next((mark for mark in groups[group] if mark.kind == "dense"), None)
        _accuracies(axes, dense, marks, names)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("accuracy, %")
    kinds = {mark.kind for marks in drawn.values() for mark in marks}
    handles = [
        Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=7, label=says)
        for kind, (colour, marker, says) in _KINDS.items()
        if kind in kinds
    ]
    if any(mark.kind == "dense" for marks in groups.values() for mark in marks):
        handles.append(Line2D([], [], color=COLOURS[0], linewidth=1.4, label="dense network (shade: ± deviation)"))
    if _any(drawn, "paper_delta"):
        handles.append(_paper_mark("the paper's Δ, from our dense network"))
    _legend(figure, handles)
    write_figure(figure, path)


def _accuracies(axes: Axes, dense: Mark | None, marks: Sequence[Mark], names: Sequence[str]) -> None:
    reference = None if dense is None else _ends(dense)
    ends = [_ends(mark) for mark in marks]
    claims = [
        None if mark.paper_delta is None or reference is None else reference[1] + 100 * mark.paper_delta
        for mark in marks
    ]
    every = [mean for _, mean, _ in ends] + [claim for claim in claims if claim is not None]
    every += [] if reference is None else [reference[1]]
    best = max(every)
    # One failed row must not press all the others together, but an axis is not cut for little.
    floor = best - _ROOM if min(every) < best - 1.5 * _ROOM else min(every)
    shown = [value for each in [*ends, reference] if each is not None and each[1] >= floor for value in each]
    shown += [claim for claim in claims if claim is not None and claim >= floor]
    margin = max(0.05 * (max(shown) - min(shown)), 0.1)
    edge = min(shown) - margin * (1 if min(every) >= floor else 3)
    axes.set_xlim(edge, max(shown) + margin)
    if reference is not None:
        axes.axvline(reference[1], color=COLOURS[0], linewidth=1.4, zorder=1)
        axes.axvspan(reference[0], reference[2], color=COLOURS[0], alpha=0.1, linewidth=0, zorder=0.5)

    def below(at: int, value: float, colour: str) -> None:
        axes.plot(edge + 0.4 * margin, at, "<", color=colour, mfc="none", markersize=7, zorder=3)
        axes.annotate(f"{value:.1f}", (edge + 0.4 * margin, at), (7, 0), **_OFFSET)

    for mark, (low, mean, _), claim in zip(marks, ends, claims, strict=True):
        at = names.index(mark.name)
        colour, marker, _ = _KINDS[mark.kind]
        if mean < floor:
            below(at, mean, colour)
        else:
            deviation = mean - low if len(mark.accuracies) > 1 else None
            own = [100 * value for value in mark.accuracies]
            axes.plot(own, [at] * len(own), linestyle="none", marker=".", color=colour, alpha=0.45, zorder=2)
            axes.errorbar(mean, at, xerr=deviation, fmt=marker, color=colour, capsize=3, markersize=7, zorder=3)
        if claim is not None and claim < floor:
            below(at, claim, _PAPER)
        elif claim is not None:
            axes.plot(claim, at, "D", color=_PAPER, mfc="none", mew=1.6, markersize=9, zorder=4)


def _ends(mark: Mark) -> tuple[float, float, float]:
    """Return mean - deviation, mean and mean + deviation in per cent; one seed has no deviation."""
    mean = 100 * statistics.mean(mark.accuracies)
    deviation = 100 * statistics.stdev(mark.accuracies) if len(mark.accuracies) > 1 else 0.0
    return mean - deviation, mean, mean + deviation


def _drawn(groups: Mapping[str, Sequence[Mark]]) -> dict[str, list[Mark]]:
    """Return what stands beside the dense networks; a group without anything only if there is no other."""
    rows = {group: [mark for mark in marks if mark.kind != "dense"] for group, marks in groups.items()}
    return {group: marks for group, marks in rows.items() if marks} or rows


def _names(drawn: Mapping[str, Sequence[Mark]]) -> list[str]:
    """Return the variants of all groups, kind by kind."""
    order = list(_KINDS)
    marks = [mark for marks in drawn.values() for mark in marks]
    return list(dict.fromkeys(mark.name for mark in sorted(marks, key=lambda mark: order.index(mark.kind))))


def _panels(drawn: Mapping[str, Sequence[Mark]], names: Sequence[str], title: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(1.6 + 3.9 * len(drawn), 1.9 + 0.36 * max(len(names), 3)), layout="constrained")
    panels = [figure.add_subplot(1, len(drawn), number + 1) for number in range(len(drawn))]
    controls = {mark.name for marks in drawn.values() for mark in marks if mark.kind == "control"}
    places = [at for at, name in enumerate(names) if name in controls]
    for number, (axes, group) in enumerate(zip(panels, drawn, strict=True)):
        axes.set_title(group, fontsize=10)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_yticks(range(len(names)), names if number == 0 else [""] * len(names))
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="x", linewidth=0.4, alpha=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        if not drawn[group]:
            axes.text(0.02, 0.5, "no row beside the dense network is finished", transform=axes.transAxes, fontsize=9)
        if places:
            axes.axhspan(places[0] - 0.5, places[-1] + 0.5, color=_SHADE, zorder=0, linewidth=0)
    if places and panels:
        ground = {"facecolor": _SHADE, "edgecolor": "none", "pad": 1}  # the dense network's line may pass there
        where = panels[0].get_yaxis_transform()
        panels[0].text(0.99, places[-1] + 0.42, "controls", transform=where, ha="right", fontsize=8, bbox=ground)
    figure.suptitle(wrapped(title, figure), x=0.01, ha="left", fontsize=11)
    return figure, panels


def _beside(axes: Axes, text: str, x: float, y: float, away: float = 3) -> None:
    axes.annotate(text, (x, y), (away, 0), **{**_OFFSET, "fontsize": 7})


def _paper_mark(says: str) -> Line2D:
    return Line2D([], [], linestyle="none", marker="D", color=_PAPER, mfc="none", mew=1.6, markersize=8, label=says)


def _any(drawn: Mapping[str, Sequence[Mark]], name: str) -> bool:
    return any(getattr(mark, name) is not None for marks in drawn.values() for mark in marks)


def _legend(figure: Figure, handles: Sequence[Line2D | Patch]) -> None:
    columns = max(1, min(len(handles), round(figure.get_figwidth() / 2.6)))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def wrapped(title: str, figure: Figure) -> str:
    """Return a title in lines that the figure has room for."""
    return textwrap.fill(title, round(12 * figure.get_figwidth()))
