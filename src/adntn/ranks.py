"""Ranks of generated weights against what the bonds allow (paper, Eq. 20 and Remark 1).

Eq. 20: cut the modes of a multilinear tensor network into two parts; the rank of the tensor as a matrix (one part | the
other) is at most the product of the bonds that the cut severs. The cores between may go to either side, so that the
best bound is a minimal cut. Activations act on whole states and sever nothing below the last of them: the readout is
linear, and its own cut goes on bounding the rank, with the hidden state as one tensor on top.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from adntn.errors import ConfigError
from adntn.generator import Generator
from adntn.levels import Level
from adntn.tensorize import OUT
from adntn.topology import BASELINES, Blueprint, GeneratorConfig

__all__ = ["CutRank", "cut_bound", "cut_ranks", "matrix_bound"]

# A singular value below this share of the largest is taken for rounding, in float64.
_TOLERANCE = 1e-12

# Entries of the smaller side of a cut that is measured unasked: a decomposition of a larger one takes seconds.
_LARGEST = 512


@dataclass(frozen=True)
class CutRank:
    """One cut of a generated tensor's modes, and medians over seeds of what was measured.

    Attributes:
        cut: places of the modes on one side, in the generator's order.
        name: ``"out | in"``, ``"out | in, kernel"``, or how many of the modes come first, as ``"4 | 8"``.
        rows: entries of that side.
        columns: entries of the other.
        rank: singular values above the tolerance.
        stable_rank: ``||W||_F^2 / ||W||_2^2``.
        linear_bound: what Eq. 20 allows without activations.
        bound: what is allowed with them.
    """

    cut: tuple[int, ...]
    name: str
    rows: int
    columns: int
    rank: int
    stable_rank: float
    linear_bound: int
    bound: int

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def cut_bound(config: GeneratorConfig, shape: tuple[int, ...], cut: Sequence[int], *, linear: bool) -> int:
    """Return the greatest rank that a group's generated tensor can have as the matrix (some modes | the others).

    Args:
        config: of the generator.
        shape: of the weight.
        cut: places of the modes on one side, in the generator's order, not counting the extra leading mode of a tree.
        linear: whether to go by Eq. 20, which holds with ``activation="identity"`` and no norm, or only by what
            holds with any activation.

    Returns:
        The product of the bonds in a minimal cut, times ``terms``; at most the entries of the smaller side.

    Raises:
        ConfigError: a place that is no mode's, or twice the same.

    Example:
        >>> cut_bound(GeneratorConfig(), (4096, 4096), range(12), linear=False)
        64
    """
    blueprint = Blueprint(shape, config)
    sizes = [mode.size for mode in blueprint.tensorization.modes]
    extra = len(sizes) - blueprint.tensorization.num_modes
    places = _check(cut, blueprint.tensorization.num_modes)
    side = {place + extra for place in places}
    rows = math.prod(sizes[place] for place in side)
    least = min(rows, math.prod(sizes[extra:]) // rows)
    if config.topology in BASELINES:
        if config.topology == "lowrank" and places and set(places) in _both_sides(_out_modes(blueprint), len(sizes)):
            return min(least, config.chi)
        if config.topology != "tt":
            return least
        severed = sum((place in side) != (place + 1 in side) for place in range(len(sizes) - 1))
        return min(least, int(config.chi**severed))
    return min(least, config.terms * _minimal_cut(blueprint.levels if linear else blueprint.levels[-1:], side, extra))


def matrix_bound(config: GeneratorConfig, shape: tuple[int, ...], *, linear: bool) -> int:
    """Return the greatest rank that a generated weight can have as the matrix (out, in * kernel).

    Args:
        config: of the generator.
        shape: of the weight.
        linear: as in :func:`cut_bound`.

    Returns:
        The bound of the cut (out | in, kernel), times the groups; at most the matrix' shorter side, which is what is
        left where the order ravels the axes.

    Example:
        >>> matrix_bound(GeneratorConfig(), (256, 256), linear=True)
        4
    """
    sides = min(shape[0], math.prod(shape[1:]))
    blueprint = Blueprint(shape, config)
    out = _out_modes(blueprint)
    if not 0 < len(out) < blueprint.tensorization.num_modes:
        return sides
    return min(sides, config.groups * cut_bound(config, shape, out, linear=linear))


def _check(cut: Sequence[int], modes: int) -> list[int]:
    places = list(cut)
    if len(set(places)) != len(places) or any(type(p) is not int or not 0 <= p < modes for p in places):
        raise ConfigError(f"cut={tuple(places)} is not a choice of the modes 0 ... {modes - 1}, each once.")
    return places


def _minimal_cut(levels: Sequence[Level], side: set[int], extra: int) -> int:
    """Return the least product of bonds that severs the modes on one side from the others (Edmonds and Karp).

    Nodes are the state on top, whole, and every core and gate; the modes are joined to the two ends.
    """
    sizes: dict[tuple[object, object], int] = {}

    def join(one: object, other: object, size: int) -> None:
        for pair in ((one, other), (other, one)):
            sizes[pair] = sizes.get(pair, 1) * size

    above: list[object] = ["state"] * levels[0].parents
    for level in levels:
        below: list[object] = [None] * level.children
        for parent, core in enumerate(level.cores):
            node = above[parent] if core is None else (level.number, core)
            if core is not None:
                join(above[parent], node, level.sizes_in[parent])
            for child in level.children_of(parent):
                below[child] = node
        for mixer, gates in zip(level.mixers, level.gates, strict=True):
            for k, gate in enumerate(gates):
                node = (level.number, gate)
                for child in (mixer.first + 2 * k, mixer.first + 2 * k + 1):
                    join(below[child], node, level.sizes_out[child])
                    below[child] = node
        above = below
    for place, (node, size) in enumerate(zip(above, levels[-1].sizes_out, strict=True)):
        if place >= extra:  # the extra mode has one index only
            join(node, "rows" if place in side else "columns", size)
    return _max_flow(sizes)


def _max_flow(sizes: dict[tuple[object, object], int]) -> int:
    left = {pair: math.log(size) for pair, size in sizes.items()}
    neighbours: dict[object, list[object]] = {}
    for one, other in left:
        neighbours.setdefault(one, []).append(other)
    while True:
        found: dict[object, object] = {"rows": "rows"}
        queue: deque[object] = deque(["rows"])
        while queue:
            node = queue.popleft()
            for other in neighbours.get(node, ()):
                if other not in found and left[node, other] > 1e-9:
                    found[other] = node
                    queue.append(other)
        if "columns" not in found:
            severed = [size for (one, other), size in sizes.items() if one in found and other not in found]
            return math.prod(severed)
        path: list[tuple[object, object]] = []
        node = "columns"
        while node != "rows":
            path.append((found[node], node))
            node = found[node]
        flow = min(left[pair] for pair in path)
        for one, other in path:
            left[one, other] -= flow
            left[other, one] += flow


def cut_ranks(
    config: GeneratorConfig,
    shape: tuple[int, ...],
    *,
    cuts: Sequence[Sequence[int]] | None = None,
    seeds: Sequence[int] = range(3),
    tolerance: float = _TOLERANCE,
) -> list[CutRank]:
    """Measure ranks of freshly drawn weights beside their bounds, in float64.

    With ``groups``, a cut is one of the first group's tensor. Padded weights are measured before cropping, since
    Eq. 20 says nothing of a cropped one; so the first row is of the padded weight too.

    Args:
        config: of the generator.
        shape: of the weight.
        cuts: places of the modes on one side, for each cut; None means (out | in, kernel), if the order keeps them
            apart, and then the first modes against the rest, wherever the smaller side has at most 512 entries.
        seeds: one draw each. torch's global random state is left as it was.
        tolerance: share of the largest singular value below which one counts as zero.

    Returns:
        A row a cut.

    Raises:
        ConfigError: there are no seeds, or a cut is none.

    Example:
        >>> for row in cut_ranks(GeneratorConfig(activation="identity"), (64, 64)):
        ...     assert row.rank <= row.linear_bound <= row.bound
    """
    if not seeds:
        raise ConfigError("seeds is empty; give at least one.")
    t = Blueprint(shape, config).tensorization
    modes = t.modes[len(t.modes) - t.num_modes :]
    chosen = _usual_cuts(shape, config) if cuts is None else [("", tuple(_check(cut, len(modes)))) for cut in cuts]
    tensors = [_draw(config, shape, seed) for seed in seeds]
    rows = []
    for name, cut in chosen:
        spectra = [torch.linalg.svdvals(_unfold(tensor, [mode.size for mode in modes], cut)) for tensor in tensors]
        rows.append(
            CutRank(
                cut=cut,
                name=name or f"{len(cut)} | {len(modes) - len(cut)}",
                rows=math.prod(modes[place].size for place in cut),
                columns=math.prod(mode.size for place, mode in enumerate(modes) if place not in cut),
                rank=int(statistics.median_low(int((s > tolerance * s[0]).sum()) for s in spectra)),
                stable_rank=statistics.median(float((s / s[0]).square().sum()) for s in spectra),
                linear_bound=cut_bound(config, shape, cut, linear=True),
                bound=cut_bound(config, shape, cut, linear=False),
            )
        )
    return rows


def _out_modes(blueprint: Blueprint) -> tuple[int, ...]:
    """Return the places of the modes of ``out``, none where the order ravels the axes."""
    t = blueprint.tensorization
    modes = t.modes[len(t.modes) - t.num_modes :]
    return tuple(place for place, mode in enumerate(modes) if mode.axis == OUT) if t.splits_axes else ()


def _both_sides(cut: Sequence[int], modes: int) -> tuple[set[int], set[int]]:
    return set(cut), set(range(modes)) - set(cut)


def _usual_cuts(shape: tuple[int, ...], config: GeneratorConfig) -> list[tuple[str, tuple[int, ...]]]:
    blueprint = Blueprint(shape, config)
    t = blueprint.tensorization
    sizes = [mode.size for mode in t.modes[len(t.modes) - t.num_modes :]]
    cuts: dict[tuple[int, ...], str] = {}
    out = _out_modes(blueprint)
    if 0 < len(out) < len(sizes):
        cuts[out] = "out | in" if len(shape) == 2 else "out | in, kernel"
    for first in range(1, len(sizes)):
        if min(math.prod(sizes[:first]), math.prod(sizes[first:])) <= _LARGEST:
            cuts.setdefault(tuple(range(first)), "")
    return [(name, cut) for cut, name in cuts.items()]


def _draw(config: GeneratorConfig, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the first group's tensor, raveled, of a weight that is as large as the modes."""
    t = Blueprint(shape, config).tensorization
    modes = t.modes[len(t.modes) - t.num_modes :]
    axes = [math.prod(mode.size for mode in modes if mode.axis == axis) for axis in range(max(2, len(t.axes)))]
    padded = (config.groups * axes[0], *axes[1:])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)  # the CPU's only; torch.manual_seed would reset the GPU's too
        generator = Generator(padded, config, device="cpu", dtype=torch.float64)
    with torch.no_grad():
        folded = generator.blueprint.tensorization.fold(generator())
    return folded[0, : math.prod(mode.size for mode in modes)]


def _unfold(tensor: Tensor, sizes: Sequence[int], cut: Sequence[int]) -> Tensor:
    """Return a raveled tensor as the matrix (some modes | the others)."""
    weights = [math.prod(sizes[place + 1 :]) for place in range(len(sizes))]
    sides = []
    for side in (cut, [place for place in range(len(sizes)) if place not in cut]):
        index = torch.zeros(1, dtype=torch.int64, device=tensor.device)
        for place in side:
            steps = torch.arange(sizes[place], device=tensor.device) * weights[place]
            index = (index.unsqueeze(1) + steps).flatten()
        sides.append(index)
    return tensor[sides[0].unsqueeze(1) + sides[1]]
