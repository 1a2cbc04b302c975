"""The results as Markdown tables, for the README and the site."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.speed.goals import Goal, goals
from benchmarks.speed.reading import (
    TOPOLOGIES,
    Row,
    Rows,
    dense_wins,
    faster_format,
    measured,
    peer,
    ratio,
    regrets,
    rows_of,
    spread,
)

__all__ = ["TABLES", "markdown"]

#: Rows of "Times" in docs/how-it-runs.md.
SHORT = (
    ("linear 1024x1024", 1),
    ("linear 1024x1024", 128),
    ("linear 4096x4096", 1),
    ("linear 4096x4096", 128),
    ("conv 128x128x3x3 map 8", 32),
    ("conv 512x512x3x3 map 4", 32),
)
MOST_WINS = 12


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(head)
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    """Return a ratio with two significant digits at least, a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def within(row: Row | None, names: Iterable[str]) -> str:
    """Return the spread of some variants' times, a dash where there are none."""
    share = spread(row, names)
    return "–" if share is None else f"± {100 * share:.0f} %"


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.0f} ns"


def size(value: float | None) -> str:
    if value is None:
        return "–"
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= power:
            return f"{value / power:.3g} {unit}"
    return f"{value:.0f} B"


def goals_table(rows: Rows) -> str:
    """What was to be reached, and what was."""

    def values(goal: Goal, field: str) -> str:
        return " / ".join(number_of(getattr(part, field)) for part in goal.parts) + f" {goal.unit}"

    def number_of(value: float | None) -> str:
        return f"{value:g}" if isinstance(value, int) else number(value)

    lines = []
    for goal in goals(rows):
        labels = " / ".join(part.label for part in goal.parts if part.label).replace("/ batch ", "/ ")
        work = f"{goal.work}, {labels}" if labels else goal.work
        at_most = "at most " if goal.upper else ""
        lines.append([work, at_most + values(goal, "least"), values(goal, "aim"), values(goal, "measured"), goal.met])
    return markdown(["work", "at least", "aim", "measured", "met?"], lines)


def headline_table(rows: Rows) -> str:
    """What stands in the README."""
    linear, conv, vgg = "linear 4096x4096, float32", "conv 512x512x3x3 map 4, float32", "vgg16, float32"
    some = "ttn: convolutions but the first, FC2"
    chosen = [
        *((f"linear 4096×4096, inference, batch {b}", f"{linear}, inference, batch {b}", "ttn auto") for b in (1, 128)),
        ("the same, training step, batch 128", f"{linear}, training, batch 128", "ttn auto"),
        ("convolution 512×512×3×3, 4×4 map, inference, batch 32", f"{conv}, inference, batch 32", "ttn auto"),
        ("the same, training step", f"{conv}, training, batch 32", "ttn auto"),
        *(
            (f"VGG-16 on 32×32, {some[5:]}, inference, batch {b}", f"{vgg}, inference, batch {b}", some)
            for b in (1, 128)
        ),
        ("the same, training step, batch 128", f"{vgg}, training, batch 128", some),
    ]
    lines = []
    for work, key, name in chosen:
        row = rows.get(key)
        best = peer(row, "tensorly")
        dense, name = faster_format(row, "dense"), faster_format(row, name)
        times = ratio(row, dense, name)
        faster = "–" if times is None else f"**{number(times)}x**"
        lines.append(
            [
                work,
                *(seconds(measured(row, n)) for n in (dense, name)),
                faster,
                within(row, (dense, name)),
                seconds(best[1]) if best else "–",
                *(size(measured(row, n, "peak")) for n in (dense, name)),
            ]
        )
    head = [
        "float32, medians",
        "dense",
        "`ttn`",
        "faster",
        "spread",
        "best of tensorly-torch",
        "peak memory, dense",
        "`ttn`",
    ]
    return markdown(head, lines)


def _lines(rows: Rows, kind: str, mode: str, dtype: str) -> str:
    """A layer and batch a row: dense seconds, then how many times faster each variant is."""
    names = [f"{topology} auto" for topology in TOPOLOGIES]
    lines = []
    for row in rows_of(rows, kind=kind, mode=mode, dtype=dtype):
        best = peer(row, "tensorly")
        line = [row["work"], str(row["batch"]), seconds(measured(row, "dense")), within(row, ["dense", *names])]
        line += [number(ratio(row, "dense", name)) for name in [*names, "ttn factored", "ttn dense", "low rank"]]
        if dtype == "float32":
            line += [number(ratio(row, "dense", name)) for name in ("ttn paired", "einsum loop")]
            line += [f"{number(ratio(row, 'dense', best[0]))} ({best[0].removeprefix('tensorly ')})" if best else "–"]
        lines.append(line)
    head = ["layer", "batch", "dense", "spread", *names, "ttn factored", "ttn dense", "low rank"]
    if dtype == "float32":
        head += ["ttn paired", "einsum loop", "best of tensorly-torch"]
    return markdown(head, lines)


def memory_table(rows: Rows) -> str:
    """Peak bytes of inference and of a training step with AdamW."""
    lines = []
    names = ("dense", "ttn auto", "attn auto", "mera auto", "low rank")
    for mode in ("inference", "training"):
        chosen = rows_of(rows, kind="linear", mode=mode, dtype="float32", batch=128)
        chosen += [r for r in rows_of(rows, kind="conv", mode=mode, dtype="float32", batch=32) if r["side"] in (4, 16)]
        for row in chosen:
            step = "inference" if mode == "inference" else "training step"
            lines.append(
                [f"{row['work']}, {step}, batch {row['batch']}", *(size(measured(row, n, "peak")) for n in names)]
            )
    return markdown(["peak memory", *names], lines)


def models_table(rows: Rows) -> str:
    """Whole models: images and steps a second, bytes."""
    lines = []
    for model in ("vgg16", "alexnet"):
        for dtype in ("float32", "bfloat16"):
            cases = {(row["mode"], row["batch"]): row for row in rows_of(rows, work=model, dtype=dtype)}
            variants = dict.fromkeys(name for row in cases.values() for name in row["results"])
            train = cases.get(("training", 128))
            for name in variants:
                inference = [cases.get(("inference", batch)) for batch in (1, 32, 128)]
                lines.append(
                    [
                        f"{model}, {dtype}, {name}",
                        *(_rate(row, name, row["batch"] if row else 0) for row in inference),
                        _rate(train, name, 1),
                        size(next((measured(row, name, "file") for row in inference if row), None)),
                        size(measured(train, name, "peak")),
                    ]
                )
    head = [
        "model, generated",
        *(f"images/s, batch {b}" for b in (1, 32, 128)),
        "steps/s, batch 128",
        "file",
        "peak, training",
    ]
    return markdown(head, lines)


def _rate(row: Row | None, name: str, items: int) -> str:
    """Return how many a second, and how many times dense's."""
    took = measured(row, name)
    if took is None:
        return "–"
    times = "" if name == "dense" else f" ({number(ratio(row, 'dense', name))}x)"
    rate = items / took
    return f"{rate:,.0f}{times}" if rate >= 100 else f"{rate:.3g}{times}"


def making_table(rows: Rows) -> str:
    """Making a weight against filling memory."""
    lines = []
    for row in rows_of(rows, kind="weight"):
        for name in row["results"]:
            base = "fill buffer" if name.endswith("buffer") else "fill new"
            line = [
                f"{row['work']}, {row['dtype']}: {name}",
                seconds(measured(row, name)),
                number(ratio(row, name, base)),
            ]
            lines.append([*line, size(measured(row, name, "peak"))])
    return markdown(["making", "time", "over filling", "memory beside the weight"], lines)


def regret_table(rows: Rows) -> str:
    """How much longer ``auto`` takes than the fastest way."""
    groups: dict[str, list[tuple[float, str]]] = {}
    for row, topology, value in regrets(rows):
        groups.setdefault(f"{row['kind']}, {row['mode']}, {row['dtype']}", []).append(
            (value, f"{topology}, {row['key']}")
        )
    lines = []
    for name, found in groups.items():
        values = [value for value, _ in found]
        over = sum(value > 1.1 for value in values)
        worst = max(found)
        lines.append([name, str(len(found)), number(statistics.median(values)), str(over), number(worst[0]), worst[1]])
    return markdown(["regret of auto", "cases", "median", "over 1.1", "worst", "which"], lines)


def wins_table(rows: Rows) -> str:
    """Where dense torch trains faster than ``auto``."""
    wins = dense_wins(rows)
    lines = [
        [row["key"].replace(", float32, training", ""), name, number(times)] for row, name, times in wins[:MOST_WINS]
    ]
    if len(wins) > MOST_WINS:
        lines.append([f"and {len(wins) - MOST_WINS} more", "", f"to {number(wins[-1][2])}"])
    return markdown(["training step, float32", "variant", "time over dense"], lines or [["none", "", ""]])


def short_table(rows: Rows) -> str:
    """Some layers, generated over dense."""
    lines = []
    for topology in TOPOLOGIES:
        for work, batch in SHORT:
            inference, training = (
                rows.get(f"{work}, float32, {mode}, batch {batch}") for mode in ("inference", "training")
            )
            name = f"{topology} auto"
            ways = [row["results"].get(name, {}).get("way", "–") if row else "–" for row in (inference, training)]
            shares = [number(ratio(row, name, "dense")) for row in (inference, training)]
            lines.append([f"{work}, {topology}", str(batch), " / ".join(dict.fromkeys(ways)), *shares])
    return markdown(["layer", "batch", "runs", "inference, cached", "training step"], lines)


def machine_table(sessions: Sequence[Mapping[str, object]]) -> str:
    """On what it was measured."""
    last = sessions[-1] if sessions else {}
    names = ("date", "revision", "cpu", "isa", "cores", "threads", "torch", "python", "load_at_start")
    return markdown(["machine", ""], [[name.replace("_", " "), str(last.get(name, "–"))] for name in names])


TABLES: dict[str, Callable[[Rows], str]] = {
    "speed-headline": headline_table,
    "speed-goals": goals_table,
    "speed-linear": lambda rows: _lines(rows, "linear", "inference", "float32"),
    "speed-linear-training": lambda rows: _lines(rows, "linear", "training", "float32"),
    "speed-conv": lambda rows: _lines(rows, "conv", "inference", "float32"),
    "speed-conv-training": lambda rows: _lines(rows, "conv", "training", "float32"),
    "speed-linear-bf16": lambda rows: _lines(rows, "linear", "inference", "bfloat16"),
    "speed-linear-training-bf16": lambda rows: _lines(rows, "linear", "training", "bfloat16"),
    "speed-conv-bf16": lambda rows: _lines(rows, "conv", "inference", "bfloat16"),
    "speed-conv-training-bf16": lambda rows: _lines(rows, "conv", "training", "bfloat16"),
    "speed-models": models_table,
    "speed-memory": memory_table,
    "speed-making": making_table,
    "speed-regret": regret_table,
    "speed-dense-wins": wins_table,
    "times": short_table,
}
