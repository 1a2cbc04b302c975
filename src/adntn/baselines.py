"""Baselines under a generator's API: what a tree has to beat with the same count of numbers.

``tt`` is a quantised tensor train (Eq. 7), ``lowrank`` a product of two thin matrices, ``subspace`` a seeded random
projection of a few trained numbers, and ``frozen`` a random weight of which only the scale is trained. A random
projection is never stored: a hash makes each of its entries from the entry's place, as in a count sketch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.contraction import Activate, Contraction, Cores, Factors, rows_from_factors
from adntn.indices import entries_of_rows, ravel
from adntn.initialize import calibration, default_std, initial_values
from adntn.tensorize import IN, KERNEL, OUT
from adntn.topology import BASELINES, Blueprint

__all__ = ["Baseline", "Frozen", "LowRank", "Network", "Subspace", "TensorTrain", "network"]


class Baseline(ABC):
    """A generator without levels.

    Attributes:
        blueprint: what it makes.
        ranks: the sizes r and r' of its factors, or None where it has none.
        degree: trained numbers that are multiplied with each other in an entry of the weight.
    """

    ranks: tuple[int, int] | None = None
    degree: int = 1

    def __init__(self, blueprint: Blueprint) -> None:
        self.blueprint = blueprint

    def __deepcopy__(self, memo: dict[int, Any]) -> Baseline:
        return type(self)(self.blueprint)

    @abstractmethod
    def weight(self, parameters: Cores) -> Tensor:
        """Return the weight, shape ``(out, in, *kernel)``."""

    def factors(self, parameters: Cores) -> Factors | None:
        """Return A, C, B with W = A C B^T in every group, or None."""
        return None

    @abstractmethod
    def entries(self, parameters: Cores, index: Tensor) -> Tensor:
        """Return entries of the weight, shape ``(n,)``, at an index of shape ``(n, dims)``, and make no other."""

    def rows(self, parameters: Cores, index: Tensor) -> Tensor:
        """Return rows of the weight, shape ``(n, in, *kernel)``, at an index of shape ``(n,)``, and make no other."""
        shape = self.blueprint.shape
        return self.entries(parameters, entries_of_rows(index, shape)).reshape(len(index), *shape[1:])

    def rank_bound(self) -> int:
        """Return the greatest rank of the weight as the matrix (out, in * kernel)."""
        out, columns = self.blueprint.shape[0], math.prod(self.blueprint.shape[1:])
        return min(out, columns)

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Return a parameter of this shape before calibration, float64, on the CPU."""
        return torch.randn(shape, dtype=torch.float64, device="cpu")

    def initial_values(self, std: float, buffers: Cores) -> dict[str, Tensor]:
        """Draw parameters, normal, and scale them until the weight has this deviation; float64, on the CPU."""
        values = {name: self.draw(shape) for name, shape in self.blueprint.parameter_shapes.items()}
        groups = self.blueprint.config.groups
        # A product of many Gaussian numbers is anything but Gaussian, so the deviation is set, not hoped for.
        scale = calibration(self.weight({**values, **buffers}).reshape(groups, -1), std) ** (1 / self.degree)
        return {
            name: (value.unflatten(0, (groups, -1)) * scale.view(-1, *(1,) * value.ndim)).flatten(0, 1)
            for name, value in values.items()
        }


class LowRank(Baseline):
    """W = left @ right^T in every group, of rank ``bond_dim``."""

    degree = 2

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__(blueprint)
        rank = blueprint.config.chi
        self.ranks = (rank, rank if len(blueprint.shape) == KERNEL else blueprint.shape[1])

    def weight(self, parameters: Cores) -> Tensor:
        return (parameters["left"] @ parameters["right"].mT).reshape(self.blueprint.shape)

    def entries(self, parameters: Cores, index: Tensor) -> Tensor:
        shape, rows = self.blueprint.shape, self.blueprint.shape[0] // self.blueprint.config.groups
        out, *others = index.unbind(1)
        group = out.div(rows, rounding_mode="floor")
        left = F.embedding(out, parameters["left"].flatten(0, 1))
        column = group * math.prod(shape[1:]) + ravel(others, shape[1:])
        return (left * F.embedding(column, parameters["right"].flatten(0, 1))).sum(1)

    def rows(self, parameters: Cores, index: Tensor) -> Tensor:
        group = index.div(self.blueprint.shape[0] // self.blueprint.config.groups, rounding_mode="floor")
        left, right = parameters["left"], parameters["right"]
        rank = torch.eye(left.shape[2], dtype=left.dtype, device=left.device).expand(len(left), -1, -1)
        made = rows_from_factors(F.embedding(index, left.flatten(0, 1)), group, rank, right)
        return made.reshape(len(index), *self.blueprint.shape[1:])

    def factors(self, parameters: Cores) -> Factors:
        left, right = parameters["left"], parameters["right"]
        groups, inner = left.shape[0], self.ranks[1] if self.ranks else 0
        identity = torch.eye(inner, dtype=left.dtype, device=left.device).expand(groups, -1, -1)
        if len(self.blueprint.shape) == KERNEL:
            return left, identity, right
        return left, right.mT.reshape(groups, -1, *self.blueprint.shape[1:]), identity

    def rank_bound(self) -> int:
        groups, rank = self.blueprint.config.groups, self.blueprint.config.chi
        return min(super().rank_bound(), groups * min(rank, self.blueprint.shape[0] // groups))


class TensorTrain(Baseline):
    """A quantised tensor train: one core a mode, neighbours joined by bonds of size ``bond_dim`` (Eq. 7)."""

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__(blueprint)
        t = blueprint.tensorization
        axes = [mode.axis for mode in t.modes]
        plain = all(t.digit_permutation(axis) is None for axis in range(len(t.axes)))
        self.degree = len(t.modes)
        self.splits = t.splits_axes and axes == sorted(axes) and plain
        if self.splits:
            outer = self._bond(axes.count(OUT))
            kernel = self._bond(axes.count(OUT) + axes.count(IN))
            self.ranks = (outer, outer * kernel)

    def _bond(self, place: int) -> int:
        return 1 if place in (0, len(self.blueprint.tensorization.modes)) else self.blueprint.config.chi

    def _cores(self, parameters: Cores) -> list[Tensor]:
        """Return the cores in order, each ``(groups, left, size, right)``."""
        groups = self.blueprint.config.groups
        sizes = iter(mode.size for mode in self.blueprint.tensorization.modes)
        cores: list[Tensor] = []
        for stack in self.blueprint.chain:
            stacked = parameters[stack.name].unflatten(0, (groups, -1))
            cores.extend(core.unflatten(2, (next(sizes), -1)) for core in stacked.unbind(1))
        return cores

    def _axis(self, parameters: Cores, axis: int) -> Tensor:
        """Return the cores of one axis as one, shape ``(groups, left, size of the axis, right)``."""
        t = self.blueprint.tensorization
        mine = [place for place, mode in enumerate(t.modes) if mode.axis == axis]
        if not mine:
            before = sum(mode.axis < axis for mode in t.modes)
            like = next(iter(parameters.values()))
            bond = torch.eye(self._bond(before), dtype=like.dtype, device=like.device)
            return bond.view(1, len(bond), 1, len(bond)).expand(self.blueprint.config.groups, -1, -1, -1)
        return _chain(self._cores(parameters)[mine[0] : mine[-1] + 1]).narrow(2, 0, t.axes[axis])

    def weight(self, parameters: Cores) -> Tensor:
        t = self.blueprint.tensorization
        if not self.splits:
            return t.unfold(_chain(self._cores(parameters)).flatten(1))
        whole = _chain([self._axis(parameters, axis) for axis in range(len(t.axes))])
        return whole.reshape(self.blueprint.shape)

    def entries(self, parameters: Cores, index: Tensor) -> Tensor:
        t = self.blueprint.tensorization
        group, places = t.locate(index)
        # Neighbours are joined to one core as far as there are few rows of it to choose from.
        state = parameters[self.blueprint.chain[0].name].new_ones(len(index), 1, 1)
        cores: list[Tensor] = []
        row, rows = group, 1
        for mode, core in zip(t.modes, self._cores(parameters), strict=True):
            if cores and rows * mode.size > _MAX_JOINED:
                state = _through(state, row, cores)
                cores, row, rows = [], group, 1
            cores.append(core)
            row = row * mode.size + places[mode.axis].div(mode.stride, rounding_mode="floor") % mode.size
            rows *= mode.size
        return _through(state, row, cores).flatten()

    def rows(self, parameters: Cores, index: Tensor) -> Tensor:
        factors = self.factors(parameters)
        if factors is None:
            return super().rows(parameters, index)
        a, c, b = factors
        group = index.div(a.shape[1], rounding_mode="floor")
        return rows_from_factors(F.embedding(index, a.flatten(0, 1)), group, c, b)

    def factors(self, parameters: Cores) -> Factors | None:
        if not self.splits:
            return None
        out, inner = self._axis(parameters, OUT).squeeze(1), self._axis(parameters, IN)
        groups, outer = len(out), out.shape[2]
        bond = torch.eye(outer, dtype=out.dtype, device=out.device)
        b = inner.transpose(1, 2).flatten(2)  # shape: (groups, in, r * bond to the kernel)
        if len(self.blueprint.shape) == KERNEL:
            return out, bond.expand(groups, -1, -1), b
        kernel = self._axis(parameters, KERNEL).squeeze(3)
        # The bond from out to in stands in both A and B, and C joins it to itself.
        c = bond.view(1, outer, outer, 1, 1) * kernel[:, None, None]
        return out, c.reshape(groups, outer, -1, *self.blueprint.shape[2:]), b

    def rank_bound(self) -> int:
        if not self.splits or self.ranks is None:
            return super().rank_bound()
        groups = self.blueprint.config.groups
        return min(super().rank_bound(), groups * min(self.ranks[0], self.blueprint.shape[0] // groups))


# Entries of the modes of cores that are joined to one for an entry of the weight.
_MAX_JOINED = 256


def _chain(cores: list[Tensor]) -> Tensor:  # shapes: (groups, left, size, right), bonds matching -> the same
    """Return neighbouring cores as one, joined in pairs."""
    while len(cores) > 1:
        pairs = [
            torch.einsum("glmb,gbnr->glmnr", one, other).flatten(2, 3)
            for one, other in zip(cores[0::2], cores[1::2], strict=False)
        ]
        cores = [*pairs, *cores[2 * len(pairs) :]]
    return cores[0]


def _through(state: Tensor, row: Tensor, cores: list[Tensor]) -> Tensor:  # shape: (n, 1, left) -> (n, 1, right)
    """Take each state on through neighbouring cores, at the row of (group, index on their modes) that is its own."""
    joined = _chain(cores).transpose(1, 2)  # shape: (groups, size, left, right)
    own = F.embedding(row, joined.flatten(2).flatten(0, 1))
    return state @ own.view(len(row), *joined.shape[2:])


class Subspace(Baseline):
    """Every entry of the weight is one of the trained coordinates, up to its sign; a hash says which (count sketch)."""

    def weight(self, parameters: Cores) -> Tensor:
        coordinates = parameters["coordinates"]
        which, sign = self._chosen(coordinates, _hash_entries(self.blueprint, parameters["seed"]))
        return (coordinates.gather(1, which) * sign).reshape(self.blueprint.shape)

    def entries(self, parameters: Cores, index: Tensor) -> Tensor:
        coordinates, place = parameters["coordinates"], ravel(index.unbind(1), self.blueprint.shape)
        which, sign = self._chosen(coordinates, _hash(place, parameters["seed"]))
        group = place.div(self.blueprint.size // len(coordinates), rounding_mode="floor")
        column = coordinates.flatten().unsqueeze(1)
        return F.embedding(group * coordinates.shape[1] + which, column).squeeze(1) * sign

    @staticmethod
    def _chosen(coordinates: Tensor, hashed: Tensor) -> tuple[Tensor, Tensor]:
        return (hashed >> 1) % coordinates.shape[1], 1 - 2 * (hashed & 1).to(coordinates.dtype)


class Frozen(Baseline):
    """A weight of uniform random entries, made anew from its seed; only its scale is trained, one number a group."""

    def weight(self, parameters: Cores) -> Tensor:
        hashed = _hash_entries(self.blueprint, parameters["seed"])
        return self._uniform(parameters["scale"], hashed).reshape(self.blueprint.shape)

    def entries(self, parameters: Cores, index: Tensor) -> Tensor:
        scale, place = parameters["scale"], ravel(index.unbind(1), self.blueprint.shape)
        group = place.div(self.blueprint.size // len(scale), rounding_mode="floor")
        return self._uniform(F.embedding(group, scale).squeeze(1), _hash(place, parameters["seed"]))

    @staticmethod
    def _uniform(scale: Tensor, hashed: Tensor) -> Tensor:
        uniform = hashed.to(scale.dtype) / (1 << 31) - 1.0
        return scale * math.sqrt(3.0) * uniform

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.ones(shape, dtype=torch.float64, device="cpu")


_WORD = (1 << 32) - 1


def _hash_entries(blueprint: Blueprint, seed: Tensor) -> Tensor:
    """Return 32 random bits for every entry, made of its place and the seed, shape ``(groups, entries)``."""
    return _hash(torch.arange(blueprint.size, device=seed.device), seed).view(blueprint.config.groups, -1)


def _hash(place: Tensor, seed: Tensor) -> Tensor:
    mixed = _mix((place & _WORD) ^ (seed & _WORD))
    return _mix(mixed ^ (place >> 32) ^ (seed >> 32 & _WORD))


def _mix(x: Tensor) -> Tensor:
    """Return C. Wellons' hash ``lowbias32`` of 32 bits kept in 64."""
    # No product leaves 64 bits. Where one does, compiled code is undefined: a place times a large number let gcc drop
    # the end of the loop over the places.
    x = (x ^ (x >> 16)) * 0x7FEB352D & _WORD
    x = (x ^ (x >> 15)) * (0x846CA68B - (1 << 32)) & _WORD
    return x ^ (x >> 16)


Network = Contraction | Baseline

_BASELINES: dict[str, type[Baseline]] = {
    "tt": TensorTrain,
    "lowrank": LowRank,
    "subspace": Subspace,
    "frozen": Frozen,
}


def network(blueprint: Blueprint) -> Network:
    """Return what makes the weight of a blueprint."""
    topology = blueprint.config.topology
    return _BASELINES[topology](blueprint) if topology in BASELINES else Contraction(blueprint)


def draw_network(made: Network, activate: Activate, buffers: Cores, *, std: float | None) -> dict[str, Tensor]:
    """Draw a network's parameters, calibrated; float64, on the CPU.

    Args:
        made: the network.
        activate: as in :func:`initial_values`.
        buffers: by name, on the CPU: the seed of a random projection.
        std: the weight's deviation; None means :func:`default_std` of its shape.
    """
    if isinstance(made, Contraction):
        return initial_values(made, activate, std=std)
    return made.initial_values(default_std(made.blueprint.shape) if std is None else std, buffers)
