"""What of a generator's numbers lies under a threshold, and the numbers of one without it.

Nothing here decides whether the weight may change so far; :func:`adntn.prune_` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adntn.baselines import TensorTrain
from adntn.embedding import embed
from adntn.levels import Level, Mixer
from adntn.topology import TREES, Blueprint

__all__ = ["Pruned", "prune_values"]

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Pruned:
    """What is left of a generator.

    Attributes:
        blueprint: of it.
        values: its parameters by name, float64, on the CPU.
        found: how many of what lay under the threshold: ``"terms"``, ``"mixing layers"``, ``"disentanglers"`` (in
            layers that stay, which are the identity now), ``"level gates"`` (which are closed now), ``"bond"``.
    """

    blueprint: Blueprint
    values: Values
    found: dict[str, int] = field(default_factory=dict)


def prune_values(blueprint: Blueprint, values: Values, threshold: float) -> Pruned:
    """Return a generator without what lies under a threshold.

    Args:
        blueprint: of the generator.
        values: its parameters by name, float64, on the CPU; left as they are.
        threshold: of a gate, its absolute value; of a disentangler, ``|g| ||U - 1||_F / ||1||_F``, with its gate; of a
            bond's index, the norm of what it has in the core below, over that of the strongest; of a rank, its singular
            value over the largest one.
    """
    values = {name: value.clone().contiguous() for name, value in values.items()}
    if blueprint.config.topology == "lowrank":
        return _without_ranks(blueprint, values, threshold, *_factors(values))
    if blueprint.config.topology == "tt":
        return _without_bonds_of_a_train(blueprint, values, threshold)
    found = {"level gates": _close_levels(values, threshold)}
    near, kept = _near_identity(blueprint, values, threshold)
    order, terms = _terms(blueprint, values, threshold)
    changes: dict[str, Any] = {}
    if terms < blueprint.config.terms:
        _put_terms_first(blueprint, values, order, terms)
        changes["terms"], found["terms"] = terms, blueprint.config.terms - terms
    if blueprint.config.topology in TREES:
        bond = _put_bonds_first(blueprint, values, threshold)
        if bond < blueprint.config.chi:
            changes["bond_dim"], found["bond"] = bond, blueprint.config.chi - bond
        changes.update(_topology(blueprint, kept))
    new = Blueprint(blueprint.shape, blueprint.config.replace(**changes)) if changes else blueprint
    layers = {(level.number, mixer.name) for level, mixer in _mixers(new)}
    gone = [key for key in near if key not in layers]
    found["mixing layers"] = len(gone)
    found["disentanglers"] = sum(count for key, count in near.items() if key in layers)
    return Pruned(new, _leading(new, blueprint, values), {what: count for what, count in found.items() if count})


def _leading(small: Blueprint, large: Blueprint, values: Values) -> Values:
    embedding = embed(small, large)
    assert not isinstance(embedding, str)
    return {name: embedding.leading(name, values) for name in small.parameter_shapes}


# --- gates, disentanglers, terms --------------------------------------------------------------------------------------


def _close_levels(values: Values, threshold: float) -> int:
    """Close the gates of levels that are nearly so, and return how many."""
    closed = 0
    for name, gate in values.items():
        if name.startswith("gate.level."):
            near = (gate.abs() < threshold) & (gate != 0)
            gate[near] = 0.0
            closed += int(near.sum())
    return closed


def _mixers(blueprint: Blueprint) -> Iterator[tuple[Level, Mixer]]:
    for level in blueprint.levels:
        for mixer in level.mixers:
            yield level, mixer


def _near_identity(
    blueprint: Blueprint, values: Values, threshold: float
) -> tuple[dict[tuple[int, str], int], set[tuple[int, str]]]:
    """Make disentanglers the identity that are nearly so.

    Returns:
        How many in each layer of them were not quite, and the layers of which some do something.
    """
    near: dict[tuple[int, str], int] = {}
    kept: set[tuple[int, str]] = set()
    for level, mixer in _mixers(blueprint):
        key = (level.number, mixer.name)
        near[key] = 0
        for stack in level.stacks:
            if stack.name != mixer.name and not stack.name.startswith(f"{mixer.name}_"):
                continue
            cores = values[stack.name]
            identity = torch.eye(stack.shape[0], dtype=cores.dtype)
            distance = (cores - identity).flatten(1).norm(dim=1) / identity.norm()
            gate = values.get(f"gate.{stack.name}")
            away = distance if gate is None else distance * gate.abs().squeeze(1)
            close = away < threshold
            near[key] += int((close & (distance > 0)).sum())
            cores[close] = identity
            if not bool(close.all()):
                kept.add(key)
    return near, kept


def _topology(blueprint: Blueprint, kept: set[tuple[int, str]]) -> dict[str, Any]:
    """Return what to change of a tree's config so that it has no layer of disentanglers without need."""
    config = blueprint.config
    mine = {(level.number, mixer.name) for level, mixer in _mixers(blueprint)}
    candidates: tuple[dict[str, Any], ...] = (
        {"topology": "ttn", "boundary_layers": 1},
        {"topology": "attn", "boundary_layers": 1},
    )
    for changes in candidates:
        other = Blueprint(blueprint.shape, config.replace(**changes))
        layers = {(level.number, mixer.name) for level, mixer in _mixers(other)}
        if kept <= layers < mine:
            return changes
    return {}


def _terms(blueprint: Blueprint, values: Values, threshold: float) -> tuple[list[int], int]:
    """Return the terms in an order in which those that stay come first, and how many stay: at least one."""
    terms = blueprint.config.terms
    gate = values.get("gate.term")
    if gate is None:
        return list(range(terms)), terms
    size = gate.abs().view(-1, terms).amax(dim=0)
    stay = [term for term in range(terms) if float(size[term]) >= threshold] or [int(size.argmax())]
    return [*stay, *(term for term in range(terms) if term not in stay)], len(stay)


def _put_terms_first(blueprint: Blueprint, values: Values, order: list[int], terms: int) -> None:
    config = blueprint.config
    for name, value in values.items():
        if not name.startswith("activation.") or len(value) == config.trees:
            by_term = value.unflatten(0, (config.groups, config.terms, -1))
            values[name] = by_term[:, order].flatten(0, 2).contiguous()
    if terms == 1:  # whose gate would be gone
        first = blueprint.levels[-1].scaled[0]
        cores = values[first].view(config.trees, -1, *values[first].shape[1:])
        cores[:, 0] *= values["gate.term"].unsqueeze(2)


# --- bonds of a tree --------------------------------------------------------------------------------------------------


def _put_bonds_first(blueprint: Blueprint, values: Values, threshold: float) -> int:
    """Bring the indices of every bond that matter to the front, and return how many matter: the most of any bond.

    An index matters by what the core below it makes of it, whatever comes there, behind an activation too. Where a norm
    sees the whole state, or a disentangler brings much of what does not matter into what does, all of them stay.
    """
    config, trees = blueprint.config, blueprint.config.trees
    if config.norm is not None or config.chi == 1:
        return config.chi
    orders: dict[tuple[int, int], Tensor] = {}
    bond = 1
    for level in blueprint.levels:
        for parent, core in enumerate(level.cores):
            assert core is not None  # nothing passes in a tree
            stack = values[core.stack]
            rows = stack.view(trees, -1, *stack.shape[1:])[:, core.place].norm(dim=2)  # shape: (trees, bond)
            matter = rows >= threshold * rows.amax(dim=1, keepdim=True)
            bond = max(bond, int(matter.sum(dim=1).max()))
            orders[level.number, parent] = rows.argsort(dim=1, descending=True, stable=True)
    if bond == config.chi:
        return bond
    moved = {name: value.clone() for name, value in values.items()}
    for (number, mode), order in orders.items():
        _move(blueprint, moved, number, mode, order)
    if _leaks(blueprint, moved, bond, threshold):
        return config.chi
    values.update(moved)
    return bond


def _move(blueprint: Blueprint, values: Values, number: int, mode: int, order: Tensor) -> None:
    """Put the indices of one bond, mode ``mode`` of what enters a level, into another order in every tree."""
    level, chi, trees = blueprint.levels[number - 1], blueprint.config.chi, blueprint.config.trees

    def sort(name: str, place: int | None, before: int) -> None:
        whole = values[name] if place is None else values[name].view(trees, -1, *values[name].shape[1:])[:, place]
        apart = whole.reshape(trees, before, chi, -1)
        whole.copy_(apart.gather(2, order.view(trees, 1, chi, 1).expand_as(apart)).view_as(whole))

    core = level.cores[mode]
    assert core is not None
    sort(core.stack, core.place, 1)
    if number == 1:
        sort("root", None, chi**mode)
        return
    above = blueprint.levels[number - 2]
    for parent, maker in enumerate(above.cores):
        children = above.children_of(parent)
        if mode in children and maker is not None:
            sort(maker.stack, maker.place, chi ** (1 + children.index(mode)))
    for mixer, gates in zip(above.mixers, above.gates, strict=True):
        k, side = divmod(mode - mixer.first, 2)
        if 0 <= k < mixer.gates:
            sort(gates[k].stack, gates[k].place, chi**side)
            sort(gates[k].stack, gates[k].place, chi ** (2 + side))


def _leaks(blueprint: Blueprint, values: Values, bond: int, threshold: float) -> bool:
    """Return whether a hidden disentangler brings more than the threshold of what is cut off into what stays."""
    chi = blueprint.config.chi
    stays = torch.zeros(chi, chi, dtype=torch.bool)
    stays[:bond, :bond] = True
    stay = stays.flatten()
    for level in blueprint.levels[:-1]:
        for stack in level.stacks:
            if stack.kind == "mix":
                cores = values[stack.name]
                leak = cores[:, stay][:, :, ~stay].flatten(1).norm(dim=1)
                if bool((leak > threshold * cores.flatten(1).norm(dim=1)).any()):
                    return True
    return False


# --- ranks of baselines -----------------------------------------------------------------------------------------------


def _factors(values: Values) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular value decomposition of a low-rank weight, of its factors' size."""
    left, right = (torch.linalg.qr(values[name]) for name in ("left", "right"))
    u, s, vh = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    return left.Q @ u, s, right.Q @ vh.mT


def _without_ranks(blueprint: Blueprint, values: Values, threshold: float, u: Tensor, s: Tensor, v: Tensor) -> Pruned:
    rank = _rank(s, threshold)
    dropped = blueprint.config.chi - rank
    if dropped <= 0:
        return Pruned(blueprint, values)
    root = s[:, :rank].sqrt().unsqueeze(1)
    made = {"left": u[:, :, :rank] * root, "right": v[:, :, :rank] * root}
    return Pruned(_of_bond(blueprint, rank), made, {"bond": dropped})


def _rank(s: Tensor, threshold: float) -> int:  # shape: (groups, values)
    return max(1, int((s >= threshold * s[:, :1]).logical_and(s > 0).sum(dim=1).max()))


def _of_bond(blueprint: Blueprint, bond: int) -> Blueprint:
    return Blueprint(blueprint.shape, blueprint.config.replace(bond_dim=bond))


def _without_bonds_of_a_train(blueprint: Blueprint, values: Values, threshold: float) -> Pruned:
    """Round a tensor train to the largest rank that any of its bonds needs (Oseledets' TT rounding)."""
    cores = TensorTrain(blueprint)._cores(values)
    for place in range(len(cores) - 1, 0, -1):  # all but the first become isometries, seen from the left
        q, r = torch.linalg.qr(cores[place].flatten(2).mT)
        cores[place] = q.mT.unflatten(2, cores[place].shape[2:])
        cores[place - 1] = cores[place - 1] @ r.mT.unsqueeze(1)
    _, needed = _swept(cores, None, threshold)
    dropped = blueprint.config.chi - needed
    if dropped <= 0:
        return Pruned(blueprint, values)
    cores, _ = _swept(cores, needed, threshold)
    new = _of_bond(blueprint, needed)
    made = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in new.parameter_shapes.items()}
    places = [(stack.name, place, stack.count) for stack in new.chain for place in range(stack.count)]
    for core, (name, place, count) in zip(cores, places, strict=True):
        groups, left, size, right = core.shape
        room = made[name].view(groups, count, made[name].shape[1], size, -1)
        room[:, place, :left, :, :right] = core
    return Pruned(new, made, {"bond": dropped})


def _swept(cores: list[Tensor], most: int | None, threshold: float) -> tuple[list[Tensor], int]:
    """Cut every bond of a train to a rank, from left to right, and return the train and the rank that it would need.

    The norm of each group is spread over its cores.
    """
    done, rest, needed = [], cores[0], 1
    for following in cores[1:]:
        u, s, vh = torch.linalg.svd(rest.flatten(1, 2), full_matrices=False)
        needed = max(needed, _rank(s, threshold))
        kept = s.shape[1] if most is None else min(most, s.shape[1])
        done.append(u[:, :, :kept].unflatten(1, rest.shape[1:3]))
        bond = s[:, :kept].unsqueeze(2) * vh[:, :kept]
        rest = torch.einsum("gab,gbnr->ganr", bond, following)
    norm = rest.flatten(1).norm(dim=1).clamp_min(torch.finfo(rest.dtype).tiny).view(-1, 1, 1, 1)
    share = norm ** (1.0 / len(cores))
    return [*(core * share for core in done), rest / norm * share], needed
