"""The controls that an accuracy stands beside: what if the layer were not there, or were never trained?"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from adntn.errors import CompressionError

__all__ = ["Deleted", "delete_", "freeze_weights_"]


class Deleted(nn.Module):
    """Stands where a linear layer or a convolution stood, without a parameter.

    The identity where shapes agree. Otherwise features are padded with zeros or cropped, and a map that shrinks is
    averaged.

    Args:
        layer: the one that goes.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.is_conv = isinstance(layer, nn.Conv2d)
        self.outputs = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        if isinstance(layer, nn.Conv2d):
            self._options = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)

    def forward(
        self, x: Tensor
    ) -> Tensor:  # shape: (batch, in, H, W) -> (batch, out, H', W'), or (*batch, in) -> (*batch, out)
        features = 1 if self.is_conv else x.ndim - 1
        extra = self.outputs - x.shape[features]
        if extra > 0:
            x = F.pad(x, (0, 0, 0, 0, 0, extra) if self.is_conv else (0, extra))
        elif extra < 0:
            x = x.narrow(features, 0, self.outputs)
        if not self.is_conv:
            return x
        size = (self._size(x.shape[2], 0), self._size(x.shape[3], 1))
        return x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size)

    def _size(self, size: int, axis: int) -> int:
        kernel, stride, padding, dilation = self._options
        if padding == "same":
            return size
        border = 0 if isinstance(padding, str) else padding[axis]
        return (size + 2 * border - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1

    def extra_repr(self) -> str:
        return f"outputs={self.outputs}"


def delete_(model: nn.Module, names: Iterable[str]) -> None:
    """Replace layers, in place and wherever they stand in the model, by :class:`Deleted`.

    Raises:
        CompressionError: a layer is neither linear nor a 2-d convolution.
    """
    for name in names:
        layer = model.get_submodule(name)
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            raise CompressionError(
                f"{name!r} is a {type(layer).__name__}; only linear layers and 2-d convolutions can be deleted."
            )
        gone = Deleted(layer)
        for parent in list(model.modules()):
            for attribute, child in list(parent._modules.items()):
                if child is layer:
                    setattr(parent, attribute, gone)


def freeze_weights_(model: nn.Module, names: Iterable[str]) -> None:
    """Stop the training of layers' weights, dense or generated; their biases are trained on."""
    for name in names:
        layer = model.get_submodule(name)
        for part, parameter in layer.named_parameters():
            if part != "bias":
                parameter.requires_grad_(False)
