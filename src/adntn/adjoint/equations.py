"""The paper's adjoint equations (Sections 7.2-7.4), one function each.

A level is a product of linear operators and an elementwise function. Each operator, the expansion E of Eqs. 49, 54 and
59 or the mixing D of Eqs. 55 and 60, is a Kronecker product of its cores: every core acts on modes of its own, the
others pass. So an operator is walked *block* by block, a block being a few neighbouring cores merged into one small
matrix. A block takes the leading modes, ``(trees, size_in, rest)``, and puts what it makes of them behind the others,
``(trees, rest, size_out)``: one matrix product, after the last block every mode is back in its place, and no array ever
has more dimensions than that.

The walk also gives the environments of Eqs. 53 and 58 at the cost of a walk: on the state, all blocks before a core's
own have been applied; on the adjoint, on its way back, all blocks behind it. The two contracted over the rest leave a
small matrix in which every core of the other blocks is in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from adntn.contraction import Cores, kron
from adntn.levels import Core, Level
from adntn.norms import normalize, normalize_adjoint

__all__ = [
    "Activation",
    "Block",
    "block_matrix",
    "core_gradient",
    "expand_or_mix",
    "gate_gradient",
    "level_blocks",
    "nonlinearity",
    "pre_activation_adjoint",
    "state_adjoint",
]

# Bound on the entries of a block's matrix: three readout cores or two gates of radix 2. Larger blocks cost arithmetic,
# smaller ones more passes over a large state.
_MAX_ENTRIES = 1 << 9


class Activation(Protocol):
    """An elementwise function with parameters of its own."""

    def __call__(self, z: Tensor) -> Tensor:
        """Return the state."""

    def derivative(self, z: Tensor) -> Tensor:
        """Return the derivative at every entry."""

    def parameter_gradients(self, z: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        """Return the gradients of its parameters by name, given the adjoint of what it returned."""


@dataclass(frozen=True)
class Block:
    """Neighbouring cores of one operator, or modes that pass, as one matrix.

    Attributes:
        cores: one each; None for a mode that passes.
        sizes: rows and columns of each, as they act: from the state before to the state after.
        gates: whether they are disentanglers, whose stored rows are the new pair of indices.
    """

    cores: tuple[Core | None, ...]
    sizes: tuple[tuple[int, int], ...]
    gates: bool

    @property
    def size_in(self) -> int:
        return math.prod(rows for rows, _ in self.sizes)

    @property
    def size_out(self) -> int:
        return math.prod(columns for _, columns in self.sizes)


@lru_cache(maxsize=1024)
def level_blocks(level: Level) -> tuple[Block, ...]:
    """Return a level as blocks in the order in which they act: its expansion, then each mixing layer."""
    blocks: list[Block] = []
    if any(level.cores):
        children = (level.children_of(parent) for parent in range(level.parents))
        made = [math.prod(level.sizes_out[child] for child in mine) for mine in children]
        blocks += _cut(level.cores, list(zip(level.sizes_in, made, strict=True)), gates=False)
    for mixer, gates in zip(level.mixers, level.gates, strict=True):
        end = mixer.first + 2 * mixer.gates
        pairs = zip(level.sizes_out[mixer.first : end : 2], level.sizes_out[mixer.first + 1 : end : 2], strict=True)
        sizes = [*level.sizes_out[: mixer.first], *(a * b for a, b in pairs), *level.sizes_out[end:]]
        cores = (*(None,) * mixer.first, *gates, *(None,) * (level.children - end))
        blocks += _cut(cores, [(size, size) for size in sizes], gates=True)
    return tuple(blocks)


def _cut(cores: tuple[Core | None, ...], sizes: list[tuple[int, int]], *, gates: bool) -> list[Block]:
    cuts = [0]
    entries = 1
    for place, (rows, columns) in enumerate(sizes):
        entries *= rows * columns
        if entries > _MAX_ENTRIES and place > cuts[-1]:
            cuts.append(place)
            entries = rows * columns
    ends = [*cuts[1:], len(cores)]
    return [Block(cores[a:b], tuple(sizes[a:b]), gates) for a, b in zip(cuts, ends, strict=True)]


# --- one level's operators ----------------------------------------------------------------------------------------


def _matrices(block: Block, cores: Cores, like: Tensor) -> list[Tensor]:
    """Return the block's factors, each ``(trees, rows, columns)``, as they act on a state from the right."""
    found = []
    for core, (rows, _) in zip(block.cores, block.sizes, strict=True):
        if core is None:
            found.append(torch.eye(rows, dtype=like.dtype, device=like.device).expand(like.shape[0], -1, -1))
        else:
            matrix = cores[core.stack][:, core.place]
            found.append(matrix.mT if block.gates else matrix)
    return found


def _product(matrices: list[Tensor], like: Tensor) -> Tensor:
    product = like.new_ones(like.shape[0], 1, 1)
    for matrix in matrices:
        product = kron(product, matrix)
    return product


def block_matrix(block: Block, cores: Cores, like: Tensor) -> Tensor:
    """Return the Kronecker product of a block's cores, shape ``(trees, size_in, size_out)``.

    Args:
        block: of the level.
        cores: the level's stacks by name, each ``(trees, count, rows, columns)``.
        like: a state, shape ``(trees, entries)``.
    """
    return _product(_matrices(block, cores, like), like)


def expand_or_mix(block: Block, matrix: Tensor, state: Tensor) -> Tensor:
    """Apply one block of an expansion (Eqs. 49, 54, 59) or of a mixing layer (Eqs. 55, 60).

    Args:
        block: of the level.
        matrix: the block's, from :func:`block_matrix`.
        state: shape ``(trees, size_in * rest)``.

    Returns:
        Shape ``(trees, rest * size_out)``.
    """
    leading = state.reshape(state.shape[0], block.size_in, -1)
    return (leading.mT @ matrix).flatten(1)


def state_adjoint(block: Block, matrix: Tensor, upstream: Tensor) -> Tensor:
    """Apply the transpose of one block: Eqs. 52 and 65 over an expansion's blocks, 57 and 64 over a mixing layer's.

    Args:
        block: of the level.
        matrix: the block's, from :func:`block_matrix`.
        upstream: the adjoint of what the block returned, shape ``(trees, rest * size_out)``.

    Returns:
        The adjoint of what it was given, shape ``(trees, size_in * rest)``.
    """
    last = upstream.reshape(upstream.shape[0], -1, block.size_out)
    return (matrix @ last.mT).flatten(1)


def core_gradient(block: Block, cores: Cores, state: Tensor, upstream: Tensor) -> dict[Core, Tensor]:
    """Contract state and adjoint over all modes but a core's own, all other cores of the operator in place (Eq. 53).

    Args:
        block: whose cores are meant.
        cores: the level's stacks by name, each ``(trees, count, rows, columns)``.
        state: what the block was given, shape ``(trees, size_in * rest)``.
        upstream: the adjoint of what it returned, shape ``(trees, rest * size_out)``.

    Returns:
        The gradient of each core, shape ``(trees, parent, children)``.
    """
    trees = state.shape[0]
    environment = state.reshape(trees, block.size_in, -1) @ upstream.reshape(trees, -1, block.size_out)
    matrices = _matrices(block, cores, state)
    gradients = {}
    for k, core in enumerate(block.cores):
        if core is None:
            continue
        before, own, behind = block.sizes[:k], block.sizes[k], block.sizes[k + 1 :]
        rows, columns = ((math.prod(s[i] for s in before), own[i], math.prod(s[i] for s in behind)) for i in (0, 1))
        gradients[core] = torch.einsum(
            "tlirmos,tlm,trs->tio",
            environment.reshape(trees, *rows, *columns),
            _product(matrices[:k], state),
            _product(matrices[k + 1 :], state),
        )
    return gradients


def gate_gradient(block: Block, cores: Cores, state: Tensor, upstream: Tensor) -> dict[Core, Tensor]:
    """Return the gradient of each disentangler (Eq. 58), shape ``(trees, new pair, old pair)``.

    The sum is that of :func:`core_gradient`, whose arguments it takes; the paper writes U's new pair of indices first.
    """
    return {core: gradient.mT for core, gradient in core_gradient(block, cores, state, upstream).items()}


# --- the function between two levels --------------------------------------------------------------------------------


def nonlinearity(activation: Callable[[Tensor], Tensor], norm: str | None, gate: Tensor | None, z: Tensor) -> Tensor:
    """Return the state of a pre-activation (Eqs. 50, 62, with the gate and the norm of Definition 2).

    Args:
        activation: of the level.
        norm: of the state, see :mod:`adntn.norms`.
        gate: shape ``(trees, 1)``, between the identity at 0 and the activation at 1; None for no gate.
        z: the pre-activation, shape ``(trees, entries)``.
    """
    state = activation(z)
    if gate is not None:
        state = z + gate.to(z.dtype) * (state - z)
    return normalize(norm, state)


def pre_activation_adjoint(
    activation: Activation, norm: str | None, gate: Tensor | None, z: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
    """Return the adjoint of the pre-activation, the state's times the derivative (Eqs. 51, 63).

    Args:
        activation: as in :func:`nonlinearity`, as are ``norm``, ``gate`` and ``z``.
        norm: of the state.
        gate: of the level.
        z: the pre-activation.
        upstream: the adjoint of the state, shape ``(trees, entries)``.

    Returns:
        The pre-activation's adjoint, the gate's gradient, and the gradients of the activation's parameters by name.
    """
    if gate is None:
        if norm is not None:
            upstream = normalize_adjoint(norm, activation(z), upstream)
        return upstream * activation.derivative(z), None, activation.parameter_gradients(z, upstream)
    change = activation(z) - z
    upstream = normalize_adjoint(norm, z + gate * change, upstream)
    through = gate * upstream
    gradient = (upstream * change).sum(dim=1, keepdim=True)
    adjoint = upstream + through * (activation.derivative(z) - 1)
    return adjoint, gradient, activation.parameter_gradients(z, through)
