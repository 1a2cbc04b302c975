"""Which entries or rows of a weight are meant: a user's index, checked and counted from the front."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.errors import EntryIndexError, ShapeError

__all__ = ["Index", "can_be_read", "entries_of_rows", "entry_index", "ravel", "row_index"]

#: One column an axis of the weight, or one tensor or number an axis.
Index = Tensor | Sequence[Tensor | int]

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8)


def entry_index(index: Index, shape: tuple[int, ...]) -> Tensor:
    """Return where the entries are, with one column an axis, shape ``(*n, dims)``, int64, nothing negative.

    Args:
        index: whole numbers of shape ``(*n, dims)``; or, as torch indexes by several tensors, one tensor or number an
            axis, of shapes that broadcast to ``(*n)``.
        shape: of the weight.

    Raises:
        ShapeError: there is not one column or tensor an axis, or the tensors do not broadcast.
        EntryIndexError: the numbers are not whole, or one is out of range.
    """
    if not isinstance(index, Tensor):
        index = _stacked(index, shape)
    elif index.ndim == 0 or index.shape[-1] != len(shape):
        raise ShapeError(
            f"an index of shape {tuple(index.shape)} does not name entries of a weight of shape {shape}; its last "
            f"dimension needs {len(shape)} columns, one an axis. Or give a tuple of {len(shape)} tensors."
        )
    columns = [_in_range(column, shape[axis], axis) for axis, column in enumerate(index.unbind(-1))]
    return torch.stack(columns, -1)


def row_index(index: Tensor | int, rows: int) -> Tensor:
    """Return which rows are meant, of the index' shape, int64, nothing negative.

    Raises:
        EntryIndexError: the numbers are not whole, or one is out of range.
    """
    return _in_range(torch.as_tensor(index), rows, 0)


def entries_of_rows(index: Tensor, shape: tuple[int, ...]) -> Tensor:  # shape: (n,) -> (n * columns, dims)
    """Return the index of all entries of the rows at an index, row by row."""
    place = torch.arange(math.prod(shape[1:]), device=index.device)
    columns = [index.unsqueeze(1).expand(-1, len(place)).flatten()]
    for axis in range(1, len(shape)):
        column = place.div(math.prod(shape[axis + 1 :]), rounding_mode="floor") % shape[axis]
        columns.append(column.expand(len(index), -1).flatten())
    return torch.stack(columns, -1)


def ravel(columns: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Return the row-major place of an index that has one column an axis."""
    place = columns[0]
    for column, size in zip(columns[1:], sizes[1:], strict=True):
        place = place * size + column
    return place


def _stacked(index: Sequence[Tensor | int], shape: tuple[int, ...]) -> Tensor:
    given = [torch.as_tensor(each) for each in index]
    if len(given) != len(shape):
        raise ShapeError(
            f"an index of {len(given)} tensors does not name entries of a weight of shape {shape}; give one an axis, "
            f"{len(shape)} of them."
        )
    device = next((each.device for each in given if each.ndim), given[0].device)
    try:
        each_axis = torch.broadcast_tensors(*(_whole(each).to(device) for each in given))
    except RuntimeError:
        raise ShapeError(
            f"the index' tensors, of shapes {[tuple(each.shape) for each in given]}, do not broadcast to one shape."
        ) from None
    return torch.stack(each_axis, -1)


def _whole(index: Tensor) -> Tensor:
    # Not bytes and truth values: for torch these are masks.
    if index.dtype not in _WHOLE:
        raise EntryIndexError(f"an index of {index.dtype} does not name entries; give whole numbers, as torch.int64.")
    return index.to(torch.int64)


def _in_range(index: Tensor, size: int, axis: int) -> Tensor:
    index = _whole(index)
    if can_be_read(index) and index.numel():
        least, most = (int(end) for end in index.aminmax())
        if least < -size or most >= size:
            wrong = least if least < -size else most
            raise EntryIndexError(f"index {wrong} is out of range for axis {axis} of the weight, of size {size}.")
    index = torch.where(index < 0, index + size, index)
    if can_be_read(index) or index.is_meta:
        return index
    # A lookup, so that torch itself refuses there what is out of range, instead of another entry coming of it.
    return F.embedding(index, torch.arange(size, device=index.device).unsqueeze(1)).squeeze(-1)


def can_be_read(tensor: Tensor) -> bool:
    """Return whether to look at a tensor's numbers is possible and costs little: not while traced, nor on a GPU."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )
