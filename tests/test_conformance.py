"""One table of cases, one suite of checks: every topology and order against the literal reference, and itself.

The table holds what is easily got wrong: a bridge with carries, an odd number of modes, bond != radix, radix 3, groups, a core that
straddles two axes, padded axes, and disentanglers far from the identity.
"""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from reference import generate

from adntn import Generator, GeneratorConfig

SHAPES = {
    "square": (8, 8),
    "odd modes, straddling core": (8, 16),
    "padded": (5, 11),
    "wide": (2, 50),
    "conv": (4, 3, 3, 3),
    "conv 1x1": (6, 10, 1, 1),
    "conv1d": (5, 4, 5),
    "column": (1, 37),
}
CONFIGS = {
    "plain": {},
    "bridge": {"latent_order": 3},
    "no hidden level": {"latent_order": 9},
    "bond 3": {"bond_dim": 3, "latent_order": 2},
    "bond 1": {"bond_dim": 1},
    "radix 3": {"radix": 3, "latent_order": 2},
    "radix 4, bond 2": {"radix": 4, "bond_dim": 2, "latent_order": 1},
    "prelu, centred": {"activation": "prelu", "norm": "center", "latent_order": 2},
    "sine, isometric": {"activation": "sine(omega=3)", "initialization": "isometric", "latent_order": 1},
}
ORDERS = ("flat", "blocked", "paired", "block_paired")
TOPOLOGIES = {
    "ttn": {"topology": "ttn"},
    "attn": {"topology": "attn"},
    "attn, two layers": {"topology": "attn", "boundary_layers": 2},
    "mera": {"topology": "mera"},
}


def build(shape: tuple[int, ...], **options: object) -> Generator:
    torch.manual_seed(0)
    gen = Generator(shape, GeneratorConfig(**options), dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in gen.named_parameters():
            if name.startswith("mix"):
                parameter.copy_(torch.randn_like(parameter))  # far from the identity
    return gen


def reference(gen: Generator) -> torch.Tensor:
    values = {name: tensor.detach().numpy() for name, tensor in gen.state_dict().items()}
    return torch.from_numpy(generate(gen.shape, asdict(gen.config), values))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_follows_the_equations(shape: str, topology: str, order: str) -> None:
    gen = build(SHAPES[shape], order=order, latent_order=3, **TOPOLOGIES[topology])
    torch.testing.assert_close(gen(), reference(gen), rtol=1e-10, atol=1e-10)
