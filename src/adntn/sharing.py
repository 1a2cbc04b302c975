"""Which layers share one generator: those whose rows it makes one below the other (paper, Eq. 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adntn.describe import plain_name
from adntn.errors import CompressionError, ShapeError, nearest
from adntn.targets import Place, Places, listing, matcher

__all__ = ["find_groups"]


def find_groups(
    places: Places, chosen: Mapping[str, Place], shared: Sequence[Sequence[str]]
) -> list[tuple[Place, ...]]:
    """Return the groups of places that are to share a generator.

    Args:
        places: of the model.
        chosen: what is generated.
        shared: one group each. If all entries are full names of layers or parameters, those are the group. Else a name
            is taken below a parent, and the group is found in every parent module that has all entries; ``"re:"`` and
            a pattern stand for all of a parent's own layers whose full name it matches.

    Raises:
        CompressionError: a group matches nothing, is not generated as a whole, or overlaps another one.
        ShapeError: the weights of a group cannot be put one below the other.
    """
    if isinstance(shared, str) or any(isinstance(entries, str) for entries in shared):
        raise CompressionError(
            f"shared={shared!r} is not a list of groups, as shared=[('q_proj', 'k_proj', 'v_proj')]."
        )
    groups: list[tuple[Place, ...]] = []
    for given in shared:
        entries = [entry if entry.startswith("re:") else plain_name(entry) for entry in given]
        if all(places.get(entry) for entry in entries):
            found = [tuple(place for entry in entries if (place := places.get(entry)))]
            outside = [place.name for place in found[0] if place.name not in chosen]
            if outside:
                raise CompressionError(f"shared: {listing(outside)} of {tuple(entries)} is not among the targets.")
        else:
            found = _below_parents(places, chosen, entries)
        groups += found
    taken: dict[str, tuple[Place, ...]] = {}
    for group in groups:
        for place in group:
            if place.name in taken:
                raise CompressionError(f"shared: {place.name!r} is in two groups, or twice in one.")
            taken[place.name] = group
        _check_weights(group)
    return groups


def _below_parents(places: Places, chosen: Mapping[str, Place], entries: Sequence[str]) -> list[tuple[Place, ...]]:
    parents = dict.fromkeys(["", *places.layers])
    groups: dict[tuple[str, ...], tuple[Place, ...]] = {}
    broken: list[str] = []
    for parent in parents:
        group: dict[str, Place] = {}
        for entry in entries:
            found = _members(places, parent, entry)
            if not found:
                break
            group.update((place.name, place) for place in found)
        else:
            left = [name for name in group if name not in chosen]
            if len(group) > 1 and len(left) < len(group):
                if left:
                    broken.append(f"{listing(left)} beside {listing([n for n in group if n in chosen])}")
                groups[tuple(group)] = tuple(group.values())
    if broken:
        raise CompressionError(f"shared: of the group {tuple(entries)}, {broken[0]} is not among the targets.")
    if not groups:
        names = [name.rpartition(".")[2] for name in places]
        hint = "".join(nearest(entry, names) for entry in entries if entry not in names and not entry.startswith("re:"))
        raise CompressionError(
            f"shared: no parent module has at least two targets that the group {tuple(entries)} means, and all of it; "
            f"targets are {listing(chosen)}.{hint}"
        )
    return list(groups.values())


def _members(places: Places, parent: str, entry: str) -> list[Place]:
    if not entry.startswith("re:"):
        place = places.get(f"{parent}.{entry}" if parent else entry)
        return [] if place is None else [place]
    matches = matcher(entry, "shared")
    return [place for name, place in places.layers.items() if name.rpartition(".")[0] == parent and matches(name)]


def _check_weights(group: Sequence[Place]) -> None:
    first = group[0]
    for place in group:
        weights = list(place.weights.values())
        if len(weights) != 1 or weights[0].ndim != 2:
            raise CompressionError(
                f"shared: {place.name!r} has weights of shapes {[tuple(w.shape) for w in weights]}; what shares a "
                "generator has one weight of two axes."
            )
    (one,) = first.weights.values()
    owners: dict[int, str] = {}
    for place in group:
        (other,) = place.weights.values()
        owner = owners.setdefault(id(other), place.name)
        if owner != place.name:
            raise CompressionError(f"shared: {owner!r} and {place.name!r} have one and the same weight already.")
        if other.shape[1] != one.shape[1]:
            raise ShapeError(
                f"shared: the weights of {first.name!r}, {tuple(one.shape)}, and {place.name!r}, {tuple(other.shape)}, "
                "cannot stand one below the other: they need equal in_features."
            )
        if (other.dtype, other.device) != (one.dtype, one.device):
            raise CompressionError(
                f"shared: {first.name!r} is {one.dtype} on {one.device} and {place.name!r} {other.dtype} on "
                f"{other.device}; one generator needs one type and device."
            )
