"""The adjoint as a backward pass of torch's, which keeps nothing but the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from adntn.adjoint.reverse import Made, Reverse, full_precision

__all__ = ["is_possible", "run"]


def is_possible() -> bool:
    """Return whether a backward pass of our own can stand here.

    Forward-mode derivatives need the plain path, and a compiler decides by itself what it keeps and what it computes
    anew.
    """
    return not torch.compiler.is_compiling() and forward_ad._current_level < 0


def run(reverse: Reverse, made: Made, parameters: dict[str, Tensor], index: Tensor | None = None) -> Tensor:
    """Return what :meth:`Reverse.make` makes; on the way back the states are computed anew.

    Args:
        reverse: of the generator.
        made: what to make of the parameters.
        parameters: all of them by name, in their own dtype.
        index: of rows of A, where these are to be made.
    """
    names = reverse.depends_on(made, parameters)
    if not names:  # a factor without cores
        return reverse.make(made, parameters, index)
    result: Tensor = _Recomputed.apply(  # type: ignore[no-untyped-call]
        reverse, made, names, index, *(parameters[name] for name in names)
    )
    return result


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(reverse: Reverse, made: Made, names: tuple[str, ...], index: Tensor | None, *tensors: Tensor) -> Tensor:
        return reverse.make(made, dict(zip(names, tensors, strict=True)), index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.reverse, ctx.made, ctx.names, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        index, *tensors = ctx.saved_tensors
        parameters = dict(zip(ctx.names, tensors, strict=True))
        with full_precision(upstream.device):  # a backward pass may run under autocast too
            gradients = ctx.reverse.adjoint(ctx.made, parameters, upstream, index)
        return None, None, None, None, *(gradients[name] for name in ctx.names)
