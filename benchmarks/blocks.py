"""What does a block-wise fit reach, before and after some fine-tuning, and what do two workers save?

    python -m benchmarks.blocks
    python -m benchmarks.blocks --table

A small network trained on scikit-learn's digits; its second and third convolutions are generated. Needs the extra
``run``.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import adntn
from adntn.checkpoint import writing
from adntn.experiments.data import load_data
from adntn.experiments.models import small_cnn
from adntn.training.blocks import Maker
from adntn.training.data import Batches, Part, TrainingData
from adntn.training.recalibrate import recalibrate_norms
from adntn.training.stages.base import State
from adntn.training.stages.blocks import Blocks

RESULTS = Path(__file__).parent / "results" / "blocks.json"
TARGETS = ["conv2", "conv3"]
EPOCHS = 5

GENERATORS = {
    "ttn": {"topology": "ttn"},
    "lowrank of rank 4": {"topology": "lowrank", "bond_dim": 4},
}
OBJECTIVES = ("random", "weight", "outputs", "task")
RATES = {"outputs": (0.01, 0.03, 0.1), "task": (0.01, 0.03, 0.1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(3)))
    parser.add_argument("--table", action="store_true", help="print the tables of what is there and stop")
    args = parser.parse_args()
    if not args.table:
        torch.set_num_threads(1)
        measure(args.seeds)
    print(reached(), tried_rates(), workers(), sep="\n\n")


def measure(seeds: list[int]) -> None:
    """Measure what is not in the file yet, and write it down as it comes."""
    data = digits()
    content = results() if RESULTS.exists() else {"rows": [], "rates": [], "speed": []}
    for seed in seeds:
        dense = teacher(data, seed)
        for generator in GENERATORS:
            for objective in OBJECTIVES:
                if not has(content["rows"], generator=generator, objective=objective, seed=seed):
                    note(content, "rows", run(dense, data, generator, objective, seed))
        for objective, tried in RATES.items():
            for lr in tried if seed == 0 else ():
                if not has(content["rates"], objective=objective, lr=lr):
                    note(content, "rates", rate(dense, data, "ttn", objective, lr, seed))
    for objective in OBJECTIVES[1:]:
        if not has(content["speed"], objective=objective):
            note(content, "speed", speed(teacher(data, 0), data, objective))


def has(rows: list[dict[str, Any]], **wanted: object) -> bool:
    return any(all(row[name] == value for name, value in wanted.items()) for row in rows)


def note(content: dict[str, Any], name: str, row: dict[str, object]) -> None:
    print(json.dumps(row), flush=True)
    content[name].append(row)
    content["environment"] = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
    lists = {each: ",\n".join(map(json.dumps, content[each])) for each in ("rows", "rates", "speed")}
    body = ",\n".join(f'"{each}": [\n{lines}\n]' for each, lines in lists.items())
    with writing(RESULTS) as temporary:
        temporary.write_text(f'{{"environment": {json.dumps(content["environment"])},\n{body}}}\n')


def digits() -> TrainingData:
    found = load_data("digits")
    train, test = (Part(part.images, part.labels) for part in (found.train, found.test))
    scaled = train.images.float() / 255
    return TrainingData(train, test, test, 10, scaled.mean((0, 2, 3)), scaled.std((0, 2, 3)))


def teacher(data: TrainingData, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = small_cnn((1, 8, 8), 10)
    tune(model, data, 30, seed)
    return model.eval().requires_grad_(False)


def tune(model: nn.Module, data: TrainingData, epochs: int, seed: int) -> None:
    """Train with AdamW along one cycle of the rate."""
    model.train()
    batches = Batches(data.train, 128, seed)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * len(batches))
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(data.normalized(images)), labels).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: TrainingData) -> float:
    logits = model.eval()(data.normalized(data.test.images))
    return float((logits.argmax(1) == data.test.labels).float().mean()) * 100


def compressed(dense: nn.Module, generator: str, seed: int) -> nn.Module:
    torch.manual_seed(1000 + seed)
    model = copy.deepcopy(dense).requires_grad_(True)
    adntn.compress_(model, adntn.GeneratorConfig(**GENERATORS[generator]), TARGETS)
    return model


def fit(stage: Blocks, model: nn.Module, dense: nn.Module, data: TrainingData, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return stage.run(State(model, dense, data, Path(folder), seed))


def run(dense: nn.Module, data: TrainingData, generator: str, objective: str, seed: int) -> dict[str, object]:
    model = compressed(dense, generator, seed)
    stage = Blocks(objective="weight" if objective == "random" else objective, workers=1, recalibrate_norms=False)
    outcome: dict[str, Any] = {"blocks": [], "seconds": 0.0}
    if objective != "random":
        outcome = fit(stage, model, dense, data, seed)
    as_it_is = accuracy(model, data)
    recalibrate_norms(model, Maker(dense, data, stage, seed=seed).calibration())
    recalibrated = accuracy(model, data)
    tune(model, data, EPOCHS, seed)
    return {
        "generator": generator,
        "objective": objective,
        "seed": seed,
        "teacher": accuracy(dense, data),
        "stored": sum(p.numel() for name in TARGETS for p in model.get_submodule(name).parameters()),
        "before": [row["before"] for row in outcome["blocks"]],
        "after": [row["after"] for row in outcome["blocks"]],
        "as_it_is": as_it_is,
        "recalibrated": recalibrated,
        "tuned": accuracy(model, data),
        "seconds": outcome["seconds"],
    }


def rate(
    dense: nn.Module, data: TrainingData, generator: str, objective: str, lr: float, seed: int
) -> dict[str, object]:
    stage = Blocks(objective=objective, lr=lr, workers=1)
    outcome = fit(stage, compressed(dense, generator, seed), dense, data, seed)
    after = [row["after"] for row in outcome["blocks"]]
    return {"generator": generator, "objective": objective, "lr": lr, "seed": seed, "after": after}


def speed(dense: nn.Module, data: TrainingData, objective: str) -> dict[str, object]:
    """Time one and two workers in turns; the workers are there already, as they are from the second stage on."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(3):
        for count, times in seconds.items():
            began = time.perf_counter()
            fit(Blocks(objective=objective, workers=count), compressed(dense, "ttn", turn), dense, data, turn)
            times.append(time.perf_counter() - began)
    return {
        "objective": objective,
        "first_of_two": seconds[2][0],
        **{f"seconds_{count}": times[1:] for count, times in seconds.items()},
    }


# --- tables ---------------------------------------------------------------------------------------------------------


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


def spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def markdown(head: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))


def reached() -> str:
    """Return errors and accuracies, as a Markdown table."""
    body = []
    for generator in GENERATORS:
        for objective in OBJECTIVES:
            mine = [row for row in results()["rows"] if (row["generator"], row["objective"]) == (generator, objective)]
            errors = [spread([row["after"][i] for row in mine], 2) if mine[0]["after"] else "–" for i in range(2)]
            scores = [spread([row[name] for row in mine]) for name in ("as_it_is", "recalibrated", "tuned")]
            body.append([generator, str(mine[0]["stored"]), objective, *errors, *scores])
    return markdown(["generator", "stored", "objective", *TARGETS, "as it is", "recalibrated", "tuned"], body)


def tried_rates() -> str:
    """Return errors for each learning rate, as a Markdown table."""
    rows = results()["rates"]
    body = [[row["objective"], f"{row['lr']:g}", *(f"{error:.2f}" for error in row["after"])] for row in rows]
    return markdown(["objective", "rate", *TARGETS], body)


def workers() -> str:
    """Return what two workers save, as a Markdown table."""
    body = []
    for row in results()["speed"]:
        one, two = (min(row[f"seconds_{count}"]) for count in (1, 2))
        body.append([row["objective"], f"{one:.1f}", f"{two:.1f}", f"{one / two:.2f}x", f"{row['first_of_two']:.1f}"])
    return markdown(["objective", "one worker, s", "two, s", "faster", "two that have to start, s"], body)


if __name__ == "__main__":
    sys.exit(main())
