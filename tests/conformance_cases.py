"""The table of generators that the conformance suite walks: shapes, configs, orders.

It holds what is easily got wrong: a bridge with carries, an odd number of modes, bond != radix, radix 3, groups, cores
and gates that straddle two axes, padded axes, digits out of order, disentanglers far from the identity, modes of two
sizes, sums of trees, gates that are half open, and numbers on a grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adntn import Generator, GeneratorConfig, quantize_
from adntn.generator import GeneratorModule
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
    bits: int | None = None

    def blueprint(self) -> Blueprint:
        return Blueprint(self.shape, GeneratorConfig(**{**PLAIN, **self.options}))

    def build(self, dtype: torch.dtype = torch.float64) -> Generator:
        torch.manual_seed(0)
        gen: Generator = scramble(Generator(self.shape, self.blueprint().config, dtype=dtype))
        if self.bits is not None:
            quantize_(gen, self.bits)
            put_on_grid(gen)
        return gen


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
    for turn, (topology, options) in enumerate(EVERYTHING.items()):
        for bits in (8, 4):
            more = {"gate": True, "terms": 2, "activation": "prelu"} if topology in NETWORKS else {}
            order = ORDERS[(turn + bits // 4) % 4]
            cases[f"{bits} bits, groups/{topology}/{order}"] = Case(
                (6, 10), {"order": order, "groups": 2, "latent_order": 2, "bond_dim": 3, **more, **options}, bits
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


def put_on_grid(gen: GeneratorModule) -> None:
    """Write the numbers on the grid in the place of the float ones, for what knows of no grid: references, files."""
    with torch.no_grad():
        for name, value in gen.used_parameters().items():
            gen.get_core(name).copy_(value)


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


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm().detach() / expected.norm().detach())
