"""The paper's Table 3: single layer groups of VGG-16 and AlexNet, with the controls that the table lacks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from adntn.experiments.controls import chosen_weights
from adntn.experiments.models import ImageShape, alexnet, vgg16
from adntn.experiments.reproduce.rows import Row
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.variants import Variant
from adntn.topology import Blueprint, GeneratorConfig
from adntn.training.optimization import Optimization

__all__ = ["GROUPS", "PAPER", "LayerGroup", "Published", "table3_rows", "variants"]

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Published:
    """A row of the paper's Table 3.

    Attributes:
        dense: numbers of the dense weights, P.
        stored: numbers of the generators.
        accuracy: per cent.
        deviation: over repeated runs; None where the paper gives none.
        delta: to the dense network, points.
    """

    dense: int
    stored: int
    accuracy: float
    deviation: float | None
    delta: float


_FC2, _CONV, _ALEX = 16_777_216, 11_796_480, 1_572_864

#: Table 3, by group and topology.
PAPER = {
    ("vgg16-fc2", "ttn"): Published(_FC2, 216, 90.12, 0.19, -0.07),
    ("vgg16-fc2", "attn"): Published(_FC2, 392, 90.73, 0.11, 0.54),
    ("vgg16-fc2", "mera"): Published(_FC2, 536, 89.94, 0.24, -0.25),
    ("vgg16-conv", "ttn"): Published(_CONV, 1_020, 91.29, 0.11, 0.54),
    ("vgg16-conv", "attn"): Published(_CONV, 1_820, 91.37, 0.05, 0.62),
    ("vgg16-conv", "mera"): Published(_CONV, 2_540, 91.54, 0.18, 0.79),
    ("vgg16-conv", "brickwall"): Published(_CONV, 1_820, 91.09, None, 0.34),
    ("alexnet-conv", "ttn"): Published(_ALEX, 304, 86.58, 0.26, -0.84),
    ("alexnet-conv", "attn"): Published(_ALEX, 592, 85.90, 0.20, -1.52),
    ("alexnet-conv", "mera"): Published(_ALEX, 720, 86.79, 0.34, -0.63),
    ("alexnet-conv", "brickwall"): Published(_ALEX, 364, 81.09, None, -6.33),
}


@dataclass(frozen=True)
class LayerGroup:
    """Layers that are replaced together.

    Attributes:
        network: that they are in.
        layers: by name.
        says: what they are.
        columns: of gates in each block of the paper's brick wall there, as its counts say.
    """

    network: str
    layers: tuple[str, ...]
    says: str
    columns: int = 2


#: The paper's three layer groups. VGG-16's five are its five convolutions of 512 to 512 channels.
GROUPS = {
    "vgg16-fc2": LayerGroup("vgg16", ("classifier.3",), "VGG-16, FC2"),
    "vgg16-conv": LayerGroup(
        "vgg16",
        tuple(f"features.{n}" for n in (27, 30, 34, 37, 40)),
        "VGG-16, five 512x512 convolutions",
        columns=3,
    ),
    "alexnet-conv": LayerGroup("alexnet", ("features.3", "features.10"), "AlexNet, two convolutions"),
}

# Peak learning rates of dense weights and of cores. AlexNet and VGG-16's head have no batch norm, and bear less.
_RATES = {"vgg16": (1e-3, 1e-2), "alexnet": (1e-3, 1e-2)}


def table3_rows(settings: Settings, image_shape: ImageShape, num_classes: int) -> list[Row]:
    """Return the rows: each network dense, and of each layer group the paper's rows and the controls."""
    rows = []
    for network in dict.fromkeys(group.network for group in GROUPS.values()):
        build = _builder(network, settings.width, image_shape, num_classes)
        groups = {name: group for name, group in GROUPS.items() if group.network == network}
        every = tuple(layer for group in groups.values() for layer in group.layers)
        how = settings.optimization(*_RATES[network])
        rows.append(_row(network, network, Variant("dense", "dense"), build, every, how))
        rows += [
            _row(name, network, variant, build, group.layers, how)
            for name, group in groups.items()
            for variant in variants(build, group.layers, group.columns)
        ]
    return rows


def _builder(network: str, width: float, image_shape: ImageShape, num_classes: int) -> Build:
    if network == "alexnet":
        return functools.partial(alexnet, image_shape, num_classes, width)
    hidden = max(1, round(4096 * width))
    return functools.partial(vgg16, image_shape, num_classes, width, (hidden, hidden))


def _row(group: str, network: str, variant: Variant, build: Build, layers: tuple[str, ...], how: Optimization) -> Row:
    config = variant.config.to_dict() if variant.kind in ("generated", "frozen") else None
    return Row(
        group=group,
        variant=variant.name,
        network=network,
        build=build,
        make=functools.partial(variant.make, build, layers),
        layers=layers,
        optimization=how,
        about={"config": config},
    )


def variants(build: Build, layers: tuple[str, ...], columns: int = 2) -> list[Variant]:
    """Return what becomes of a layer group: the paper's generators, a well-conditioned one, and the controls.

    Baselines have about as many numbers as the paper's ttn: the subspace exactly, the tensor train of rank 2 a few
    less; low rank has no less than rank 1.

    Args:
        build: makes the dense network.
        layers: of the group.
        columns: of gates in each block of the brick wall.
    """
    paper = GeneratorConfig.paper()
    with torch.device("meta"):
        shapes = [tuple(weight.shape) for weight in chosen_weights(build(), layers).values()]
    counts = [Blueprint(shape, paper).num_parameters for shape in shapes]
    subspaces = {
        name: GeneratorConfig(topology="subspace", subspace_dim=count)
        for name, count in zip(layers, counts, strict=True)
    }
    return [
        Variant("ttn", config=paper),
        Variant("attn", config=paper.with_topology("attn")),
        Variant("mera", config=paper.with_topology("mera")),
        Variant("brickwall", config=paper.with_topology("brickwall").replace(columns=columns)),
        Variant("ttn-conformal", config=GeneratorConfig(order="paired", initialization="conformal")),
        Variant("deleted", "deleted"),
        Variant("frozen-dense", "frozen-dense"),
        Variant("frozen-tree", "frozen", paper),
        Variant("frozen-scale", config=GeneratorConfig(topology="frozen")),
        Variant("lowrank", config=GeneratorConfig(topology="lowrank", bond_dim=1)),
        Variant("tt", config=GeneratorConfig(topology="tt", bond_dim=2)),
        Variant("subspace", config=GeneratorConfig(topology="subspace"), overrides=subspaces),
        Variant("ttn-linear", config=paper.replace(activation="identity")),
    ]
