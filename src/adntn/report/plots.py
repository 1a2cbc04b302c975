"""Plots of a run: accuracy against size with the controls, and generated weights beside dense ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from adntn.checkpoint import writing
from adntn.experiments.runs import CONTROLS, Row

__all__ = ["COLOURS", "accuracy_plot", "weights_plot", "write_figure"]

#: Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_MARKERS = ("o", "s", "D", "^", "X", "P", "v", "*")


def accuracy_plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Plot test accuracy against the whole model's trained parameters, a point a seed, the mean as a bar.

    Controls are hollow. The parameters are those that are trained: a frozen layer adds none.
    """
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    variants = list(dict.fromkeys(row.variant for row in rows))
    for number, variant in enumerate(variants):
        mine = [row for row in rows if row.variant == variant]
        colour, control = COLOURS[number % len(COLOURS)], variant in CONTROLS
        # A logarithmic axis has no place for a network that trains nothing.
        sizes, accuracies = [max(row.model_trained, 1) for row in mine], [100 * row.accuracy for row in mine]
        axes.plot(
            sizes,
            accuracies,
            linestyle="none",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=7,
            markerfacecolor="none" if control else colour,
            markeredgecolor=colour,
            label=f"{variant} (control)" if control else variant,
        )
        mean = sum(accuracies) / len(accuracies)
        axes.plot([sizes[0] / 1.08, sizes[0] * 1.08], [mean, mean], color=colour, linewidth=2)
    axes.set_xscale("log")
    axes.set_xlabel("trained parameters of the whole model")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(True, which="both", linewidth=0.4, alpha=0.5)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    write_figure(figure, path)


def weights_plot(weights: Mapping[str, Sequence[tuple[str, Tensor]]], title: str, path: Path) -> None:
    """Draw weights as pictures: a column a network, a row a layer, each in units of its own deviation.

    Args:
        weights: of each network, its layers' names and weights, shape ``(out, in, *kernel)``; seen as the matrix
            (out, in * kernel).
        title: of the figure.
        path: of the PNG file.
    """
    networks = list(weights)
    layers = [name for name, _ in weights[networks[0]]]
    figure = Figure(figsize=(2.4 * len(networks) + 0.6, 2.3 * len(layers) + 0.6), layout="constrained")
    grid: Callable[..., object] = figure.subplots
    axes: list[list[Axes]] = grid(len(layers), len(networks), squeeze=False)  # type: ignore[assignment]
    for row, layer in enumerate(layers):
        pictures = [weights[network][row][1].detach().flatten(1).float() for network in networks]
        for column, (network, picture) in enumerate(zip(networks, pictures, strict=True)):
            scaled = (picture - picture.mean()) / picture.std().clamp_min(torch.finfo(torch.float32).tiny)
            place = axes[row][column]
            place.imshow(scaled.numpy(), cmap="RdBu_r", vmin=-2.5, vmax=2.5, aspect="auto", interpolation="nearest")
            place.set_xticks([])
            place.set_yticks([])
            if row == 0:
                place.set_title(network, fontsize=10)
            if column == 0:
                place.set_ylabel(f"{layer}\n{picture.shape[0]} x {picture.shape[1]}", fontsize=9)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    write_figure(figure, path)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
