"""The check of shapes that losses share."""

from __future__ import annotations

from torch import Tensor

from adntn.errors import ShapeError

__all__ = ["same_shape"]


def same_shape(one: Tensor, other: Tensor) -> None:
    """Raise unless both have the same shape.

    Raises:
        ShapeError: they differ.
    """
    if one.shape != other.shape:
        raise ShapeError(f"shapes {tuple(one.shape)} and {tuple(other.shape)} differ; the loss needs two equal ones.")
