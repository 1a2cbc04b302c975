"""The table that the conformance suite walks: shapes, configs, orders, and layers with the inputs they meet.

It holds what is easily got wrong: a bridge with carries, an odd number of modes, bond != radix, radix 3, groups, cores
and gates that straddle two axes, padded axes, digits out of order, disentanglers far from the identity, modes of two
sizes, sums of trees, and gates that are half open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adntn import Generator, GeneratorConfig
from adntn.nn import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Embedding,
    Linear,
)
from adntn.topology import Blueprint

Options = dict[str, Any]

#: Nothing here leans on a default of the library, which may change with the evidence for it.
PLAIN: Options = {"topology": "ttn", "order": "blocked", "activation": "elu", "initialization": "paper"}
ORDERS = ("flat", "blocked", "paired", "block_paired")
TOPOLOGIES: dict[str, Options] = {
    "ttn": {"topology": "ttn"},
    "attn": {"topology": "attn"},
    "attn, two layers": {"topology": "attn", "boundary_layers": 2},
    "mera": {"topology": "mera"},
}
WALLS: dict[str, Options] = {
    "brickwall": {"topology": "brickwall"},
    "brickwall, three columns": {"topology": "brickwall", "columns": 3},
    "brickwall, one block of four": {"topology": "brickwall", "columns": 4, "blocks": 1},
    "brickwall, five columns in two": {"topology": "brickwall", "columns": 5, "blocks": 2},
}
BASELINES: dict[str, Options] = {
    "tt": {"topology": "tt"},
    "lowrank": {"topology": "lowrank"},
    "subspace": {"topology": "subspace", "subspace_dim": 7},
    "frozen": {"topology": "frozen"},
}
#: What has levels and states, and all there is.
NETWORKS = TOPOLOGIES | WALLS
EVERYTHING = NETWORKS | BASELINES
SHAPES = {
    "square": (8, 8),
    "odd modes, straddling core": (8, 16),
    "padded": (5, 11),
    "wide": (2, 50),
    "conv": (4, 3, 3, 3),
    "conv 1x1": (6, 10, 1, 1),
    "conv1d": (5, 4, 5),
    "conv3d": (2, 3, 2, 1, 3),
    "column": (1, 37),
    "row": (37, 1),
    "one number": (1, 1),
}
CONFIGS: dict[str, Options] = {
    "bridge": {"latent_order": 3},
    "no hidden level": {"latent_order": 9},
    "bond 3": {"bond_dim": 3, "latent_order": 2},
    "bond 1": {"bond_dim": 1},
    "radix 3": {"radix": 3, "latent_order": 2},
    "radix 4, bond 2": {"radix": 4, "bond_dim": 2, "latent_order": 1},
    "prelu, centred": {"activation": "prelu", "norm": "center", "latent_order": 2},
    "sine, isometric": {"activation": "sine(omega=3)", "initialization": "isometric", "latent_order": 1},
    "rms": {"norm": "rms", "latent_order": 2},
    "layer norm, gate": {"norm": "layer", "gate": True, "activation": "sine", "latent_order": 2},
    "two terms": {"terms": 2, "latent_order": 2},
    "three terms, gate, prelu, bond 3": {
        "terms": 3,
        "gate": True,
        "activation": "prelu",
        "bond_dim": 3,
        "latent_order": 1,
    },
}
#: What a baseline has a use for.
BASELINE_CONFIGS: dict[str, Options] = {
    "bond 3": {"bond_dim": 3},
    "bond 1": {"bond_dim": 1},
    "radix 3": {"radix": 3},
    "default": {"subspace_dim": None},
}
#: What each learns on a level and in a group.
ACTIVATIONS: dict[str, dict[str, int]] = {
    **{name: {} for name in ("identity", "relu", "elu", "gelu", "silu", "tanh", "sine", "sine(omega=3)", "siren")},
    "prelu": {"slope": 1},
    "swish": {"beta": 1},
    "rational": {"a": 4, "b": 1},
    "rational(m=2, n=4)": {"a": 3, "b": 2},
}

# Shapes whose digits an explicit order can shuffle: without padding, with it, and with an odd number of modes.
PERMUTATIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "blocked": ((8, 8), (0, 1, 2, 3, 4, 5)),
    "digits reversed": ((8, 8), (2, 1, 0, 5, 4, 3)),
    "in before out": ((8, 16), (3, 4, 5, 6, 0, 1, 2)),
    "padded, shuffled": ((5, 11), (6, 0, 3, 2, 5, 1, 4)),
    "conv, kernel first": ((4, 3, 3, 3), (7, 4, 5, 6, 0, 1, 2, 3)),
    "conv, interleaved": ((4, 3, 3, 3), (0, 2, 4, 1, 3, 5, 6, 7)),
}


# Kernels whose modes have a size of their own, 3 in all but the last: with padding, with an odd number of modes, with
# digits out of order.
KERNELS: dict[str, tuple[tuple[int, ...], Options]] = {
    "3x3": ((4, 3, 3, 3), {}),
    "3x3, paired": ((4, 3, 3, 3), {"order": "paired"}),
    "3x3, block_paired, bond 3": ((4, 3, 3, 3), {"order": "block_paired", "bond_dim": 3, "latent_order": 1}),
    "3x3, a ravel that lines up": ((5, 4, 3, 3), {"order": "flat"}),
    "odd modes": ((5, 4, 5), {"order": "paired", "latent_order": 1}),
    "3x3, odd modes": ((2, 3, 3, 3), {}),
    "1x1": ((6, 10, 1, 1), {}),
    "one channel": ((1, 1, 3, 3), {}),
    "conv3d": ((2, 3, 2, 1, 3), {"order": "block_paired"}),
    "interleaved": ((4, 3, 3, 3), {"order": (0, 4, 2, 1, 5, 3), "latent_order": 2}),
    "odd modes, kernel first": ((2, 3, 3, 3), {"order": (4, 3, 1, 0, 2)}),
    "groups, terms, gate": ((4, 4, 3, 1), {"groups": 2, "terms": 2, "gate": True, "activation": "prelu"}),
    "1x5 in one mode": ((4, 3, 1, 5), {"kernel_radix": 5, "latent_order": 2}),
}


@dataclass(frozen=True)
class Case:
    """One generator of the suite."""

    shape: tuple[int, ...]
    options: Options = field(hash=False)

    def blueprint(self) -> Blueprint:
        return Blueprint(self.shape, GeneratorConfig(**{**PLAIN, **self.options}))

    def build(self, dtype: torch.dtype = torch.float64) -> Generator:
        torch.manual_seed(0)
        return scramble(Generator(self.shape, self.blueprint().config, dtype=dtype))


def generator_cases() -> dict[str, Case]:
    """Return a set of cases in which every two of shape, config, topology and order meet, and what else there is."""
    cases: dict[str, Case] = {}

    def add(name: str, shape: tuple[int, ...], **options: Any) -> None:
        cases[name] = Case(shape, options)

    # Every shape meets every topology, and both meet every order; the same of configs and of groups.
    for turn, (topology, options) in enumerate(EVERYTHING.items()):
        for place, (shape, sizes) in enumerate(SHAPES.items()):
            order = ORDERS[(turn + place) % 4]
            if shape == "one number" and topology in WALLS:
                continue  # a single mode has no pair
            add(f"{shape}/{topology}/{order}", sizes, **{"order": order, "latent_order": 3, **options})
        configs = BASELINE_CONFIGS if topology in BASELINES else CONFIGS
        for place, (config, more) in enumerate(configs.items()):
            order = ORDERS[(turn + place) % 4]
            shape = ("square", "padded", "conv")[(turn + place // 4) % 3]
            changes = {k: v for k, v in more.items() if topology == "subspace" or k != "subspace_dim"}
            add(f"{config}/{shape}/{topology}/{order}", SHAPES[shape], **{"order": order, **options, **changes})
        for place, (groups, sizes) in enumerate(((2, (6, 8)), (3, (9, 5)), (2, (10, 3, 1, 3)))):
            for order in ORDERS[(turn + place) % 4], ORDERS[(turn + place + 2) % 4]:
                add(
                    f"{groups} groups of {sizes}/{topology}/{order}",
                    sizes,
                    **{"order": order, "groups": groups, "latent_order": 2, **options},
                )
        if topology in ("lowrank", "subspace", "frozen"):
            continue  # these have no modes
        for name, (sizes, permutation) in PERMUTATIONS.items():
            add(f"{name}/{topology}", sizes, **{"order": permutation, "latent_order": 3, **options})
        for name, (sizes, kernel) in KERNELS.items():
            if topology in BASELINES:
                kernel = {k: v for k, v in kernel.items() if k not in ("terms", "gate")}
            add(
                f"kernel radix, {name}/{topology}", sizes, **{"kernel_radix": 3, "latent_order": 3, **options, **kernel}
            )
        add(f"groups, shuffled/{topology}", (10, 3), order=(4, 0, 2, 3, 1), groups=2, latent_order=2, **options)
        if topology in NETWORKS:
            add(
                f"groups, prelu, centred, bond 3/{topology}",
                (9, 5),
                groups=3,
                activation="prelu",
                norm="center",
                bond_dim=3,
                latent_order=1,
                **options,
            )
    for columns in (1, 3, 4):
        add(f"two modes, {columns} columns", (2, 2), topology="brickwall", columns=columns)
    add("a chain of a single mode", (1, 1), topology="tt")
    for activation in ACTIVATIONS:
        add(f"{activation}", (8, 8), activation=activation, latent_order=1, topology="mera")
        add(
            f"{activation}, groups", (9, 5), activation=activation, groups=3, latent_order=1, initialization="isometric"
        )
    return cases


#: The few whose derivatives are checked.
DIFFERENTIATED = {
    "bridge": Case((5, 11), {"latent_order": 3}),
    "prelu, centred": Case((5, 11), {**CONFIGS["prelu, centred"], "topology": "mera"}),
    "bond 3": Case((8, 8), {**CONFIGS["bond 3"], **TOPOLOGIES["attn, two layers"], "order": "paired"}),
    "sine, isometric": Case((4, 3, 3, 3), {**CONFIGS["sine, isometric"], "topology": "mera", "order": "block_paired"}),
    "groups": Case((6, 8), {"groups": 2, "topology": "attn", "order": "flat", "latent_order": 2}),
    "digits out of order": Case((5, 11), {"topology": "mera", "order": (6, 0, 3, 2, 5, 1, 4)}),
    "rational, groups": Case((6, 8), {"activation": "rational(m=2, n=4)", "groups": 2, "latent_order": 1}),
    "swish": Case((5, 11), {"activation": "swish", "latent_order": 2, "initialization": "isometric"}),
    "siren": Case((8, 8), {"activation": "siren(omega=2)", "latent_order": 1, "initialization": "isometric"}),
    "norm, gate, terms, kernel radix": Case(
        (2, 3, 3, 3),
        {"topology": "mera", "norm": "layer", "gate": True, "terms": 2, "kernel_radix": 3, "latent_order": 1},
    ),
    "brickwall": Case((5, 11), {"topology": "brickwall", "columns": 3, "norm": "rms", "gate": True}),
    "tt": Case((4, 3, 3, 3), {"topology": "tt", "bond_dim": 3}),
    "tt, paired": Case((5, 11), {"topology": "tt", "order": "paired"}),
    "lowrank": Case((6, 5, 3), {"topology": "lowrank", "groups": 2}),
    "subspace": Case((6, 5), {"topology": "subspace", "subspace_dim": 5, "groups": 2}),
    "frozen": Case((6, 5), {"topology": "frozen", "groups": 2}),
}


def scramble(module: nn.Module) -> Any:
    """Take disentanglers far from the identity; biases, gates and what activations learn from their constant start."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "gate." in name and parameter.ndim == 2:
                parameter.copy_(0.2 + torch.rand_like(parameter))
            elif "mix." in name:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
            elif "activation." in name or name.endswith("bias"):
                parameter.copy_(torch.rand_like(parameter))
    return module


# --- layers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerCase:
    """One layer of the suite.

    Attributes:
        make: builds it; takes ``execution``, ``device`` and ``dtype``.
        input: shape of an input, batch first.
        way: how it runs when nothing is asked.
        splits: whether it can run factored at all.
        rows: of the table, if the input is indices into one.
    """

    make: Callable[..., nn.Module]
    input: tuple[int, ...]
    way: str = "factored"
    splits: bool = True
    rows: int | None = None

    def build(self, execution: str = "auto", dtype: torch.dtype = torch.float64) -> Any:
        torch.manual_seed(0)
        return scramble(self.make(execution=execution, dtype=dtype))

    def make_input(self, dtype: torch.dtype = torch.float64, batch: int | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        shape = self.input if batch is None else (batch, *self.input[1:])
        if self.rows is not None:
            return torch.randint(self.rows, shape, generator=generator)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _linear(in_features: int, out_features: int, *, bias: bool = True, **options: Any) -> Callable[..., nn.Module]:
    return partial(Linear, in_features, out_features, bias, GeneratorConfig(**{**PLAIN, **options}))


def _rows(start: int, stop: int, whole: int, in_features: int, **options: Any) -> Callable[..., nn.Module]:
    """Return what builds a linear layer of some rows of what a generator makes."""

    def make(execution: str = "auto", device: Any = None, dtype: torch.dtype | None = None) -> nn.Module:
        generator = Generator((whole, in_features), GeneratorConfig(**{**PLAIN, **options}), device=device, dtype=dtype)
        dense = nn.Linear(in_features, stop - start, device=device, dtype=dtype)
        return Linear.from_dense(dense, share=generator, rows=(start, stop), execution=execution)

    return make


def _conv(
    channels_in: int,
    channels_out: int,
    kernel: int | tuple[int, ...] = 3,
    *,
    kind: type[nn.Module] = Conv2d,
    config: Options | None = None,
    **options: Any,
) -> Callable[..., nn.Module]:
    generator_config = GeneratorConfig(**{**PLAIN, **(config or {})})
    return partial(kind, channels_in, channels_out, kernel, config=generator_config, **options)


_conv1d, _conv3d = partial(_conv, kind=Conv1d), partial(_conv, kind=Conv3d)
_transpose1d, _transpose2d, _transpose3d = (
    partial(_conv, kind=kind) for kind in (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
)


def _table(rows: int, size: int, padding_idx: int | None = None, way: str = "factored", **options: Any) -> LayerCase:
    config = GeneratorConfig(**{**PLAIN, **options})
    make = partial(Embedding, rows, size, padding_idx, config=config)
    return LayerCase(make, (3, 5), way, splits=config.order in ("blocked", "block_paired"), rows=rows)


LAYERS: dict[str, LayerCase] = {
    "linear": LayerCase(_linear(32, 64), (3, 32)),
    "linear, no bias": LayerCase(_linear(64, 32, bias=False), (3, 64)),
    "linear, attn": LayerCase(_linear(64, 64, topology="attn"), (3, 64)),
    "linear, attn of two layers": LayerCase(_linear(128, 128, topology="attn", boundary_layers=2), (3, 128)),
    "linear, mera, padded": LayerCase(_linear(100, 77, topology="mera"), (3, 100)),
    "linear, odd modes": LayerCase(_linear(128, 64, topology="mera"), (3, 128)),
    "linear, flat in powers of two": LayerCase(_linear(64, 50, order="flat"), (3, 64)),
    "linear, flat and padded": LayerCase(_linear(50, 64, order="flat"), (3, 50), way="dense", splits=False),
    "linear, paired": LayerCase(_linear(64, 64, order="paired"), (3, 64), way="dense", splits=False),
    "linear, block_paired": LayerCase(_linear(64, 64, order="block_paired"), (3, 64)),
    "linear, block_paired mera": LayerCase(
        _linear(64, 64, order="block_paired", topology="mera"), (3, 64), way="dense", splits=False
    ),
    "linear, 3 groups": LayerCase(_linear(128, 192, groups=3, topology="attn"), (3, 128)),
    "linear, 3 groups, no bias": LayerCase(_linear(128, 192, bias=False, groups=3), (3, 128)),
    "linear, radix 3, isometric": LayerCase(
        _linear(81, 70, radix=3, activation="sine(omega=3)", initialization="isometric"), (3, 81)
    ),
    "linear, radix 4, bond 2": LayerCase(_linear(64, 60, radix=4, bond_dim=2, topology="attn"), (3, 64)),
    "linear, prelu, centred": LayerCase(_linear(64, 64, activation="prelu", norm="center", latent_order=2), (3, 64)),
    "linear, rows of a shared generator": LayerCase(_rows(77, 141, 192, 64, topology="mera"), (3, 64), way="dense"),
    "linear, two of three groups": LayerCase(_rows(64, 192, 192, 128, groups=3, topology="attn"), (3, 128)),
    "linear, rows across groups": LayerCase(_rows(40, 128, 192, 64, groups=3), (3, 64), way="dense", splits=False),
    "linear, rational, 2 groups": LayerCase(
        _linear(64, 64, activation="rational", groups=2, latent_order=2, initialization="isometric"), (3, 64)
    ),
    "linear, gate, two terms, layer norm": LayerCase(
        _linear(64, 64, topology="mera", gate=True, terms=2, norm="layer", activation="sine"), (3, 64), way="dense"
    ),
    "linear, brickwall": LayerCase(_linear(100, 77, topology="brickwall", columns=3, gate=True), (3, 100), way="dense"),
    "linear, tt": LayerCase(_linear(50, 64, topology="tt", bond_dim=3), (3, 50)),
    "linear, tt, paired, 2 groups": LayerCase(
        _linear(50, 64, topology="tt", order="paired", groups=2), (3, 50), way="dense", splits=False
    ),
    "linear, lowrank, 2 groups": LayerCase(_linear(50, 64, topology="lowrank", groups=2), (3, 50)),
    "linear, subspace": LayerCase(_linear(50, 64, topology="subspace"), (3, 50), way="dense", splits=False),
    "linear, frozen, 2 groups": LayerCase(
        _linear(50, 64, topology="frozen", groups=2), (3, 50), way="dense", splits=False
    ),
    "linear, too small to factor": LayerCase(_linear(8, 8), (3, 8), way="dense"),
    "conv": LayerCase(_conv(32, 32), (2, 32, 5, 6)),
    "conv, no bias, mera": LayerCase(_conv(32, 40, bias=False, config={"topology": "mera"}), (2, 32, 5, 6)),
    "conv, 1x1": LayerCase(_conv(64, 64, 1), (2, 64, 3, 2)),
    "conv, uneven kernel and stride": LayerCase(_conv(32, 32, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 32, 6, 5)),
    "conv, dilated": LayerCase(_conv(32, 32, padding=2, dilation=2), (2, 32, 6, 5)),
    "conv, same": LayerCase(_conv(32, 32, (3, 5), padding="same"), (2, 32, 5, 6)),
    "conv, valid": LayerCase(_conv(32, 32, padding="valid"), (2, 32, 5, 6)),
    "conv, reflect": LayerCase(_conv(32, 32, padding=(1, 2), padding_mode="reflect"), (2, 32, 5, 6)),
    "conv, circular, same, dilated": LayerCase(
        _conv(32, 32, padding="same", padding_mode="circular", dilation=(1, 2)), (2, 32, 5, 6)
    ),
    "conv, replicate, stride": LayerCase(_conv(32, 32, padding=1, padding_mode="replicate", stride=2), (2, 32, 5, 6)),
    "conv, generator of 2 groups": LayerCase(
        _conv(32, 64, padding=1, config={"groups": 2, "topology": "attn"}), (2, 32, 4, 5)
    ),
    "conv, 4 groups": LayerCase(_conv(64, 64, groups=4, padding=1), (2, 64, 4, 5)),
    "conv, 2 groups, generator of 4": LayerCase(
        _conv(64, 128, groups=2, config={"groups": 4, "topology": "attn"}), (2, 64, 4, 5)
    ),
    "conv, 4 groups, generator of 2": LayerCase(_conv(64, 128, groups=4, config={"groups": 2}), (2, 64, 4, 5)),
    "conv, 2 groups, generator of 3": LayerCase(
        _conv(8, 12, 2, groups=2, config={"groups": 3}), (2, 8, 4, 5), way="dense"
    ),
    "conv, depthwise": LayerCase(_conv(32, 32, groups=32), (2, 32, 4, 5), way="dense"),
    "conv, paired": LayerCase(_conv(32, 32, config={"order": "paired"}), (2, 32, 4, 5), way="dense", splits=False),
    "conv, block_paired": LayerCase(_conv(32, 32, config={"order": "block_paired"}), (2, 32, 4, 5)),
    "conv, kernel radix 3, two terms": LayerCase(
        _conv(32, 40, padding=1, config={"topology": "attn", "kernel_radix": 3, "terms": 2}), (2, 32, 4, 5), way="dense"
    ),
    "conv, brickwall": LayerCase(_conv(32, 32, config={"topology": "brickwall", "kernel_radix": 3}), (2, 32, 4, 5)),
    "conv, tt": LayerCase(_conv(32, 32, stride=2, config={"topology": "tt", "kernel_radix": 3}), (2, 32, 5, 5)),
    "conv, lowrank": LayerCase(_conv(32, 32, config={"topology": "lowrank"}), (2, 32, 4, 5)),
    "conv, subspace, 4 groups": LayerCase(
        _conv(32, 32, groups=4, config={"topology": "subspace", "subspace_dim": 9, "groups": 2}),
        (2, 32, 4, 5),
        way="dense",
        splits=False,
    ),
    "conv, flat and padded": LayerCase(
        _conv(32, 32, config={"order": "flat"}), (2, 32, 4, 5), way="dense", splits=False
    ),
    "conv1d": LayerCase(_conv1d(32, 40, 5, stride=2, padding=2), (2, 32, 9)),
    "conv1d, padded 17 to 33, dilated": LayerCase(
        _conv1d(17, 33, 3, dilation=3, config={"topology": "mera"}), (2, 17, 9), way="dense"
    ),
    "conv1d, reflect, no bias": LayerCase(
        _conv1d(32, 32, padding="same", padding_mode="reflect", bias=False), (2, 32, 9)
    ),
    "conv1d, circular, generator of 2 groups": LayerCase(
        _conv1d(32, 64, padding=1, padding_mode="circular", config={"groups": 2, "topology": "attn"}), (2, 32, 9)
    ),
    "conv1d, 2 groups": LayerCase(_conv1d(64, 64, 5, groups=2, padding="same"), (2, 64, 6)),
    "conv1d, paired": LayerCase(_conv1d(32, 32, config={"order": "paired"}), (2, 32, 5), way="dense", splits=False),
    "conv3d": LayerCase(
        _conv3d(32, 32, (3, 1, 2), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 1, 2)), (2, 32, 3, 4, 3)
    ),
    "conv3d, padded 17 to 33, radix 3": LayerCase(
        _conv3d(17, 33, 3, padding="same", bias=False, config={"radix": 3, "latent_order": 2}), (2, 17, 3, 2, 3)
    ),
    "conv3d, replicate, 2 groups": LayerCase(
        _conv3d(32, 32, 2, padding=1, padding_mode="replicate", groups=2), (2, 32, 2, 3, 2)
    ),
    "conv3d, flat": LayerCase(_conv3d(17, 8, 2, config={"order": "flat"}), (2, 17, 2, 3, 2), way="dense", splits=False),
    "transposed": LayerCase(_transpose2d(32, 40), (2, 32, 4, 3)),
    "transposed, output_padding, mera": LayerCase(
        _transpose2d(32, 64, (3, 2), stride=(2, 3), padding=1, output_padding=(1, 2), config={"topology": "mera"}),
        (2, 32, 3, 4),
    ),
    "transposed, padded 17 to 33, dilated": LayerCase(_transpose2d(17, 33, dilation=(2, 1), bias=False), (2, 17, 4, 3)),
    "transposed, 4 groups": LayerCase(_transpose2d(64, 128, groups=4, stride=2), (2, 64, 3, 2)),
    "transposed, generator of 2 groups": LayerCase(
        _transpose2d(64, 32, config={"groups": 2, "topology": "attn"}), (2, 64, 3, 2)
    ),
    "transposed, 2 groups, generator of 4": LayerCase(
        _transpose2d(64, 64, groups=2, config={"groups": 4}), (2, 64, 3, 2)
    ),
    "transposed, 4 groups, generator of 2": LayerCase(
        _transpose2d(64, 64, groups=4, config={"groups": 2}), (2, 64, 3, 2)
    ),
    "transposed, paired": LayerCase(
        _transpose2d(32, 32, config={"order": "paired"}), (2, 32, 3, 2), way="dense", splits=False
    ),
    "transposed, block_paired, radix 3": LayerCase(
        _transpose2d(27, 30, config={"order": "block_paired", "radix": 3, "latent_order": 2}), (2, 27, 3, 2)
    ),
    "transposed, depthwise": LayerCase(_transpose2d(16, 16, groups=16), (2, 16, 3, 2), way="dense"),
    "transposed 1d": LayerCase(_transpose1d(32, 40, 4, stride=2, padding=1), (2, 32, 5)),
    "transposed 3d": LayerCase(
        _transpose3d(32, 32, 2, stride=(2, 1, 1), output_padding=(1, 0, 0), bias=False), (2, 32, 2, 2, 3)
    ),
    "embedding": _table(100, 32),
    "embedding, padding": _table(33, 17, 0, topology="mera"),
    "embedding, radix 3": _table(70, 30, -1, radix=3, latent_order=2),
    "embedding, 2 groups, padding": _table(34, 20, 30, groups=2, topology="attn"),
    "embedding, mera": _table(500, 128, 499, topology="mera"),
    "embedding, 4 groups": _table(512, 100, groups=4),
    "embedding, block_paired": _table(64, 64, order="block_paired"),
    "embedding, paired, padding": _table(64, 20, 3, "dense", order="paired"),
    "embedding, flat": _table(50, 17, way="dense", order="flat"),
}


def ways_of(case: LayerCase) -> tuple[str, ...]:
    return ("dense", "factored") if case.splits else ("dense",)


#: Every layer in every way that it can run.
LAYER_WAYS = [(name, way) for name, case in LAYERS.items() for way in ways_of(case)]
