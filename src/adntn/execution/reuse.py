"""Activation reuse (paper, Section 8.4): the first stage of a product, once for each distinct sub-vector.

A layer that runs in stages sees its input as sub-vectors and multiplies every one of them by the same small matrix. In
padded, one-hot or coarsely quantised inputs many sub-vectors are zero, or equal. To leave those out takes a few passes
over the input, and so it pays only where the matrix has many columns and most sub-vectors can be left out: a small
sample of them says whether, with costs that ``benchmarks/reuse.py`` has measured.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.adjoint import function as adjoint_function
from adntn.errors import check_choice
from adntn.indices import can_be_read

__all__ = ["REUSES", "decide", "first_stage"]

REUSES = ("auto", "on", "off")

# Nanoseconds on one core in float32, fitted to benchmarks/reuse.py; only their ratios count. The first is a
# multiply-add of the product, what follows are passes over the input by the entry, then work by the row, by the entry
# of the output, and by the call.
_PLAIN, _ZEROS, _DISTINCT, _GATHER = 0.024, 0.2, 1.9, 0.6
_ZEROS_ROW, _DISTINCT_ROW, _SPREAD = 10.0, 40.0, 0.2
_ZEROS_CALL, _DISTINCT_CALL, _LOOK = 60e3, 150e3, 100e3

_SAMPLE = 128  # sub-vectors; of a small input a sixteenth, so that looking never costs much
_LEAST = 32
_WORTHWHILE, _LOOK_SHARE = 0.6, 0.1


def first_stage(
    x: Tensor,  # shape: (rows, n), the sub-vectors
    matrix: Tensor,  # shape: (n, k)
    reuse: str = "auto",
) -> Tensor:  # shape: (rows, k)
    """Return ``x @ matrix``, with rows that are zero left out and equal rows computed once.

    With derivatives for both, as of the plain product. Zero rows give zeros, where the plain product has NaN for a
    matrix with infinite entries. The plain product is taken under ``torch.compile``, ``torch.export``, ``torch.func``
    and forward-mode derivatives, where shapes cannot depend on numbers.

    Args:
        x: float.
        matrix: of the same type.
        reuse: ``"auto"``: where a sample of the rows says that it pays, on the CPU in float32; ``"on"``: always, in the
            way that leaves out more of the sample; ``"off"``: never.

    Raises:
        ConfigError: an unknown ``reuse``.

    Example:
        >>> x = torch.zeros(8192, 64)
        >>> x[:100] = torch.randn(100, 64)
        >>> first_stage(x, torch.randn(64, 64)).shape  # one product of 100 rows
        torch.Size([8192, 64])
    """
    check_choice("reuse", reuse, REUSES)
    if reuse == "off" or torch.compiler.is_compiling():
        return x @ matrix
    if (reuse == "auto" and x.numel() * matrix.shape[1] * _PLAIN < _LOOK / _LOOK_SHARE) or not _possible(x, matrix):
        return x @ matrix
    kind = decide(x, matrix.shape[1], forced=reuse == "on")
    found = None if kind == "plain" else _nonzero(x.detach()) if kind == "zeros" else _distinct(x.detach())
    if found is None:
        return x @ matrix
    if torch.is_autocast_enabled(x.device.type):
        half = torch.get_autocast_dtype(x.device.type)
        x, matrix = x.to(half), matrix.to(half)
    made: Tensor = _Reused.apply(x, matrix, *found)  # type: ignore[no-untyped-call]
    return made


def decide(x: Tensor, columns: int, *, forced: bool = False) -> str:
    """Return how the first stage is cheapest: ``"plain"``, ``"zeros"`` left out, or each ``"distinct"`` row once.

    Args:
        x: shape ``(rows, n)``.
        columns: of the matrix.
        forced: whether ``"plain"`` is out of the question.
    """
    rows, size = x.shape
    plain = rows * size * columns * _PLAIN
    hopeful = {kind for kind, cost in _costs(rows, size, columns, 0.0, 0.0).items() if cost < _WORTHWHILE * plain}
    count = min(_SAMPLE, rows // 16)
    if forced:
        hopeful, count = {"zeros", "distinct"}, min(_SAMPLE, rows)
    elif x.dtype != torch.float32 or x.device.type != "cpu" or count < _LEAST or plain < _LOOK / _LOOK_SHARE:
        return "plain"
    if not hopeful:
        return "plain"  # whatever the rows are
    # An odd step, or it would see always the same part of an input that was cut into a power of two.
    step = max(1, rows // max(count, 1)) - 1 | 1
    sample = x.detach()[::step][:count]
    live = int(sample.abs().amax(1).count_nonzero()) / count if "zeros" in hopeful and count else 1.0
    distinct = _share_of_kinds(sample) if "distinct" in hopeful and count else 1.0
    if forced:
        return "distinct" if distinct < live / 2 else "zeros"
    costs = _costs(rows, size, columns, live, distinct)
    best = min(costs, key=costs.__getitem__)
    return best if costs[best] < _WORTHWHILE * plain else "plain"


def _costs(rows: int, size: int, columns: int, live: float, distinct: float) -> dict[str, float]:
    """Return the nanoseconds of each kind of reuse, given which shares of the rows are not zero, and distinct."""
    kept = rows * size * (_GATHER + columns * _PLAIN)
    spread = rows * columns * _SPREAD
    return {
        "zeros": _ZEROS_CALL + rows * (size * _ZEROS + _ZEROS_ROW) + live * kept + spread,
        "distinct": _DISTINCT_CALL + rows * (size * _DISTINCT + _DISTINCT_ROW) + distinct * kept + spread,
    }


def _share_of_kinds(sample: Tensor) -> float:
    """Return which share of all rows is of a kind that the others are not, judged by a sample (Good and Turing)."""
    _, counts = _hashes(sample).unique(return_counts=True)
    return float((counts == 1).sum()) / len(sample)


def _nonzero(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return which rows are not zero, and where among these each row is; the zero ones one behind the last."""
    live = _live(x)
    kept = live.nonzero().squeeze(1)
    return kept, torch.where(live, live.cumsum(0) - 1, len(kept))


def _live(x: Tensor) -> Tensor:
    """Return which rows have an entry that is not zero, NaN too; in two passes that make nothing of the size of x."""
    return (x.amax(1) != 0) | (x.amin(1) != 0)


def _distinct(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return one row of each kind, and which of these each row equals; None where the hash took two kinds for one."""
    _, place = _hashes(x).unique(return_inverse=True)
    kept = place.new_zeros(int(place.max()) + 1 if len(place) else 0)
    kept.scatter_(0, place, torch.arange(len(x), device=x.device))
    same = x.sub(x.index_select(0, kept[place])).abs_()
    return (kept, place) if not same.numel() or bool(same.max() == 0) else None  # not for NaN and infinities either


def _hashes(x: Tensor) -> Tensor:  # shape: (rows, n) -> (rows,), int64
    """Return two random projections of each row as one number."""
    work = x.to(torch.float32)
    number = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=torch.float32)
    # Equidistributed by irrational steps: no draw from the user's random state.
    both = [work.mv((number * step).frac() + 0.5) for step in (0.6180339887, 0.4142135623)]
    return torch.stack(both, 1).view(torch.int64).squeeze(1)


def _possible(x: Tensor, matrix: Tensor) -> bool:
    """Return whether what is done may depend on the numbers."""
    return adjoint_function.is_possible() and can_be_read(x) and can_be_read(matrix) and x.shape[1] > 0


class _Reused(torch.autograd.Function):
    """The product of the kept rows, spread over all; one behind the last of them is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, kept: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrix, kept, place)
        made = x.index_select(0, kept) @ matrix
        return F.embedding(place, torch.cat([made, made.new_zeros(1, made.shape[1])]))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix, kept, place = ctx.saved_tensors
        to_x = upstream @ matrix.mT if ctx.needs_input_grad[0] else None
        to_matrix = None
        if ctx.needs_input_grad[1] and torch.is_grad_enabled():  # to be differentiated again, by every row of x
            to_matrix = x.mT @ upstream
        elif ctx.needs_input_grad[1]:
            summed = upstream.new_zeros(len(kept) + 1, upstream.shape[1]).index_add_(0, place, upstream)
            to_matrix = x.index_select(0, kept).mT @ summed[:-1]
        return to_x, to_matrix, None, None
