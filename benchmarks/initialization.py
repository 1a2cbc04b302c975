"""Which start trains best? The study that chose the default activation and initialisation.

Every convolution but the first of a quarter-width VGG-16 is generated, and nothing else changes but the start. Each
run is written as soon as it is done, and a run that is there is not run again:

    python benchmarks/initialization.py --data FOLDER_OF_CIFAR10 --train 16000 --seeds 0 1 2
    python benchmarks/initialization.py --table
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

import adntn
from adntn.checkpoint import writing
from adntn.experiments.data import ImageData, load_data
from adntn.experiments.fitting import fit_to
from adntn.experiments.models import DEFAULT_TARGETS, model_builder
from adntn.initialize import stable_rank
from adntn.nn import GeneratedLayer
from adntn.training.optimization import Optimization

RESULTS = Path(__file__).parent / "results" / "initialization.json"
MODEL = "vgg16-quarter"

STARTS = {
    "paper, ELU": {"initialization": "paper", "activation": "elu"},
    "paper, sin(3z)": {"initialization": "paper", "activation": "sine(omega=3)"},
    "isometric but root of 0.05, ELU": {"initialization": "isometric", "activation": "elu"},
    "isometric, ELU": {"initialization": "isometric", "activation": "elu"},
    "isometric, ELU, centred": {"initialization": "isometric", "activation": "elu", "norm": "center"},
    "isometric, tanh": {"initialization": "isometric", "activation": "tanh"},
    "isometric, sin(z)": {"initialization": "isometric", "activation": "sine"},
    "isometric, sin(3z)": {"initialization": "isometric", "activation": "sine(omega=3)"},
    "isometric, sin(10z)": {"initialization": "isometric", "activation": "sine(omega=10)"},
}
ORDERS = ("blocked", "paired")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--train", type=int, help="images to train on, a stratified sample; all by default")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--orders", nargs="+", default=list(ORDERS), choices=ORDERS)
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    args = parser.parse_args()
    if args.table:
        print(table())
        return
    data = load_data(args.data).limit(train=args.train)
    recipe = Optimization(epochs=args.epochs, batch_size=128, lr=args.lr, weight_decay=5e-4, augment=True)
    for seed in args.seeds:
        for order in args.orders:
            for start in args.starts:
                key = {
                    "start": start,
                    "order": order,
                    "seed": seed,
                    "epochs": args.epochs,
                    "train": len(data.train),
                    "lr": args.lr,
                }
                if any(all(row[k] == v for k, v in key.items()) for row in rows()):
                    continue
                row = key | {"data": data.title} | run(data, recipe, seed, order, start)
                store(row)
                print(json.dumps(row), flush=True)


def run(data: ImageData, recipe: Optimization, seed: int, order: str, start: str) -> dict[str, object]:
    torch.manual_seed(seed)
    model = model_builder(MODEL, data.image_shape, data.num_classes)()
    config = adntn.GeneratorConfig(order=order, **STARTS[start])
    report = adntn.compress_(model, config, DEFAULT_TARGETS[MODEL])
    layers = [m for m in model.modules() if isinstance(m, GeneratedLayer)]
    if "root of 0.05" in start:
        for layer in layers:
            shrink_root(layer, 0.05)
    ranks = [stable_rank(layer.weight) for layer in layers]
    started = time.perf_counter()
    fitted = fit_to(data, model, recipe, seed=seed)
    return {
        "accuracy": fitted.validation_accuracy,
        "stable_rank_start": statistics.mean(ranks),
        "stable_rank_end": statistics.mean(stable_rank(layer.weight) for layer in layers),
        "model_parameters": report.model_after,
        "layer_parameters": report.generated,
        "seconds": time.perf_counter() - started,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


@torch.no_grad()
def shrink_root(layer: GeneratedLayer, factor: float) -> None:
    """Scale the root down and the first level's cores up, so that the weight stays as it is."""
    layer.root *= factor
    parents = layer.blueprint.levels[0].parents
    for name, core in layer.generator_parameters():
        if name in ("expand.1", "carry.1"):
            core *= factor ** (-1 / parents)


def rows() -> list[dict[str, object]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def store(row: dict[str, object]) -> None:
    everything = [*rows(), row]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with writing(RESULTS) as temporary:
        temporary.write_text(json.dumps(everything, indent=1) + "\n")


def table() -> str:
    """Return the results as a Markdown table, best first within each order."""
    lines = [
        "| order | start | stable rank at the start | and at the end | accuracy, % | seeds | whole model |",
        "|---|---|---|---|---|---|---|",
    ]
    grouped: dict[tuple[str, str], list[dict[str, object]]] = {}
    for row in rows():
        grouped.setdefault((row["order"], row["start"]), []).append(row)

    def mean(group: list[dict[str, object]], name: str) -> float:
        return statistics.mean(float(row[name]) for row in group)

    for (order, start), group in sorted(grouped.items(), key=lambda item: (item[0][0], -mean(item[1], "accuracy"))):
        accuracies = [100 * float(row["accuracy"]) for row in group]
        spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        lines.append(
            f"| {order} | {start} | {mean(group, 'stable_rank_start'):.1f} | {mean(group, 'stable_rank_end'):.1f} "
            f"| {statistics.mean(accuracies):.1f}{spread} | {len(group)} | {group[0]['model_parameters']:,} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
