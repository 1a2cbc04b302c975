"""Do generators turn towards what the loss asks for while they are trained?

A step can move a weight only in the directions that the trained numbers have at that moment: those of the Jacobian of
the weight by them. Of the gradient by the whole weight, a random subspace has the same share at any time, its dimension
over the weight's. A generator's directions move with its numbers. Here a quarter-width VGG-16 of ``adntn reproduce
whole`` is trained, and stopped at some steps to ask which share of the squared norm of the gradient lies in the
directions that the generator has now, and which in those that it had at its start.

    python benchmarks/turning.py --data FOLDER     # CIFAR-10; a quarter of an hour on one core
    python benchmarks/turning.py --table
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

import adntn
from adntn.checkpoint import writing
from adntn.describe import generated_weights
from adntn.experiments.data import load_data
from adntn.experiments.parts import all_to_learn_from
from adntn.experiments.reproduce.rows import Row
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.reproduce.whole import whole_rows
from adntn.nn import GeneratedWeight
from adntn.training.data import TrainingData
from adntn.training.folder import describe_machine
from adntn.training.loop import fit

RESULTS = Path(__file__).parent / "results" / "turning.json"
NETWORKS = ("kronecker", "subspaces")
#: One layer of each size.
LAYERS = ("features.3", "features.10", "features.17", "features.30")
#: Shares of the steps after which it is looked.
MOMENTS = (0.0, 0.1, 0.5, 1.0)
WIDTH, BUDGET, EPOCHS, IMAGES = 0.25, 20_000, 2, 2_048
# Of the largest eigenvalue of the Gram matrix of the directions; what is below it in float32 is no direction.
_LEAST = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", help="folder of the data set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    args = parser.parse_args()
    if not args.table:
        if args.data is None:
            parser.error("--data FOLDER is needed, or --table")
        images = load_data(args.data)
        data = all_to_learn_from(images)
        settings = Settings(width=WIDTH, epochs=EPOCHS)
        rows = {row.name: row for row in whole_rows(settings, images.image_shape, images.num_classes)}
        found = []
        for name in NETWORKS:
            shares = follow(rows[f"vgg16/{name}-{BUDGET}"], data, args.seed)
            found += [{"network": name, "seed": args.seed} | each for each in shares]
        about = {"data": images.title, "width": WIDTH, "epochs": EPOCHS, "images": IMAGES, **describe_machine()}
        with writing(RESULTS) as temporary:
            lines = ",\n".join(json.dumps(each) for each in found)
            temporary.write_text(f'{{"environment": {json.dumps(about)}, "rows": [\n{lines}\n]}}\n')
    print(table())


def follow(row: Row, data: TrainingData, seed: int) -> list[dict[str, Any]]:
    """Train a row, and return a dict a moment and layer."""
    model, found = row.make(seed), []
    first: dict[str, Tensor] = {}

    def look(step: int, steps: int) -> None:
        moment = next((share for share in MOMENTS if round(share * steps) == step), None)
        if moment is None:
            return
        gradients = gradients_of(model, data)
        for name, gradient in gradients.items():
            layer = generated_weights(model)[name]
            assert isinstance(layer, GeneratedWeight)
            now = directions(layer)
            first.setdefault(name, now)
            found.append(
                {
                    "moment": moment,
                    "layer": name,
                    "channels": layer.shape[0],
                    "directions": now.shape[1],
                    "entries": gradient.numel(),
                    "now": share_within(gradient, now),
                    "start": share_within(gradient, first[name]),
                }
            )

    fitted = fit(model, data, row.optimization, seed=seed, on_step=look)
    look(fitted.steps, fitted.steps)
    return found


def gradients_of(model: nn.Module, data: TrainingData) -> dict[str, Tensor]:
    """Return the gradients of the loss by the whole weights, over the first of the training images."""
    dense = adntn.materialize(copy.deepcopy(model)).train()
    weights = [dense.get_parameter(f"{name}.weight") for name in LAYERS]
    inputs, labels = data.train.images[:IMAGES], data.train.labels[:IMAGES]
    with torch.enable_grad():
        loss = F.cross_entropy(dense(data.normalized(inputs)), labels)
        return dict(zip(LAYERS, torch.autograd.grad(loss, weights), strict=True))


def directions(layer: GeneratedWeight) -> Tensor:  # shape: (entries, directions)
    """Return an orthonormal basis of the small changes of a weight that its numbers can make."""
    generator = layer.bare_copy()
    named = {name: parameter.detach() for name, parameter in generator.generator_parameters()}
    sizes = [parameter.numel() for parameter in named.values()]

    def make(numbers: Tensor) -> Tensor:
        parts = zip(named.items(), numbers.split(sizes), strict=True)
        made: Tensor = functional_call(generator, {name: part.view_as(old) for (name, old), part in parts}, ())
        return made.flatten()

    numbers = torch.cat([parameter.flatten() for parameter in named.values()])

    def push(step: Tensor) -> Tensor:
        along: Tensor = jvp(make, (numbers,), (step,))[1]
        return along

    jacobian = vmap(push, chunk_size=64)(torch.eye(len(numbers))).T
    values, vectors = torch.linalg.eigh((jacobian.T @ jacobian).double())
    kept = values > _LEAST * values[-1]
    return jacobian @ (vectors[:, kept] / values[kept].sqrt()).float()


def share_within(gradient: Tensor, basis: Tensor) -> float:
    """Return the share of a gradient's squared norm that lies in the span of a basis."""
    return float((basis.T @ gradient.flatten()).square().sum() / gradient.square().sum())


def table() -> str:
    """Return what was measured as a Markdown table: shares over that of as many directions drawn at random."""
    rows = json.loads(RESULTS.read_text())["rows"]
    moments = sorted({row["moment"] for row in rows})
    titles = ["start", *(f"{100 * moment:.0f} %" for moment in moments[1:])]
    head = ["network, directions", "channels", "number", *titles]
    body = []
    for network in dict.fromkeys(row["network"] for row in rows):
        for which, says in (("now", "of that moment"), ("start", "of the start")):
            for layer in dict.fromkeys(row["layer"] for row in rows):
                own = [row for row in rows if (row["network"], row["layer"]) == (network, layer)]
                if which == "start" and all(math.isclose(row["now"], row["start"], rel_tol=1e-3) for row in own):
                    continue  # directions that stay where they are
                times = [row[which] / (row["directions"] / row["entries"]) for row in own]
                cells = [f"{each:.1f}" for each in times]
                body.append([f"{network}, {says}", str(own[0]["channels"]), f"{own[0]['directions']:,}", *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *body))


if __name__ == "__main__":
    sys.exit(main())
