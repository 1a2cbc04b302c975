"""How a weight becomes modes, and modes a weight (paper, Section 2).

A weight is cut into *axes*: ``out`` (the rows of one group), ``in``, and for convolutions ``kernel`` (all
kernel positions as one axis). Every axis is padded to a power of the radix and written in digits; each digit is
one *mode* of the generated tensor. An *order* says where the modes stand. Everything here is plain index
arithmetic on Python integers; only :meth:`Tensorization.fold` and :meth:`Tensorization.unfold` touch tensors, and
they are the plain statement of the rule that the fast paths elsewhere are tested against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from adntn.errors import ConfigError, ShapeError, check_choice
from adntn.indices import ravel

__all__ = ["ORDERS", "Mode", "Order", "Tensorization", "tensorize"]

ORDERS = ("flat", "blocked", "paired", "block_paired")
Order = str | tuple[int, ...]

OUT, IN, KERNEL = 0, 1, 2


@dataclass(frozen=True)
class Mode:
    """One digit of one axis.

    Attributes:
        axis: which axis of the weight the digit belongs to.
        stride: what one step of the digit adds to the axis' index.
        size: how many values the digit has, the radix of its axis.
    """

    axis: int
    stride: int
    size: int


@dataclass(frozen=True)
class Tensorization:
    """The bijection between a weight's entries and the kept entries of the generated tensor.

    Attributes:
        shape: of the weight, ``(out, in, *kernel)``.
        groups: row blocks with a generator each (paper, Eqs. 66-67).
        axes: sizes of the axes of one group's block; one single axis where the order ravels the block.
        modes: in the order in which they stand in the generator.
        num_modes: Q, without the extra leading mode that a tree with an odd Q needs.
    """

    shape: tuple[int, ...]
    groups: int
    axes: tuple[int, ...]
    modes: tuple[Mode, ...]
    num_modes: int

    def __post_init__(self) -> None:
        _ = self.padded_axes, self._permutations  # now, since a compiler cannot trace what is kept at its first use

    @property
    def size(self) -> int:
        """Entries of the weight, P."""
        return math.prod(self.shape)

    @property
    def padded_size(self) -> int:
        """Entries that the generators make before cropping, groups * d**Q."""
        return self.groups * math.prod(mode.size for mode in self.modes[len(self.modes) - self.num_modes :])

    @property
    def splits_axes(self) -> bool:
        """Whether ``out`` and ``in`` have modes of their own (false for a ravel that does not line up)."""
        return len(self.axes) > 1

    @cached_property
    def padded_axes(self) -> tuple[int, ...]:
        """Size of each axis before cropping, an extra leading mode included."""
        return tuple(math.prod(mode.size for mode in self._digits(axis)) for axis in range(len(self.axes)))

    def _digits(self, axis: int) -> list[Mode]:
        return [mode for mode in self.modes if mode.axis == axis]

    def _weights(self, axis: int) -> list[int] | None:
        """What one step of each digit adds to the place in tree order; None where that is the index itself."""
        digits = self._digits(axis)
        strides = [mode.stride for mode in digits]
        if strides == sorted(strides, reverse=True):
            return None
        sizes = [mode.size for mode in digits]
        return [math.prod(sizes[place + 1 :]) for place in range(len(sizes))]

    def digit_permutation(self, axis: int) -> tuple[int, ...] | None:
        """Where index ``i`` of an axis lies when its digits are read in tree order; None for ``i`` itself."""
        return self._permutations[axis]

    @cached_property
    def _permutations(self) -> tuple[tuple[int, ...] | None, ...]:
        return tuple(self._permutation(axis) for axis in range(len(self.axes)))

    def _permutation(self, axis: int) -> tuple[int, ...] | None:
        weights = self._weights(axis)
        if weights is None:
            return None
        return tuple(
            sum((i // mode.stride) % mode.size * w for mode, w in zip(self._digits(axis), weights, strict=True))
            for i in range(self.padded_axes[axis])
        )

    def tree_place(self, axis: int, index: Tensor) -> Tensor:
        """Return :meth:`digit_permutation` at an index, without the rest of it."""
        weights = self._weights(axis)
        if weights is None:
            return index
        place = torch.zeros_like(index)
        for mode, weight in zip(self._digits(axis), weights, strict=True):
            place = place + index.div(mode.stride, rounding_mode="floor") % mode.size * weight
        return place

    def locate(self, index: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return which group each entry is of, and its index on every axis.

        Args:
            index: one column an axis of the weight, shape ``(*n, dims)``, in range.

        Returns:
            int64 tensors of shape ``(*n)``.
        """
        size = self.shape[0] // self.groups
        out, *others = index.unbind(-1)
        group, row = out.div(size, rounding_mode="floor"), out % size
        if len(self.axes) == 1:
            return group, [ravel([row, *others], [size, *self.shape[1:]])]
        if len(self.axes) == KERNEL:
            return group, [row, *others]
        return group, [row, others[0], ravel(others[1:], self.shape[2:])]

    def positions(self, device: torch.device | str | None = None) -> Tensor:
        """Return, for every entry of one group's block, its place in the raveled generated tensor.

        Returns:
            int64 tensor of shape ``axes``.
        """
        # Axis by axis first: only the last sums are as large as the weight.
        places = [torch.zeros(size, dtype=torch.int64, device=device) for size in self.axes]
        for place, mode in enumerate(self.modes):
            weight = math.prod(later.size for later in self.modes[place + 1 :])
            index = torch.arange(self.axes[mode.axis], device=device)
            places[mode.axis] += index.div(mode.stride, rounding_mode="floor") % mode.size * weight
        total = places[0]
        for of_axis in places[1:]:
            total = total.unsqueeze(-1) + of_axis
        return total

    def unfold(self, tensor: Tensor) -> Tensor:
        """Return the weight, shape ``(out, in, *kernel)``, of a generated tensor.

        Args:
            tensor: shape ``(groups, entries)``, raveled in the order of the modes.
        """
        return tensor[:, self.positions(tensor.device).reshape(-1)].reshape(self.shape)

    def fold(self, weight: Tensor) -> Tensor:
        """Return the generated tensor, shape ``(groups, entries)``, zero where nothing is kept.

        Args:
            weight: shape ``(out, in, *kernel)``.

        Raises:
            ShapeError: the weight has another shape.
        """
        if tuple(weight.shape) != self.shape:
            raise ShapeError(f"fold expects a weight of shape {self.shape}, got {tuple(weight.shape)}.")
        tensor = weight.new_zeros(self.groups, math.prod(mode.size for mode in self.modes))
        return tensor.index_copy(1, self.positions(weight.device).reshape(-1), weight.reshape(self.groups, -1))


def num_digits(size: int, radix: int) -> int:
    """Return the least n with ``radix**n >= size``, in exact integers."""
    digits, reach = 0, 1
    while reach < size:
        digits, reach = digits + 1, reach * radix
    return digits


def _digits(axis: int, count: int, radix: int) -> list[Mode]:
    return [Mode(axis, radix**p, radix) for p in range(count - 1, -1, -1)]


def _paired(out: list[Mode], inner: list[Mode], kernel: list[Mode]) -> list[Mode]:
    both = min(len(out), len(inner))
    pairs = [mode for pair in zip(out, inner, strict=False) for mode in pair]
    return [*pairs, *out[both:], *inner[both:], *kernel]


def _block_paired(out: list[Mode], inner: list[Mode], kernel: list[Mode]) -> list[Mode]:
    # A readout core makes the modes 2k and 2k+1. With an odd total an extra mode stands first, so the first
    # core has one place left: it goes to an axis with an odd number of digits, and every later core stays whole.
    lead: list[Mode] = []
    if (len(out) + len(inner) + len(kernel)) % 2:
        for digits in (out, inner, kernel):
            if len(digits) % 2:
                lead.append(digits.pop(0))
                break
    cores: list[list[Mode]] = []
    while len(out) > 1 or len(inner) > 1:
        cores.extend([d.pop(0), d.pop(0)] for d in (out, inner) if len(d) > 1)
    pairs = [mode for core in cores for mode in core]
    # At most one digit of each axis is left; two axes then share the one core that belongs to neither.
    odd_kernel = kernel[:1] if len(kernel) % 2 else []
    return [*lead, *pairs, *out, *inner, *odd_kernel, *kernel[len(odd_kernel) :]]


def _explicit(blocked: list[Mode], order: tuple[int, ...], shape: tuple[int, ...]) -> list[Mode]:
    if sorted(order) != list(range(len(blocked))):
        raise ConfigError(
            f"order={order!r} is not a permutation of the {len(blocked)} modes that a weight of shape {shape} has; "
            f"give each of 0 ... {len(blocked) - 1} once, or one of {', '.join(ORDERS)}."
        )
    return [blocked[i] for i in order]


def tensorize(
    shape: tuple[int, ...],
    *,
    radix: int = 2,
    order: Order = "blocked",
    groups: int = 1,
    kernel_radix: int | None = None,
    even: bool = True,
) -> Tensorization:
    """Say which mode of the generated tensor is which digit of the weight.

    Args:
        shape: of the weight, ``(out, in)`` or ``(out, in, *kernel)``.
        radix: size of one mode, d >= 2.
        order: ``"flat"`` (Eqs. 1 and 4), ``"blocked"``, ``"paired"`` (Eq. 2), ``"block_paired"``, or a permutation: the
            mode at place t is the blocked order's mode ``order[t]``.
        groups: number of row blocks; it divides ``out``.
        kernel_radix: size of the kernel's modes, if they have their own: 3 takes a 3x3 kernel without padding. A weight
            without a kernel has no use for it.
        even: whether an odd number of modes gets an extra one in front, as trees need it.

    Raises:
        ShapeError: fewer than two axes, an axis of size zero, or rows that the groups do not divide.
        ConfigError: an unknown order, one that is not a permutation of this weight's modes, or a ``kernel_radix`` where
            the order ravels the kernel with the rest.
    """
    shape = tuple(int(n) for n in shape)
    if len(shape) < 2 or min(shape) < 1:
        raise ShapeError(
            f"a weight of shape {shape} cannot be generated; it needs (out, in) or (out, in, *kernel), none zero."
        )
    if radix < 2 or groups < 1:
        raise ConfigError(f"radix={radix} and groups={groups} are not possible; they are at least 2 and 1.")
    if shape[0] % groups:
        near = [g for g in range(1, shape[0] + 1) if shape[0] % g == 0]
        raise ShapeError(
            f"groups={groups} does not divide the {shape[0]} rows of a weight of shape {shape}; possible are {near}."
        )
    sizes = [shape[0] // groups, shape[1]]
    radices = [radix, radix]
    if len(shape) > 2:
        sizes.append(math.prod(shape[2:]))
        radices.append(radix if kernel_radix is None else kernel_radix)
    counts = [num_digits(n, d) for n, d in zip(sizes, radices, strict=True)]
    aligned = all(d**n == size for n, size, d in zip(counts[1:], sizes[1:], radices[1:], strict=True))
    if order == "flat" and not aligned:
        if radices[-1] != radix:
            raise ConfigError(
                f"order='flat' ravels a weight of shape {shape}, so that its kernel has no modes of its own for "
                f"kernel_radix={kernel_radix}; use order='blocked', 'paired' or 'block_paired'."
            )
        sizes = [math.prod(sizes)]
        counts = [num_digits(sizes[0], radix)]
    if sum(counts) == 0:
        counts[0] = 1  # a single number still needs one mode to stand on

    axes = [_digits(axis, count, radices[axis]) for axis, count in enumerate(counts)]
    out, inner, kernel = (list(axes[a]) if a < len(axes) else [] for a in (OUT, IN, KERNEL))
    blocked = [*out, *inner, *kernel]
    if not isinstance(order, str):
        modes = _explicit(blocked, order, shape)
    elif check_choice("order", order, ORDERS) in ("flat", "blocked"):
        # A ravel whose trailing axes are powers of the radix has the very modes of the blocked order.
        modes = blocked
    else:
        modes = _paired(out, inner, kernel) if order == "paired" else _block_paired(out, inner, kernel)

    num_modes = len(modes)
    if num_modes % 2 and even:
        # The extra mode is one more leading digit of the axis beside it; cropping keeps its index 0 only.
        beside = modes[0].axis
        modes = [Mode(beside, radices[beside] ** counts[beside], radices[beside]), *modes]
    return Tensorization(shape, groups, tuple(sizes), tuple(modes), num_modes)
