"""The generated convolutions, in one, two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from adntn.errors import ShapeError
from adntn.execution import factored
from adntn.execution.plan import Work, multiply_adds
from adntn.execution.staged import FEW, Staged
from adntn.nn._generated import GeneratedLayer
from adntn.topology import GeneratorConfig

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvolutionLayer"]

Size = int | tuple[int, ...]


class ConvolutionLayer(GeneratedLayer, _ConvNd):  # type: ignore[override, misc]  # the weight is read-only, on purpose
    """What all convolutions share, transposed ones too."""

    def _work(self) -> Work:
        return multiply_adds(self, groups=self.groups, stride=math.prod(self.stride))

    def _staged_map(self, input: Tensor) -> Staged | None:
        """Return the weight as stages where they are the better way for these maps."""
        # Stages are products on maps that lie channel by channel; other formats are left to torch's convolutions.
        batched = input.ndim == len(self.kernel_size) + 2
        if self.groups > 1 or not batched or not input.is_contiguous():
            return None
        staged = self._staged(FEW, one_stage=True)
        # One stage of several trees is what torch's convolutions do as well.
        return staged if staged is not None and (staged.is_staged or staged.trees == 1) else None

    def _options(self) -> tuple[Hashable, ...]:
        return (self.stride, self.padding, self.dilation, self.groups, self.padding_mode, self.output_padding)

    def _positions(self, input: Tensor) -> int:
        # Each step costs a layer's call some of a microsecond, so there are few.
        dims, shape = len(self.kernel_size), input.shape
        count = shape[0] if len(shape) > dims + 1 else 1
        for size in shape[-dims:]:
            count *= size
        return count

    def probe(self, positions: int) -> Tensor:
        dims = len(self.kernel_size)
        side = 4  # of a map deep in a network, where most channels are
        while side > 1 and side**dims > positions:
            side //= 2
        batch = -(-positions // side**dims)
        return torch.empty(batch, self.in_channels, *self._size_for(side), device="meta", dtype=self.dtype)

    def _size_for(self, side: int) -> list[int]:
        """Return the sizes of an input with that many positions along each axis, or more where it needs be."""
        return [side] * len(self.kernel_size)

    @staticmethod
    def _refuse_empty(in_channels: int, out_channels: int) -> None:
        # torch would only warn of it.
        if in_channels < 1 or out_channels < 1:
            raise ShapeError(
                f"a convolution from {in_channels} to {out_channels} channels has no weight to generate; give at least "
                "one of each."
            )


class _Conv(ConvolutionLayer):
    """The convolution in any number of dimensions."""

    @property
    def takes_kronecker(self) -> bool:  # type: ignore[override]
        """Whether it can run through a sum of Kronecker products."""
        return self.groups == 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        config: GeneratorConfig | None = None,
        *,
        execution: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._refuse_empty(in_channels, out_channels)
        template = self.dense_type(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device="meta"
        )
        self._build(template, config, execution, device, dtype)

    def _positions(self, input: Tensor) -> int:
        dims, shape = len(self.kernel_size), input.shape
        count = shape[0] if len(shape) > dims + 1 else 1
        pad = self._reversed_padding_repeated_twice
        for axis in range(-dims, 0):
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
            around = pad[-1 - 2 * (axis + dims)] + pad[-2 - 2 * (axis + dims)]
            count *= (shape[axis] + around - reach - 1) // self.stride[axis] + 1
        return count

    def _size_for(self, side: int) -> list[int]:
        # Reflected and wrapped padding is taken from the input, which has to have that much.
        least = [max(pad, 1) for pad in self._reversed_padding_repeated_twice[::-2]]
        each = zip(self._reach(), self.stride, least, strict=True)
        return [max((side - 1) * stride + reach, enough + 1) for reach, stride, enough in each]

    def _reach(self) -> list[int]:
        """Return what an input must have, an axis, for one position of the output."""
        around = self._reversed_padding_repeated_twice[::-1]
        each = zip(self.kernel_size, self.dilation, around[0::2], around[1::2], strict=True)
        return [(size - 1) * dilation + 1 - before - after for size, dilation, before, after in each]

    def forward(self, input: Tensor) -> Tensor:  # shape: ([batch,] in, *size) -> ([batch,] out, *size')
        if not self._runs_factored(input):
            return self._conv_forward(input, self.weight, self.bias)
        padding: tuple[int, ...] | str = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,) * len(self.kernel_size)
        staged = self._kronecker() or self._staged_map(input)
        if staged is not None:
            return staged.conv(input, self.bias, self.stride, padding, self.dilation)
        return factored.conv(input, self._factors(), self.bias, self.stride, padding, self.dilation, self.groups)


class Conv1d(_Conv, nn.Conv1d):  # type: ignore[override, misc]
    """``torch.nn.Conv1d`` with a generated weight; arguments, errors and ways of running as :class:`Conv2d`."""

    dense_type = nn.Conv1d


class Conv2d(_Conv, nn.Conv2d):  # type: ignore[override, misc]
    """``torch.nn.Conv2d`` with a generated weight (paper, Section 2.2).

    It runs factored as 1x1, kernel, 1x1, or where the config makes a sum of Kronecker products, through these (see
    :mod:`adntn.execution.kronecker`). With ``groups`` > 1 the weight has ``in_channels / groups`` columns, and the
    first 1x1 is applied to each group's own channels; of a depthwise convolution little is left to save, and it runs
    dense.

    Args:
        in_channels: channels of each input.
        out_channels: channels of each output.
        kernel_size: as torch's.
        stride: as torch's.
        padding: as torch's.
        dilation: as torch's.
        groups: as torch's, of channels; the groups of the config are of the weight's rows.
        bias: whether it has a (stored) bias.
        padding_mode: as torch's.
        config: of the generator; None means the default.
        execution: ``"auto"``, ``"factored"`` or ``"dense"``.
        device: of all parameters.
        dtype: of all parameters.

    Raises:
        ConfigError: ``execution="factored"`` with an order that has no split.
        ShapeError: the generator's groups do not divide ``out_channels``, or there are no channels.

    Example:
        >>> layer = adntn.nn.Conv2d(256, 256, 3, padding=1, groups=2, config=adntn.GeneratorConfig(topology="mera"))
        >>> layer(torch.randn(1, 256, 8, 8)).shape
        torch.Size([1, 256, 8, 8])
    """

    dense_type = nn.Conv2d


class Conv3d(_Conv, nn.Conv3d):  # type: ignore[override, misc]
    """``torch.nn.Conv3d`` with a generated weight; arguments, errors and ways of running as :class:`Conv2d`."""

    dense_type = nn.Conv3d
