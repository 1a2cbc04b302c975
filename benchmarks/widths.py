"""How long does a training step of a whole generated network take, by its width?

VGG-16 of ``adntn reproduce whole``, every convolution but the first generated, on batches of 128 random images, in
bfloat16; each network in turns with the dense one of its width.

    python benchmarks/widths.py            # five minutes on one idle core
    python benchmarks/widths.py --table
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from adntn.checkpoint import writing
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.reproduce.steps import time_row
from adntn.experiments.reproduce.whole import whole_rows
from adntn.training.folder import describe_machine

RESULTS = Path(__file__).parent / "results" / "widths.json"
NETWORKS = ("kronecker", "subspaces", "narrow-dense")
WIDTHS = (0.25, 0.5, 1.0)
BUDGET, BATCH = 50_000, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    args = parser.parse_args()
    if not args.table:
        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        inputs, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
        found = []
        for width in WIDTHS:
            rows = {row.name: row for row in whole_rows(Settings(width=width), (3, 32, 32), 10)}
            dense = rows["vgg16/dense"]
            for name, row in (("dense", dense), *((name, rows[f"vgg16/{name}-{BUDGET}"]) for name in NETWORKS)):
                trained = sum(p.numel() for p in row.make(0).parameters() if p.requires_grad)
                times = time_row(row, dense, inputs, labels)
                found.append({"network": name, "width": width, "trained": trained, **times})
        with writing(RESULTS) as temporary:
            lines = ",\n".join(json.dumps(each) for each in found)
            temporary.write_text(f'{{"environment": {json.dumps(describe_machine())}, "rows": [\n{lines}\n]}}\n')
    print(table())


def table() -> str:
    """Return what was measured as a Markdown table: times over the dense network's of the same width."""
    rows = json.loads(RESULTS.read_text())["rows"]
    head = ["step over the dense network's", *(f"width {width:g}" for width in WIDTHS)]
    body = []
    for name in dict.fromkeys(row["network"] for row in rows):
        own = {row["width"]: row for row in rows if row["network"] == name}
        cells = [f"{own[w]['dense_ratio']:.2f} ({own[w]['milliseconds']:.0f} ms)" for w in WIDTHS]
        body.append([name, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *body))


if __name__ == "__main__":
    sys.exit(main())
