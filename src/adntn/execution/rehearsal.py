"""A layer's run on the meta device, counted in its parts: what is made of root and cores, and what meets the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from adntn.execution.counting import Count, Tally, tensors_in

__all__ = ["SAMPLES", "Performer", "Rehearsal", "WayCount", "count_way"]

#: Positions at which the operations on the input are counted. Between two of them, and beyond the last, they grow
#: evenly.
SAMPLES = (1, 64, 1024, 16384)


class Performer(Protocol):
    """A layer on the meta device, made for this: :class:`Rehearsal` puts functions of its own into it."""

    execution: str

    def forward(self, x: Tensor, /) -> Tensor: ...

    def parameters(self) -> Iterable[Any]: ...

    def generator_parameters(self) -> Iterable[tuple[str, Any]]: ...

    def probe(self, positions: int) -> Tensor:
        """Return an input of about that many positions, on the meta device."""


@dataclass(frozen=True)
class WayCount:
    """One way of a layer.

    Attributes:
        making: of factors or weight.
        applying: on an input of each of :data:`SAMPLES` positions.
    """

    making: Count
    applying: tuple[Count, ...]


class Rehearsal:
    """Runs a layer one way and counts.

    Args:
        layer: on the meta device, and nobody else's.
        way: ``"factored"`` or ``"dense"``.
    """

    def __init__(self, layer: Performer, way: str) -> None:
        self._layer = layer
        self._makers: dict[str, Callable[[], object]] = {}
        self._made: dict[str, object] = {}
        self._keeps = True
        self._making = Tally()
        layer.execution = way
        object.__setattr__(layer, "_keep", self._keep)
        self._prepare(layer.probe(SAMPLES[-1]))
        self.making = self._making.count()

    def _keep(self, name: str, make: Callable[[], Any]) -> Any:
        if not self._keeps:
            return make()
        if name not in self._made:
            self._makers[name] = make
            with self._making:
                self._made[name] = make()
        return self._made[name]

    def _prepare(self, x: Tensor) -> None:
        """Make what a call of this size takes: whole factors or stages, some rows or all."""
        with torch.no_grad(), Tally():
            self._layer.forward(x)

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept between calls."""
        sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors_in(self._made)}
        return sum(sizes.values())

    def applying(self, x: Tensor) -> Count:
        """Return what a call does besides the making, without gradients."""
        self._prepare(x)
        tally = Tally()
        with torch.no_grad(), tally:
            y = self._layer.forward(x)
        return tally.count([y])

    def kept(self, x: Tensor) -> Count:
        """Return what a call does where things are kept, which hold memory all the time."""
        object.__setattr__(self._layer, "_is_kept", lambda: True)
        try:
            count = self.applying(x)
        finally:
            object.__delattr__(self._layer, "_is_kept")
        return Count(count.ops, count.peak + self.kept_bytes)

    def whole(self, x: Tensor, *, training: bool) -> Count:
        """Return all that a call does where nothing is kept, with its backward pass in training."""
        wanted = [p for p in self._layer.parameters() if p.requires_grad]
        if training and x.is_floating_point():
            x = x.detach().requires_grad_()
            wanted = [x, *wanted]
        handed_on: list[Tensor] = []
        tally = Tally()
        self._keeps = False
        try:
            with torch.set_grad_enabled(training), tally:
                y = self._layer.forward(x)
                if training:
                    # What comes from above is not this layer's; an expanded number takes no memory.
                    above = torch.empty((), dtype=y.dtype, device=y.device).expand(y.shape)
                    gradients = torch.autograd.grad(y, wanted, above, allow_unused=True)
                    handed_on = [g for g in gradients[:1] if wanted[0] is x and g is not None]
        finally:
            self._keeps = True
        return tally.count([y, *handed_on])


def count_way(layer: Performer, way: str) -> WayCount:
    """Count what a layer does one way, for few positions and for many."""
    run = Rehearsal(layer, way)
    return WayCount(run.making, tuple(run.applying(layer.probe(positions)) for positions in SAMPLES))
