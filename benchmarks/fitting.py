"""How near does a generator come to a weight, and which optimiser gets it there? The study behind ``FitOptions``.

    python benchmarks/fitting.py
    python benchmarks/fitting.py --table

Needs the extra ``run``: the trained weight is that of a small network on scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path

import torch
from torch import nn

import adntn
from adntn.checkpoint import writing
from adntn.experiments.data import load_data

RESULTS = Path(__file__).parent / "results" / "fitting.json"
SIZE = 64

METHODS = {
    "as it is": {},
    "Adam only": {"steps": 500, "polish": 0},
    "L-BFGS only": {"steps": 0, "polish": 400},
    "learning rate / 4": {"lr": 0.015},
    "learning rate x 4": {"lr": 0.24},
}
GENERATORS = {
    "ttn": {"topology": "ttn"},
    "mera": {"topology": "mera"},
    "ttn, bond 4": {"topology": "ttn", "bond_dim": 4},
    "lowrank of rank 1": {"topology": "lowrank", "bond_dim": 1},
    "lowrank of rank 4": {"topology": "lowrank", "bond_dim": 4},
    "tt of rank 3": {"topology": "tt", "bond_dim": 3},
    "subspace": {"topology": "subspace"},
}
COMPARED = ("ttn", "mera")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--table", action="store_true", help="print the tables of what is there and stop")
    args = parser.parse_args()
    if not args.table:
        torch.set_num_threads(1)
        measured = []
        for target, weight in targets().items():
            for generator in GENERATORS:
                for method in METHODS if generator in COMPARED else ("as it is",):
                    measured += [run(target, weight, generator, method, seed) for seed in args.seeds]
                    print(json.dumps(measured[-1]), flush=True)
        environment = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
        with writing(RESULTS) as temporary:
            lines = ",\n".join(json.dumps(row) for row in measured)
            temporary.write_text(f'{{"environment": {json.dumps(environment)}, "rows": [\n{lines}\n]}}\n')
    print(generators(), methods(), sep="\n\n")


def targets() -> dict[str, torch.Tensor]:
    """Return the weights to fit to."""
    torch.manual_seed(0)
    tree = adntn.Generator((SIZE, SIZE), adntn.GeneratorConfig(topology="mera"))
    return {
        "trained": trained(),
        "Gaussian": torch.randn(SIZE, SIZE),
        "rank 3": torch.randn(SIZE, 3) @ torch.randn(3, SIZE),
        "a mera's": tree().detach(),
    }


def trained() -> torch.Tensor:
    """Return the middle weight of a network of three layers, trained on digits."""
    split = load_data("digits").train
    images, labels = split.images.float() / 255, split.labels
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, SIZE), nn.ReLU(), nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model[3].weight.detach()


def run(target: str, weight: torch.Tensor, generator: str, method: str, seed: int) -> dict[str, object]:
    torch.manual_seed(seed)
    made = adntn.Generator((SIZE, SIZE), adntn.GeneratorConfig(**GENERATORS[generator]))
    report = adntn.fit_(made, weight, progress=False, **METHODS[method])
    return {
        "target": target,
        "generator": generator,
        "method": method,
        "seed": seed,
        "stored": made.num_parameters,
        "relative_error": report.relative_error,
        "stable_rank": report.stable_rank,
        "target_stable_rank": report.target_stable_rank,
        "steps": report.steps,
        "seconds": report.seconds,
    }


def rows() -> list[dict[str, object]]:
    return json.loads(RESULTS.read_text())["rows"]


def spread(group: list[dict[str, object]], name: str, digits: int = 3) -> str:
    values = [row[name] for row in group]
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def markdown(head: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))


def generators() -> str:
    """Return the errors of each generator, as a Markdown table."""
    found = [row for row in rows() if row["method"] == "as it is"]
    names = list(dict.fromkeys(row["target"] for row in found))
    body = []
    for generator in GENERATORS:
        mine = [row for row in found if row["generator"] == generator]
        errors = [spread([row for row in mine if row["target"] == name], "relative_error") for name in names]
        body.append([generator, str(mine[0]["stored"]), *errors])
    return markdown(["generator", "stored", *names], body)


def methods() -> str:
    """Return errors and times of each way to fit, as a Markdown table."""
    names = list(dict.fromkeys(row["target"] for row in rows()))
    body = []
    for generator in COMPARED:
        for method in METHODS:
            mine = [row for row in rows() if (row["generator"], row["method"]) == (generator, method)]
            errors = [spread([row for row in mine if row["target"] == name], "relative_error") for name in names]
            body.append([generator, method, *errors, f"{statistics.median(row['seconds'] for row in mine):.1f}"])
    return markdown(["generator", "way", *names, "seconds"], body)


if __name__ == "__main__":
    sys.exit(main())
