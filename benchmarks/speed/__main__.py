"""The command: measure, then write tables and plots."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is loaded; else the profiler prints two lines a call

import torch

from benchmarks.speed import machine, report
from benchmarks.speed.cases import full_grid, quick_grid
from benchmarks.speed.results import Results
from benchmarks.speed.trial import Limits, run_case, skips_from
from benchmarks.speed.variants import LEFT_OUT, TARGETS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
QUICK = ROOT / "runs" / "speed-quick" / "speed.json"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--only", metavar="REGEX", help="cases whose key it is found in")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no case after so many; run again to go on"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the cases that were done before")
    parser.add_argument("--quick", action="store_true", help="a few small cases, to see whether it runs")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing; tables and plots from the results there are"
    )
    parser.add_argument("--list", action="store_true", help="say which cases there are, and which are done")
    parser.add_argument("--out", type=Path, help=f"the results' file (default: {RESULTS.relative_to(ROOT)})")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=Limits.budget, help="seconds of timing a case")
    parser.add_argument(
        "--gib", type=float, default=14.0, help="an allocation beyond so many GiB fails, and is left out"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    path = options.out or (QUICK if options.quick else RESULTS)
    grid = quick_grid() if options.quick else full_grid()
    results = Results.read(path, {"left_out": LEFT_OUT, "generated": TARGETS})
    if options.fresh:
        results.rows, results.sessions = {}, []
    wanted = [case for case in grid if re.search(options.only or "", case.key)]
    todo = [case for case in wanted if case.key not in results.rows]
    if options.list:
        print(*(f"{'done' if case.key in results.rows else '    '} {case.key}" for case in wanted), sep="\n")
        return 0
    if todo and not options.report:
        torch.set_num_threads(options.threads)
        warnings.filterwarnings("ignore", module="tensorly|tltorch")
        differs = results.begin(machine.describe(options.threads))
        if differs is not None:
            print(f"{path} is of another machine or version ({differs}): --fresh, or another --out.", file=sys.stderr)
            return 2
        machine.limit_memory(options.gib)
        limits = Limits(budget=0.3 if options.quick else options.budget)
        started = time.monotonic()
        for number, case in enumerate(todo, 1):
            if time.monotonic() - started > 60 * options.minutes:
                print(f"{len(todo) - number + 1} cases are left; the same command goes on with them.")
                break
            begun = time.monotonic()
            found = run_case(case, limits, skips_from(case, results.rows, limits))
            took = time.monotonic() - begun
            results.add(case, found, took)
            print(
                f"[{number}/{len(todo)}, {time.monotonic() - started:.0f} s] {report.line(results.rows[case.key])}",
                flush=True,
            )
        results.order([case.key for case in grid])
        results.write()
    for written in report.write(results, path.parent):
        print(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
