"""What becomes of an optimiser when the parameters that it trains grow or are replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adntn.embedding import Embedding

__all__ = ["Carried", "carry_over"]


@dataclass(frozen=True)
class Carried:
    """What became of the optimisers' parameters, by name.

    Attributes:
        kept: the same ones, and grown ones with their state: old entries in their leading block, zeros for new ones.
        added: new ones, without state as before a first step.
        reset: grown or refitted ones whose state was dropped.
        removed: no longer there.
    """

    kept: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    reset: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {what}"
            for names, what in (
                (self.kept, "kept"),
                (self.added, "added"),
                (self.reset, "with their state dropped"),
                (self.removed, "removed"),
            )
            if names
        ]
        return f"in the optimiser, parameters: {', '.join(parts)}" if parts else "no optimiser"


def carry_over(
    optimizers: Sequence[Optimizer],
    old: Mapping[str, nn.Parameter],
    new: Mapping[str, nn.Parameter],
    embedding: Embedding | None,
) -> Carried:
    """Put new parameters in the place of old ones in optimisers, and their state with them.

    Args:
        optimizers: which may hold all, some or none of the old parameters.
        old: by name.
        new: by name, in order. Those that are the old ones are left alone.
        embedding: where old entries lie in the new parameters; None means that their state is dropped.
    """
    homes = {name: opt for name, p in old.items() for opt in optimizers if _find(opt, p) is not None}
    states = {name: homes[name].state.pop(old[name], {}) for name in homes}
    outcome: dict[str, list[str]] = {"kept": [], "added": [], "reset": [], "removed": []}
    neighbour, after = next(((name, old[name]) for name in homes), None), False
    home = next(iter(homes.values()), None)
    for name, parameter in new.items():
        sources = embedding.sources(name) if embedding is not None else ()
        if name in old:
            sources = sources or (name,)
            home = homes.get(name, home)
            if name not in homes:
                continue  # it was not trained before either
        if home is None or neighbour is None:
            continue
        state: dict[str, Any] | None = states.get(name, {})
        if parameter is not old.get(name):
            state = _grown(name, parameter, sources, old, states, embedding)
            if name in old:
                _put(home, old[name], parameter)
            else:
                _insert(home, neighbour, parameter, name, after=after)
        if state:
            home.state[parameter] = state
        outcome["reset" if state is None else "kept" if name in old or sources else "added"].append(name)
        neighbour, after = (name, parameter), True
    present = {id(parameter) for parameter in new.values()}
    for name, opt in homes.items():
        if id(old[name]) not in present and _remove(opt, old[name]):
            outcome["removed"].append(name)
        if isinstance(opt, torch.optim.LBFGS):
            opt.state.clear()  # one flat history of all parameters
            opt._numel_cache = None
    return Carried(**{what: tuple(names) for what, names in outcome.items()})


def _find(optimizer: Optimizer, parameter: Tensor) -> tuple[dict[str, Any], int] | None:
    for group in optimizer.param_groups:
        for place, held in enumerate(group["params"]):
            if held is parameter:
                return group, place
    return None


def _put(optimizer: Optimizer, old: Tensor, new: Tensor) -> None:
    found = _find(optimizer, old)
    if found is not None:
        found[0]["params"][found[1]] = new


def _insert(optimizer: Optimizer, neighbour: tuple[str, Tensor], new: Tensor, name: str, *, after: bool) -> None:
    """Add a parameter beside another, where an optimiser built anew would have it: saved states go by the order."""
    found = _find(optimizer, neighbour[1])
    if found is None:  # the neighbour is another optimiser's
        found = optimizer.param_groups[-1], len(optimizer.param_groups[-1]["params"]) - 1
    group, place = found
    group["params"].insert(place + after, new)
    if "param_names" in group:
        prefix = group["param_names"][place].removesuffix(neighbour[0])
        group["param_names"].insert(place + after, prefix + name)


def _remove(optimizer: Optimizer, parameter: Tensor) -> bool:
    found = _find(optimizer, parameter)
    if found is None:
        return False
    for aligned in ("params", "param_names"):
        if aligned in found[0]:
            del found[0][aligned][found[1]]
    return True


def _grown(
    name: str,
    parameter: Tensor,
    sources: Sequence[str],
    old: Mapping[str, nn.Parameter],
    states: Mapping[str, Mapping[str, Any]],
    embedding: Embedding | None,
) -> dict[str, Any] | None:
    """Return a grown parameter's state, empty where there was none, or None where it cannot be carried over."""
    given = [states.get(source, {}) for source in sources]
    if not any(given):
        return {}
    if embedding is None or any(state.keys() != given[0].keys() for state in given):
        return None
    grown: dict[str, Any] = {}
    for key, value in given[0].items():
        parts = {source: state[key] for source, state in zip(sources, given, strict=True)}
        if all(isinstance(part, Tensor) and part.shape == old[source].shape for source, part in parts.items()):
            whole = torch.zeros(parameter.shape, dtype=value.dtype, device=value.device)
            grown[key] = embedding.copy(name, parts, whole)
        elif value is None or isinstance(value, (bool, int, float)):
            grown[key] = value
        elif isinstance(value, Tensor) and value.numel() == 1:
            grown[key] = value.clone()
        else:
            return None
    return grown
