"""Does growth change the outcome? The same epochs with it and without: as small as before, or as large from the start.

    python -m benchmarks.growth            # some minutes; goes on where it was stopped
    python -m benchmarks.growth --table

A small network trained on scikit-learn's digits; its second and third convolutions are generated. Needs the extra
``run``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from adntn.experiments.train import train
from adntn.training.folder import read_json, write_json
from adntn.training.optimization import Optimization
from adntn.training.recipe import Recipe
from adntn.training.run import Finished, Tell
from adntn.training.stages import FineTune, Grow, Select, Stage

RESULTS = Path(__file__).parent / "results" / "growth.json"
TARGETS = ("conv2", "conv3")
BUDGETS = (2600, 4000)  # of the whole model, of which 1,762 numbers are not generated
FIRST, LEG, STEPS = 10, 5, 6
ARMS = {
    "grown": "grown from the smallest trees, in at most six steps",
    "small": "not grown",
    "planned": "as large from the start, by `fit_budget`",
}


class Lines(Tell):
    """A line a stage."""

    def ends(self, finished: Finished) -> None:
        print(
            f"  {finished.kind}: {finished.measures['numbers']:,}, {finished.measures['test_accuracy']:.3f}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(3)))
    parser.add_argument("--folder", type=Path, default=Path("runs") / "growth", help="of the runs")
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    args = parser.parse_args()
    if not args.table:
        measure(args.seeds, args.folder)
    print(table())


def measure(seeds: list[int], folder: Path) -> None:
    rows: list[dict[str, Any]] = []
    for budget in BUDGETS:
        for seed in seeds:
            grow = Grow(
                parameters=budget,
                steps=STEPS,
                least_gain=-1,
                patience=LEG,
                optimization=Optimization(epochs=LEG, lr=1e-2, schedule="cosine"),
            )
            first = FineTune(optimization=Optimization(epochs=FIRST))
            grown = run("grown", budget, seed, folder, (Select(targets=TARGETS), first, grow))
            legs = grown["stages"][-1]["outcome"]["legs"]
            epochs = FIRST + sum(leg["epochs"] for leg in legs)
            size = grown["stages"][-1]["measures"]["numbers"]
            whole = FineTune(optimization=Optimization(epochs=epochs))
            small = run("small", budget, seed, folder, (Select(targets=TARGETS), whole))
            planned = run("planned", budget, seed, folder, (Select(targets=TARGETS, parameters=size), whole))
            for arm, done in (("grown", grown), ("small", small), ("planned", planned)):
                last = done["stages"][-1]
                rows.append(
                    {
                        "budget": budget,
                        "arm": arm,
                        "seed": seed,
                        "numbers": last["measures"]["numbers"],
                        "test_accuracy": last["measures"]["test_accuracy"],
                        "epochs": epochs,
                        "seconds": sum(stage["seconds"] for stage in done["stages"]),
                    }
                )
            # Where the first run took place: the rows may be read again elsewhere.
            environment = read_json(folder / f"{BUDGETS[0]}-grown-seed{seeds[0]}" / "environment.json")
            write_json(RESULTS, {"environment": environment, "command": "python -m benchmarks.growth", "rows": rows})


def run(arm: str, budget: int, seed: int, folder: Path, stages: tuple[Stage, ...]) -> dict[str, Any]:
    print(f"{budget:,}, {arm}, seed {seed}", flush=True)
    recipe = Recipe(data="digits", seed=seed, threads=1, validation=0.2, stages=stages)
    return train(recipe, folder / f"{budget}-{arm}-seed{seed}", tell=Lines())


def table() -> str:
    rows = json.loads(RESULTS.read_text())["rows"]
    lines = ["| budget | | numbers | epochs | test % | to the grown, points |", "|---:|---|---:|---:|---:|---:|"]
    for budget in BUDGETS:
        mine = {arm: [row for row in rows if (row["budget"], row["arm"]) == (budget, arm)] for arm in ARMS}
        for arm, found in mine.items():
            if not found:
                continue
            accuracies = [100 * row["test_accuracy"] for row in found]
            gaps = [a - 100 * row["test_accuracy"] for a, row in zip(accuracies, mine["grown"], strict=True)]
            numbers, epochs = (sorted({row[name] for row in found}) for name in ("numbers", "epochs"))
            gap = "–" if arm == "grown" else _mean(gaps, sign="+")
            lines.append(
                f"| {budget:,} | {ARMS[arm]} | {_span(numbers)} | {_span(epochs)} | {_mean(accuracies)} | {gap} |"
            )
    return "\n".join(lines)


def _span(values: list[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,}–{values[-1]:,}"


def _mean(values: list[float], sign: str = "") -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{spread}"


if __name__ == "__main__":
    main()
