"""The operators of torch that run the Triton programs, with their gradients.

With the weight of a group as ``W[high, low] = sum_s S[high, s] M[s, low]`` (:mod:`adntn.execution.tiles`) and its
gradient D, which is given (:func:`weight`) or is ``dy^T x`` (:func:`product`), the gradients are, tile by tile of D,

    dS[high, s] = sum_low D[high, low] M[s, low]        dM[s, low] = sum_high S[high, s] D[high, low]
    dx = dy W, the product itself with its axes in each other's roles

so that a product writes neither W nor D to memory. dM is summed by as many programs as the device has room for, and
their sums are added up last: the same numbers at every run. Operators are opaque to ``torch.compile``, which makes no
graph break of them. Derivatives of a higher order than the first are an error.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

__all__ = ["product", "weight"]

# A tile has this many rows and columns, and this many entries belong to the same high digits.
_SIDE = 64
_LOWS = 256
# Of s, the numbers of the state that an entry depends on, this many are multiplied at once.
_INNER = 32

# At most this many bytes of a column of inputs meet a tile: what is shared must fit into 99 KiB, as small devices have.
_ROWS = 256

Layout = Sequence[int]


def _power(size: int) -> int:
    """Return the least power of two that is not smaller."""
    return 1 << max(size - 1, 0).bit_length()


def _inner_block(inner: int) -> int:
    return min(_INNER, max(16, _power(inner)))


def _blocks(m_low: int, n_low: int) -> tuple[int, int, int, int]:
    """Return how many high and low digits of two axes a tile has: no side of a small product is below 16."""
    m, n = min(_power(m_low), _SIDE), min(_power(n_low), _SIDE)
    while m * n > _LOWS:
        m, n = (m // 2, n) if m > n else (m, n // 2)
    while m * n < 16:
        n *= 2
    return _SIDE // m, m, _SIDE // n, n


def _precision(dtype: torch.dtype) -> str:
    """Return how float32 numbers are multiplied: as torch is told to, but where they are rounded afterwards anyway."""
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # not before torch 2.9
    allowed = torch.backends.cuda.matmul.allow_tf32 if setting is None else setting == "tf32"
    return "tf32" if allowed or dtype != torch.float32 else "ieee"


def _warps(precision: str, large: bool = False) -> int:
    """Return in how many warps a program runs; without tensor cores more of them hold what one is too small for."""
    return 8 if large or precision == "ieee" else 4


def _room(device: torch.device) -> int:
    """Return how many programs a device should be given at least."""
    # Triton's interpreter runs one at a time; more than one makes for a test of the sums.
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def _sum(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _three(layout: Layout) -> tuple[Layout, Layout, Layout]:
    return layout[2:5], layout[5:8], layout[8:11]


# --- the whole weight -------------------------------------------------------------------------------------------------


@custom_op(
    "adntn::tiles_weight",
    mutates_args=(),
    schema="(Tensor state, Tensor matrix, int[] layout, ScalarType dtype) -> Tensor",
)
def weight(state: Tensor, matrix: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """Return the weight with digits in tree order, shape ``(groups, out, in, kernel)``."""
    from adntn.execution.kernels import programs

    high, low, size = _three(layout)
    made = state.new_empty((layout[0], *size), dtype=dtype)
    lows = min(_LOWS, max(16, _power(math.prod(low))))
    highs = _SIDE * _SIDE // lows
    grid = (-(-math.prod(high) // highs), -(-math.prod(low) // lows), layout[0])
    with _on(state):
        programs.make_weight[grid](
            *(state.contiguous(), matrix.contiguous(), made, layout[1], *high, *low, *size),
            HIGHS=highs,
            LOWS=lows,
            BLOCK=_inner_block(layout[1]),
            PRECISION=_precision(dtype),
        )
    return made


@weight.register_fake
def _(state: Tensor, matrix: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    return state.new_empty((layout[0], *layout[8:11]), dtype=dtype)


@custom_op(
    "adntn::tiles_weight_gradients",
    mutates_args=(),
    schema="(Tensor upstream, Tensor state, Tensor matrix, int[] layout) -> (Tensor, Tensor)",
)
def weight_gradients(upstream: Tensor, state: Tensor, matrix: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the gradients of state and matrix."""
    from adntn.execution.kernels import programs

    high, low, size = _three(layout)
    lows = min(_LOWS, max(16, _power(math.prod(low))))
    highs, block, precision = _SIDE * _SIDE // lows, _inner_block(layout[1]), _precision(upstream.dtype)
    low_blocks, chunks = -(-math.prod(low) // lows), min(-(-math.prod(high) // highs), _room(state.device))
    of_state, of_matrix = state.new_empty(low_blocks, *state.shape), matrix.new_empty(chunks, *matrix.shape)
    with _on(state):
        programs.fold_weight[chunks, low_blocks * -(-layout[1] // block), layout[0]](
            *(upstream.contiguous(), state.contiguous(), matrix.contiguous(), of_state, of_matrix),
            *(layout[1], *high, *low, *size),
            HIGHS=highs,
            LOWS=lows,
            BLOCK=block,
            PRECISION=precision,
            num_warps=_warps(precision),
        )
    return _sum(of_state), _sum(of_matrix)


@weight_gradients.register_fake
def _(upstream: Tensor, state: Tensor, matrix: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    return torch.empty_like(state), torch.empty_like(matrix)


def _keep_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    state, matrix, ctx.layout, _ = inputs
    ctx.save_for_backward(state, matrix)


def _weight_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    return (*weight_gradients(upstream, *ctx.saved_tensors, ctx.layout), None, None)


weight.register_autograd(_weight_backward, setup_context=_keep_weight)


# --- a product that never makes it ------------------------------------------------------------------------------------


@custom_op(
    "adntn::tiles_product",
    mutates_args=(),
    schema="(Tensor x, Tensor state, Tensor matrix, Tensor? bias, int[] layout, bool transposed) -> Tensor",
)
def product(
    x: Tensor,  # shape: (batch, in), or (batch, out) where transposed; indices in tree order
    state: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    layout: Layout,
    transposed: bool,
) -> Tensor:
    """Return ``x W^T + bias``, or ``x W + bias`` where transposed."""
    from adntn.execution.kernels import programs

    groups, inner = layout[:2]
    high, low, size = _three(layout)
    m, n = (1, 0) if transposed else (0, 1)
    batch, made, precision = len(x), _width(layout, m), _precision(x.dtype)
    if batch == 0:
        return x.new_empty(0, made)
    m_highs, m_lows, n_highs, n_lows = _blocks(low[m], low[n])
    rows = min(_ROWS // x.element_size(), max(16, _power(batch)))
    blocks = -(-high[m] // m_highs) * -(-low[m] // m_lows) * (1 if transposed else groups)
    steps = -(-high[n] // n_highs) * -(-low[n] // n_lows) * (groups if transposed else 1)
    batches = -(-batch // rows)
    splits = max(1, min(steps, _room(x.device) // (blocks * batches)))
    parts = x.new_empty(splits, batch, made, dtype=x.dtype if splits == 1 else torch.float32)
    last = None if bias is None or splits > 1 else bias.contiguous()
    with _on(x):
        programs.multiply[blocks, batches, splits](
            *(x, state.contiguous(), matrix.contiguous(), x if last is None else last, parts, batch, *x.stride()),
            *(inner, high[0] * high[1], low[0] * low[1]),
            *(high[m], low[m], size[m], high[n], low[n], size[n]),
            M_HIGH_STEP=high[1] if m == 0 else 1,
            M_LOW_STEP=low[1] if m == 0 else 1,
            N_HIGH_STEP=high[1] if n == 0 else 1,
            N_LOW_STEP=low[1] if n == 0 else 1,
            GROUPS_SUMMED=groups if transposed else 1,
            ROWS=rows,
            M_HIGHS=m_highs,
            M_LOWS=m_lows,
            N_HIGHS=n_highs,
            N_LOWS=n_lows,
            BLOCK=_inner_block(inner),
            HAS_BIAS=last is not None,
            PRECISION=precision,
            WIDEN=not x.is_cuda,
            num_warps=_warps(precision, large=rows > _SIDE),
        )
    if splits == 1:
        return parts[0]
    total = _sum(parts)
    return (total if bias is None else total + bias).to(x.dtype)


def _width(layout: Layout, axis: int) -> int:
    return layout[8 + axis] * (layout[0] if axis == 0 else 1)


@product.register_fake
def _(x: Tensor, state: Tensor, matrix: Tensor, bias: Tensor | None, layout: Layout, transposed: bool) -> Tensor:
    return x.new_empty(x.shape[0], _width(layout, int(transposed)))


@custom_op(
    "adntn::tiles_product_gradients",
    mutates_args=(),
    schema="(Tensor x, Tensor upstream, Tensor state, Tensor matrix, int[] layout) -> (Tensor, Tensor)",
)
def product_gradients(
    x: Tensor, upstream: Tensor, state: Tensor, matrix: Tensor, layout: Layout
) -> tuple[Tensor, Tensor]:  # shapes: (batch, in), (batch, out)
    """Return the gradients of state and matrix where ``upstream^T x`` is that of the weight."""
    from adntn.execution.kernels import programs

    groups, inner = layout[:2]
    high, low, size = _three(layout)
    batch, upstream = len(x), upstream.to(x.dtype)
    if batch == 0:
        return torch.zeros_like(state), torch.zeros_like(matrix)
    m_highs, m_lows, n_highs, n_lows = _blocks(low[0], low[1])
    block, precision = _inner_block(inner), _precision(x.dtype)
    low_blocks = -(-low[0] // m_lows) * -(-low[1] // n_lows)
    chunks = min(-(-high[0] // m_highs) * -(-high[1] // n_highs), _room(x.device))
    of_state, of_matrix = state.new_empty(low_blocks, *state.shape), matrix.new_empty(chunks, *matrix.shape)
    with _on(x):
        programs.fold_product[chunks, low_blocks * -(-inner // block), groups](
            *(x, upstream, state.contiguous(), matrix.contiguous(), of_state, of_matrix),
            *(batch, *x.stride(), *upstream.stride(), inner),
            *(high[0], low[0], size[0], high[1], low[1], size[1]),
            ROWS=min(64, max(16, _power(batch))),
            M_HIGHS=m_highs,
            M_LOWS=m_lows,
            N_HIGHS=n_highs,
            N_LOWS=n_lows,
            BLOCK=block,
            PRECISION=precision,
            WIDEN=not x.is_cuda,
            num_warps=_warps(precision),
        )
    return _sum(of_state), _sum(of_matrix)


@product_gradients.register_fake
def _(x: Tensor, upstream: Tensor, state: Tensor, matrix: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    return torch.empty_like(state), torch.empty_like(matrix)


def _keep_product(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, state, matrix, _, ctx.layout, ctx.transposed = inputs
    ctx.save_for_backward(x, state, matrix)


def _product_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    x, state, matrix = ctx.saved_tensors
    of_x = of_state = of_matrix = of_bias = None
    if ctx.needs_input_grad[0]:
        of_x = product(upstream, state, matrix, None, ctx.layout, not ctx.transposed)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        rows, columns = (x, upstream) if ctx.transposed else (upstream, x)
        of_state, of_matrix = product_gradients(columns, rows, state, matrix, ctx.layout)
    if ctx.needs_input_grad[3]:
        of_bias = upstream.sum(0)
    return of_x, of_state, of_matrix, of_bias, None, None


product.register_autograd(_product_backward, setup_context=_keep_product)
