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
from collections.abc import Iterable, Iterator, Sequence

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
    rows = _hartley(size)[torch.randperm(size, device="cpu")[: min(a, b)]] * _signs(size)
    rows = rows * _signs(len(rows)).unsqueeze(1)
    return rows if a <= b else rows.mT.contiguous()


def conformal(a: int, d: int) -> Tensor:  # shape: (a, d * d), orthonormal along the shorter side
    """Draw a core whose rows are orthogonal matrices, d x d each; with more rows than there are such, a flat one.

    Two of 2x2 and up to four of 4x4 are such that every combination of them is an orthogonal matrix times a number.
    """
    family = _orthogonal_family(a, d)
    if family is None:
        return flat(a, d * d)
    chosen = family[torch.randperm(a, device="cpu")]
    # Flatness comes from Hartley's matrix, variety from signs; neither changes what is orthogonal.
    made = _signs(d).unsqueeze(1) * (_hartley(d) @ chosen) * _signs(d)
    made = made * _signs(a).view(-1, 1, 1) / math.sqrt(d)
    return made.flatten(1)


def _signs(count: int) -> Tensor:
    return 2.0 * torch.randint(0, 2, (count,), device="cpu").double() - 1.0


def _hartley(size: int) -> Tensor:
    """Return the orthogonal matrix cas(2 pi j k / n) / sqrt(n)."""
    places = torch.arange(size, dtype=torch.float64, device="cpu")
    angle = 2.0 * math.pi * torch.outer(places, places) / size
    return (angle.cos() + angle.sin()) / math.sqrt(size)


# Of 2 x 2: one, the quarter turn, and two mirrors. Any combination of the first two is orthogonal up to its scale.
_ONE, _TURN = ((1.0, 0.0), (0.0, 1.0)), ((0.0, -1.0), (1.0, 0.0))
_SWAP, _FLIP = ((0.0, 1.0), (1.0, 0.0)), ((1.0, 0.0), (0.0, -1.0))
# Of 4 x 4, as Kronecker products of those: the quaternions.
_QUATERNIONS = ((_ONE, _ONE), (_ONE, _TURN), (_TURN, _SWAP), (_TURN, _FLIP))


def _orthogonal_family(count: int, d: int) -> Tensor | None:  # shape: (count, d, d)
    """Return orthogonal matrices that are orthogonal to each other too; None for more than there are.

    There are d * d for a power of two, else d, the cyclic shifts. For 2 and 4 those come first of which every
    combination is orthogonal up to its scale.
    """
    if d & (d - 1):
        shifts = [torch.eye(d, dtype=torch.float64, device="cpu").roll(k, 0) for k in range(min(count, d))]
        return torch.stack(shifts) if count <= d else None
    if count > d * d:
        return None
    # Lazily: of 64 x 64 there are 4,096, and one or two are wanted.
    products: Iterator[tuple[Sequence[Sequence[float]], ...]] = itertools.product(
        (_ONE, _TURN, _SWAP, _FLIP), repeat=d.bit_length() - 1
    )
    if d == 4:
        products = iter(dict.fromkeys([*_QUATERNIONS, *products]))
    return torch.stack([_kronecker(factors) for factors in itertools.islice(products, count)])


def _kronecker(factors: Iterable[Sequence[Sequence[float]]]) -> Tensor:
    matrices = [torch.tensor(factor, dtype=torch.float64, device="cpu") for factor in factors]
    return functools.reduce(torch.kron, matrices, torch.ones(1, 1, dtype=torch.float64, device="cpu"))
