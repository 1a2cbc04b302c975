"""What the benchmark is to reach, against what it measured. Nothing here is typed from a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from benchmarks.speed.cases import CONV_BATCHES, LINEAR_BATCHES, MODEL_BATCHES, full_grid
from benchmarks.speed.reading import LIMIT, Row, Rows, faster_format, measured, over_dense, peer, ratio

__all__ = ["Goal", "Part", "goals"]

LINEAR, CONV = "linear 4096x4096", "conv 512x512x3x3"
FEW_MAPS = (2, 4, 8, 16)
VGG = "convolutions but the first, FC2"


@dataclass(frozen=True)
class Part:
    """A number that is to be reached, and what was measured.

    Attributes:
        label: which part of the goal; empty where it has one only.
        least: at least, or at most where the goal is an upper bound.
        aim: what is aimed at.
        measured: the number; the worst one where it stands for several cases; None where there is none.
        where: the case of that number, where it stands for several.
        missing: how many cases of it were not measured.
    """

    label: str
    least: float
    aim: float
    measured: float | None
    where: str = ""
    missing: int = 0


@dataclass(frozen=True)
class Goal:
    """A row of the table.

    Attributes:
        work: what is measured.
        parts: what is to be reached.
        unit: behind the numbers.
        upper: whether smaller is better.
    """

    work: str
    parts: tuple[Part, ...]
    unit: str = "x"
    upper: bool = False

    def reached(self, value: float, bound: float) -> bool:
        """Return whether a number is as good as a bound."""
        return value <= bound if self.upper else value >= bound

    @property
    def missed(self) -> list[Part]:
        """The parts that were measured and fall short."""
        return [p for p in self.parts if p.measured is not None and not self.reached(p.measured, p.least)]

    @property
    def met(self) -> str:
        """``"yes"``, ``"yes, and the aim"``, ``"no"`` with what falls short by how much, or what was not measured."""
        if all(part.measured is None for part in self.parts):
            return "not measured"
        if self.missed:
            return "no: " + "; ".join(self._shortfall(part) for part in self.missed)
        absent = [part.label or "some cases" for part in self.parts if part.measured is None or part.missing]
        if absent:
            return f"not measured: {', '.join(absent)}"
        aims = all(part.measured is not None and self.reached(part.measured, part.aim) for part in self.parts)
        return "yes, and the aim" if aims else "yes"

    def _shortfall(self, part: Part) -> str:
        assert part.measured is not None
        share = part.measured / part.least if self.upper else part.least / part.measured
        what = " ".join(word for word in (part.label, f"({part.where})" if part.where else "") if word)
        return f"{what + ' ' if what else ''}by a factor of {share:.2f}"


def goals(rows: Rows) -> list[Goal]:
    """Return every goal with what the results say of it: medians of one run, float32."""
    return list(_goals(rows))


def _goals(rows: Rows) -> Iterator[Goal]:
    line = f"{LINEAR}, float32, "
    for topology, leasts, aim in (
        ("ttn", (45, 35, 25, 20), 60),
        ("attn", (20, 15, 12, 10), 30),
        ("mera", (20, 15, 12, 10), 30),
    ):
        bounds = zip(LINEAR_BATCHES, leasts, strict=True)
        parts = [_faster(rows, f"{line}inference", f"{topology} auto", batch, least, aim) for batch, least in bounds]
        yield Goal(f"linear 4096², {topology}, inference, faster than dense", tuple(parts))
    parts = [_faster(rows, f"{line}training", "ttn auto", batch, least, 30) for batch, least in ((1, 12), (128, 15))]
    yield Goal("linear 4096², ttn, training step with AdamW", tuple(parts))

    for mode, least, aim in (("inference", 10, 30), ("training", 5, 15)):
        name = "inference" if mode == "inference" else "training step"
        cases = [rows.get(_conv(side, mode, batch)) for side in FEW_MAPS for batch in CONV_BATCHES]
        part = _worst("", least, aim, cases, lambda row: ratio(row, "dense", "ttn auto"))
        yield Goal(f"conv 512²×3×3, ttn, {name}, maps 2–16, batch 1–128, the least of them", (part,))

    for mode in ("inference", "training"):
        name = "inference" if mode == "inference" else "training step"
        grid = [c for c in full_grid() if c.kind in ("linear", "conv") and (c.mode, c.dtype) == (mode, "float32")]
        parts = [
            _worst(kind, 2.5, 10, [rows.get(c.key) for c in grid if c.kind == kind], _over_tensorly)
            for kind in ("linear", "conv")
        ]
        yield Goal(
            f"against the fastest tensorly-torch variant, every layer and batch, {name}, the least of them",
            tuple(parts),
        )

    made = rows.get("weight 4096x4096, float32, making")
    part = Part("", 1.5, 1.1, ratio(made, "ttn new", "fill new"))
    yield Goal("making the whole 4096² weight, against `torch.empty(n).fill_(1)`", (part,), "of its time", upper=True)
    part = Part("", 4, 2, ratio(made, "ttn into a buffer", "fill buffer"))
    yield Goal("making it into a given buffer, against `buffer.fill_(1)`", (part,), "of its time", upper=True)
    ways = {"new memory": "ttn new", "into a buffer": "ttn into a buffer"}
    loops = tuple(Part(label, 4, 20, ratio(made, "einsum loop", name)) for label, name in ways.items())
    yield Goal("making it, against a loop of one einsum a core, which takes new memory", loops, "x")

    generated = f"ttn: {VGG}"
    bounds = zip(MODEL_BATCHES["inference"], (5, 6, 4), strict=True)
    parts = [
        Part(f"batch {batch}", least, 10, _of_formats(rows.get(f"vgg16, float32, inference, batch {batch}"), generated))
        for batch, least in bounds
    ]
    name = "VGG-16, all convolutions but the first and FC2, ttn, inference, each in its faster memory format"
    yield Goal(name, tuple(parts))
    row = rows.get("vgg16, float32, training, batch 128")
    yield Goal("the same, whole training step, batch 128", (Part("", 4, 8, _of_formats(row, generated)),))

    parts = []
    for batch in LINEAR_BATCHES:
        share = ratio(rows.get(f"{line}training, batch {batch}"), "dense", "ttn auto", "peak")
        parts.append(Part(f"batch {batch}", 20, 100, share))
    yield Goal(
        "peak memory of a training step, 4096² with AdamW, beyond inputs and outputs, less than dense", tuple(parts)
    )

    yield _never_slower(rows)


def _conv(side: int, mode: str, batch: int) -> str:
    return f"{CONV} map {side}, float32, {mode}, batch {batch}"


def _faster(rows: Rows, line: str, variant: str, batch: int, least: float, aim: float) -> Part:
    return Part(f"batch {batch}", least, aim, ratio(rows.get(f"{line}, batch {batch}"), "dense", variant))


def _of_formats(row: Row | None, variant: str) -> float | None:
    return ratio(row, faster_format(row, "dense"), faster_format(row, variant))


def _over_tensorly(row: Row) -> float | None:
    fastest, mine = peer(row, "tensorly"), measured(row, "ttn auto")
    return None if fastest is None or mine is None else fastest[1] / mine


def _worst(
    label: str, least: float, aim: float, cases: Iterable[Row | None], value: Callable[[Row], float | None]
) -> Part:
    """Return the part for the least number over several cases."""
    found, missing = [], 0
    for row in cases:
        number = None if row is None else value(row)
        if row is None or number is None:
            missing += 1
        else:
            found.append((number, row["key"]))
    if not found:
        return Part(label, least, aim, None, missing=missing)
    number, key = min(found)
    where = key.replace(", float32", "").replace(", inference", "").replace(", training", "")
    return Part(label, least, aim, number, where, missing)


def _never_slower(rows: Rows) -> Goal:
    """Return the goal that ``auto`` costs no inference more than 1.05 times dense, beyond the spread."""
    found = sorted((times, name, row["key"]) for row, name, times in over_dense(rows, "inference"))
    work = "every layer and model, inference under `auto`, its first quartile over dense's third, the most of them"
    if not found:
        return Goal(work, (Part("", LIMIT, 1, None),), "of its time", upper=True)
    times, name, key = found[-1]
    return Goal(work, (Part("", LIMIT, 1, times, f"{name}, {key}"),), "of its time", upper=True)
