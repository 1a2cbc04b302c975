"""A plain generator that follows the sums of the paper's equations index by index. Slow, and plainly right.

It shares no code with the library: schedule, mode order and every contraction are written again from the text.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np

ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "elu": lambda z: np.where(z > 0, z, np.exp(np.minimum(z, 0)) - 1),
    "gelu": lambda z: z / 2 * (1 + np.vectorize(math.erf)(z / math.sqrt(2))),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "sine": np.sin,
    "sine(omega=3)": lambda z: np.sin(3 * z),
    "siren": lambda z: np.sin(30 * z),
}


def rational(z: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Eq. 25 with 1 + (b_1 z + b_2 z^2 + ...)^2 as its denominator."""
    above = sum(coefficient * z**power for power, coefficient in enumerate(a))
    root = sum(coefficient * z**power for power, coefficient in enumerate(b, start=1))
    return above / (1 + root**2)


#: Of these, what is learned comes as arrays by name.
LEARNED = {
    "prelu": lambda z, slope: np.where(z > 0, z, slope * z),
    "swish": lambda z, beta: z / (1 + np.exp(-beta * z)),
    "rational": rational,
    "rational(m=2, n=4)": rational,
}


def levels_of(num_modes: int, latent_order: int) -> list[tuple[int, int]]:
    """(parents, children) of every level, by the design's schedule."""
    half = math.ceil(num_modes / 2)
    modes = [min(latent_order, half)]
    while modes[-1] != half:
        modes.append(min(2 * modes[-1], half))
    modes.append(2 * half)
    return list(itertools.pairwise(modes))


def expand(state: np.ndarray, cores: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    """Eqs. 49, 54, 59, with carries: ``state`` has one dimension a mode; ``cores[k]`` is (parent, child, child) or, of
    a carry, (parent, child); ``sizes`` are those of the children.
    """
    result = np.zeros(sizes)
    for c in itertools.product(*(range(n) for n in sizes)):
        for p in itertools.product(*(range(n) for n in state.shape)):
            term, place = state[p], 0
            for k, core in enumerate(cores):
                legs = core.ndim - 1
                term *= core[(p[k], *c[place : place + legs])]
                place += legs
            result[c] += term
    return result


def mix(state: np.ndarray, gates: list[np.ndarray], first: int) -> np.ndarray:
    """Eqs. 55-56, 60-61: gate k acts on modes (first + 2k, first + 2k + 1), counted from 0; the others are deltas.

    The gates act on separate pairs, so the product over k in Eq. 56 is made one factor after the other.
    """
    for k, gate in enumerate(gates):
        left = first + 2 * k
        result = np.zeros_like(state)
        for e in itertools.product(*(range(n) for n in state.shape)):
            for a, b in itertools.product(range(state.shape[left]), range(state.shape[left + 1])):
                c = (*e[:left], a, b, *e[left + 2 :])
                result[e] += gate[e[left], e[left + 1], a, b] * state[c]
        state = result
    return state


def mode_order(axes: list[int], radices: list[int], order: object, flat: bool) -> list[tuple[int, int]]:
    """(axis, digit counted from the most significant) of every mode."""
    counts = [0 if n == 1 else math.ceil(round(math.log(n, d), 9)) for n, d in zip(axes, radices, strict=True)]
    if sum(counts) == 0:
        counts[0] = 1
    digits = [[(axis, j) for j in range(n)] for axis, n in enumerate(counts)]
    if flat or order == "blocked":
        return [d for axis in digits for d in axis]
    if isinstance(order, tuple):
        blocked = [d for axis in digits for d in axis]
        return [blocked[i] for i in order]
    out, inner, *kernel = digits
    kernel = kernel[0] if kernel else []
    modes: list[tuple[int, int]] = []
    if order == "paired":
        for pair in itertools.zip_longest(out, inner):
            if None not in pair:
                modes.extend(pair)
        longer = out if len(out) > len(inner) else inner
        return modes + longer[min(len(out), len(inner)) :] + kernel
    assert order == "block_paired"
    if (len(out) + len(inner) + len(kernel)) % 2:
        odd = next(a for a in (out, inner, kernel) if len(a) % 2)
        modes.append(odd.pop(0))
    while len(out) >= 2 or len(inner) >= 2:
        for axis in (out, inner):
            if len(axis) >= 2:
                modes += [axis.pop(0), axis.pop(0)]
    return modes + out + inner + kernel


class Stacks:
    """One tree's cores, handed out one by one in the order in which they stand."""

    def __init__(self, parameters: dict[str, np.ndarray], usual: int) -> None:
        self.parameters, self.usual = parameters, usual
        self.taken: Counter[str] = Counter()

    def take(self, name: str, sizes: tuple[int, ...]) -> tuple[np.ndarray, float]:
        """The next core with legs of these sizes, and its gate, open where there is none."""
        if any(n != self.usual for n in sizes):
            name += "_" + "x".join(map(str, sizes))
        core = self.parameters[name][self.taken[name]]
        gate = self.parameters.get(f"gate.{name}")
        opening = 1.0 if gate is None else gate[self.taken[name], 0]
        self.taken[name] += 1
        return core, opening

    def core(self, name: str, parent: int, sizes: tuple[int, ...]) -> np.ndarray:
        return self.take(name, sizes)[0].reshape(parent, *sizes)

    def layer(self, name: str, sizes: list[int], first: int) -> list[np.ndarray]:
        """The gates on the pairs of modes from ``first`` on: U_eff = I + g (U - I), rows the new pair."""
        gates = []
        for left in range(first, len(sizes) - 1, 2):
            pair = (sizes[left], sizes[left + 1])
            u, opening = self.take(name, pair)
            identity = np.eye(math.prod(pair))
            gates.append((identity + opening * (u - identity)).reshape(*pair, *pair))
        return gates

    def all_used(self) -> bool:
        return all(self.taken[name] == len(self.parameters[name]) for name in self.taken)


def activate(config: dict[str, object], number: int, z: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
    """Eqs. 50, 62 with Definition 2's gate, z + g (phi(z) - z), and norm, over all of one tree's state."""
    if config["activation"] in LEARNED:
        prefix = f"activation.{number}."
        learned = {key.removeprefix(prefix): v[0] for key, v in parameters.items() if key.startswith(prefix)}
        state = LEARNED[config["activation"]](z, **learned)
    else:
        state = ACTIVATIONS[config["activation"]](z)
    if config["gate"]:
        state = z + parameters[f"gate.level.{number}"].item() * (state - z)
    if config["norm"] in ("center", "layer"):
        state = state - state.mean()
    if config["norm"] in ("rms", "layer"):
        state = state / np.sqrt((state**2).mean() + 1e-6)
    return state


def run_tree(
    config: dict[str, object], sizes: list[int], parameters: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """One tree's state before the last level and after it; one dimension a mode."""
    topology, radix = config["topology"], config["radix"]
    chi = config["bond_dim"] or radix
    levels = levels_of(len(sizes), config["latent_order"])
    state = hidden = parameters["root"].reshape((chi,) * levels[0][0])
    for number, (parents, children) in enumerate(levels, start=1):
        last = number == len(levels)
        hidden = state
        stacks = Stacks(parameters, radix if last else chi)
        legs = sizes if last else [chi] * children
        doubling = children - parents
        cores = []
        place = 0
        for parent in range(parents):
            kind, count = ("expand", 2) if parent < doubling else ("carry", 1)
            cores.append(stacks.core(f"{kind}.{number}", chi, tuple(legs[place : place + count])))
            place += count
        state = expand(state, cores, legs)
        layers = {"ttn": 0, "mera": 1, "attn": config["boundary_layers"] if last else 0}[topology]
        for layer, first in ((0, 1), (1, 0))[:layers]:
            state = mix(state, stacks.layer(f"mix.{number}.{layer}", legs, first), first)
        assert stacks.all_used()
        if not last:
            state = activate(config, number, state, parameters)
    return hidden, state


def run_brickwall(
    config: dict[str, object], sizes: list[int], parameters: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """One brick wall's state before the last block and after it, from the product vector; one dimension a mode."""
    columns, blocks = config["columns"], config["blocks"]
    most = math.ceil(columns / 2)
    if blocks in (None, most):
        widths = [2] * (columns // 2) + [1] * (columns % 2)
    else:
        widths = [columns // blocks + (1 if b < columns % blocks else 0) for b in range(blocks)]
    # Every mode is in its first state; one that has no partner in the first column has all states alike.
    state = np.ones((1,) * len(sizes))
    for place, size in enumerate(sizes):
        vector = np.zeros(size)
        vector[0] = 1.0
        if place == len(sizes) - 1 and len(sizes) % 2:
            vector[:] = size**-0.5
        state = state * vector.reshape([-1 if p == place else 1 for p in range(len(sizes))])
    hidden = np.array([1.0 if len(sizes) % 2 == 0 else sizes[-1] ** -0.5] * (sizes[-1] if len(sizes) % 2 else 1))
    column = 0
    for block, width in enumerate(widths, start=1):
        stacks = Stacks(parameters, config["radix"])
        if block > 1:
            state = hidden = activate(config, block - 1, state, parameters)
        for c in range(1, width + 1):
            column += 1
            name = f"gate.{block}.{c}"
            shifted = column % 2 == 0 or (column == columns and columns > 1 and len(sizes) > 2)
            if column == 1:
                # On the first state of both modes only a gate's first column counts, and it is all there is.
                gates = []
                for left in range(0, len(sizes) - 1, 2):
                    pair = (sizes[left], sizes[left + 1])
                    gate = np.zeros((*pair, *pair))
                    gate[:, :, 0, 0] = stacks.core(name, 1, pair)[0]
                    gates.append(gate)
                state = mix(state, gates, 0)
            else:
                state = mix(state, stacks.layer(name, sizes, int(shifted)), int(shifted))
        assert stacks.all_used()
    return hidden, state


def run_chain(sizes: list[int], parameters: dict[str, np.ndarray]) -> np.ndarray:
    """Eq. 7 for a tensor train: an entry is a product of matrices, one a mode; one dimension a mode."""
    cores = [core for k in range(len(parameters)) for core in parameters[f"chain.{k}"]]
    assert len(cores) == len(sizes)
    cores = [core.reshape(core.shape[0], size, -1) for core, size in zip(cores, sizes, strict=True)]
    result = np.zeros(sizes)
    for index in itertools.product(*(range(n) for n in sizes)):
        matrix = np.eye(1)
        for core, i in zip(cores, index, strict=True):
            matrix = matrix @ core[:, i, :]
        result[index] = matrix.item()
    return result


def lowbias32(x: int) -> int:
    """Wellons' hash of 32 bits, with whole numbers that have no end."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * factor % 2**32
    return x ^ (x >> 16)


def hashes(count: int, seed: int) -> list[int]:
    """32 bits for each place: hashed with one half of the seed, and once more with the other."""
    return [lowbias32(lowbias32(i % 2**32 ^ seed % 2**32) ^ i // 2**32 ^ seed // 2**32) for i in range(count)]


def generate_baseline(
    shape: tuple[int, ...], config: dict[str, object], parameters: dict[str, np.ndarray]
) -> np.ndarray:
    """The weight of what has neither modes nor states."""
    groups, size = config["groups"], math.prod(shape)
    if config["topology"] == "lowrank":
        blocks = [left @ right.T for left, right in zip(parameters["left"], parameters["right"], strict=True)]
        return np.concatenate(blocks).reshape(shape)
    weight = np.zeros(size)
    for i, z in enumerate(hashes(size, int(parameters["seed"].item()))):
        group = i // (size // groups)
        if config["topology"] == "frozen":
            # A number from -1 to 1; evenly spread ones have the deviation 1 / sqrt(3).
            weight[i] = parameters["scale"][group, 0] * 3**0.5 * (z / 2**31 - 1)
        else:
            coordinates = parameters["coordinates"][group]
            weight[i] = coordinates[z // 2 % len(coordinates)] * (-1) ** z
    return weight.reshape(shape)


def generate(
    shape: tuple[int, ...], config: dict[str, object], parameters: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The weight and the hidden state (groups * terms, entries), of a config (its options) and a state_dict of arrays.

    A baseline has no hidden state.
    """
    topology, radix, groups, terms = config["topology"], config["radix"], config["groups"], config["terms"]
    if topology in ("lowrank", "subspace", "frozen"):
        return generate_baseline(shape, config, parameters), None
    rows = shape[0] // groups
    axes = [rows, shape[1]] + ([math.prod(shape[2:])] if len(shape) > 2 else [])
    radices = [radix, radix, config["kernel_radix"] or radix][: len(axes)]
    # A ravel has one radix; with a kernel of its own radix it must be the blocked order already.
    flat = config["order"] == "flat" and len(set(radices)) == 1
    order = "blocked" if config["order"] == "flat" else config["order"]
    if flat:
        axes, radices = [math.prod(axes)], [radix]
    modes = mode_order(axes, radices, order, flat)
    sizes = [radices[axis] for axis, _ in modes]
    extra = len(modes) % 2 == 1 and topology in ("ttn", "attn", "mera")
    if extra:
        sizes = [sizes[0], *sizes]
    counts = [sum(m[0] == axis for m in modes) for axis in range(len(axes))]
    blocks, hidden = [], []
    for group in range(groups):
        block = np.zeros(axes)
        for term in range(terms):
            tree = group * terms + term
            mine = {k: np.split(v, groups * terms, axis=0)[tree] for k, v in parameters.items()}
            if topology == "tt":
                state = run_chain(sizes, mine)
            else:
                run = run_brickwall if topology == "brickwall" else run_tree
                before, state = run(config, sizes, mine)
                share = mine["gate.term"].item() if "gate.term" in mine else 1.0
                hidden.append(share * before.reshape(-1))
                state = share * state
            if extra:
                state = state[0]  # the extra mode stands first; only its index 0 is kept
            for index in itertools.product(*(range(n) for n in axes)):
                digits = (
                    index[axis] // radices[axis] ** (counts[axis] - 1 - digit) % radices[axis] for axis, digit in modes
                )
                block[index] += state[tuple(digits)]
        blocks.append(block.reshape(rows, *shape[1:]))
    return np.concatenate(blocks), np.stack(hidden) if hidden else None
