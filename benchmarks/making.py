"""Making a whole weight against writing as many ones, and against a loop of one einsum a core, in turns in one process.

    OMP_NUM_THREADS=2 python benchmarks/making.py

*Whole* is ``gen.generate()`` over ``torch.empty(n).fill_(1)``: both take fresh memory, and where the weight is larger
than what the allocator keeps, most of either time is the system's handing it out. *Into a buffer* is
``gen.generate(out=buffer)`` over ``buffer.fill_(1)``. *Loop* is one einsum a core or gate over ``gen.generate()``, and
*loop into* the same over ``gen.generate(out=buffer)``. *Beside it* is the largest array that is made on the way into a
buffer, over the weight. Operations are those of ``gen.hidden()`` and of ``gen.generate()``, forward, and forward and
backward. Medians of the rounds' ratios, with the least and the most, go to results/making.json.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from runpy import run_path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import adntn
from adntn.checkpoint import writing

seconds = run_path(str(Path(__file__).parent / "pairs.py"))["seconds"]
RESULTS = Path(__file__).parent / "results" / "making.json"
SHAPES = ((4096, 4096), (1000, 4096), (512, 512, 3, 3))
NETWORKS = (("ttn", "blocked"), ("attn", "blocked"), ("mera", "blocked"), ("ttn", "paired"))
ROUNDS = 11
SEED = 0


class Operations(TorchDispatchMode):
    """Counts operations, and the entries of the largest array that one made beside a given one."""

    def __init__(self, given: Tensor | None = None) -> None:
        super().__init__()
        self.count = self.largest = 0
        self.given = None if given is None else given.untyped_storage()._cdata

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += 1
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.untyped_storage()._cdata != self.given]
        self.largest = max([self.largest, *(t.numel() for t in made)])
        return result


def loop(gen: adntn.Generator) -> Tensor:
    """Return the weight by one einsum a core, on a state of as many entries as the level has."""
    blueprint, state = gen.blueprint, gen.root.flatten()
    for level in blueprint.levels:
        for core in level.cores:  # each takes the first mode and puts what it makes of it behind the last
            assert core is not None
            matrix = gen.get_core(core.stack)[core.place]
            state = torch.einsum("pr,pc->rc", state.reshape(len(matrix), -1), matrix)
        for mixer, gates in zip(level.mixers, level.gates, strict=True):
            for number, core in enumerate(gates):
                left = math.prod(level.sizes_out[: mixer.first + 2 * number])
                matrix = gen.get_core(core.stack)[core.place]
                state = torch.einsum("lcr,ec->ler", state.reshape(left, len(matrix), -1), matrix)
        if level.number < len(blueprint.levels):
            state = gen.activation[str(level.number)](state.reshape(1, -1))
    t = blueprint.tensorization
    modes = sorted(range(len(t.modes)), key=lambda place: (t.modes[place].axis, -t.modes[place].stride))
    made = state.reshape([mode.size for mode in t.modes]).permute(modes).reshape(t.padded_axes)
    for axis, size in enumerate(t.axes):
        made = made.narrow(axis, 0, size)
    return made.reshape(gen.shape)


def spread(ratios: list[float]) -> dict[str, float]:
    return {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


@torch.no_grad()
def times(gen: adntn.Generator) -> dict[str, Any]:
    buffer = torch.empty(gen.shape)
    torch.testing.assert_close(loop(gen), gen.generate(out=buffer), rtol=1e-3, atol=1e-5)
    works = {
        "whole": gen.generate,
        "fresh": lambda: torch.empty(gen.shape).fill_(1),
        "into": lambda: gen.generate(out=buffer),
        "fill": lambda: buffer.fill_(1),
        "loop": lambda: loop(gen),
    }
    rounds = [{name: seconds(work) for name, work in works.items()} for _ in range(ROUNDS + 2)][2:]
    with Operations(buffer) as seen:
        gen.generate(out=buffer)
    return {
        "whole": spread([r["whole"] / r["fresh"] for r in rounds]),
        "into_a_buffer": spread([r["into"] / r["fill"] for r in rounds]),
        "loop": spread([r["loop"] / r["whole"] for r in rounds]),
        "loop_into": spread([r["loop"] / r["into"] for r in rounds]),
        "beside_it": seen.largest / buffer.numel(),
    }


def operations(gen: adntn.Generator) -> dict[str, tuple[int, int]]:
    found = {}
    for name, make in (("hidden", gen.hidden), ("weight", gen.generate)):
        with Operations() as there, torch.no_grad():
            make()
        with Operations() as and_back:
            make().sum().backward()
        found[name] = (there.count, and_back.count)
    return found


def main() -> None:
    rows = []
    for shape in SHAPES:
        for topology, order in NETWORKS:
            torch.manual_seed(SEED)
            gen = adntn.Generator(shape, adntn.GeneratorConfig(topology=topology, order=order))
            rows.append({"shape": shape, "topology": topology, "order": order} | times(gen))
            rows[-1]["operations"] = operations(adntn.Generator(shape, gen.config, device="meta"))
            print(json.dumps(rows[-1]))
    small = [
        {"shape": (size, size), "topology": topology}
        | operations(adntn.Generator((size, size), adntn.GeneratorConfig(topology=topology), device="meta"))
        for topology in ("ttn", "attn", "mera")
        for size in (256, 1024)
    ]
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows, "operations": small}
    with writing(RESULTS) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
