"""The cut of a readout into a state and one small matrix, of which every tile of the weight can be made.

The readout's plan (:class:`adntn.contraction.plan.Readout`) has a tail that makes the last modes, the *low* digits of
the weight's axes, and a head that makes the *high* ones. With *s* for what enters the tail, parents and wires of gates
that wait for it, every entry of the weight is

    W[high, low] = sum_s S[high, s] M[s, low]

The matrix M is a Kronecker product of a few cores, some hundred numbers. The state S is what the head makes of the
hidden state; of a 4096x4096 ttn it has an eighth of the weight's entries. The trees of a sum stand side by side along
*s*, so that the sum over *s* is the sum over them too.

Every order has such a cut, ``"paired"`` too, which has no split into factors. Of it the kernels make the weight tile by
tile; and :func:`linear` is a product with the weight by torch operations that does not make it at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.adjoint.reverse import full_precision
from adntn.contraction import Axes, Contraction, Readout, in_digit_order
from adntn.contraction.readout import summed, unfinished
from adntn.errors import ConfigError, ShapeError
from adntn.generator import GeneratorModule
from adntn.tensorize import IN, OUT

__all__ = ["Layout", "Tiles", "between_trees", "layout", "linear", "make", "pays", "product_obstacle"]

# Entries of a weight that is not made in a moment, and of one that does not fit into a processor's caches.
_LARGE = 1 << 18
_BEYOND_CACHES = 1 << 23

Tiles = tuple[Tensor, Tensor]
Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """Which entry of the weight stands where: index ``high * low_size + low`` of each axis, digits in tree order.

    Attributes:
        groups: row blocks with a generator each.
        inner: how many numbers of the state an entry depends on, the size of *s*.
        high: entries of the high digits of out, in and kernel; of a ravel all in the first.
        low: entries of the low digits.
        size: how many entries of each axis are kept.
        ravel: whether the weight is raveled to a single axis.
    """

    groups: int
    inner: int
    high: Sizes
    low: Sizes
    size: Sizes
    ravel: bool = False

    @property
    def state_entries(self) -> int:
        """Entries of the state."""
        return self.groups * math.prod(self.high) * self.inner

    @property
    def matrix_entries(self) -> int:
        """Entries of the matrix."""
        return self.groups * math.prod(self.low) * self.inner

    def between(self, batch: int) -> int:
        """Return how many numbers stand between the two sums of :func:`linear`."""
        return self.groups * batch * self.high[IN] * self.inner * self.low[OUT]

    def multiply_adds(self, batch: int) -> int:
        """Return the multiply-adds of :func:`linear`, the tiles being made."""
        return self.between(batch) * self.low[IN] + batch * self.state_entries * self.low[OUT]

    def numbers(self) -> list[int]:
        """Return what the operators of :mod:`adntn.execution.kernels.ops` take for a layout."""
        return [self.groups, self.inner, *self.high, *self.low, *self.size]


def layout(generator: GeneratorModule) -> Layout:
    """Return where the cut of a generator's readout lies.

    Raises:
        ConfigError: it is a baseline, which has no levels to cut.
    """
    network = _network(generator)
    config, plan = network.blueprint.config, network.readout_plan
    high, low, inner = _cut(plan)
    axes = len(plan.crop)
    return Layout(config.groups, config.terms * inner, _three(high), _three(low), _three(plan.crop), ravel=axes == 1)


def _network(generator: GeneratorModule) -> Contraction:
    network = generator._network
    if not isinstance(network, Contraction):
        topology = generator.config.topology
        raise ConfigError(f"topology={topology!r} has no levels to cut; trees and the brick wall have.")
    return network


def make(generator: GeneratorModule) -> Tiles:
    """Return the state and the matrix of a generator, float32 at least; what there is to keep in inference.

    Returns:
        Shapes ``(groups, high, s)`` and ``(groups, s, low)``, axis by axis.

    Raises:
        ConfigError: it is a baseline, which has no levels to cut.
    """
    network = _network(generator)
    with full_precision(generator.device):
        parameters = generator._parameters_by_name()
        return _make(network, parameters, network.hidden(parameters, generator._activate))


def product_obstacle(generator: GeneratorModule) -> str | None:
    """Return why a product with the weight cannot be taken tile by tile, in words, or None where it can."""
    network, shape = generator._network, generator.blueprint.shape
    if not isinstance(network, Contraction):
        return f"topology={generator.config.topology!r} has no levels"
    if len(shape) > 2:
        return f"a weight of shape {shape} is no matrix"
    if len(network.blueprint.tensorization.axes) == 1:
        return f"order={generator.config.order!r} ravels a weight of shape {shape}, so that no tile is a product"
    if generator.shape != shape or vars(generator).get("_zero_rows"):
        return f"its rows are not just the {shape[0]} that its generator makes"
    return None


def pays(where: Layout, batch: int, *, kept: bool) -> bool:
    """Return whether :func:`linear` is faster than to make the weight and multiply with it, on a processor.

    ``benchmarks/tiles.py`` has the times that this is read off: what stands between the sums must be less than the
    weight, and of a weight that is kept far less, besides which it must be too large for the caches.
    """
    entries, between = where.groups * math.prod(where.size), where.between(batch)
    if kept:
        return entries >= _BEYOND_CACHES and 4 * between <= entries
    return entries >= _LARGE and between <= entries


def linear(
    x: Tensor,  # shape: (*batch, in)
    generator: GeneratorModule,
    bias: Tensor | None = None,  # shape: (out,)
    made: Tiles | None = None,
) -> Tensor:  # shape: (*batch, out)
    """Return ``x W^T + bias`` by torch operations, the sums taken in an order in which W is never needed.

    With o and i for out and in, and their high and low digits,

        y[o_high, o_low] = sum_{i_high, s} S[(o_high, i_high), s] sum_{i_low} M[s, (o_low, i_low)] x[i_high, i_low]

    A ttn with ``"paired"`` needs as many multiply-adds as with its weight, but neither the weight nor its gradient is
    made. What stands between the two sums has :meth:`Layout.between` numbers; while they are few, this is much faster.

    Args:
        x: input.
        generator: or a layer.
        bias: added to each output.
        made: what :func:`make` returned for it, if that is at hand.

    Raises:
        ShapeError: the input's last dimension is not the weight's.
        ConfigError: :func:`product_obstacle` names what is in the way.
    """
    obstacle = product_obstacle(generator)
    if obstacle is not None:
        raise ConfigError(f"the weight cannot be applied tile by tile: {obstacle}.")
    where = layout(generator)
    state, matrix = (each.to(generator.dtype) for each in (make(generator) if made is None else made))

    def product(rows: Tensor) -> Tensor:  # shape: (batch, in) -> (batch, out)
        groups, inner = where.groups, where.inner
        (out_high, in_high, _), (out_low, in_low, _) = where.high, where.low
        padding = in_high * in_low - where.size[IN]
        rows = (F.pad(rows, (0, padding)) if padding else rows).reshape(1, 1, -1, in_low)
        small = matrix.reshape(groups, inner, out_low, in_low).permute(0, 2, 3, 1)
        between = (rows @ small).reshape(groups, -1, in_high * inner)  # rows: out_low, batch
        y = between @ state.reshape(groups, out_high, in_high * inner).mT
        y = y.reshape(groups, out_low, -1, out_high).permute(2, 0, 3, 1).flatten(2)
        return y[:, :, : where.size[OUT]].flatten(1)

    y = between_trees(x, generator, product)
    return y if bias is None else y + bias.to(y.dtype)


def between_trees(x: Tensor, generator: GeneratorModule, product: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a product whose axes are in tree order to an input, shape ``(*batch, in) -> (*batch, out)``.

    Raises:
        ShapeError: the input's last dimension is not the weight's.
    """
    shape, t = generator.blueprint.shape, generator.blueprint.tensorization
    if x.ndim < 1 or x.shape[-1] != shape[IN]:
        raise ShapeError(f"an input of shape {tuple(x.shape)} does not fit a weight of shape {shape}.")
    rows = x.reshape(math.prod(x.shape[:-1]), shape[IN])
    permutation = t.digit_permutation(IN)
    if permutation is not None:
        index = torch.tensor(permutation[: shape[IN]], device=x.device)
        rows = rows.new_zeros(len(rows), t.padded_axes[IN]).index_copy(1, index, rows)
    y = product(rows)
    if t.digit_permutation(OUT) is not None:
        y = in_digit_order(y.unflatten(1, (t.groups, -1)), t, [OUT], first_dim=2).flatten(1)
    return y.reshape(*x.shape[:-1], shape[OUT])


def _make(
    network: Contraction,
    parameters: dict[str, Tensor],
    hidden: Tensor,  # shape: (trees, bond_dim**H)
) -> Tiles:
    plan, config = network.readout_plan, network.blueprint.config
    rows, matrix = unfinished(plan, network.cores(parameters, network.blueprint.levels[-1]), hidden)
    if matrix is None:  # all that the weight is made of is small
        rows, matrix = rows.unsqueeze(-1), hidden.new_ones(config.trees, *(1,) * rows.ndim)
    state, small = summed(rows, matrix, config.terms)
    assert small is not None
    return state.flatten(1, -2).contiguous(), small.flatten(2).contiguous()


def _cut(plan: Readout) -> tuple[Axes, Axes, int]:
    """Return the entries of each axis' high digits and of its low ones, and how many numbers lie between the two."""
    if plan.tail is None:
        return plan.crop, (1,) * len(plan.crop), 1
    *high, inner = plan.head.axes
    return tuple(high), plan.tail.axes, inner


def _three(sizes: tuple[int, ...]) -> Sizes:
    out, inner, kernel = (*sizes, 1, 1)[:3]
    return out, inner, kernel
