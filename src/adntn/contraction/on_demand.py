"""Entries and rows of a weight on demand, without the rest of it.

The readout is a circuit that is walked from the last wire to the first, segment by segment. The first segments act on
the whole hidden state, so that what they release has all its digits; then each entry takes the row of its own digits
out of that, and every further segment acts on it by the one row of its matrix that belongs to the entry's digits. With
half of the wires on either side that is one small table, far smaller than the weight, and then bond_dim ** ceil(H / 2)
multiply-adds an entry; where to change over is chosen by the number of multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.contraction.run import Contraction, in_digit_order
from adntn.contraction.segments import Cores, act, segment_matrix
from adntn.contraction.steps import Plan, Step, Walk
from adntn.indices import entries_of_rows
from adntn.tensorize import OUT

Places = Sequence[Tensor | None]

__all__ = ["cheapest_cut", "entries", "read_at", "rows", "rows_from_factors"]


def entries(network: Contraction, parameters: Cores, hidden: Tensor, index: Tensor) -> Tensor:
    """Return entries of the weight.

    Args:
        network: of a tree or a brick wall.
        parameters: by name; those of the last level are met.
        hidden: the state before it, shape ``(trees, bond_dim ** H)``.
        index: one column an axis of the weight, shape ``(n, dims)``, in range.

    Returns:
        Shape ``(n,)``.
    """
    tensorization = network.blueprint.tensorization
    group, places = tensorization.locate(index)
    in_tree_order = [tensorization.tree_place(axis, place) for axis, place in enumerate(places)]
    return _summed(network, parameters, hidden, group, in_tree_order).flatten()


def rows(network: Contraction, parameters: Cores, hidden: Tensor, index: Tensor) -> Tensor:
    """Return rows of the weight whose order has no split; arguments as :func:`entries`, an index of shape ``(n,)``.

    Returns:
        Shape ``(n, in, *kernel)``.
    """
    tensorization, shape = network.blueprint.tensorization, network.blueprint.shape
    if not tensorization.splits_axes:
        made = entries(network, parameters, hidden, entries_of_rows(index, shape))
        return made.reshape(len(index), *shape[1:])
    size = shape[0] // network.blueprint.config.groups
    group, row = index.div(size, rounding_mode="floor"), tensorization.tree_place(OUT, index % size)
    others = range(1, len(tensorization.axes))
    made = _summed(network, parameters, hidden, group, [row, *(None for _ in others)])
    return in_digit_order(made, tensorization, others, first_dim=2).reshape(len(index), *shape[1:])


def rows_from_factors(
    rows: Tensor,  # shape: (n, r), of A
    group: Tensor,  # shape: (n,), which each is of
    c: Tensor,  # shape: (groups, r, r', *kernel)
    b: Tensor,  # shape: (groups, in, r')
) -> Tensor:  # shape: (n, in, *kernel)
    """Return the rows of W = A C B^T to which rows of A lead."""
    groups, _, inner, *kernel = c.shape
    hidden = (rows @ c.movedim(1, 0).flatten(1)).reshape(len(rows), groups, inner, math.prod(kernel))
    if groups > 1:
        # Sorting rows by group would give each its own product, but shapes that depend on the data.
        own = group.unsqueeze(1) == torch.arange(groups, device=group.device)
        hidden = hidden.masked_fill(~own[..., None, None], 0.0)
    made = hidden.flatten(1, 2).mT @ b.transpose(1, 2).flatten(0, 1)  # shape: (n, kernel, in)
    return made.mT.reshape(len(rows), -1, *kernel)


def _summed(network: Contraction, parameters: Cores, hidden: Tensor, group: Tensor, places: Places) -> Tensor:
    """Return what :func:`read_at` reads of the readout, summed over the terms of each group."""
    terms = network.blueprint.config.terms
    cores = network.cores(parameters, network.blueprint.levels[-1])
    term = torch.arange(terms, device=group.device).unsqueeze(1)
    tree = (group * terms + term).flatten()
    repeated = [None if place is None else place.repeat(terms) for place in places]
    made = read_at(network.walk, cores, hidden, tree, repeated)
    return made if terms == 1 else made.unflatten(0, (terms, -1)).sum(0)


def read_at(walk: Walk, cores: Cores, state: Tensor, tree: Tensor, places: Places) -> Tensor:
    """Run the last level on a state, and make only what is asked for.

    Args:
        walk: its circuit.
        cores: as for :func:`adntn.contraction.apply`.
        state: of each tree, shape ``(trees, entries)``.
        tree: whose outcome, shape ``(n,)``.
        places: the index on each axis, in tree order, shape ``(n,)``; or only that on the first one, and None for the
            others, which are made whole.

    Returns:
        Shape ``(n, *axes)``, an axis of size one where there is a place on it.
    """
    trees, like = len(state), state.new_empty(len(state), 0)
    own = walk.rows if None in places else walk.entries
    cut = cheapest_cut(walk.whole, own, trees, len(tree))
    for step in walk.whole.steps[:cut]:
        state = act(step, segment_matrix(step.segment, cores, step.wanted, like), state)
    state, places = _take(state.reshape(trees, -1, *walk.whole.steps[cut].done), tree, places)
    for step, segment in zip(own.steps[cut:], walk.whole.segments[cut:], strict=True):
        wanted = tuple(
            whole if place is not None else some
            for place, whole, some in zip(places, segment.released, step.wanted, strict=True)
        )
        matrix = segment_matrix(segment, cores, wanted, like)
        if matrix is None:
            matrix = torch.eye(segment.size_in, dtype=like.dtype, device=like.device).unsqueeze(0)
        table = matrix.reshape(len(matrix), -1, *wanted)  # held outputs stand before the finished ones
        rows, places = _take(table.expand(trees, *table.shape[1:]), tree, places)
        state = act(step, rows.reshape(len(tree), segment.size_in, -1), state)
    return state.reshape(len(tree), *own.axes)


def cheapest_cut(whole: Plan, own: Plan, trees: int, count: int) -> int:
    """Return how many segments act on the whole state, for the fewest multiply-adds.

    Never all of them: that would make the whole weight.

    Args:
        whole: the last level's circuit.
        own: the same with one index on some axes.
        trees: that there are.
        count: of entries or rows that are asked for.
    """
    every = [trees * _multiply_adds(step) for step in whole.steps]
    alone = [count * _multiply_adds(step) for step in own.steps]
    taken = [count * step.left * step.segment.size_in * step.right for step in own.steps]
    costs = [sum(every[:cut]) + taken[cut] + sum(alone[cut:]) for cut in range(len(every))]
    return costs.index(min(costs))


def _multiply_adds(step: Step) -> int:
    return step.left * step.segment.size_in * step.size_out * step.right


def _take(table: Tensor, tree: Tensor, places: Places) -> tuple[Tensor, Places]:
    """Take from each axis with a place the entry of its last digit.

    Args:
        table: shape ``(trees, m, *axes)``, each axis of as many entries as that digit.
        tree: shape ``(n,)``.
        places: shapes ``(n,)``, or None for an axis that stays whole.

    Returns:
        Shape ``(n, m * axes that stay)``, and the places without that digit.
    """
    fixed = [dim for dim, place in enumerate(places, start=2) if place is not None]
    whole = [dim for dim, place in enumerate(places, start=2) if place is None]
    row, rest = tree, []
    for dim, place in enumerate(places, start=2):
        if place is not None:
            row = row * table.shape[dim] + place % table.shape[dim]
            place = place.div(table.shape[dim], rounding_mode="floor")
        rest.append(place)
    moved = table.permute(0, *fixed, 1, *whole)
    return F.embedding(row, moved.flatten(1 + len(fixed)).flatten(0, -2)), rest
