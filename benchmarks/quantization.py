"""What quantised root and cores cost: how far the weight moves, and bytes. The study behind ``adntn.quantize_``.

    python benchmarks/quantization.py
    python benchmarks/quantization.py --table

Generators are as they are drawn, and not trained afterwards.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path

import torch

import adntn
from adntn.checkpoint import writing
from adntn.describe import generator_bytes
from adntn.fit import relative_error
from adntn.quantization import Quantization, fake_quantize, quantized_names

RESULTS = Path(__file__).parent / "results" / "quantization.json"
SHAPES = ((4096, 4096), (512, 512, 3, 3))
GENERATORS = {
    "ttn": {"topology": "ttn"},
    "attn": {"topology": "attn"},
    "mera": {"topology": "mera"},
    "ttn, bond 4": {"topology": "ttn", "bond_dim": 4},
    "ttn, 4 groups": {"topology": "ttn", "groups": 4},
    "tt": {"topology": "tt"},
    "lowrank": {"topology": "lowrank"},
}
BITS = (8, 4)
#: Whose numbers have one scale together.
SCALES = ("tensor and tree", "tensor", "core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(3)))
    parser.add_argument("--table", action="store_true", help="print the tables of what is there and stop")
    args = parser.parse_args()
    if not args.table:
        torch.set_num_threads(1)
        measured = []
        for shape in SHAPES:
            for generator in GENERATORS:
                for seed in args.seeds:
                    measured += run(shape, generator, seed)
                print(json.dumps(measured[-1]), flush=True)
        environment = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
        with writing(RESULTS) as temporary:
            lines = ",\n".join(json.dumps(row) for row in measured)
            temporary.write_text(f'{{"environment": {json.dumps(environment)}, "rows": [\n{lines}\n]}}\n')
    print(changes(), scales(), sep="\n\n")


@torch.no_grad()
def run(shape: tuple[int, ...], generator: str, seed: int) -> list[dict[str, object]]:
    torch.manual_seed(seed)
    made = adntn.Generator(shape, adntn.GeneratorConfig(**GENERATORS[generator]))
    weight, before = made(), generator_bytes(made)
    rows = []
    for bits in BITS:
        adntn.quantize_(made, bits)
        packed = generator_bytes(made)
        adntn.quantize_(made, None)
        for scale in SCALES:
            changed, scales_less = with_scales(made, bits, scale)
            rows.append(
                {
                    "shape": shape,
                    "generator": generator,
                    "seed": seed,
                    "bits": bits,
                    "scale": scale,
                    "numbers": made.num_parameters,
                    "bytes_before": before,
                    "bytes": packed + 4 * scales_less,
                    "relative_change": relative_error(changed(), weight),
                }
            )
    return rows


def with_scales(made: adntn.Generator, bits: int, scale: str) -> tuple[adntn.Generator, int]:
    """Return a generator of numbers on such a grid, and how many scales more than the library's that takes."""
    changed, trees, more = made.bare_copy(), made.config.trees, 0
    named = dict(changed.generator_parameters())
    for name in quantized_names(made.blueprint):
        parts = {"tensor and tree": trees, "tensor": 1, "core": len(named[name])}[scale]
        named[name].copy_(fake_quantize(named[name], parts, Quantization(bits)))
        more += parts - trees
    return changed, more


def rows() -> list[dict[str, object]]:
    return json.loads(RESULTS.read_text())["rows"]


def cell(found: list[dict[str, object]]) -> list[str]:
    return [f"{found[0]['bytes']:,}", f"{statistics.mean(row['relative_change'] for row in found):.3f}"]


def markdown(head: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *body))


def of(shape: tuple[int, ...], generator: str, bits: int, scale: str) -> list[dict[str, object]]:
    wanted = (list(shape), generator, bits, scale)
    return [row for row in rows() if (row["shape"], row["generator"], row["bits"], row["scale"]) == wanted]


def changes() -> str:
    """Return bytes and the change of the weight, as a Markdown table."""
    body = []
    for shape in SHAPES:
        for generator in GENERATORS:
            found = [of(shape, generator, bits, SCALES[0]) for bits in BITS]
            numbers, before = found[0][0]["numbers"], found[0][0]["bytes_before"]
            size = "×".join(map(str, shape))
            body.append([f"{generator}, {size}", f"{numbers:,}", f"{before:,}", *cell(found[0]), *cell(found[1])])
    head = ["generator", "numbers", "bytes, float32", "bytes, 8 bits", "change", "bytes, 4 bits", "change"]
    return markdown(head, body)


def scales() -> str:
    """Return the same with other scales, of 4096x4096, as a Markdown table."""
    body = []
    for generator in GENERATORS:
        found = [of(SHAPES[0], generator, bits, scale) for bits in BITS for scale in SCALES]
        body.append([generator, *(" / ".join(cell(each)) for each in found)])
    return markdown(["4096×4096", *(f"{bits} bits, a {scale}" for bits in BITS for scale in SCALES)], body)


if __name__ == "__main__":
    sys.exit(main())
