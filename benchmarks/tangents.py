"""How many directions can a step of the trained numbers take? Stable rank of the start, and of what its numbers move.

The Jacobian of a weight by the trained numbers says which small changes of the weight are possible, and how far each of
them goes for a step of equal length. With its squared singular values s, (sum s)^2 / sum s^2 counts the directions that
matter: all numbers where each moves the weight in a direction of its own and as far as any other, as in a random
subspace; one, where all do the same.

    python benchmarks/tangents.py            # about five minutes on one core
    python benchmarks/tangents.py --table
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jacfwd

import adntn
from adntn.checkpoint import writing
from adntn.initialize import stable_rank

RESULTS = Path(__file__).parent / "results" / "tangents.json"
SHAPE = (64, 64, 3, 3)

_PAIRED: dict[str, Any] = {"order": "paired"}
_CONFORMAL = _PAIRED | {"initialization": "conformal"}
_KRONECKER = _CONFORMAL | {"radix": 8, "bond_dim": 1, "kernel_radix": 3}

CONFIGS: dict[str, dict[str, Any]] = {
    "ttn, blocked": {},
    "ttn, blocked, the paper's start": {"initialization": "paper", "activation": "elu"},
    "ttn, paired": _PAIRED,
    "ttn, paired, the paper's start": _PAIRED | {"initialization": "paper", "activation": "elu"},
    "ttn, paired, conformal": _CONFORMAL,
    "the same, linear": _CONFORMAL | {"activation": "identity"},
    "the same, sin(z)": _CONFORMAL | {"activation": "sine(omega=1)"},
    "the same, sin(10z)": _CONFORMAL | {"activation": "sine(omega=10)"},
    "mera, paired, conformal": _CONFORMAL | {"topology": "mera"},
    "ttn, block-paired, conformal": _CONFORMAL | {"order": "block_paired"},
    "ttn, paired, 8 groups": _PAIRED | {"groups": 8},
    "ttn, paired, conformal, 8 groups": _CONFORMAL | {"groups": 8},
    "ttn, paired, conformal, 8 terms": _CONFORMAL | {"terms": 8},
    "a root of all hidden modes": _CONFORMAL | {"latent_order": 99},
    "radix and bond 4": _CONFORMAL | {"radix": 4, "bond_dim": 4, "kernel_radix": 3},
    "radix 4, bond 2": _CONFORMAL | {"radix": 4, "bond_dim": 2, "kernel_radix": 3},
    "one Kronecker product": _KRONECKER,
    "8 Kronecker products": _KRONECKER | {"terms": 8},
    "random subspace": {"topology": "subspace", "subspace_dim": 128},
    "low rank 1": {"topology": "lowrank", "bond_dim": 1},
    "tensor train of rank 2": {"topology": "tt", "bond_dim": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    args = parser.parse_args()
    if not args.table:
        rows = [
            {"name": name, "seed": seed} | run(options, seed)
            for name, options in CONFIGS.items()
            for seed in args.seeds
        ]
        environment = {"torch": torch.__version__, "python": platform.python_version(), "shape": SHAPE}
        with writing(RESULTS) as temporary:
            lines = ",\n".join(json.dumps(row) for row in rows)
            temporary.write_text(f'{{"environment": {json.dumps(environment)}, "rows": [\n{lines}\n]}}\n')
    print(table())


def run(options: dict[str, Any], seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    generator = adntn.Generator(SHAPE, adntn.GeneratorConfig(**options), dtype=torch.float64)
    weight = generator().detach()
    values = torch.linalg.svdvals(jacobian(generator)).square()
    return {
        "numbers": generator.num_parameters,
        "stable_rank": stable_rank(weight),
        "kurtosis": float(weight.pow(4).mean() / weight.square().mean().square()),
        "directions": float(values.sum().square() / values.square().sum()),
    }


def jacobian(generator: adntn.Generator) -> Tensor:  # shape: (entries of the weight, trained numbers)
    values = {name: value.detach() for name, value in generator.named_parameters()}

    def made(*given: Tensor) -> Tensor:
        return functional_call(generator, dict(zip(values, given, strict=True)), ()).flatten()

    columns = jacfwd(made, argnums=tuple(range(len(values))))(*values.values())
    return torch.cat([each.flatten(1) for each in columns], 1)


def table() -> str:
    """Return what was measured as a Markdown table, means over the seeds."""
    rows = json.loads(RESULTS.read_text())["rows"]
    head = [
        "generator of 64×64×3×3",
        "numbers",
        "directions",
        "share",
        "stable rank of the weight",
        "kurtosis of its entries",
    ]
    body = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        mean = {key: statistics.mean(row[key] for row in own) for key in ("directions", "stable_rank", "kurtosis")}
        numbers = own[0]["numbers"]
        cells = [f"{mean['directions']:.0f}", f"{mean['directions'] / numbers:.2f}", f"{mean['stable_rank']:.1f}"]
        body.append([name, f"{numbers:,}", *cells, f"{mean['kurtosis']:.1f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] + ["---:"] * 5, *body))


if __name__ == "__main__":
    sys.exit(main())
