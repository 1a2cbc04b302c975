"""What stands where a layer stood when it is deleted: nothing that is learned, and as much of the input as fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from adntn.errors import CompressionError
from adntn.nn._generated import _copy_description

__all__ = ["Deleted", "deleted"]

_AVERAGE: dict[int, Callable[[Tensor, Any], Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


class Deleted(nn.Module):
    """Stands where a layer stood, without a parameter and without anything in the ``state_dict``.

    The layer's sizes and options stay readable, for models that look at them.

    Args:
        layer: the one that goes.
    """

    _like: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        _copy_description(layer, self)
        parameter = next(layer.parameters())
        self.register_buffer("_like", parameter.detach().new_empty(0), persistent=False)  # moves with the model


class DeletedLinear(Deleted):
    """The identity; features are padded with zeros or cropped where sizes differ."""

    out_features: int
    in_features: int

    @property
    def weight(self) -> Tensor:
        """The same as a matrix, for what reads it: an attention does of its ``out_proj``."""
        return torch.eye(self.out_features, self.in_features, dtype=self._like.dtype, device=self._like.device)

    @property
    def bias(self) -> Tensor:
        """Zeros, for what reads it."""
        return self._like.new_zeros(self.out_features)

    def forward(self, input: Tensor) -> Tensor:  # shape: (*batch, in) -> (*batch, out)
        return _fit(input, -1, self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class DeletedConv(Deleted):
    """The identity; channels are padded with zeros or cropped, and a map that changes its size is averaged."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]

    def forward(self, input: Tensor) -> Tensor:  # shape: ([batch,] in, *size) -> ([batch,] out, *size')
        dims = len(self.kernel_size)
        x = _fit(input, -1 - dims, self.out_channels)
        size = tuple(self._size(n, axis) for axis, n in enumerate(x.shape[-dims:]))
        return x if tuple(x.shape[-dims:]) == size else _AVERAGE[dims](x, size)

    def _size(self, size: int, axis: int) -> int:
        if self.padding == "same":
            return size
        border = 0 if isinstance(self.padding, str) else self.padding[axis]
        return (size + 2 * border - self.dilation[axis] * (self.kernel_size[axis] - 1) - 1) // self.stride[axis] + 1

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"


class DeletedConvTranspose(DeletedConv):
    """Repeats every entry ``stride`` times, then pads with zeros or crops, channels and map.

    An entry lands in the middle of where the layer's kernel would have put it.
    """

    padding: tuple[int, ...]
    output_padding: tuple[int, ...]

    def forward(
        self, input: Tensor, output_size: list[int] | None = None
    ) -> Tensor:  # shape: ([batch,] in, *size) -> ([batch,] out, *size')
        dims = len(self.kernel_size)
        x = _fit(input, -1 - dims, self.out_channels)
        borders: list[int] = []
        for axis in range(dims):
            size, reach = input.shape[axis - dims], self.dilation[axis] * (self.kernel_size[axis] - 1)
            out = (size - 1) * self.stride[axis] - 2 * self.padding[axis] + reach + self.output_padding[axis] + 1
            out = out if output_size is None else output_size[axis - dims]
            x = x.repeat_interleave(self.stride[axis], dim=axis - dims)
            before = (reach + 1 - self.stride[axis]) // 2 - self.padding[axis]
            borders = [before, out - x.shape[axis - dims] - before, *borders]  # F.pad begins with the last axis
        return F.pad(x, borders)


class DeletedEmbedding(Deleted):
    """The binary digits of the index as -1 and 1, over and over until the row is full.

    Computed from the index alone, so that it holds no learned numbers and no drawn ones. Rows have the deviation 1 of
    torch's own start and differ from each other, as long as there are columns for all digits; else the highest digits
    are lost. The row of ``padding_idx`` is zero.
    """

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None

    @property
    def weight(self) -> Tensor:
        """The whole table, for what reads it."""
        return self.forward(torch.arange(self.num_embeddings, device=self._like.device))

    def forward(self, input: Tensor) -> Tensor:  # shape: (*) -> (*, embedding_dim)
        digits = max(1, math.ceil(math.log2(self.num_embeddings)))
        place = torch.arange(self.embedding_dim, device=input.device) % digits
        code = 2 * ((input.long().unsqueeze(-1) >> place) & 1).to(self._like.dtype) - 1
        if self.padding_idx is not None:
            code = code.masked_fill((input == self.padding_idx).unsqueeze(-1), 0.0)
        return code

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class DeletedAttention(Deleted):
    """Passes the value through: the identity for self-attention. There are no attention weights to return.

    Where sizes differ features are padded with zeros or cropped. Where the value is longer or shorter than the query,
    as in an attention to another sequence, it is averaged to the query's length, masked entries too.
    """

    embed_dim: int
    batch_first: bool
    in_proj_bias = None  # torch's encoder looks at it, and does without its fast path

    def forward(
        self,
        query: Tensor,  # shape: (length, batch, embed_dim), (batch, length, embed_dim), or (length, embed_dim)
        key: Tensor,
        value: Tensor,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, None]:  # shape: that of query
        length = 1 if query.ndim == 3 and self.batch_first else 0
        y = _fit(value, -1, self.embed_dim)
        if y.shape[length] != query.shape[length]:
            y = F.adaptive_avg_pool1d(y.movedim(length, -1), query.shape[length]).movedim(-1, length)
        return y, None

    def extra_repr(self) -> str:
        return f"{self.embed_dim}"


def deleted(layer: nn.Module) -> Deleted:
    """Return what stands for a layer when it is deleted.

    The identity. Where shapes differ, what fits: padding with zeros, cropping, averaging, repeating.

    Args:
        layer: linear, a convolution, a transposed convolution, an embedding or an attention.

    Raises:
        CompressionError: it is something else.
    """
    kinds: dict[type[nn.Module], type[Deleted]] = {
        nn.Linear: DeletedLinear,
        _ConvTransposeNd: DeletedConvTranspose,
        _ConvNd: DeletedConv,  # after what is derived from it
        nn.Embedding: DeletedEmbedding,
        nn.MultiheadAttention: DeletedAttention,
    }
    for kind, cls in kinds.items():
        if isinstance(layer, kind):
            return cls(layer).train(layer.training)
    raise CompressionError(
        f"a {type(layer).__name__} cannot be deleted; linear layers, convolutions, transposed convolutions, embeddings "
        "and attentions can."
    )


def _fit(x: Tensor, axis: int, size: int) -> Tensor:
    """Pad an axis with zeros, or crop it; a copy in any case, since what comes next may work in place."""
    extra = size - x.shape[axis]
    if extra == 0:
        return x.clone()
    if extra > 0:
        return F.pad(x, (0, 0) * (-axis - 1) + (0, extra))
    return x.narrow(axis, 0, size).clone()
