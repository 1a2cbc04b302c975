"""The generated transposed convolutions, in one, two and three dimensions."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from adntn.errors import ConfigError
from adntn.execution import factored
from adntn.nn.conv import ConvolutionLayer, Size
from adntn.topology import GeneratorConfig

__all__ = ["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


class _ConvTranspose(ConvolutionLayer, _ConvTransposeNd):  # type: ignore[override, misc]
    """The transposed convolution in any number of dimensions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: Literal["zeros"] = "zeros",
        config: GeneratorConfig | None = None,
        *,
        execution: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._refuse_empty(in_channels, out_channels)
        if isinstance(cast(object, padding), str):  # which torch takes for a tuple of letters
            raise ConfigError(f"padding={padding!r} is not possible for a transposed convolution; give whole numbers.")
        template = self.dense_type(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device="meta",
        )
        self._build(template, config, execution, device, dtype)

    def forward(
        self, input: Tensor, output_size: list[int] | None = None
    ) -> Tensor:  # shape: ([batch,] in, *size) -> ([batch,] out, *size')
        if not self._runs_factored(input):
            y: Tensor = super().forward(input, output_size)
            return y
        assert isinstance(self.padding, tuple)  # torch refuses the words for these layers
        kernel, stride, padding, dilation = map(list, (self.kernel_size, self.stride, self.padding, self.dilation))
        extra = self._output_padding(input, output_size, stride, padding, kernel, len(kernel), dilation)
        options = (self.bias, self.stride, self.padding, tuple(extra))
        staged = self._staged_map(input)
        if staged is not None and staged.trees == 1:
            return staged.conv_transpose(input, *options, self.dilation)
        return factored.conv_transpose(input, self._factors(), *options, self.groups, self.dilation)


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):  # type: ignore[override, misc]
    """``torch.nn.ConvTranspose1d`` with a generated weight; arguments and errors as :class:`ConvTranspose2d`."""

    dense_type = nn.ConvTranspose1d


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):  # type: ignore[override, misc]
    """``torch.nn.ConvTranspose2d`` with a generated weight.

    The weight has torch's shape, ``(in_channels, out_channels / groups, *kernel)``: what a generator's config calls
    ``out``, the rows that its ``groups`` cut into blocks, are the input channels here. It runs factored as 1x1,
    transposed kernel, 1x1.

    Args:
        in_channels: channels of each input.
        out_channels: channels of each output.
        kernel_size: as torch's.
        stride: as torch's.
        padding: as torch's.
        output_padding: as torch's.
        groups: as torch's, of channels.
        bias: whether it has a (stored) bias.
        dilation: as torch's.
        padding_mode: ``"zeros"``, as torch's.
        config: of the generator; None means the default.
        execution: ``"auto"``, ``"factored"`` or ``"dense"``.
        device: of all parameters.
        dtype: of all parameters.

    Raises:
        ConfigError: ``execution="factored"`` with an order that has no split.
        ShapeError: the generator's groups do not divide ``in_channels``, or there are no channels.

    Example:
        >>> layer = adntn.nn.ConvTranspose2d(256, 128, 4, stride=2, padding=1)
        >>> layer(torch.randn(1, 256, 8, 8)).shape
        torch.Size([1, 128, 16, 16])
    """

    dense_type = nn.ConvTranspose2d


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):  # type: ignore[override, misc]
    """``torch.nn.ConvTranspose3d`` with a generated weight; arguments and errors as :class:`ConvTranspose2d`."""

    dense_type = nn.ConvTranspose3d
