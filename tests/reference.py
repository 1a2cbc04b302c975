"""A plain generator that follows the sums of the paper's equations index by index. Slow, and plainly right.

It shares no code with the library: schedule, mode order and every contraction are written again from the text.
"""

from __future__ import annotations

import itertools
import math

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


def expand(state: np.ndarray, cores: list[np.ndarray], children: int, size: int) -> np.ndarray:
    """Eqs. 49, 54, 59, with carries: ``state`` has one dimension a mode; ``cores[k]`` is (parent, child, child) or, of
    a carry, (parent, child).
    """
    result = np.zeros((size,) * children)
    for c in itertools.product(range(size), repeat=children):
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


def mode_order(axes: list[int], radix: int, order: object, flat: bool) -> list[tuple[int, int]]:
    """(axis, digit counted from the most significant) of every mode."""
    counts = [0 if n == 1 else math.ceil(round(math.log(n, radix), 9)) for n in axes]
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


def run_levels(
    config: dict[str, object], num_modes: int, parameters: dict[str, np.ndarray], *, readout: bool
) -> np.ndarray:
    """One group's state after the last level, or before it; one dimension a mode."""
    radix = config["radix"]
    chi = config["bond_dim"] or radix
    levels = levels_of(num_modes, config["latent_order"])
    state = parameters["root"].reshape((chi,) * levels[0][0])
    for number, (parents, children) in enumerate(levels, start=1):
        last = number == len(levels)
        if last and not readout:
            break
        size = radix if last else chi
        doubling = children - parents
        cores = [v.reshape(chi, size, size) for v in parameters[f"expand.{number}"]]
        cores += [v.reshape(chi, size) for v in parameters.get(f"carry.{number}", [])]
        assert len(cores) == parents
        assert all(core.ndim == (3 if k < doubling else 2) for k, core in enumerate(cores))
        state = expand(state, cores, children, size)
        for layer, first in ((0, 1), (1, 0)):
            gates = [v.reshape((size,) * 4) for v in parameters.get(f"mix.{number}.{layer}", [])]
            state = mix(state, gates, first)
        if not last:
            if config["activation"] in LEARNED:
                prefix = f"activation.{number}."
                learned = {k.removeprefix(prefix): v[0] for k, v in parameters.items() if k.startswith(prefix)}
                state = LEARNED[config["activation"]](state, **learned)
            else:
                state = ACTIVATIONS[config["activation"]](state)
            if config["norm"] == "center":
                state = state - state.mean()
    return state


def generate(
    shape: tuple[int, ...], config: dict[str, object], parameters: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The weight and the hidden state (groups, entries), of a config (its options) and a state_dict of arrays."""
    radix, groups = config["radix"], config["groups"]
    rows = shape[0] // groups
    axes = [rows, shape[1]] + ([math.prod(shape[2:])] if len(shape) > 2 else [])
    flat = config["order"] == "flat"
    if flat:
        axes = [math.prod(axes)]
    modes = mode_order(axes, radix, config["order"], flat)
    blocks, hidden = [], []
    for group in range(groups):
        mine = {k: np.split(v, groups, axis=0)[group] for k, v in parameters.items()}
        hidden.append(run_levels(config, len(modes), mine, readout=False).reshape(-1))
        state = run_levels(config, len(modes), mine, readout=True)
        if len(modes) % 2:
            state = state[0]  # the extra mode stands first; only its index 0 is kept
        counts = [sum(m[0] == axis for m in modes) for axis in range(len(axes))]
        block = np.zeros(axes)
        for index in itertools.product(*(range(n) for n in axes)):
            place = tuple(index[axis] // radix ** (counts[axis] - 1 - digit) % radix for axis, digit in modes)
            block[index] = state[place]
        blocks.append(block.reshape(rows, *shape[1:]))
    return np.concatenate(blocks), np.stack(hidden)
