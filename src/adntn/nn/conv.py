"""The generated convolution."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adntn.execution import factored
from adntn.nn._generated import GeneratedLayer
from adntn.topology import GeneratorConfig

__all__ = ["Conv2d"]


class Conv2d(GeneratedLayer, nn.Conv2d):  # type: ignore[override, misc]  # the weight is read-only, on purpose
    """``torch.nn.Conv2d`` with a generated weight (paper, Section 2.2).

    The arguments are torch's, then ``config`` and ``execution`` as for :class:`adntn.nn.Linear`. With ``groups`` > 1
    the weight has ``in_channels / groups`` columns and the layer runs dense.

    Raises:
        ConfigError: ``execution="factored"`` with an order that has no split, or with convolution groups.
        ShapeError: the generator's groups do not divide ``out_channels``.
    """

    dense_type = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        config: GeneratorConfig | None = None,
        *,
        execution: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        template = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device="meta"
        )
        self._build(template, config, execution, device, dtype)

    def forward(self, input: Tensor) -> Tensor:  # shape: (*batch, in, H, W) -> (*batch, out, H', W'), batch optional
        if self._way.name == "dense":
            convolved: Tensor = self._conv_forward(input, self.weight, self.bias)
            return convolved
        padding: tuple[int, ...] | str = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return factored.conv2d(input, self._factors(), self.bias, self.stride, padding, self.dilation)
