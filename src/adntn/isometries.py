"""Isometric cores of a start (paper, Eq. 18): drawn uniformly, or such that the weight is well conditioned.

A readout core of a pair of modes, one of ``out`` and one of ``in``, turns its parent's index into a small matrix; the
weight is a sum of Kronecker products of such matrices. If each has the condition number k, a product of m of them has
k**m, and the singular values of a weight that is drawn so spread over orders of magnitude. So the matrices of a
*conformal* core are orthogonal, and where it is possible (two of 2x2, four of 4x4: the complex numbers, the
quaternions) so is every combination of them, up to its scale. They are also *flat*: all entries are of one magnitude,
or, for sizes other than powers of two, of similar ones, so that no entry of the weight is a product of small factors.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

__all__ = ["conformal", "flat", "semi_orthogonal"]


def semi_orthogonal(shape: tuple[int, ...]) -> Tensor:  # shape: (cores, a, b), orthonormal along the shorter side
    """Draw cores uniformly over the matrices with orthonormal rows or, where those are more, columns."""
    cores, a, b = shape
    q, r = torch.linalg.qr(torch.randn((cores, max(a, b), min(a, b)), dtype=torch.float64, device="cpu"))
    # Without the signs of R's diagonal the draw would not be uniform over the orthogonal matrices.
    uniform: Tensor = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return uniform if a >= b else uniform.mT.contiguous()


def flat(a: int, b: int) -> Tensor:  # shape: (a, b), orthonormal along the shorter side
    """Draw a core of orthonormal rows, or columns, whose entries are of similar magnitude.

    Rows of a Hartley matrix, which is Hadamard's for 2 and 4, with random signs.
    """
    size = max(a, b)
    rows = _hartley(size)[torch.randperm(size)[: min(a, b)]] * _signs(size)
    rows = rows * _signs(len(rows)).unsqueeze(1)
    return rows if a <= b else rows.mT.contiguous()


def conformal(a: int, d: int) -> Tensor:  # shape: (a, d * d), orthonormal along the shorter side
    """Draw a core whose rows are orthogonal matrices, d x d each; with more rows than there are such, a flat one.

    Two of 2x2 and up to four of 4x4 are such that every combination of them is an orthogonal matrix times a number.
    """
    family = _orthogonal_family(d)
    if a > len(family):
        return flat(a, d * d)
    chosen = family[:a][torch.randperm(a)]
    # Flatness comes from Hartley's matrix, variety from signs; neither changes what is orthogonal.
    made = _signs(d).unsqueeze(1) * (_hartley(d) @ chosen) * _signs(d)
    made = made * _signs(a).view(-1, 1, 1) / math.sqrt(d)
    return made.flatten(1)


def _signs(count: int) -> Tensor:
    return 2.0 * torch.randint(0, 2, (count,), device="cpu").double() - 1.0


@functools.cache
def _hartley(size: int) -> Tensor:
    """Return the orthogonal matrix cas(2 pi j k / n) / sqrt(n)."""
    places = torch.arange(size, dtype=torch.float64, device="cpu")
    angle = 2.0 * math.pi * torch.outer(places, places) / size
    return (angle.cos() + angle.sin()) / math.sqrt(size)


@functools.cache
def _orthogonal_family(d: int) -> Tensor:  # shape: (count, d, d)
    """Return orthogonal matrices that are orthogonal to each other too, all d * d of them for powers of two, else d.

    For 2 and 4 those come first of which every combination is orthogonal up to its scale.
    """
    one, turn = torch.eye(2, dtype=torch.float64), torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    mirror, swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64), torch.diag(one.new_tensor([1.0, -1.0]))
    single = (one, turn, mirror, swap)
    if d & (d - 1):
        return torch.stack([torch.eye(d, dtype=torch.float64).roll(k, 0) for k in range(d)])
    made = [
        functools.reduce(torch.kron, factors, torch.eye(1, dtype=torch.float64))
        for factors in itertools.product(single, repeat=d.bit_length() - 1)
    ]
    if d == 4:
        quaternions = [torch.kron(one, one), torch.kron(one, turn), torch.kron(turn, mirror), torch.kron(turn, swap)]
        made = quaternions + [each for each in made if not any(torch.equal(each, first) for first in quaternions)]
    return torch.stack(made)
