"""What generated layers are compared with: a low-rank pair, tensorly-torch, and a loop of one einsum a core."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adntn

__all__ = [
    "TENSORLY",
    "EinsumLoop",
    "convolution",
    "einsum_weight",
    "low_rank_pair",
    "tensorly_layer",
    "tensorly_missing",
]

Shape = tuple[int, ...]

#: Factorisation and rank by the name in the results. Convolutions have no block TT there, and take TT in its place.
TENSORLY = {"TT 2": ("blocktt", 2), "TT 8": ("blocktt", 8), "CP 8": ("cp", 8), "Tucker 4": ("tucker", 4)}
#: opt_einsum is no must, but without it tensorly-torch's factorised layers take thousands of times as long.
NEEDED = ("tensorly", "tltorch", "opt_einsum")
_PARTS = 4  # a side of 4096 becomes 8 x 8 x 8 x 8


def convolution(shape: Shape) -> nn.Conv2d:
    """Return torch's own, padded so that the map keeps its size."""
    return nn.Conv2d(shape[1], shape[0], (shape[2], shape[3]), padding=shape[2] // 2)


def low_rank_pair(shape: Shape, ranks: tuple[int, int]) -> nn.Module:
    """Return two linear layers, or 1x1, kernel, 1x1 convolutions, of given ranks (r, r')."""
    outer, inner = ranks
    if len(shape) == 2:
        rank = min(ranks)
        return nn.Sequential(nn.Linear(shape[1], rank, bias=False), nn.Linear(rank, shape[0]))
    return nn.Sequential(
        nn.Conv2d(shape[1], inner, 1, bias=False),
        nn.Conv2d(inner, outer, (shape[2], shape[3]), padding=shape[2] // 2, bias=False),
        nn.Conv2d(outer, shape[0], 1),
    )


# --- tensorly-torch ---------------------------------------------------------------------------------------------------


def tensorly_missing() -> str | None:
    """Return what is missing of it, or None."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def tensorly_layer(shape: Shape, factorization: str, rank: int, implementation: str) -> nn.Module:
    """Return tensorly-torch's layer, with random factors."""
    tltorch: Any = importlib.import_module("tltorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one rank is taken for all modes, as asked
        if len(shape) == 2:
            made: nn.Module = tltorch.FactorizedLinear(
                balanced(shape[1]),
                balanced(shape[0]),
                factorization=factorization,
                rank=rank,
                implementation=implementation,
            )
            return made
        layer: Any = tltorch.FactorizedConv(
            shape[1],
            shape[0],
            tuple(shape[2:]),
            padding=shape[2] // 2,
            bias=True,
            factorization={"blocktt": "tt"}.get(factorization, factorization),
            rank=rank,
            implementation=implementation,
        )
    layer.reset_parameters(std=0.1)
    result: nn.Module = layer
    return result


def balanced(size: int, parts: int = _PARTS) -> Shape:
    """Return a size as a product of so many factors, as equal as its primes allow."""
    primes, prime = list[int](), 2
    while size > 1:
        while size % prime == 0:
            primes.append(prime)
            size //= prime
        prime += 1
    factors = [1] * parts
    for prime in reversed(primes):
        factors[factors.index(min(factors))] *= prime
    return tuple(sorted(factors))


# --- a loop of one einsum a core --------------------------------------------------------------------------------------


def einsum_weight(gen: adntn.Generator) -> Tensor:  # shape: (out, in, *kernel)
    """Return a ttn's weight by the book: the hidden state, then one einsum for each readout core.

    The state is seen as three dimensions, what stands before the core's mode, the mode, and what stands behind.
    """
    cores = gen.get_core(f"expand.{len(gen.schedule) - 1}")  # shape: (H, bond, radix**2)
    state, done = gen.hidden().to(cores.dtype).reshape(-1), 1
    for core in reversed(cores.unbind()):
        bond, outputs = core.shape
        state = torch.einsum("apb,pc->acb", state.reshape(-1, bond, done), core).reshape(-1)
        done *= outputs
    tensorization = gen.blueprint.tensorization
    weight = state.reshape(tensorization.padded_axes)
    for axis, size in enumerate(tensorization.axes):
        weight = weight.narrow(axis, 0, size)
    return weight.reshape(gen.shape)


class EinsumLoop(nn.Module):
    """A layer that makes its weight by :func:`einsum_weight` at every call, as one would write it first."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gen = adntn.Generator(shape, adntn.GeneratorConfig(topology="ttn", order="blocked"))
        self.bias = nn.Parameter(torch.zeros(shape[0]))

    def forward(self, x: Tensor) -> Tensor:  # shape: (batch, in, *size) -> (batch, out, *size)
        weight = einsum_weight(self.gen)
        if weight.ndim == 2:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, padding=weight.shape[2] // 2)
