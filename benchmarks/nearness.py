"""How near can generators of equal budget start to the trained weights of a whole network?

What ``adntn reproduce whole`` does before it trains a row called ``…-taught``, without the training: each generated
convolution of VGG-16 is fitted to the trained dense one. Errors are relative ones, up to the scale of the whole weight,
since a norm stands behind every layer.

    adntn reproduce whole --data FOLDER --width 0.25 --epochs 2 --teacher-epochs 8 --seeds 1 --rows vgg16/teacher \
        --out docs/results/whole-short
    python benchmarks/nearness.py            # four minutes on one core; reads the teachers of that folder
    python benchmarks/nearness.py --network resnet20 --budgets 20000    # at full width, those of whole-full-short
    python benchmarks/nearness.py --table
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

from adntn.checkpoint import load, writing
from adntn.describe import generated_weights
from adntn.experiments.lessons import fit_weights_
from adntn.experiments.reproduce.rows import Folder, Row
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.reproduce.whole import whole_rows
from adntn.fit import relative_error

RESULTS = {
    "vgg16": Path(__file__).parent / "results" / "nearness.json",
    "resnet20": Path(__file__).parent / "results" / "nearness-resnet20.json",
}
FOLDERS = {"vgg16": "whole-short", "resnet20": "whole-full-short"}
WIDTHS = {"vgg16": 0.25, "resnet20": 1.0}
NETWORKS = ("kronecker", "kronecker-shared", "subspaces", "lowrank")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", choices=list(RESULTS), default="vgg16", help="VGG-16 at a quarter of its width")
    parser.add_argument("--folder", type=Path, help="of the trained dense networks; docs/results/... by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budgets", type=int, nargs="+", default=[10_000, 20_000, 50_000, 100_000])
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    args = parser.parse_args()
    if not args.table:
        settings = Settings(width=WIDTHS[args.network], epochs=2, teacher_epochs=8)
        folder = args.folder or Path(__file__).parents[1] / "docs" / "results" / FOLDERS[args.network]
        rows = {row.variant: row for row in whole_rows(settings, (3, 32, 32), 10) if row.group == args.network}
        found = [
            {"budget": budget, "name": name, "seed": seed} | each
            for budget in args.budgets
            for name in NETWORKS
            if f"{name}-taught-{budget}" in rows
            for seed in args.seeds
            for each in errors(rows[f"{name}-taught-{budget}"], folder, seed)
        ]
        environment = {"torch": torch.__version__, "python": platform.python_version(), "width": settings.width}
        with writing(RESULTS[args.network]) as temporary:
            lines = ",\n".join(json.dumps(each) for each in found)
            temporary.write_text(f'{{"environment": {json.dumps(environment)}, "rows": [\n{lines}\n]}}\n')
    print(table(args.network))


def errors(row: Row, folder: Path, seed: int) -> list[dict[str, Any]]:
    """Fit a row's generators to its teacher's weights; a dict a layer."""
    assert row.teacher is not None
    model = row.make(seed)
    trained = load(row.teacher.make(seed), Folder(folder).model_file(row.teacher.name, seed))
    fit_weights_(model, trained)
    found = []
    for name, layer in generated_weights(model).items():
        target, made = trained.get_parameter(f"{name}.weight").detach(), layer.weight.detach()
        nearest = made * (made * target).sum() / made.square().sum()
        error = relative_error(nearest, target)
        found.append({"layer": name, "channels": layer.shape[0], "numbers": layer.num_parameters, "error": error})
    return found


def table(network: str = "vgg16") -> str:
    """Return what was measured as a Markdown table: means over seeds and layers of as many channels."""
    rows = json.loads(RESULTS[network].read_text())["rows"]
    channels = sorted({row["channels"] for row in rows})
    head = ["relative error", "budget", *(f"{count} channels" for count in channels)]
    body = []
    for budget, name in dict.fromkeys((row["budget"], row["name"]) for row in rows):
        own = [row for row in rows if (row["budget"], row["name"]) == (budget, name)]
        means = [statistics.mean(row["error"] for row in own if row["channels"] == count) for count in channels]
        body.append([name, f"{budget:,}", *(f"{mean:.2f}" for mean in means)])
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *body))


if __name__ == "__main__":
    sys.exit(main())
