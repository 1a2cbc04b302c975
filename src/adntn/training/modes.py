"""Looking at a model without leaving a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from adntn.compress import cached

__all__ = ["evaluating", "in_its_dtype"]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Bring a model into evaluation mode, without gradients, and each module back into its own mode afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with cached(model):
            yield
    finally:
        for module, training in before:
            module.training = training


def in_its_dtype(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return inputs in the dtype of a model's parameters."""
    found = next((p.dtype for p in model.parameters() if p.is_floating_point()), inputs.dtype)
    return inputs.to(found)
