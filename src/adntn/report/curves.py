"""Plots of a training run: accuracy and size after each stage, and accuracy over time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from adntn.report.figures import duration, short
from adntn.report.plots import _MARKERS, COLOURS, write_figure
from adntn.report.schema import RunReport, StageRow

__all__ = ["stages_plot", "time_plot"]

_TEST, _VALIDATION, _SIZE, _BYTES = COLOURS[1], COLOURS[6], COLOURS[2], COLOURS[5]
#: Points of accuracy below the best that a plot has room for; what is lower stands at its lower edge with its figure.
_ROOM = 25.0
_BELOW = "below the axis"


def stages_plot(report: RunReport, path: Path) -> None:
    """Plot accuracy and size after each stage; beside them the controls, a ring a seed and a bar for the mean."""
    rows = ([report.dense] if report.dense is not None else []) + list(report.stages)
    stages, controls = list(range(len(rows))), [len(rows) + 0.5 + n for n in range(len(report.controls))]
    width = 2.6 + 0.62 * (len(rows) + len(report.controls))
    figure = Figure(figsize=(max(7.6, min(width, 11)), 6.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1.2, 1))
    _accuracies(top, rows, stages, report, controls)
    _sizes(bottom, rows, stages, report, controls)
    names = _numbered(rows) + [control.name for control in report.controls]
    bottom.set_xticks([*stages, *controls], names, rotation=35, ha="right", rotation_mode="anchor")
    right = controls[-1] + 0.85 if controls else stages[-1] + 0.6
    bottom.set_xlim(-0.6, right)
    for axes in (top, bottom):
        axes.grid(True, axis="y", linewidth=0.4, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if controls:
            axes.axvspan(stages[-1] + 0.75, right, color="#f0f0f0", zorder=0)
    if controls:
        top.text(stages[-1] + 0.85, 0.985, "controls", transform=top.get_xaxis_transform(), va="top", fontsize=9)
    figure.suptitle(f"{report.title}: after each stage", x=0.01, ha="left", fontsize=11)
    write_figure(figure, path)


def _accuracies(
    axes: Axes, rows: Sequence[StageRow], stages: list[int], report: RunReport, controls: list[float]
) -> None:
    validation = [100 * row.validation for row in rows]
    test = [None if row.test is None else 100 * row.test for row in rows]
    means = [100 * statistics.mean(control.test) for control in report.controls]
    every = [*validation, *(value for value in test if value is not None), *means]
    # Only early stages may be cut off, never the result or a control.
    seeds = [100 * value for control in report.controls for value in control.test]
    floor = min([max(every) - _ROOM, validation[-1], *([] if test[-1] is None else [test[-1]]), *seeds])
    every += seeds
    if max(every) - min(every) < 2 * (max(every) - min(value for value in every if value >= floor)):
        floor = min(every)  # the axis would be little shorter
    cut = min(every) < floor
    lowest = min(value for value in every if value >= floor)
    margin = 0.12 * max(max(every) - lowest, 1.0)
    edge = lowest - margin * (2.5 if cut else 1.6)

    def drawn(value: float) -> float:
        return value if value >= floor else edge + 0.35 * margin

    def mark(at: float, value: float, colour: str, where: tuple[int, int]) -> None:
        if value < floor:
            known = "_" if any(line.get_label() == _BELOW for line in axes.lines) else ""
            axes.plot(at, drawn(value), "v", color=colour, mfc="white", markersize=7, label=known + _BELOW)
        _label(axes, f"{value:.1f}", (at, drawn(value)), (0, 8) if value < floor else where)

    looked = [(at, value) for at, value in zip(stages, test, strict=True) if value is not None]
    for name, style, size, points in (
        ("validation", "--o", 4, list(zip(stages, validation, strict=True))),
        ("test", "-o", 6, looked),
    ):
        if points:
            colour = _VALIDATION if name == "validation" else _TEST
            axes.plot(
                [at for at, _ in points],
                [drawn(v) for _, v in points],
                style,
                color=colour,
                markersize=size,
                label=name,
            )
    for at, value in looked or list(zip(stages, validation, strict=True)):
        mark(at, value, _TEST if looked else _VALIDATION, (0, -15))
    for place, control, mean in zip(controls, report.controls, means, strict=True):
        own = [100 * value for value in control.test]
        axes.plot([place] * len(own), own, "o", color="black", mfc="none", markersize=5)
        axes.plot([place - 0.22, place + 0.22], [mean, mean], color="black", linewidth=2)
        _label(axes, f"{mean:.1f}", (place + 0.28, mean), (0, -3), left=True)
    if controls and looked:
        axes.plot([looked[-1][0], controls[-1] + 0.85], [drawn(looked[-1][1])] * 2, ":", color=_TEST, linewidth=1)
    axes.set_ylim(edge, max(every) + 1.6 * margin)
    axes.set_ylabel("accuracy, %")
    _legend(axes)


def _sizes(axes: Axes, rows: Sequence[StageRow], stages: list[int], report: RunReport, controls: list[float]) -> None:
    for name, colour, marker in (("numbers", _SIZE, "o"), ("file_bytes", _BYTES, "s")):
        values = [max(1, getattr(row, name)) for row in rows]
        label = "numbers of the whole model" if name == "numbers" else "bytes of its file"
        axes.plot(stages, values, "-", marker=marker, color=colour, markersize=5, label=label)
        beside = [max(1, getattr(control, name)) for control in report.controls]
        axes.plot(controls, beside, linestyle="none", marker=marker, color=colour, mfc="none", markersize=6)
        for at, value in zip([*stages, *controls], [*values, *beside], strict=True):
            _label(axes, short(value), (at, value), (0, 7 if name == "file_bytes" else -14))
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.8, high * 1.8)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("size")
    _legend(axes)


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=9, borderaxespad=0.1)


def _label(axes: Axes, text: str, at: tuple[float, float], where: tuple[int, int], left: bool = False) -> None:
    # A light edge keeps figures readable where a line runs through them.
    edge = [patheffects.withStroke(linewidth=2.5, foreground="white", alpha=0.8)]
    axes.annotate(
        text, at, where, textcoords="offset points", ha="left" if left else "center", fontsize=8, path_effects=edge
    )


def time_plot(report: RunReport, path: Path) -> None:
    """Plot the validation accuracy over the run's time, a colour a stage."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.add_subplot()
    whole = sum(stage.seconds for stage in report.stages)
    unit, per = ("seconds", 1.0) if whole < 180 else ("minutes", 60.0)
    began = 0.0
    values = [100 * stage.validation for stage in report.stages]
    if report.dense is not None:
        values.append(100 * report.dense.validation)
        axes.axhline(100 * report.dense.validation, color="black", linewidth=1, linestyle=":", label="dense network")
    for number, (stage, name) in enumerate(zip(report.stages, _numbered(report.stages), strict=True)):
        colour = COLOURS[1 + number % (len(COLOURS) - 1)]
        ended = began + stage.seconds
        curve = [(min(began + at, ended), 100 * value) for at, value in stage.curve]
        values += [value for _, value in curve]
        before = [(began, 100 * report.stages[number - 1].validation)] if number else []
        points = [*before, *curve, (ended, 100 * stage.validation)]
        axes.axvspan(began / per, ended / per, color=colour, alpha=0.08, linewidth=0)
        axes.plot(
            [at / per for at, _ in points],
            [value for _, value in points],
            color=colour,
            linewidth=1.6,
            marker=_MARKERS[number // (len(COLOURS) - 1)],
            markersize=7,
            markevery=[len(points) - 1],
            label=f"{name}, {duration(stage.seconds)}",
        )
        if number:
            axes.axvline(began / per, color="#888888", linewidth=0.6)
        began = ended
    # A start at the level of chance would press all that matters to the upper edge.
    high = max(values)
    low = max(min(values), high - 2 * _ROOM) if 100 * report.result.validation > high - _ROOM else min(values)
    margin = 0.06 * max(high - low, 1.0)
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(0, 1.012 * max(began, 1e-9) / per)
    axes.set_xlabel(f"{unit} of training")
    axes.set_ylabel("validation accuracy, %")
    axes.grid(True, axis="y", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{report.title}: over time", loc="left", fontsize=11)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    write_figure(figure, path)


def _numbered(rows: Sequence[StageRow]) -> list[str]:
    """Return the rows' kinds; those that come more than once with a number."""
    kinds = [row.kind for row in rows]
    return [
        kind if kinds.count(kind) == 1 else f"{kind} {kinds[: at + 1].count(kind)}" for at, kind in enumerate(kinds)
    ]
