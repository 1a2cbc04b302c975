"""What a search came to, in words, tables and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from adntn.experiments.search.comparison import Comparison, spread
from adntn.experiments.search.points import Measured, Point
from adntn.experiments.search.run import SearchOutcome
from adntn.experiments.search.study import Counts
from adntn.report.plots import COLOURS, write_figure

__all__ = ["front_cells", "pareto_plot", "search_markdown", "verdict"]


def front_cells(point: Measured, name: str) -> dict[str, str]:
    """Return a point's row of the table, column by title."""
    ratio = point.latency_ratio if isinstance(point, Point) else 1.0
    return {
        "point": name,
        "parameters": f"{point.parameters:,}",
        "bytes": f"{point.file_bytes:,}",
        "forward / dense": "–" if ratio is None else f"{ratio:.2f}x",
        "energy Wh": "–" if point.energy_wh is None else f"{point.energy_wh:.3g}",
        "validation %": f"{100 * point.validation_accuracy:.1f}",
        "test %": f"{100 * point.test_accuracy:.1f}",
        "agreement %": f"{100 * point.agreement:.1f}",
        "calibration error %": f"{100 * point.calibration_error:.1f}",
        "train s": f"{point.train_seconds:.1f}",
    }


def verdict(comparison: Comparison) -> str:
    """Say what the search changed within one budget, whichever way it went."""
    c = comparison
    within = f"Within {c.budget:,} parameters"
    if c.trial is None:
        return f"{within}: no trial was finished."
    if not c.default:
        return f"{within}: the default configuration does not fit, so there is nothing to compare with."
    lost = f" ({c.failures} trainings failed and are left out)" if c.failures else ""
    if not c.differences:
        return f"{within}: there is nothing to compare{lost}."
    name = c.trial if c.trial == "default" else f"point {c.trial}"
    numbers = (
        f"{name} ({c.searched_parameters:,} parameters) {_percent(c.searched)}, "
        f"default ({c.default_parameters:,} parameters) {_percent(c.default)}"
    )
    if c.same:
        return f"{within}: the search came back to the default configuration; {numbers}{lost}."
    (mean, deviation) = spread(c.differences) or (0.0, None)
    if deviation is None:
        what = "one seed, which decides nothing"
    elif abs(mean) <= deviation:
        what = "no more than the seeds differ among themselves"
    else:
        what = "the search gained" if mean > 0 else "the search lost"
    return f"{within}: {numbers}; difference {_percent(c.differences, sign='+')} points: {what}{lost}."


def search_markdown(outcome: SearchOutcome) -> str:
    """Return the summary of a search in Markdown."""
    dense, points = outcome.dense, outcome.front
    seeds, finalists = outcome.options.seeds, outcome.options.finalists
    how = " by validation accuracy"
    if finalists > 1:
        how += f" (of the best {finalists} and the default, over other seeds)"
    lines = [
        "# A search for sizes",
        "",
        (
            f"Budgets: {', '.join(f'{b:,}' for b in outcome.budgets)} parameters of the whole model; the dense one has "
            f"{dense.parameters:,}. The search went by validation accuracy; the front is by "
            f"{' and '.join(name.replace('_', ' ') for name in outcome.options.front)}. One seed a point."
        ),
        "",
        *_table([front_cells(p, p.name) for p in points] + [front_cells(dense, "dense")]),
        "",
        (
            f"Energy, of training: {outcome.energy_note}. Forward: median time of a batch of at most 128 over the "
            "dense model's, in turns in one process, under `adntn.cached`. Each point's recipe is in `recipes/`."
        ),
        "",
        "## Did the search change anything?",
        "",
    ]
    if outcome.comparisons:
        lines += [
            (
                f"The best configuration of each budget{how}, and the recipe's own made as large by its groups as the "
                f"budget allows, trained anew with {seeds} fresh seed{'s' if seeds > 1 else ''}, for as many epochs; "
                "test accuracy, mean ± standard deviation."
            ),
            "",
            *(f"- {verdict(each)}" for each in outcome.comparisons),
            "",
            _cost(outcome),
        ]
    else:
        lines.append("The comparison was left out.")
    lines += ["", "## Trials", "", *(_counted(budget, counts) for budget, counts in outcome.counts.items())]
    return "\n".join(lines) + "\n"


def _cost(outcome: SearchOutcome) -> str:
    seconds = sum(counts.seconds for counts in outcome.counts.values())
    single = [c.default_seconds for c in outcome.comparisons if c.default_seconds]
    text = f"Searching took {seconds:,.0f} s of all processes together"
    return f"{text}; to train the default configuration once takes {single[0]:,.1f} s." if single else f"{text}."


def _counted(budget: int, counts: Counts) -> str:
    skipped = ", ".join(f"{count} {reason}" for reason, count in counts.skipped.items()) or "none"
    return (
        f"- {budget:,}: {counts.done} done, {counts.pruned} pruned, {counts.failed} failed, "
        f"{counts.again} broken off and put back; never trained: {skipped}"
    )


def _percent(values: Sequence[float | None], sign: str = "") -> str:
    mean, deviation = spread(values) or (0.0, None)
    return (
        f"{100 * mean:{sign}.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}") + ("" if sign else " %")
    )


def _table(rows: Sequence[dict[str, str]]) -> list[str]:
    titles = list(rows[0])
    rule = "|---|" + "---:|" * (len(titles) - 1)
    return [f"| {' | '.join(titles)} |", rule, *(f"| {' | '.join(row.values())} |" for row in rows)]


def pareto_plot(outcome: SearchOutcome, title: str, path: Path) -> None:
    """Plot test accuracy against the whole model's parameters: every point, the front, and what comes without search.

    The front is chosen by the search's own measures, not by what is drawn, so its line may fall.
    """
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axes = figure.add_subplot()

    def draw(points: Sequence[Measured], label: str, colour: str, **style: Any) -> None:
        sizes, accuracies = [p.parameters for p in points], [100 * p.test_accuracy for p in points]
        look: dict[str, Any] = {"linestyle": "none", "markersize": 6} | style
        axes.plot(sizes, accuracies, label=label, color=colour, **look)

    draw(outcome.points, "a trial", COLOURS[7], marker="o", markerfacecolor="none")
    draw(outcome.front, "on the front", COLOURS[1], marker="o", linestyle="-", linewidth=1.2)
    draw([outcome.dense], "dense", COLOURS[0], marker="s")
    for kind, label, colour, marker in (
        ("searched", "best, fresh seeds", COLOURS[3], "D"),
        ("default", "without search, fresh seeds", COLOURS[2], "X"),
    ):
        rows = [(getattr(c, f"{kind}_parameters"), spread(getattr(c, kind))) for c in outcome.comparisons]
        known = [(size, *found) for size, found in rows if found is not None]
        if known:
            axes.errorbar(
                [size for size, _, _ in known],
                [100 * mean for _, mean, _ in known],
                yerr=[100 * (deviation or 0.0) for _, _, deviation in known],
                label=label,
                color=colour,
                marker=marker,
                linestyle="none",
                capsize=4,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("parameters of the whole model")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(True, which="both", linewidth=0.4, alpha=0.5)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    write_figure(figure, path)
