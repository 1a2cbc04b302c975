"""How one layer would run on an input: its ways side by side, what each takes, and which is taken."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from adntn.describe import generated_weights
from adntn.errors import ConfigError, ShapeError, check_choice
from adntn.execution.choices import MODES, WAYS
from adntn.execution.cost import applying_seconds, making_seconds
from adntn.execution.machine import profile_for, shipped
from adntn.execution.rehearsal import Rehearsal
from adntn.generator import Generator
from adntn.nn import Embedding, GeneratedLayer, GeneratedParameter, GeneratedWeight, Linear, MultiheadAttention

__all__ = ["Alternative", "ExecutionPlan", "plan"]


@dataclass(frozen=True)
class Alternative:
    """One way of a layer in one mode.

    Attributes:
        part: of an attention, its projection; empty for other layers.
        mode: ``"training"``, a forward and a backward pass; ``"rebuilt"``, without gradients; ``"kept"``, under
            :func:`adntn.cached`.
        way: ``"factored"`` or ``"dense"``.
        products: the products with the input in the forward pass, as ``"4096x64"`` for a matrix of that shape.
        calls: operations of torch's, views among them, with what it takes to make factors or weight.
        flops: of products and convolutions; a multiply-add is two.
        bytes: read and written by all operations.
        peak: most bytes held at one time, beyond input and output and their gradients; what is kept counts.
        seconds: predicted for this machine.
        taken: whether the layer takes it.
    """

    part: str
    mode: str
    way: str
    products: str
    calls: int
    flops: int
    bytes: int
    peak: int
    seconds: float
    taken: bool


@dataclass(frozen=True)
class ExecutionPlan:
    """How a layer runs on an input; print it.

    Attributes:
        layer: in one line.
        input_shape: of the input.
        positions: in the input.
        rows: the alternatives.
        reason: why these are taken.
    """

    layer: str
    input_shape: tuple[int, ...]
    positions: int
    rows: tuple[Alternative, ...]
    reason: str

    def __str__(self) -> str:
        head = ("", "mode", "way", "calls", "FLOPs", "bytes", "peak bytes", "us", "products")
        lines = [head, *map(_cells, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        left = (0, 1, 2, 8)
        align = [str.ljust if i in left else str.rjust for i in range(len(head))]
        table = ["  ".join(a(c, w) for a, c, w in zip(align, r, widths, strict=True)).rstrip() for r in lines]
        size = "x".join(map(str, self.input_shape))
        about = f"{self.layer}\ninput {size}, {self.positions:,} positions; * is taken"
        return "\n".join([about, table[0], "-" * max(map(len, table)), *table[1:], self.reason])


def _cells(row: Alternative) -> tuple[str, ...]:
    return (
        f"{'*' if row.taken else ' '} {row.part}".rstrip(),
        row.mode,
        row.way,
        *(f"{n:,}" for n in (row.calls, row.flops, row.bytes, row.peak)),
        f"{1e6 * row.seconds:,.0f}",
        row.products,
    )


def plan(layer: nn.Module, input_shape: Sequence[int], *, mode: str | None = None) -> ExecutionPlan:
    """Return what each way of a generated layer takes on an input, which one is taken, and why.

    Nothing is computed: the operations are counted on the meta device, and timed by the profile of the layer's machine.

    Args:
        layer: a layer of ``adntn.nn``, or what makes a single parameter. Of an attention the shape is that of the
            queries, keys and values alike; only its projections are in the plan.
        input_shape: of the input; for a single parameter, which has none, ``()``.
        mode: ``"training"``, ``"rebuilt"`` or ``"kept"``; None means all three.

    Raises:
        ConfigError: the layer is not a generated one, or the mode is unknown.
        ShapeError: the input does not fit the layer.

    Example:
        >>> print(adntn.plan(adntn.nn.Linear(4096, 4096), (32, 4096)))
    """
    modes = MODES if mode is None else (check_choice("mode", mode, MODES),)
    shape = _shape(input_shape)
    parts: dict[str, GeneratedWeight]
    if isinstance(layer, MultiheadAttention):
        named = layer.named_children()
        parts = {name: part for name, part in named if isinstance(part, Linear) and isinstance(part, GeneratedLayer)}
        if not shape or shape[-1] != layer.embed_dim:
            raise ShapeError(
                f"queries of shape {shape} do not fit an attention of embed_dim={layer.embed_dim}; their last size has "
                "to be that."
            )
    elif isinstance(layer, GeneratedWeight):
        parts = {"": layer}
    else:
        raise ConfigError(_not_a_layer(layer))
    rows: list[Alternative] = []
    reasons: list[str] = []
    positions = 0
    for name, part in parts.items():
        # An attention's keys and values may have sizes of their own.
        own = (*shape[:-1], part.shape[1]) if name else shape
        with torch.inference_mode(False):  # where there is no backward pass to count
            found, positions = _alternatives(name, part, own, modes)
        rows += found
        reasons += _reasons(name, part, found)
    if isinstance(layer, MultiheadAttention):
        what = f"{type(layer).__name__}({layer.embed_dim}, {layer.num_heads})"
    else:
        what = repr(layer) if isinstance(layer, GeneratedLayer) else f"a parameter of shape {parts[''].shape}"
    return ExecutionPlan(what, shape, positions, tuple(rows), "\n".join(dict.fromkeys(reasons)))


def _shape(given: Sequence[int]) -> tuple[int, ...]:
    try:
        shape = tuple(operator.index(size) for size in given)
    except TypeError:
        shape = (-1,)
    if any(size < 0 for size in shape):
        raise ShapeError(f"input_shape={given!r} is not a shape; give whole numbers, as (32, 4096).")
    return shape


def _not_a_layer(module: nn.Module) -> str:
    if isinstance(module, Generator):
        return (
            "a Generator on its own makes a weight and meets no input, so it has no ways to run; plan() takes a layer "
            "of adntn.nn."
        )
    names = list(generated_weights(module)) if isinstance(module, nn.Module) else []
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return f"plan() takes one generated layer; this {type(module).__name__} has {', '.join(names[:5])}{more}."
    return f"plan() takes a generated layer; a {type(module).__name__} is none. compress_ makes layers generated."


def _alternatives(
    name: str, layer: GeneratedWeight, shape: tuple[int, ...], modes: Sequence[str]
) -> tuple[list[Alternative], int]:
    profile = profile_for(layer.device) or shipped()
    twin = layer._on_meta()
    dtype = torch.int64 if isinstance(layer, Embedding) else layer.dtype
    x = torch.empty(shape, dtype=dtype, device="meta")
    parameter = isinstance(layer, GeneratedParameter)
    possible = ("dense",) if parameter or layer.split_obstacle is not None else WAYS
    rows = []
    positions = 1
    for way in possible:
        run = Rehearsal(twin, way)
        try:
            applying = run.applying(x)
            positions = 1 if parameter else layer._positions(x)
        except (RuntimeError, ValueError, IndexError, ArithmeticError) as error:
            line = str(error).partition("\n")[0]
            raise ShapeError(f"an input of shape {shape} does not fit {layer!r}: {line}") from None
        for mode in modes:
            training = mode == "training"
            if mode == "kept":
                count = own = run.kept(x)
                making = 0.0
            else:
                count, own = run.whole(x, training=training), applying
                making = making_seconds(run.making, profile, training=training)
            rows.append(
                Alternative(
                    part=name,
                    mode=mode,
                    way=way,
                    products=" ".join(str(op) for op, times in own.ops for _ in range(times) if op.flops),
                    calls=count.calls,
                    flops=count.flops,
                    bytes=count.moved,
                    peak=count.peak,
                    seconds=making + applying_seconds(own, profile, layer.dtype, training=training),
                    taken=way == layer.way_for(positions, mode),
                )
            )
    rows.sort(key=lambda row: MODES.index(row.mode))
    return rows, positions


def _reasons(name: str, layer: GeneratedWeight, rows: Sequence[Alternative]) -> list[str]:
    about = f"{name}: " if name else ""
    if layer.execution != "auto" or len({row.way for row in rows}) == 1 or layer._work() is None:
        return [f"{about}{layer.way}, {layer.way.reason}"]
    if layer.has_given_choices:
        return [f"{about}as it was saved: {layer.choices}"]
    if profile_for(layer.device) is None:
        return [f"{about}{layer.way} by the arithmetic alone: {layer.way.reason}"]
    lines = []
    for mode in dict.fromkeys(row.mode for row in rows):
        taken, other = sorted((row for row in rows if row.mode == mode), key=lambda row: not row.taken)
        lines.append(f"{about}{mode}: {taken.way}, {taken.seconds / other.seconds:.2f} of the time of {other.way}")
    return lines
