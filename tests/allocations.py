"""Watching what operations allocate, forwards and backwards."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Records the largest memory that any operation inside the block allocates, in a backward pass too.

    What an operation returns counts by the whole memory behind it, unless that is one of its inputs': a view and an
    operation in place allocate nothing. Memory that a kernel takes and gives back by itself is not seen.

    Attributes:
        largest: bytes.
        by: the operation.
        made: every operation that ran, with the shape of what it returned first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.by = ""
        self.made: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        returned = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.made.append((str(func), tuple(returned[0].shape) if returned else ()))
        for tensor in returned:
            if _memory(tensor) not in given:
                size = tensor.untyped_storage().nbytes()
                if size > self.largest:
                    self.largest, self.by = size, f"{func} to {tuple(tensor.shape)}"
        return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
