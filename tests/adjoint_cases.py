"""The rows of the conformance table that have levels, and what the options add to them."""

from __future__ import annotations

from typing import Any

import torch
from conformance_cases import TOPOLOGIES, Case, generator_cases

from adntn import Generator
from adntn.topology import BASELINES


def optional_cases() -> dict[str, Case]:
    """What the options add: norms, gates, sums, a radix for the kernel, the brick wall, and these together."""
    options: dict[str, dict[str, Any]] = {
        "gates": {"gate": True},
        "gated prelu, layer norm": {"gate": True, "activation": "prelu", "norm": "layer"},
        "rms": {"norm": "rms"},
        "two terms": {"terms": 2},
        "gated terms in groups": {"terms": 3, "gate": True, "groups": 2, "norm": "rms"},
        "two terms, prelu, bond 3": {"terms": 2, "activation": "prelu", "bond_dim": 3},
        "kernel radix": {"kernel_radix": 3},
        "kernel radix, bond 3, gates": {"kernel_radix": 3, "bond_dim": 3, "gate": True},
    }
    walls = {
        "one column": {"columns": 1},
        "two columns": {},
        "three columns, one block": {"columns": 3, "blocks": 1},
        "five columns": {"columns": 5},
        "gated, normed, groups": {"columns": 4, "gate": True, "norm": "layer", "groups": 2},
        "two terms, prelu": {"columns": 4, "terms": 2, "gate": True, "activation": "prelu"},
        "radix 3": {"columns": 4, "radix": 3},
    }
    cases = {}
    for shape in ((6, 8), (4, 5, 3, 3), (10, 3)):
        kernel = len(shape) > 2
        for name, chosen in options.items():
            for topology, mixing in TOPOLOGIES.items():
                if kernel or "kernel" not in name:
                    cases[f"{name}/{topology}/{shape}"] = Case(shape, {"latent_order": 2, **mixing, **chosen})
        for name, chosen in walls.items():
            cases[f"{name}/brickwall/{shape}"] = Case(shape, {"topology": "brickwall", **chosen})
    cases["kernel radix/brickwall"] = Case((4, 4, 3, 3), {"topology": "brickwall", "columns": 4, "kernel_radix": 3})
    cases["paired, two terms"] = Case((6, 8), {"terms": 2, "order": "paired", "topology": "mera", "latent_order": 2})
    return cases


LEVELED = {name: case for name, case in generator_cases().items() if case.options.get("topology") not in BASELINES}
CASES = LEVELED | optional_cases()


def build(case: Case) -> Generator:
    gen = case.build()
    with torch.no_grad():
        for name, parameter in gen.named_parameters():
            if name.startswith("gate.") and parameter.shape[-1] == 1:  # not a brick wall's cores
                parameter.copy_(torch.randn_like(parameter))
    return gen
