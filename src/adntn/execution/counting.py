"""What a call does, counted: operations of torch's, their arithmetic and the bytes that they move.

Counting works on any device. On the meta device nothing is computed, so that a way is known before it is taken.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import torch
import torch._prims_common
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Count", "Op", "Tally", "tensors_in"]

Kind = Literal["view", "move", "product", "kernel", "pointwise"]
aten = torch.ops.aten

# Where the first matrix of a product stands among the arguments.
_PRODUCTS = {aten.mm: 0, aten.bmm: 0, aten.mv: 0, aten.addmm: 1, aten.baddbmm: 1, aten.addmv: 1}
_CONVOLUTIONS = (aten.convolution, aten._convolution)
# On the meta device torch does these in Python, with an import of dynamo before the first, which takes seconds.
_ELEMENTWISE = {
    *(aten.mul.Tensor, aten.mul.Scalar, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor),
    *(aten.sin.default, aten.cos.default, aten.tanh.default, aten.exp.default, aten.sigmoid.default),
    *(aten.relu.default, aten.elu.default, aten.gelu.default, aten.silu.default, aten.neg.default),
}
_LOOKUPS = (aten.embedding, aten.index_select, aten.index, aten.gather)
_ALLOCATIONS = (aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided, aten.new_empty_strided)


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        kind: ``"view"`` moves nothing, ``"move"`` is elementwise or a copy, ``"product"`` multiplies matrices,
            ``"kernel"`` and ``"pointwise"`` are convolutions, the latter with a kernel of one entry.
        flops: a multiply-add is two; those of products and convolutions, as ``torch.utils.flop_counter`` has them.
        read: bytes of what comes in.
        written: bytes of what comes out.
        sizes: a product's (items, m, k, n), a convolution's (groups, positions, channels in, channels out), the last
            two in each group.
        images: of a convolution.
    """

    kind: Kind
    flops: int = 0
    read: int = 0
    written: int = 0
    sizes: tuple[int, int, int, int] = (1, 1, 1, 1)
    images: int = 1

    def __str__(self) -> str:
        items, _, k, n = self.sizes
        matrix = f"{items}*{k}x{n}" if items > 1 else f"{k}x{n}"
        return {"kernel": f"kernel({matrix})", "pointwise": f"1x1({matrix})"}.get(self.kind, matrix)


@dataclass(frozen=True)
class Count:
    """What was done in all.

    Attributes:
        ops: the operations, and how often each.
        peak: most bytes of what was made that were held at one time.
    """

    ops: tuple[tuple[Op, int], ...]
    peak: int = 0

    @property
    def calls(self) -> int:
        """Operations, views among them."""
        return sum(times for _, times in self.ops)

    @property
    def flops(self) -> int:
        """Twice the multiply-adds of products and convolutions."""
        return sum(times * op.flops for op, times in self.ops)

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return sum(times * (op.read + op.written) for op, times in self.ops)

    def __add__(self, other: Count) -> Count:
        return Count(self.ops + other.ops, max(self.peak, other.peak))


class Tally(TorchDispatchMode):
    """Counts what torch does until the block ends."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self.peak = self._held = 0
        self._live: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and to tell dynamo so imports it, which takes seconds.
        return False

    def count(self, without: Iterable[Tensor] = ()) -> Count:
        """Return what was done; the peak leaves out what is handed on, which every way has to make."""
        handed_on = sum(t.untyped_storage().nbytes() for t in without if t.untyped_storage()._cdata in self._live)
        return Count(tuple(Counter(self.ops).items()), self.peak - handed_on)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = list(tensors_in([*args, *kwargs.values()] if kwargs else args))
        result = _on_meta(func, args, kwargs, given)
        if result is None:
            result = func(*args, **(kwargs or {}))
        made = list(tensors_in(result))
        if made:
            self.ops.append(_op(func, args, given, made))
            known = {tensor.untyped_storage()._cdata for tensor in given}
            for tensor in made:
                self._hold(tensor, known)
        return result

    def _hold(self, tensor: Tensor, known: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in known or key in self._live:
            return

        def free(_: Any) -> None:
            del self._live[key]
            self._held -= size

        self._live[key] = weakref.ref(storage, free)
        self._held += size
        self.peak = max(self.peak, self._held)


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors in a value: in tuples, lists, dictionaries and dataclasses, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            if isinstance(each, Tensor):
                yield each
            elif each is not None and not isinstance(each, (int, float)):
                yield from tensors_in(each)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in([getattr(value, field.name) for field in fields(value)])


def _on_meta(func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Tensor | None:
    """Return what some operations make on the meta device; None where torch has to say."""
    if func is aten.eye.default and kwargs and torch.device(kwargs.get("device") or "cpu").type == "meta":
        return torch.empty(args[0], args[0], dtype=kwargs.get("dtype"), device="meta")
    if not given or len({t.dtype for t in given}) != 1 or not all(t.is_meta for t in given):
        return None
    if func in _ELEMENTWISE and given[0].is_floating_point():
        if not all(map(_in_order, given)):
            return _like(torch.broadcast_tensors(*given))
        shape = torch.broadcast_shapes(*(t.shape for t in given))
    elif func is aten.addmm.default and given[1].shape[1] == given[2].shape[0]:
        shape = torch.Size((given[1].shape[0], given[2].shape[1]))
    else:
        return None
    return torch.empty(shape, dtype=given[0].dtype, device="meta")


def _like(given: Sequence[Tensor]) -> Tensor | None:
    """Return an array in the memory order that torch gives to what it makes of these."""
    find = getattr(torch._prims_common, "compute_elementwise_output_strides", None)
    if find is None:
        return None
    return torch.empty_strided(given[0].shape, find(*given), dtype=given[0].dtype, device="meta")


def _in_order(tensor: Tensor) -> bool:
    steps = [step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1 and step]
    return steps == sorted(steps, reverse=True)


def _op(func: Any, args: Any, given: list[Tensor], made: list[Tensor]) -> Op:
    packet = func.overloadpacket
    if packet in _ALLOCATIONS:
        return Op("view")
    mutable = func._schema.is_mutable
    if not mutable and given and _is_view(given, made):
        return Op("view")
    read, written = _bytes(given), _bytes(made)
    if packet in _PRODUCTS:
        one, other = args[_PRODUCTS[packet]], args[_PRODUCTS[packet] + 1]
        items = one.shape[0] if one.ndim == 3 else 1
        (m, k), n = one.shape[-2:], other.shape[-1] if other.ndim > 1 else 1
        return Op("product", 2 * items * m * k * n, read, written, (items, m, k, n))
    if packet in _CONVOLUTIONS:
        x, weight, transposed, groups = args[0], args[1], args[6], args[8]
        return _convolution(weight, x if transposed else made[0], transposed, groups, read, written)
    if packet is aten.convolution_backward:
        gradient, x, weight, transposed, groups, mask = args[0], args[1], args[2], args[7], args[9], args[10]
        times = int(mask[0]) + int(mask[1])
        return _convolution(weight, x if transposed else gradient, transposed, groups, read, written, times)
    if packet in _LOOKUPS:
        read = min(read, 2 * written)  # not the whole table
    return Op("move", 0, read, written)


def _convolution(
    weight: Tensor, over: Tensor, transposed: bool, groups: int, read: int, written: int, times: int = 1
) -> Op:
    first, second, *kernel = weight.shape
    positions = over.shape[0] * math.prod(over.shape[2:])
    rows, columns = (second, first // groups) if transposed else (first // groups, second)
    kind: Kind = "kernel" if math.prod(kernel) > 1 else "pointwise"
    flops = 2 * times * weight.numel() * positions
    return Op(kind, flops, read, written, (groups, positions, columns, rows), over.shape[0])


def _is_view(given: Iterable[Tensor], made: Iterable[Tensor]) -> bool:
    known = {tensor.untyped_storage()._cdata for tensor in given}
    return all(tensor.untyped_storage()._cdata in known for tensor in made)


def _bytes(tensors: Iterable[Tensor]) -> int:
    # An expanded tensor is no larger than what it was expanded from.
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)
