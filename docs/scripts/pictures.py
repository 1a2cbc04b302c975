"""The pictures of *The split*, drawn from the library's own plans.

    python docs/scripts/pictures.py     # writes docs/assets/split.svg and docs/assets/stages.svg

A test draws them anew and compares.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import adntn
from adntn.contraction import Contraction, Plan, Side

ASSETS = Path(__file__).parents[1] / "assets"
OUT, CENTRE, IN = "#3f51b5", "#757575", "#d9622b"
PAPER, INK = "#ffffff", "#333333"
CORE, STEP = 34, 84


def box(x: float, y: float, width: float, height: float, colour: str, text: str = "", *, size: int = 13) -> str:
    label = (
        ""
        if not text
        else f'<text x="{x + width / 2}" y="{y + height / 2 + size * 0.36:.1f}" font-size="{size}" \
fill="{PAPER}" text-anchor="middle">{text}</text>'
    )
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{colour}"/>{label}'


def line(x: float, y: float, x2: float, y2: float) -> str:
    return f'<path d="M{x} {y}L{x2} {y2}" stroke="{INK}" stroke-width="2"/>'


def words(x: float, y: float, text: str, *, colour: str = INK, size: int = 14, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{text}</text>'


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    body = "\n".join(parts)
    return f'''<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" \
font-family="sans-serif"><title>{title}</title>
<rect width="{width}" height="{height}" fill="{PAPER}"/>
{body}
</svg>
'''


def cores_of(plan: Plan) -> set[tuple[str, int]]:
    """Return the cores that a plan is made of, as (stack, place)."""
    pieces = [piece for segment in plan.segments for stage in segment.stages for piece in stage]
    return {(p.name, p.start + n) for p in pieces if p.kind != "pass" for n in range(p.count)}


def network(topology: str, shape: tuple[int, ...]) -> Contraction:
    made = adntn.Generator(shape, adntn.GeneratorConfig(topology=topology), device="meta")._network
    assert isinstance(made, Contraction)
    return made


def readout(topology: str, left: float) -> list[str]:
    """Draw the last level of a 64 x 64 weight: which core and which disentangler goes into A, C and B."""
    made = network(topology, (64, 64))
    assert made.split is not None
    level, split = made.blueprint.levels[-1], made.split
    outer, inner = cores_of(split.outer), cores_of(split.inner)
    (expand,) = {core.stack for core in level.cores}
    parents, parts = len(level.cores), []

    def colour(name: str, place: int) -> str:
        return OUT if (name, place) in outer else IN if (name, place) in inner else CENTRE

    parts.append(box(left, 40, parents * STEP - 10, 34, CENTRE, f"hidden state, 2^{parents} entries"))
    mixed = bool(level.mixers)
    end = 230 if mixed else 180
    for parent in range(parents):
        x = left + parent * STEP + (STEP - 10) / 2
        parts.append(line(x, 74, x, 110))
        for child, offset in enumerate((-STEP / 4, STEP / 4)):
            side = OUT if 2 * parent + child < parents else IN
            parts += [line(x + offset / 2, 144, x + offset, 164), line(x + offset, 164, x + offset, end)]
            name = ("o" if side == OUT else "i") + str((2 * parent + child) % parents + 1)
            parts.append(words(x + offset, end + 18, name, colour=side))
        parts.append(box(x - CORE / 2, 110, CORE, CORE, colour(expand, parent), "V"))
    for layer, mixer in enumerate(level.mixers):
        for gate in range(mixer.gates):
            first = mixer.first + 2 * gate
            x = left + (first // 2) * STEP + (STEP - 10) / 2 + STEP / 4
            core = level.gates[layer][gate]
            parts.append(box(x - 8, 180, STEP / 2 + 12, 26, colour(core.stack, core.place), "U"))
    outer_rank, inner_rank = split.ranks
    text = f"{topology}: A is 64×{outer_rank}, C {outer_rank}×{inner_rank}, B 64×{inner_rank}"
    parts.append(words(left + (parents * STEP - 10) / 2, 22, text, size=15))
    return parts


def split() -> str:
    legend = [
        box(330, 276, 16, 16, OUT), words(352, 289, "in A: only rows below it", anchor="start"),
        box(560, 276, 16, 16, CENTRE), words(582, 289, "in C", anchor="start"),
        box(660, 276, 16, 16, IN), words(682, 289, "in B: only columns below it", anchor="start"),
    ]  # fmt: skip
    return svg(1040, 306, "The readout of a tree, split", readout("ttn", 10) + readout("attn", 530) + legend)


def stages() -> str:
    """Draw how a row goes through a layer of 4096 x 4096: the sizes of the states, and the matrices between them."""
    made = network("ttn", (4096, 4096))
    assert made.sides is not None
    outer, inner = made.sides
    assert isinstance(outer, Side)
    assert isinstance(inner, Side)
    states, products = [inner.size], []
    for left, rows, columns, right in reversed(inner.stages):
        states.append(left * columns * right)
        products.append((f"{columns}×{rows}", IN, left * rows * columns * right))
    states.append(outer.rank)
    products.append((f"{outer.rank}×{inner.rank}", CENTRE, outer.rank * inner.rank))
    for left, rows, columns, right in outer.stages:
        states.append(left * rows * right)
        products.append((f"{rows}×{columns}", OUT, left * rows * columns * right))
    parts, x, gap = [], 20.0, 158
    for number, entries in enumerate(states):
        height = 20 + 130 * entries / max(states)
        parts += [box(x, 110 - height / 2, 22, height, INK), words(x + 11, 205, f"{entries:,}")]
        if number < len(products):
            text, colour, work = products[number]
            parts += [line(x + 26, 110, x + gap - 4, 110), box(x + 50, 92, 80, 36, colour, text)]
            parts.append(words(x + 90, 84, f"{work:,}", colour=colour, size=12))
        x += gap
    total, whole = sum(work for *_, work in products), inner.size * outer.size
    factors = inner.size * inner.rank + inner.rank * outer.rank + outer.rank * outer.size
    title = f"{total:,} multiply-adds a row; {factors:,} with A and B whole; {whole:,} with the weight"
    parts += [words(440, 24, title, size=16), words(31, 230, "x"), words(31 + gap * len(products), 230, "y")]
    return svg(880, 244, "A row on its way through a 4096×4096 layer", parts)


PICTURES: dict[str, Callable[[], str]] = {"split.svg": split, "stages.svg": stages}


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (ASSETS / name).write_text(draw(), encoding="utf-8")
