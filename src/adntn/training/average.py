"""An exponential moving average of a model's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

__all__ = ["Average"]


class Average:
    """θ̄ ← d·θ̄ + (1 − d)·θ after each step, of all trained parameters; buffers are the model's own.

    In the first steps d is (1 + n)/(10 + n) where that is less, so that the start is soon forgotten.

    Args:
        model: whose parameters are averaged.
        decay: d.
        values: of an earlier run, by name; None starts with the parameters as they are.
    """

    def __init__(self, model: nn.Module, decay: float, values: Mapping[str, Tensor] | None = None) -> None:
        self.decay = decay
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        given = {name: p.detach() for name, p in self._trained.items()} if values is None else values
        self.values = {name: given[name].to(p.device, copy=True) for name, p in self._trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take up the parameters after a step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in self._trained.items():
            self.values[name].lerp_(p, 1 - decay)

    @torch.no_grad()
    def put(self) -> None:
        """Give the model the averages for good."""
        for name, p in self._trained.items():
            p.copy_(self.values[name])

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Give the model the averages within a block."""
        own = {name: p.detach().clone() for name, p in self._trained.items()}
        self.put()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self._trained.items():
                    p.copy_(own[name])
