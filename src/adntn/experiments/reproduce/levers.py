"""What makes a network of generated convolutions train well? One thing changed at a time, at two sizes.

Every convolution of VGG-16 but the first is generated. A lever changes the start, the activation, where the numbers
stand, how fast they are trained, or what random numbers are mixed in; the rivals are rows of the same sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from adntn.common_cores import share_cores_
from adntn.describe import generated_weights
from adntn.experiments.models import ImageShape
from adntn.experiments.reproduce.networks import Whole, teacher_of
from adntn.experiments.reproduce.rows import Row
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.reproduce.sizing import sized
from adntn.experiments.variants import Variant
from adntn.initialize import default_std
from adntn.topology import GeneratorConfig

__all__ = ["LEVERS", "SIZES", "Lever", "lever_rows"]

#: Numbers of each generated weight, about: the smallest ttn's, and several times as many.
SIZES = {"small": 130, "large": 900}

_RATE = 1e-2


@dataclass(frozen=True)
class Lever:
    """One way to generate the convolutions.

    Attributes:
        says: what is changed.
        options: of the generators.
        sizes: in which it is tried.
        grows: what makes the generators larger, as in :func:`~adntn.experiments.reproduce.sizing.sized`; None where
            the options say the size.
        digits: of Kronecker products, see :meth:`~adntn.GeneratorConfig.kronecker`; None for others.
        core_lr: peak learning rate of root and cores.
        start: share of the usual deviation that the weights start with.
        seeding: what random is mixed in, see :class:`~adntn.experiments.seeded.SeededConv2d`.
        early: share of the numbers that the first half of the layers has; None gives each layer as many.
        shared: whether layers of one shape have their cores in common, and a root each.
        lessons: what is learned from the dense network, trained before, of
            :data:`~adntn.experiments.lessons.LESSONS`.
        ours: whether it is a tree.
    """

    says: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[str, ...] = ("large",)
    grows: str | None = "groups"
    digits: int | None = None
    core_lr: float = _RATE
    start: float = 1.0
    seeding: str | None = None
    early: float | None = None
    shared: bool = False
    lessons: tuple[str, ...] = ()
    ours: bool = True

    def config(self, shape: tuple[int, ...], numbers: int, alike: int = 1) -> GeneratorConfig:
        """Return the config of a weight of about so many numbers, one of several layers of its shape."""
        if self.digits is None:
            config = GeneratorConfig(**{"order": "paired"} | dict(self.options))
        else:
            config = GeneratorConfig.kronecker(shape, self.digits, **self.options)
        return config if self.grows is None else sized(config, shape, numbers, self.grows, alike if self.shared else 1)


_BOTH = ("small", "large")
_CONFORMAL = {"initialization": "conformal"}
_SUBSPACE = {"topology": "subspace"}

#: By name. What is not said is as in the first: a ttn, paired, isometric cores, sin(3z), groups.
LEVERS: Mapping[str, Lever] = {
    "ttn": Lever("the default start, paired", sizes=_BOTH),
    # the start
    "paper": Lever("the paper's start and ELU", {"initialization": "paper", "activation": "elu"}, sizes=_BOTH),
    "elu": Lever("ELU", {"activation": "elu"}),
    "conformal": Lever("conformal cores", _CONFORMAL, sizes=_BOTH),
    "start-100th": Lever("weights that start at a hundredth", start=0.01),
    # activation
    "linear": Lever("no activation", {"activation": "identity"}, sizes=_BOTH),
    "sine-1": Lever("sin(z)", {"activation": "sine(omega=1)"}),
    "sine-10": Lever("sin(10z)", {"activation": "sine(omega=10)"}),
    # order and topology
    "blocked": Lever("blocked, which has factors", {"order": "blocked"}, sizes=_BOTH),
    "block-paired": Lever("block-paired and conformal, which has factors", {"order": "block_paired", **_CONFORMAL}),
    "mera": Lever("disentanglers at every level", {"topology": "mera"}),
    # where the numbers stand
    "terms": Lever("sums of trees", grows="terms"),
    "terms-conformal": Lever("sums of conformal trees", _CONFORMAL, grows="terms"),
    "long-root": Lever("a root of all hidden modes", {"latent_order": 99, **_CONFORMAL}, grows="terms"),
    "radix-4": Lever(
        "radix and bond 4, kernel radix 3", {"radix": 4, "bond_dim": 4, "kernel_radix": 3, **_CONFORMAL}, grows=None
    ),
    "kernel-3": Lever("kernel modes of size 3", {"kernel_radix": 3}),
    "kronecker": Lever(
        "sums of Kronecker products: two digits a side, bond 1",
        sizes=_BOTH,
        grows="terms",
        digits=2,
    ),
    "kronecker-start-100th": Lever(
        "Kronecker products that start at a hundredth",
        grows="terms",
        digits=2,
        start=0.01,
    ),
    "kronecker-fast": Lever("Kronecker products at 3e-2", grows="terms", digits=2, core_lr=3e-2),
    "kronecker-3": Lever(
        "three digits a side, more of them, at 3e-2", sizes=_BOTH, grows="terms", digits=3, core_lr=3e-2
    ),
    "kronecker-3-shuffled": Lever(
        "the same, each product with channels in an order of its own",
        grows="terms",
        digits=3,
        core_lr=3e-2,
        seeding="shuffle",
    ),
    "kronecker-tangent": Lever(
        "Kronecker products that go straight on in the directions of their start, at 6e-2",
        grows="terms",
        digits=2,
        core_lr=6e-2,
        seeding="tangent",
    ),
    "kronecker-tangent-fast": Lever("the same at 2e-1", grows="terms", digits=2, core_lr=2e-1, seeding="tangent"),
    "kronecker-4": Lever("four digits a side, at 3e-2", grows="terms", digits=4, core_lr=3e-2),
    "early": Lever("sums; three quarters of the numbers in the first half", grows="terms", early=0.75),
    "late": Lever("sums; three quarters of the numbers in the second half", grows="terms", early=0.25),
    "shared": Lever("cores in common to layers of one shape, a root each", shared=True),
    # learning rates and what is learned from
    "slow": Lever("cores at 3e-3", core_lr=3e-3),
    "fast": Lever("cores at 3e-2", core_lr=3e-2),
    "kronecker-distilled": Lever(
        "Kronecker products that learn from the trained dense network too",
        grows="terms",
        digits=2,
        lessons=("answers",),
    ),
    "kronecker-rest": Lever(
        "Kronecker products; norms, head and first convolution start as trained in the dense network",
        grows="terms",
        digits=2,
        lessons=("rest",),
    ),
    "kronecker-fitted": Lever(
        "the same, and the products start fitted to its weights", grows="terms", digits=2, lessons=("rest", "weights")
    ),
    "kronecker-taught": Lever(
        "the same, and learn from it too", grows="terms", digits=2, lessons=("answers", "rest", "weights")
    ),
    # seeded randomness
    "signs": Lever("a random sign for each pair of channels", seeding="signs", sizes=_BOTH),
    "scramble": Lever("pairs of channels permuted, random signs", seeding="scramble"),
    "base": Lever("a frozen random weight W0 + G", seeding="base", sizes=_BOTH),
    "blocks": Lever("a frozen block-diagonal random weight + G", seeding="blocks"),
    # rivals
    "subspace": Lever("a random subspace for each weight", _SUBSPACE, _BOTH, "dimension", ours=False),
    "subspace-fast": Lever(
        "a random subspace for each weight, trained at 3e-2", _SUBSPACE, _BOTH, "dimension", core_lr=3e-2, ours=False
    ),
    "subspace-faster": Lever(
        "a random subspace for each weight, trained at 1e-1", _SUBSPACE, grows="dimension", core_lr=1e-1, ours=False
    ),
    "subspace-distilled": Lever(
        "the same, learning from the trained dense network too",
        _SUBSPACE,
        grows="dimension",
        core_lr=1e-1,
        lessons=("answers",),
        ours=False,
    ),
    "subspace-fitted": Lever(
        "random subspaces; all else starts as trained in the dense network, the subspaces fitted to its weights",
        _SUBSPACE,
        grows="dimension",
        core_lr=1e-1,
        lessons=("rest", "weights"),
        ours=False,
    ),
    "subspace-taught": Lever(
        "the same, and learn from it too",
        _SUBSPACE,
        grows="dimension",
        core_lr=1e-1,
        lessons=("answers", "rest", "weights"),
        ours=False,
    ),
}


def lever_rows(settings: Settings, image_shape: ImageShape, num_classes: int) -> list[Row]:
    """Return the rows: VGG-16 dense and with frozen convolutions, narrow dense networks, and every lever."""
    network = Whole("vgg16", settings.width, image_shape, num_classes)
    build, layers = network.build, network.layers
    row = functools.partial(Row, group=network.name, network=network.name, build=build, layers=layers)

    def about(size: str | None, says: str, ours: bool) -> dict[str, Any]:
        return {"size": size, "says": says, "ours": ours}

    rows = []
    for variant, says in (("dense", "the dense network"), ("frozen-dense", "convolutions left as they were drawn")):
        make = functools.partial(Variant(variant, variant).make, build, layers)
        how = settings.optimization(_RATE, _RATE)
        rows.append(row(variant=variant, make=make, optimization=how, about=about(None, says, False)))
    teacher = teacher_of(rows[0], settings)
    if teacher not in rows:
        rows.append(replace(teacher, about=about(None, "the dense network that others learn from", False)))
        teacher = rows[-1]
    for size, numbers in SIZES.items():
        rows.append(
            row(
                variant=f"narrow-dense-{size}",
                make=functools.partial(network.narrow, network.beside + numbers * len(layers)),
                optimization=settings.optimization(_RATE, _RATE),
                about=about(size, "a narrow dense network", False),
            )
        )
        for name, lever in LEVERS.items():
            if size in lever.sizes:
                configs = _configs(lever, network.weights, numbers)
                rows.append(
                    row(
                        variant=f"{name}-{size}",
                        make=functools.partial(_generated, network, lever, configs),
                        optimization=settings.optimization(_RATE, lever.core_lr),
                        about=about(size, lever.says, lever.ours),
                        teacher=teacher if lever.lessons else None,
                        lessons=lever.lessons,
                    )
                )
    return rows


def _configs(lever: Lever, weights: Mapping[str, tuple[int, ...]], numbers: int) -> dict[str, GeneratorConfig]:
    half, shapes = len(weights) // 2, list(weights.values())
    configs = {}
    for place, (name, shape) in enumerate(weights.items()):
        share = 1.0
        if lever.early is not None:
            share = 2 * (lever.early if place < half else 1 - lever.early)
        configs[name] = lever.config(shape, round(share * numbers), shapes.count(shape))
    return configs


def _generated(network: Whole, lever: Lever, configs: Mapping[str, GeneratorConfig], seed: int) -> nn.Module:
    if lever.seeding is not None:
        model = network.seeded(configs, lever.seeding, seed)
    else:
        model = Variant("", overrides=configs).make(network.build, list(configs), seed)
    if lever.shared:
        share_cores_(model)
    if lever.start != 1.0:
        for weight in generated_weights(model).values():
            weight.std = lever.start * default_std(weight.shape)
            weight.draw_()
    return model
