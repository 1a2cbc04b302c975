"""The results as plots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adntn.checkpoint import writing
from benchmarks.speed.reading import TOPOLOGIES, Row, Rows, peer, ratio, regrets, rows_of

__all__ = ["write"]

# Okabe and Ito's colours, which people with any colour vision can tell apart.
_BLUE, _RED, _GREEN, _PINK, _ORANGE, _SKY, _GREY = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#777777"),
)


def _tensorly(row: Row) -> float | None:
    best = peer(row, "tensorly")
    return None if best is None else ratio(row, "dense", best[0])


def _over_dense(name: str) -> Callable[[Row], float | None]:
    return lambda row: ratio(row, "dense", name)


#: What is drawn of a layer: name, colour, marker, line, and the speed-up of a case.
LINES: Sequence[tuple[str, str, str, str, Callable[[Row], float | None]]] = (
    ("ttn", _BLUE, "o", "-", _over_dense("ttn auto")),
    ("attn", _GREEN, "s", "-", _over_dense("attn auto")),
    ("mera", _RED, "^", "-", _over_dense("mera auto")),
    ("low rank, as the ttn's", _GREY, "D", "--", _over_dense("low rank")),
    ("tensorly-torch, fastest", _PINK, "v", "--", _tensorly),
    ("loop of einsums", _ORANGE, "x", ":", _over_dense("einsum loop")),
)


def write(rows: Rows, folder: Path) -> list[Path]:
    """Write every plot that the results are enough for, and return the paths."""
    plots: Mapping[str, Callable[[Rows], Figure | None]] = {
        "speed-linear.png": _linear,
        "speed-conv.png": _conv,
        "speed-regret.png": _regret,
        "speed-models.png": _models,
    }
    return list(_written(rows, folder, plots))


def _written(rows: Rows, folder: Path, plots: Mapping[str, Callable[[Rows], Figure | None]]) -> Iterator[Path]:
    for name, plot in plots.items():
        figure = plot(rows)
        if figure is None:
            continue
        FigureCanvasAgg(figure)
        with writing(folder / name) as temporary:
            # Without its version, the same results give the same file.
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
        yield folder / name


def _grid(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(2.7 * columns + 0.8, 2.7 * rows + 0.9), layout="constrained")
    made: Any = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey="row")
    return figure, made


def _speedups(axes: Axes, cases: Sequence[Row], along: str) -> None:
    for name, colour, marker, style, value in LINES:
        points = [(row[along], times) for row in cases if (times := value(row)) is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=colour, marker=marker, linestyle=style, markersize=5, linewidth=1.4, label=name)
    ticks = sorted({row[along] for row in cases})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.axhline(1, color="black", linewidth=0.9)
    axes.grid(True, linewidth=0.4, alpha=0.5)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _finish(figure: Figure, title: str, axes: Sequence[Sequence[Axes]]) -> Figure:
    columns = max(2, int(figure.get_figwidth() / 1.8))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    labels = {
        label: handle for row in axes for a in row for handle, label in zip(*a.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


_STEPS = (("inference", "inference, cached"), ("training", "training step, AdamW"))


def _linear(rows: Rows) -> Figure | None:
    cases = rows_of(rows, kind="linear", dtype="float32")
    works = list(dict.fromkeys(row["work"] for row in cases))
    if not works:
        return None
    figure, axes = _grid(2, len(works))
    for line, (mode, title) in zip(axes, _STEPS, strict=True):
        line[0].set_ylabel(f"{title}\ntimes as fast as dense")
        for place, work in zip(line, works, strict=True):
            _speedups(place, rows_of(rows, work=work, mode=mode, dtype="float32"), "batch")
    for top, bottom, work in zip(*axes, works, strict=True):
        top.set_title(work.replace("x", "×"), fontsize=10)
        bottom.set_xlabel("batch")
    return _finish(figure, "Linear layers (out × in) against dense torch, float32", axes)


def _conv(rows: Rows) -> Figure | None:
    cases = rows_of(rows, kind="conv", dtype="float32")
    columns = list(dict.fromkeys((row["work"].partition(" map")[0], row["batch"]) for row in cases))
    if not columns:
        return None
    columns.sort(key=lambda column: (int(column[0].split()[1].split("x")[0]), column[1]))
    figure, axes = _grid(2, len(columns))
    for line, (mode, title) in zip(axes, _STEPS, strict=True):
        line[0].set_ylabel(f"{title}\ntimes as fast as dense")
        for place, (work, batch) in zip(line, columns, strict=True):
            mine = [
                row for row in cases if row["work"].startswith(work) and (row["mode"], row["batch"]) == (mode, batch)
            ]
            _speedups(place, mine, "side")
    for top, bottom, (work, batch) in zip(*axes, columns, strict=True):
        top.set_title(f"{work.replace('x', '×')}, batch {batch}", fontsize=10)
        bottom.set_xlabel("side of the map")
    return _finish(figure, "Convolutions against dense torch, float32", axes)


def _regret(rows: Rows) -> Figure | None:
    found = list(regrets(rows))
    if not found:
        return None
    groups = list(dict.fromkeys((row["kind"], row["mode"], row["dtype"]) for row, _, _ in found))
    figure = Figure(figsize=(1.25 * len(groups) + 2.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for offset, (topology, colour, marker) in enumerate(zip(TOPOLOGIES, (_BLUE, _GREEN, _RED), "os^", strict=True)):
        for place, group in enumerate(groups):
            values = [v for row, t, v in found if t == topology and (row["kind"], row["mode"], row["dtype"]) == group]
            # A little to the side of each other, in the order of the grid, so that points do not hide one another.
            x = [place + 0.27 * (offset - 1) + 0.2 * (n / max(len(values) - 1, 1) - 0.5) for n in range(len(values))]
            style = {"color": colour, "marker": marker, "markersize": 4, "linestyle": "none", "alpha": 0.75}
            axes.plot(x, values, label=topology if place == 0 else None, **style)  # type: ignore[arg-type]
    axes.set_xticks(range(len(groups)), ["\n".join(group) for group in groups], fontsize=9)
    axes.axhline(1.1, color="black", linewidth=0.8, linestyle=":")
    axes.set_ylabel("time of auto over the fastest way")
    axes.set_ylim(bottom=0.98)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.grid(True, axis="y", linewidth=0.4, alpha=0.5)
    return _finish(figure, "Regret of auto, a point a case (dotted: 1.1)", [[axes]])


def _models(rows: Rows) -> Figure | None:
    models = list(dict.fromkeys(row["work"] for row in rows_of(rows, kind="model", dtype="float32")))
    if not models:
        return None
    figure = Figure(figsize=(7.2 * len(models), 4.6), layout="constrained")
    panels: Any = figure.subplots(1, len(models), squeeze=False)
    for axes, model in zip(panels[0], models, strict=True):
        cases = rows_of(rows, work=model, dtype="float32")
        names = list(dict.fromkeys(n for row in cases for n in row["results"] if n != "dense"))
        width = 0.8 / max(len(cases), 1)
        for number, row in enumerate(cases):
            times = [ratio(row, "dense", name) or 0.0 for name in names]
            step = "inference" if row["mode"] == "inference" else "training step"
            label = f"{step}, batch {row['batch']}"
            places = [place - 0.4 + width * (number + 0.5) for place in range(len(names))]
            colour = (_SKY, _BLUE, "#003a5c", _ORANGE)[number % 4]
            bars = axes.barh(places, times, height=width, color=colour, label=label)
            axes.bar_label(bars, [f"{t:.1f}" if t else "" for t in times], padding=2, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=0.9)
        axes.margins(x=0.1)
        axes.set_xlabel("times as fast as dense")
        axes.set_title(f"{model}, 32×32", fontsize=10, loc="left")
        axes.grid(True, axis="x", linewidth=0.4, alpha=0.5)
    return _finish(figure, "Whole models against dense torch, float32", panels)
