"""Root and cores on a grid of 8 or 4 bits, and packed as such.

The grid of a stored tensor is symmetric, and each tree of it has one scale: of all its numbers x there,

    scale = max |x| / (2**(bits - 1) - 1),    x -> scale * round(x / scale)

made anew of the float numbers at each use. The scale is rounded up to so few digits that every point of the grid is a
number of the parameter's type. That makes the grid its own: numbers that lie on it have it as theirs, so that what is
packed, read and quantised again is the same to the last bit.

torch's ``fake_quantize_*`` operators, on which torchao's stand too, do not fit here: they have no forward-mode
derivative, none that runs on the meta device, and ``vmap`` takes them one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adntn.errors import ConfigError
from adntn.topology import Blueprint

__all__ = ["BITS", "Quantization", "fake_quantize", "pack", "packed_bytes", "quantized_names", "unpack"]

BITS = (8, 4)

_WHOLE = {torch.float32: torch.int32, torch.float64: torch.int64}


@dataclass(frozen=True)
class Quantization:
    """How root and cores are quantised.

    Attributes:
        bits: of a number, 8 or 4.

    Raises:
        ConfigError: another number of bits.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in BITS:
            raise ConfigError(f"bits={self.bits!r} is not possible; root and cores are quantised to 8 or 4 bits.")

    @property
    def largest(self) -> int:
        """The largest whole number of the grid."""
        return int(2 ** (self.bits - 1)) - 1


def quantized_names(blueprint: Blueprint) -> tuple[str, ...]:
    """Return which parameters are quantised: root and cores.

    Gates and the activations' numbers are one or a few a tree, and so is a scale; they stay as they are.
    """
    return tuple(
        name
        for name, shape in blueprint.parameter_shapes.items()
        if not name.startswith("activation.")
        and not (name.startswith("gate.") and len(shape) == 2)
        and math.prod(shape) > blueprint.config.trees
    )


def fake_quantize(
    x: Tensor,  # shape: (trees * n, ...)
    trees: int,
    quantization: Quantization,
) -> Tensor:  # shape: as x
    """Return the nearest points of the grid, with the derivative of x itself (straight through)."""
    fixed = x.detach()
    whole, scale = _on_grid(fixed, trees, quantization)
    near = (whole * scale).to(x.dtype).view_as(x)
    # Exact: the two numbers differ by at most a factor of two, or one of them is zero.
    return x + (near - fixed)


def _on_grid(x: Tensor, trees: int, quantization: Quantization) -> tuple[Tensor, Tensor]:
    """Return whole numbers, shape ``(trees, n)``, as floats, and their scales, ``(trees, 1)``; float32 at least."""
    rows = x.to(_working(x.dtype)).reshape(trees, -1)
    scale = rows.abs().amax(dim=1, keepdim=True) / quantization.largest
    scale = _rounded_up(scale, _digits(x.dtype, quantization)).clamp_min(torch.finfo(x.dtype).tiny)
    return torch.round(rows / scale), scale


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _precision(dtype: torch.dtype) -> int:
    """Return how many binary digits a number of this type has."""
    return 1 - round(math.log2(torch.finfo(dtype).eps))


def _digits(dtype: torch.dtype, quantization: Quantization) -> int:
    """Return how many binary digits a scale has."""
    digits = _precision(dtype) - (quantization.bits - 1)
    # The largest number must come to the end of the grid, or that of the rounded numbers would be a smaller one. With
    # few digits it may not; powers of two stay what they are nevertheless.
    return digits if quantization.largest * 2.0 ** (1 - digits) < 0.5 else 1


def _rounded_up(scale: Tensor, digits: int) -> Tensor:
    """Return the next numbers above, or the same ones, that have so few binary digits."""
    rest = (1 << _precision(scale.dtype) - digits) - 1
    return ((scale.view(_WHOLE[scale.dtype]) + rest) & ~rest).view(scale.dtype)


# --- packed ---------------------------------------------------------------------------------------------------------


def packed_bytes(blueprint: Blueprint, quantization: Quantization, dtype: torch.dtype) -> int:
    """Return the bytes of :func:`pack`'s outcome."""
    shapes = [blueprint.parameter_shapes[name] for name in quantized_names(blueprint)]
    numbers = sum(_code_bytes(math.prod(shape), quantization) for shape in shapes)
    return numbers + len(shapes) * blueprint.config.trees * _working(dtype).itemsize


def _code_bytes(numbers: int, quantization: Quantization) -> int:
    return -(-numbers * quantization.bits // 8)


def pack(values: Mapping[str, Tensor], blueprint: Blueprint, quantization: Quantization) -> Tensor:
    """Return a generator's root and cores as bytes.

    The whole numbers of one parameter after the other, in the order of :func:`quantized_names`, each a byte, or two in
    one, the first in its lower half; then the scales in the same order, tree by tree, float32 or of float64 parameters
    float64.

    Args:
        values: at least the parameters that are quantised, by name.
        blueprint: of the generator.
        quantization: the grid.

    Returns:
        Shape ``(bytes,)``, uint8, on the CPU.
    """
    codes, scales = [], []
    for name in quantized_names(blueprint):
        whole, scale = _on_grid(values[name].detach().cpu(), blueprint.config.trees, quantization)
        code = whole.flatten().to(torch.int8).view(torch.uint8)
        if quantization.bits == 4:
            low, high = torch.nn.functional.pad(code, (0, len(code) % 2)).view(-1, 2).unbind(1)
            code = (low & 15) | (high << 4)
        codes.append(code)
        scales.append(scale.flatten())
    if not codes:
        return torch.zeros(0, dtype=torch.uint8)
    return torch.cat([*codes, torch.cat(scales).view(torch.uint8)])


def unpack(packed: Tensor, blueprint: Blueprint, quantization: Quantization, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the parameters that :func:`pack` packed, on their grid.

    Args:
        packed: what it returned.
        blueprint: of the generator.
        quantization: the grid.
        dtype: of the parameters.

    Raises:
        ValueError: these are no such bytes; the message goes on from "is".
    """
    size = packed_bytes(blueprint, quantization, dtype)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (size,):
        raise ValueError(f"{packed.dtype} of shape {tuple(packed.shape)} instead of torch.uint8 of shape ({size},)")
    trees, names = blueprint.config.trees, quantized_names(blueprint)
    numbers = {name: math.prod(blueprint.parameter_shapes[name]) for name in names}
    codes = sum(_code_bytes(count, quantization) for count in numbers.values())
    scales = packed[codes:].clone().view(_working(dtype)).view(len(names), trees, 1)
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise ValueError("not made by this library: a scale is no positive number")
    made, start = {}, 0
    for name, scale in zip(names, scales, strict=True):
        stop = start + _code_bytes(numbers[name], quantization)
        whole = _whole_numbers(packed[start:stop], quantization)
        if bool((whole < -quantization.largest).any()) or bool(whole[numbers[name] :].any()):
            raise ValueError(f"not made by this library: a number of {name!r} lies outside of the grid")
        value = whole[: numbers[name]].view(trees, -1) * scale
        made[name] = value.to(dtype).view(blueprint.parameter_shapes[name])
        start = stop
    return made


def _whole_numbers(codes: Tensor, quantization: Quantization) -> Tensor:
    if quantization.bits == 8:
        return codes.view(torch.int8)
    halves = torch.stack([codes & 15, codes >> 4], dim=1).flatten().to(torch.int8)
    return torch.where(halves > 7, halves - 16, halves)
