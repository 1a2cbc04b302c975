"""The tables of README and of several pages, by the library and by what its benchmarks and runs have written.

    python docs/scripts/tables.py     # writes each table between its marks in the pages

A test makes them anew and compares.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import adntn
from adntn.execution.plan import choose, multiply_adds
from adntn.experiments.reproduce.expressivity import Fits
from adntn.experiments.reproduce.levers import LEVERS
from adntn.experiments.reproduce.whole import OURS, TAUGHT
from adntn.report.pages import markdown_table
from adntn.report.reproduce import expressivity
from adntn.report.reproduce.levers import levers_text
from adntn.report.reproduce.lines import Line, compare, gather, read_finished
from adntn.report.reproduce.table3 import table3_text
from adntn.report.reproduce.whole import whole_text
from adntn.report.schema import RunReport
from adntn.report.training import controls_table, details_table, headline, read_report, stages_table

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
REUSE = ROOT / "benchmarks" / "results" / "reuse.json"
sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]  # for benchmarks, which is not installed

from benchmarks import growth, kronecker, nearness, tangents, turning, widths  # noqa: E402
from benchmarks.speed import tables as speed  # noqa: E402
from benchmarks.speed.results import Results  # noqa: E402

LINEAR, CONV = (4096, 4096), (512, 512, 3, 3)
START, SEEDS = (256, 256), range(5)


def size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def costs(options: Mapping[str, dict[str, Any] | adntn.GeneratorConfig], shape: tuple[int, ...] = LINEAR) -> str:
    """What a generator of one weight stores, holds and may have as its rank, an option a row."""
    rows = []
    for name, changes in options.items():
        config = changes if isinstance(changes, adntn.GeneratorConfig) else adntn.GeneratorConfig(**changes)
        gen = adntn.Generator(shape, config, device="meta")
        work = multiply_adds(gen)
        way = choose("auto", gen, work).name
        rows.append(
            [
                name,
                f"{gen.num_parameters:,}",
                "→".join(map(str, gen.schedule)),
                f"{gen.config.groups * gen.blueprint.hidden_size:,}",
                f"{gen.rank_bound():,}",
                way,
                f"{(work.factored if way == 'factored' else work.dense) / work.dense:.3f}",
            ]
        )
    return speed.markdown([size(shape), "stored", "modes", "hidden", "rank ≤", "runs", "arithmetic"], rows)


TOPOLOGIES: dict[str, dict[str, Any]] = {
    "`ttn`": {"topology": "ttn"},
    "`attn`": {"topology": "attn"},
    "`attn`, `boundary_layers=2`": {"topology": "attn", "boundary_layers": 2},
    "`mera`": {"topology": "mera"},
    "`brickwall`": {"topology": "brickwall"},
    "`brickwall`, `columns=4`": {"topology": "brickwall", "columns": 4},
}
BASELINES: dict[str, dict[str, Any]] = {
    "`tt`": {"topology": "tt"},
    "`lowrank`": {"topology": "lowrank"},
    "`subspace`": {"topology": "subspace"},
    "`frozen`": {"topology": "frozen"},
}


def number(option: str, values: Iterable[int], **others: Any) -> dict[str, dict[str, Any]]:
    return {f"`{option}={value}`": {option: value, **others} for value in values}


def starts() -> str:
    """The stable rank of freshly drawn weights of a ttn, medians over seeds."""
    starts = [(order, start) for order in ("blocked", "paired") for start in ("isometric", "paper")]
    rows = []
    for activation in (
        "sine(omega=3)",
        "sine",
        "tanh",
        "elu",
        "gelu",
        "relu",
        "swish",
        "rational",
        "prelu",
        "siren",
        "identity",
    ):
        ranks = [
            adntn.diagnose(
                adntn.GeneratorConfig(order=order, initialization=start, activation=activation), START, seeds=SEEDS
            ).stable_rank
            for order, start in starts
        ]
        rows.append([f"`{activation}`", *(f"{rank:.1f}" for rank in ranks)])
    return speed.markdown([f"{size(START)}, ttn", *(f"{order}, {start}" for order, start in starts)], rows)


def reuse() -> str:
    """Reuse over the plain first stage, from the committed benchmark."""
    measured = json.loads(REUSE.read_text())["rows"]
    rows: dict[tuple[str, int], list[str]] = {}
    for row in measured:
        if row["k"] in (16, 64, 128) and row["n"] in (64, 256, 1024):
            ratios = [f"{row[kind]['ratio']:.2f}" for kind in ("zeros", "distinct", "auto")]
            rows.setdefault((row["input"], row["k"]), [row["input"], str(row["k"])]).append(" / ".join(ratios))
    return speed.markdown(["input", "k", *(f"n = {n}" for n in (64, 256, 1024))], rows.values())


def reuse_layers() -> str:
    """Whole layers with reuse over those without it."""
    measured = json.loads(REUSE.read_text())["layers"]
    rows = [[r["layer"], r["input"], f"{r['on']:.2f}", f"{r['auto']:.2f}"] for r in measured]
    return speed.markdown(["4096×4096, 256 rows", "input", "`on`", "`auto`"], rows)


def memory(batch: int = 128) -> str:
    """Numbers that training a 4096×4096 layer with AdamW holds, beside its input."""
    rows = []
    for name in ("dense", "`ttn`, factored", "`ttn`, dense"):
        layer: nn.Module = nn.Linear(LINEAR[1], LINEAR[0], bias=False, device="meta")
        if name != "dense":
            layer = adntn.nn.Linear.from_dense(layer, execution=name.split()[1])
        x = torch.empty(batch, LINEAR[1], device="meta", requires_grad=True)  # as inside a network
        stored = sum(p.numel() for p in layer.parameters())
        kept = kept_for_backward(layer, x)
        rows.append([name, *(f"{n:,}" for n in (stored, stored, 2 * stored, kept, 4 * stored + kept))])
    return speed.markdown(
        [f"{size(LINEAR)}, batch {batch}", "weights", "gradients", "AdamW", "kept for backward", "sum"], rows
    )


def kept_for_backward(layer: nn.Module, x: Tensor) -> int:
    """Count the numbers that autograd keeps, each memory once, without those of input and parameters."""
    there = {tensor.untyped_storage()._cdata for tensor in (x, *layer.parameters())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x)
    assert y.requires_grad
    return sum(t.untyped_storage().nbytes() // t.element_size() for place, t in kept.items() if place not in there)


TABLES: dict[str, Callable[[], str]] = {
    "topology": lambda: costs(TOPOLOGIES),
    "topology-conv": lambda: costs(TOPOLOGIES, CONV),
    "kernel": lambda: costs({"default": {}, "`kernel_radix=3`": {"kernel_radix": 3}}, CONV),
    "baselines": lambda: costs(BASELINES),
    "more": lambda: costs({**number("terms", (1, 2, 4)), "`gate=True`": {"gate": True}}),
    "order": lambda: costs({f"`{o}`": {"order": o} for o in ("blocked", "block_paired", "flat", "paired")}),
    "order-conv": lambda: costs({f"`{o}`": {"order": o} for o in ("blocked", "block_paired", "flat", "paired")}, CONV),
    "products": lambda: costs(
        {f"`terms={n}`": adntn.GeneratorConfig.kronecker(CONV, terms=n) for n in (1, 4, 16)}, CONV
    ),
    "groups": lambda: costs(number("groups", (1, 2, 4, 16, 64))),
    "sizes": lambda: costs(
        {
            f"`radix={d}, bond_dim={chi}`": {"radix": d, "bond_dim": chi}
            for d, chi in ((2, 2), (2, 3), (2, 4), (4, 2), (4, 4), (8, 4), (8, 8), (16, 8), (16, 16))
        }
    ),
    "latent": lambda: costs(number("latent_order", (1, 3, 5, 8, 12))),
    "starts": starts,
    "reuse": reuse,
    "reuse-layers": reuse_layers,
    "memory": memory,
}


@functools.cache
def measured() -> Results:
    return Results.read(ROOT / "benchmarks" / "results" / "speed.json")


TABLES.update(
    {name: functools.partial(lambda make: make(measured().rows), make) for name, make in speed.TABLES.items()}
)


#: What makes an experiment's text, the page that shows it, and the pictures below it.
EXPERIMENTS: dict[str, tuple[Callable[[Path, int], str], str, dict[str, str]]] = {
    "table3": (
        table3_text,
        "table3.md",
        {
            "figure4.png": "Compression ratios of the layers and of the whole model",
            "figure5.png": "Accuracies of all rows and controls",
        },
    ),
    "whole": (
        whole_text,
        "whole-networks.md",
        {"accuracy.png": "Accuracy against the trained numbers of the whole model"},
    ),
    "levers": (levers_text, "levers.md", {}),
}


def experiment(name: str, docs: Path = DOCS) -> str:
    """What `adntn reproduce` found, with its pictures."""
    text, _, pictures = EXPERIMENTS[name]
    folder = docs / "results" / name
    links = [f"![{says}](results/{name}/{file})" for file, says in pictures.items() if (folder / file).is_file()]
    return "\n\n".join([text(folder, 2), *links])


# A page may wait for results that are not there yet.
TABLES.update(
    {
        name: functools.partial(experiment, name)
        for name in EXPERIMENTS
        if (DOCS / "results" / name / "settings.json").is_file()
    }
)


def lines_of(network: str, folder: str, experiment: str = "whole") -> tuple[dict[str, Any], dict[str, Line]]:
    """Return a folder's settings and its lines of a network, by the names of the rows."""
    settings, results = read_finished(DOCS / "results" / folder, experiment)
    return settings, gather(results)[network]


def vgg16(folder: str, experiment: str = "whole", after: str = "-20000") -> tuple[dict[str, Any], dict[str, Line]]:
    """Return a folder's settings and its lines of VGG-16, by names that lack what stands after all of them."""
    settings, lines = lines_of("vgg16", folder, experiment)
    return settings, {name.removesuffix(after): line for name, line in lines.items()}


def points(line: Line | None, other: Line | None) -> str:
    """Return how many points a line is above another one."""
    apart = compare(line, other)
    return "–" if apart is None else apart.written()


def accuracy(line: Line | None) -> str:
    return "–" if line is None else line.written()


#: Folders of whole networks trained for different lengths, what is shown of them, and what ours is set beside.
LENGTHS = ("whole", "whole-8", "whole-16")
TRAINED_LONGER = ("kronecker", "kronecker-tangent", "subspace", "subspaces", "narrow-dense", "dense")
BESIDE = ("kronecker-tangent", "subspace", "subspaces")


def lengths() -> str:
    """Accuracies of VGG-16 at 20,000 numbers by length of training, and how far Kronecker products are from others."""
    columns = [vgg16(folder) for folder in LENGTHS]
    rows = []
    for name in TRAINED_LONGER:
        found = [lines.get(name) for _, lines in columns]
        trained = next(line.first.model_trained for line in found if line is not None)
        rows.append([name, f"{trained:,}", *map(accuracy, found)])
    for name in BESIDE:
        apart = [points(lines.get("kronecker"), lines.get(name)) for _, lines in columns]
        rows.append([f"kronecker over {name}, points", "", *apart])
    return speed.markdown(["network", "trained", *(f"{made['epochs']} epochs" for made, _ in columns)], rows)


#: Folders of whole networks of several widths, what is shown of them, and what ours is set beside.
WIDTHS = ("whole", "whole-half")
WIDER = ("kronecker", "subspace", "subspaces", "narrow-dense")
#: Rows of networks of half the width whose rates are others, and of which experiment.
OTHER_RATES = ("subspace-fast", "subspace-faster")


def wider() -> str:
    """Accuracies of VGG-16 at 20,000 numbers by width, and how far Kronecker products are above others."""
    columns = [vgg16(folder) for folder in WIDTHS]
    rows = [[name, *(_sized(made[name]) for _, made in columns)] for name in WIDER]
    for name in WIDER[1:]:
        apart = [points(made["kronecker"], made[name]) for _, made in columns]
        rows.append([f"kronecker over {name}, points", *apart])
    _, others = vgg16("levers-half", "levers", "-large")
    for name in OTHER_RATES:
        rate = others[name].first.optimization["core_lr"]
        rows.append([f"subspaces, trained at {rate:g}", "", _sized(others[name])])
    return speed.markdown(["network", *(f"width {made['width']:g}" for made, _ in columns)], rows)


def _sized(line: Line) -> str:
    return f"{line.written()}, {line.first.model_trained:,}"


#: Budgets at which cores in common are shown, by folder, and beside what.
COMMON = {"whole": (5_500, 10_000, 20_000), "whole-8": (10_000, 20_000)}
BESIDE_COMMON = ("kronecker", "subspace", "subspaces")


def common() -> str:
    """Accuracies of VGG-16 whose layers of one shape have their cores in common, and how far they are above others."""
    columns = []
    for folder, budgets in COMMON.items():
        settings, lines = vgg16(folder, after="")
        columns += [(f"{settings['epochs']} epochs, {budget:,}", lines, budget) for budget in budgets]
    rows = [
        [name, *(accuracy(lines.get(f"{name}-{budget}")) for _, lines, budget in columns)]
        for name in ("kronecker-shared", *BESIDE_COMMON)
    ]
    for name in BESIDE_COMMON:
        apart = [
            points(lines.get(f"kronecker-shared-{budget}"), lines.get(f"{name}-{budget}"))
            for _, lines, budget in columns
        ]
        rows.append([f"kronecker-shared over {name}, points", *apart])
    return speed.markdown(["network", *(title for title, _, _ in columns)], rows)


#: Ours, and rivals that learned for a short time, too, and of which ours is set beside which.
SHORT = ("kronecker", "kronecker-shared", "subspaces", "subspace", "lowrank", "tt", "narrow-dense")
BESIDE_SHORT = {"kronecker": ("subspaces", "subspace", "lowrank"), "kronecker-shared": ("kronecker", "subspaces")}


def short() -> str:
    """Accuracies of VGG-16 that learned for a short time from a dense network that was trained for longer."""
    settings, lines = vgg16("whole-short", after="")
    budgets = sorted({line.first.about["budget"] for line in lines.values()} - {None})

    def found(name: str) -> list[Line | None]:
        return [lines.get(f"{name}-taught-{budget}") for budget in budgets]

    rows = [[f"**{name}**" if name in OURS else name, *map(accuracy, found(name))] for name in SHORT]
    for name, others in BESIDE_SHORT.items():
        for other in others:
            apart = map(points, found(name), found(other))
            rows.append([f"{name} over {other}, points", *apart])
    rows.append([f"the teacher, {settings['teacher_epochs']} epochs", *[accuracy(lines["teacher"])] * len(budgets)])
    return speed.markdown([f"taught, {settings['epochs']} epochs", *(f"{budget:,}" for budget in budgets)], rows)


#: Folders of ResNet-20 at full width, from labels alone and taught by the dense network, and what ours are set beside.
RESNET = {"whole-full": "", "whole-full-short": "-taught"}
BESIDE_RESNET = ("subspaces", "subspace", "lowrank", "tt", "narrow-dense")


def resnet() -> str:
    """Accuracies of ResNet-20 at full width, from labels alone and taught, and how far ours are above others."""
    titles, columns = [], []
    for folder, after in RESNET.items():
        settings, lines = lines_of("resnet20", folder)
        budgets = sorted({line.first.about["budget"] for line in lines.values()} - {None})
        titles += [f"{'taught' if after else 'labels'}, {settings['epochs']} epochs, {each:,}" for each in budgets]
        columns += [functools.partial(_found, lines, f"{after}-{each}") for each in budgets]
    shown = ("kronecker", "kronecker-shared", *BESIDE_RESNET)
    rows = [[f"**{name}**" if name in OURS else name, *(accuracy(find(name)) for find in columns)] for name in shown]
    rows += [
        [name, *(accuracy(find(name, whole=True)) for find in columns)] for name in ("frozen-dense", "dense", "teacher")
    ]
    pairs = [("kronecker", other) for other in BESIDE_RESNET] + [("kronecker-shared", "kronecker")]
    rows += [
        [f"{one} over {other}, points", *(points(find(one), find(other)) for find in columns)] for one, other in pairs
    ]
    return speed.markdown(["network", *titles], rows)


def _found(lines: dict[str, Line], after: str, name: str, *, whole: bool = False) -> Line | None:
    return lines.get(name if whole else f"{name}{after}")


def rates() -> str:
    """Accuracies of VGG-16 on training images that were kept out, by the peak rate of root and cores."""
    folders = sorted((DOCS / "results" / "rates").iterdir(), key=lambda folder: float(folder.name))
    made = {float(folder.name): vgg16(f"rates/{folder.name}", after="")[1] for folder in folders}
    names = {name: line.first.about["budget"] for lines in made.values() for name, line in lines.items()}
    rows = [
        [name.removesuffix(f"-{budget}"), f"{budget:,}", *(accuracy(lines.get(name)) for lines in made.values())]
        for name, budget in sorted(names.items(), key=lambda each: (each[1], each[0]))
    ]
    return speed.markdown(["network", "budget", *(f"{rate:g}" for rate in made)], rows)


#: What ours, taught by the trained dense network, is set beside.
BESIDE_TAUGHT = ("subspaces-taught", "subspace-taught", "lowrank-taught", "narrow-dense-taught", "subspace", "dense")


def taught() -> str:
    """Accuracies alone and taught by the trained dense network, and how far Kronecker products are above others."""
    settings, lines = vgg16("whole-8")
    rows = []
    for name in (each for each in TAUGHT if f"{each}-taught" in lines):
        alone, learned = lines.get(name), lines[f"{name}-taught"]
        title, trained = f"**{name}**" if name in OURS else name, f"{learned.first.model_trained:,}"
        rows.append([title, trained, accuracy(alone), accuracy(learned), points(learned, alone)])
    for name in BESIDE_TAUGHT:
        apart = points(lines.get("kronecker-taught"), lines.get(name))
        rows.append([f"kronecker, taught, over {name}, points", "", "", apart, ""])
    epochs = f"{settings['epochs']} epochs"
    return speed.markdown(["network", "trained", f"alone, {epochs}", f"taught, {epochs}", "gain"], rows)


def lessons() -> str:
    """Accuracies of Kronecker products by what the trained dense network teaches them."""
    settings, lines = vgg16("levers-8", "levers", "-large")
    alone = lines["kronecker"]
    rows = []
    for name in (each for each in ("dense", *LEVERS) if each in lines):
        line = lines[name]
        apart = "–" if line is alone else points(line, alone)
        rows.append([name, line.first.about["says"], f"{line.first.model_trained:,}", accuracy(line), apart])
    epochs = f"accuracy %, {settings['epochs']} epochs"
    return speed.markdown(["network", "what it is", "trained", epochs, "Δ points"], rows)


TABLES.update({"lengths": lengths, "wider": wider, "common": common, "taught": taught, "lessons": lessons})
TABLES.update(
    {"short": short, "resnet": resnet, "held-out-rates": rates, "turning": turning.table, "wider-steps": widths.table}
)


def run_report() -> RunReport:
    return read_report(DOCS / "results" / "fashion-mnist")


TABLES["fashion-headline"] = lambda: headline(run_report())
TABLES["fashion-stages"] = lambda: markdown_table(stages_table(run_report()))
TABLES["fashion-controls"] = lambda: markdown_table(controls_table(run_report()))
TABLES["fashion-growth"] = lambda: markdown_table(details_table(run_report().details["grow"]))
TABLES["growth"] = growth.table
TABLES["tangents"] = tangents.table
TABLES["nearness"] = nearness.table
TABLES["nearness-resnet"] = functools.partial(nearness.table, "resnet20")
if kronecker.RESULTS.is_file():  # as above
    TABLES["kronecker"] = kronecker.table
TABLES["speed-machine"] = lambda: speed.machine_table(measured().sessions)


@functools.cache
def fits() -> list[Fits]:
    return expressivity.read_fits(DOCS / "results" / "expressivity")


for rank in expressivity.RANKS:
    TABLES[f"fits-equal-{rank}"] = functools.partial(
        lambda rank: markdown_table(expressivity.equal_count_table(fits(), rank)), rank
    )
TABLES["fits-headline"] = lambda: expressivity.headline(fits())
TABLES["fits-targets"] = lambda: markdown_table(expressivity.targets_table(fits()))
TABLES["fits-gains"] = lambda: markdown_table(expressivity.gains_table(fits()))
TABLES["fits-own"] = lambda: markdown_table(expressivity.own_count_table(fits()))
TABLES["fits-activations"] = lambda: markdown_table(expressivity.activations_table(fits()))
TABLES["fits-orders"] = lambda: markdown_table(expressivity.orders_table(fits()))
TABLES["fits-starts"] = lambda: markdown_table(expressivity.starts_table(fits()))
TABLES["fits-ranks"] = lambda: markdown_table(expressivity.ranks_table(fits()))
PAGES = (ROOT / "README.md", *DOCS.glob("*.md"))


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        for name, table in TABLES.items():
            before, mark, rest = text.partition(f"<!-- {name} -->\n")
            if mark:
                text = f"{before}{mark}{table()}\n{rest[rest.index(f'<!-- /{name} -->') :]}"
        page.write_text(text)


if __name__ == "__main__":
    main()
