"""The adjoint as a backward pass of torch's, which keeps nothing but the parameters."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from adntn.adjoint.reverse import Reverse, full_precision

__all__ = ["is_possible", "run"]

Made = Literal["hidden", "weight"]


def is_possible() -> bool:
    """Return whether a backward pass of our own can stand here.

    Forward-mode derivatives need the plain path, and a compiler decides by itself what it keeps and what it computes
    anew.
    """
    return not torch.compiler.is_compiling() and forward_ad._current_level < 0


def run(reverse: Reverse, made: Made, parameters: dict[str, Tensor]) -> Tensor:
    """Return the hidden state or the weight; on the way back the states are computed anew.

    Args:
        reverse: of the generator.
        made: what to make of the parameters.
        parameters: by name, in their own dtype.
    """
    if made == "hidden":
        parameters = reverse.before_readout(parameters)
    result: Tensor = _Recomputed.apply(reverse, made, tuple(parameters), *parameters.values())  # type: ignore[no-untyped-call]
    return result


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(reverse: Reverse, made: Made, names: tuple[str, ...], *tensors: Tensor) -> Tensor:
        parameters = dict(zip(names, tensors, strict=True))
        return reverse.hidden(parameters) if made == "hidden" else reverse.weight(parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.reverse, ctx.made, ctx.names, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        parameters = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        adjoint = ctx.reverse.hidden_adjoint if ctx.made == "hidden" else ctx.reverse.weight_adjoint
        with full_precision(upstream.device):  # a backward pass may run under autocast too
            gradients = adjoint(parameters, upstream)
        return None, None, None, *(gradients[name] for name in ctx.names)
