"""Does it help to start a generator from the trained weight's decomposition? Errors, and accuracies after training.

    python benchmarks/warm_start.py
    python benchmarks/warm_start.py --table

Needs the extra ``run``: the weights are those of the demo's small network, trained on scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import adntn
from adntn.checkpoint import writing
from adntn.experiments.controls import delete_, freeze_weights_
from adntn.experiments.data import load_data
from adntn.experiments.models import MODELS
from adntn.training.data import Part, TrainingData
from adntn.training.loop import fit
from adntn.training.optimization import Optimization
from adntn.training.stages.base import State
from adntn.training.stages.warm_start import WarmStart

RESULTS = Path(__file__).parent / "results" / "warm_start.json"
LAYERS = ("conv2", "conv3")
TEACHER_EPOCHS = 20
EPOCHS = 12

GENERATORS: dict[str, dict[str, Any]] = {
    "ttn": {},
    "mera": {"topology": "mera"},
    "ttn, bond 4, root of 3 modes": {"bond_dim": 4, "latent_order": 3},
    "ttn, 5 terms": {"terms": 5},
    "tt of rank 5": {"topology": "tt", "bond_dim": 5},
    "lowrank of rank 1": {"topology": "lowrank", "bond_dim": 1},
}
TRAINED = ("ttn", "ttn, bond 4, root of 3 modes", "lowrank of rank 1")
SCALES = (0.01, 0.1, 0.3, 1.0)
ACTIVATIONS = ("sine(omega=3)", "elu")
STARTS = {
    "random, frozen": "frozen at its random start",
    "svd, frozen": "frozen at the decomposition",
    "random": "drawn at random",
    "fit": "fitted",
    "svd": "decomposition, activation in full at once",
    "homotopy": f"decomposition, activation brought in over {EPOCHS // 2} of {EPOCHS} epochs",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(2)))
    parser.add_argument("--table", action="store_true", help="print the tables of what is there and stop")
    args = parser.parse_args()
    if not args.table:
        torch.set_num_threads(1)
        measured: list[dict[str, Any]] = []
        for seed in args.seeds:
            data, teacher, accuracy = trained(seed)
            measured.append({"part": "teacher", "seed": seed, "accuracy": accuracy})
            measured += [*nearness(teacher, seed), *scales(teacher, seed), *accuracies(data, teacher, seed)]
            print(json.dumps(measured[-1]), flush=True)
            write(measured)
    print(errors(), bends(), after_training(), sep="\n\n")


def write(measured: list[dict[str, Any]]) -> None:
    environment = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
    with writing(RESULTS) as temporary:
        lines = ",\n".join(json.dumps(row) for row in measured)
        temporary.write_text(f'{{"environment": {json.dumps(environment)}, "rows": [\n{lines}\n]}}\n')


def trained(seed: int) -> tuple[TrainingData, nn.Module, float]:
    """Return the data, a trained network, and its accuracy on the test images."""
    digits = load_data("digits")
    images, labels = digits.train.images, digits.train.labels
    data = TrainingData(
        Part(images[:-200], labels[:-200]),
        Part(images[-200:], labels[-200:]),
        Part(digits.test.images, digits.test.labels),
        digits.num_classes,
        torch.tensor(digits.mean),
        torch.tensor(digits.std),
    )
    torch.manual_seed(seed)
    model = MODELS["small-cnn"](tuple(images.shape[1:]), digits.num_classes)
    fit(model, data, Optimization(epochs=TEACHER_EPOCHS, lr=5e-3), seed=seed)
    return data, model.eval(), accuracy_of(model, data)


@torch.no_grad()
def accuracy_of(model: nn.Module, data: TrainingData) -> float:
    guessed = model.eval()(data.normalized(data.test.images)).argmax(1)
    return float((guessed == data.test.labels).float().mean())


def nearness(teacher: nn.Module, seed: int) -> list[dict[str, Any]]:
    """Return how near each way comes to the last convolution's weight."""
    weight, found = teacher.conv3.weight.detach(), []
    for name, options in GENERATORS.items():

        def drawn(options: dict[str, Any] = options) -> adntn.Generator:
            torch.manual_seed(seed)
            return adntn.Generator(weight.shape, adntn.GeneratorConfig(**options))

        row: dict[str, Any] = {"part": "error", "generator": name, "seed": seed}
        row["stored"] = drawn().num_parameters
        row["linear"] = adntn.warm_start_(drawn(), weight).truncation_error
        row["linear, 3 sweeps"] = adntn.warm_start_(drawn(), weight, sweeps=3).truncation_error
        row["random"] = adntn.fit_(drawn(), weight, steps=0, polish=0).relative_error
        started = drawn()
        row["svd"] = adntn.warm_start_(started, weight).relative_error
        row["svd, fit"] = adntn.fit_(started, weight, progress=False).relative_error
        row["random, fit"] = adntn.fit_(drawn(), weight, progress=False).relative_error
        found.append(row)
        print(json.dumps(row), flush=True)
    return found


def scales(teacher: nn.Module, seed: int) -> list[dict[str, Any]]:
    """Return what the scale of the states does to the error."""
    weight, found = teacher.conv3.weight.detach(), []
    for activation in ACTIVATIONS:
        for scale in SCALES:
            config = adntn.GeneratorConfig(**GENERATORS["ttn, bond 4, root of 3 modes"], activation=activation)
            gen = adntn.Generator(weight.shape, config)
            report = adntn.warm_start_(gen, weight, scale=scale)
            row = {"part": "scale", "activation": activation, "scale": scale, "seed": seed}
            row |= {"linear": report.truncation_error, "svd": report.relative_error}
            row["svd, fit"] = adntn.fit_(gen, weight, progress=False, steps=100, polish=0).relative_error
            found.append(row)
    return found


def accuracies(data: TrainingData, teacher: nn.Module, seed: int) -> list[dict[str, Any]]:
    """Return the accuracy that each start comes to in equally many epochs, and that of the layers deleted."""
    how, found = Optimization(epochs=EPOCHS), []
    deleted = copy.deepcopy(teacher)
    delete_(deleted, LAYERS)
    fit(deleted, data, how, seed=seed)
    found.append({"part": "deleted", "seed": seed, "accuracy": accuracy_of(deleted, data)})
    for name in TRAINED:
        for start in STARTS:
            torch.manual_seed(seed)
            model = copy.deepcopy(teacher)
            init = start.split(",")[0]
            config = adntn.GeneratorConfig(**GENERATORS[name])
            adntn.compress_(model, config, LAYERS, init="random" if init == "homotopy" else init, progress=False)
            before = accuracy_of(model, data)
            if start == "homotopy":
                with TemporaryDirectory() as folder:
                    state = State(model, teacher, data, Path(folder), seed)
                    WarmStart(homotopy_epochs=EPOCHS // 2, optimization=how).run(state)
            else:
                freeze_weights_(model, LAYERS if start.endswith("frozen") else ())
                fit(model, data, how, seed=seed)
            row = {"part": "accuracy", "generator": name, "start": start, "seed": seed, "before": before}
            row["stored"] = sum(model.get_submodule(layer).num_parameters for layer in LAYERS)
            row["accuracy"] = accuracy_of(model, data)
            found.append(row)
            print(json.dumps(row), flush=True)
    return found


# --- tables ---------------------------------------------------------------------------------------------------------


def rows(part: str) -> list[dict[str, Any]]:
    return [row for row in json.loads(RESULTS.read_text())["rows"] if row["part"] == part]


def spread(group: list[dict[str, Any]], name: str, digits: int = 3, factor: float = 1.0) -> str:
    values = [factor * row[name] for row in group]
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def markdown(head: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))


def errors() -> str:
    """Return how near each generator comes to the trained weight, as a Markdown table."""
    columns = ["linear", "linear, 3 sweeps", "random", "svd", "svd, fit", "random, fit"]
    body = []
    for name in GENERATORS:
        mine = [row for row in rows("error") if row["generator"] == name]
        body.append([name, f"{mine[0]['stored']:,}", *(spread(mine, column) for column in columns)])
    return markdown(["generator", "stored", *columns], body)


def bends() -> str:
    """Return what the scale of the states does, as a Markdown table."""
    body = []
    for activation in ACTIVATIONS:
        for scale in SCALES:
            mine = [row for row in rows("scale") if (row["activation"], row["scale"]) == (activation, scale)]
            body.append([activation, f"{scale:g}", *(spread(mine, column) for column in ("linear", "svd", "svd, fit"))])
    return markdown(["activation", "scale", "linear", "svd", "svd, fit"], body)


def after_training() -> str:
    """Return accuracies, as a Markdown table."""
    body = [["dense, the teacher", "78,336", *[""] * (len(STARTS) - 1), spread(rows("teacher"), "accuracy", 1, 100)]]
    body.append(["deleted", "0", *[""] * (len(STARTS) - 1), spread(rows("deleted"), "accuracy", 1, 100)])
    for name in TRAINED:
        mine = [row for row in rows("accuracy") if row["generator"] == name]
        cells = [spread([row for row in mine if row["start"] == start], "accuracy", 1, 100) for start in STARTS]
        body.append([name, f"{mine[0]['stored']:,}", *cells])
    return markdown(["layers", "stored", *STARTS], body)


if __name__ == "__main__":
    sys.exit(main())
