"""Plots appear, open, have the size that was meant, and show what they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from adntn.checkpoint import CheckpointError
from adntn.experiments.runs import Row
from adntn.report.plots import accuracy_plot, weights_plot

DPI = 150


def rows(variants: tuple[str, ...], seeds: int = 3, trained: int = 1000) -> list[Row]:
    return [
        Row(
            variant=variant,
            seed=seed,
            accuracy=0.5 + 0.04 * number + 0.01 * seed,
            loss=1.0,
            curve=(0.5,),
            layer_stored=10,
            layer_trained=10,
            model_stored=trained * (number + 1),
            model_trained=trained * (number + 1),
            file_bytes=100,
            stable_rank_start=1.0,
            stable_rank_end=1.0,
            train_seconds=1.0,
            steps=1,
            file="x",
        )
        for number, variant in enumerate(variants)
        for seed in range(seeds)
    ]


def picture(path: Path) -> np.ndarray[Any, Any]:
    pixels = matplotlib.image.imread(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing temporary stays
    assert pixels[..., :3].std() > 0.05  # not blank
    return pixels


@pytest.mark.parametrize(
    "variants, seeds, trained",
    [
        (("dense",), 1, 1000),
        (("dense", "ttn", "attn", "mera", "deleted", "frozen-dense", "frozen-tree"), 3, 1000),
        (tuple(f"network {i}" for i in range(17)), 2, 50),
        (("dense", "deleted"), 2, 0),
    ],
    ids=["one", "demo", "many", "nothing trained"],
)
def test_the_accuracy_plot_is_a_png_of_its_size(
    tmp_path: Path, variants: tuple[str, ...], seeds: int, trained: int
) -> None:
    path = tmp_path / "plots" / "accuracy.png"
    accuracy_plot(rows(variants, seeds, trained), "digits, small-cnn: accuracy $ against size", path)
    assert picture(path).shape[:2] == (4.8 * DPI, 7.6 * DPI)
    assert not plt.get_fignums()  # no figure stays open


@pytest.mark.parametrize("networks, layers", [(1, 1), (4, 2), (3, 4), (7, 1)])
def test_the_weights_plot_has_a_column_a_network_and_a_row_a_layer(tmp_path: Path, networks: int, layers: int) -> None:
    shapes = [(6, 4, 3, 3), (5, 7), (1, 2), (64, 3, 1, 1)][:layers]
    weights = {
        f"network {n}": [(f"layer {i}", torch.randn(shape, requires_grad=True)) for i, shape in enumerate(shapes)]
        for n in range(networks)
    }
    path = tmp_path / "plots" / "weights.png"
    weights_plot(weights, "Trained weights", path)
    height, width = picture(path).shape[:2]
    assert width == pytest.approx((2.4 * networks + 0.6) * DPI, abs=1)
    assert height == pytest.approx((2.3 * layers + 0.6) * DPI, abs=1)


def test_a_weight_without_deviation_and_one_of_low_precision_are_drawn(tmp_path: Path) -> None:
    weights = {"a": [("zero", torch.zeros(4, 4))], "b": [("zero", torch.randn(4, 4).bfloat16())]}
    weights_plot(weights, "zeros", tmp_path / "weights.png")
    picture(tmp_path / "weights.png")


def test_a_plot_replaces_an_older_one_and_fails_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.png"
    path.write_bytes(b"old")
    accuracy_plot(rows(("dense",)), "new", path)
    picture(path)
    folder = tmp_path / "folder"
    (folder / "accuracy.png").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"cannot write .*accuracy\.png"):
        accuracy_plot(rows(("dense",)), "new", folder / "accuracy.png")
    assert [file.name for file in folder.iterdir()] == ["accuracy.png"]
