"""Generators of about so many numbers: what makes them larger."""

from __future__ import annotations

import math

from adntn.errors import check_choice
from adntn.topology import Blueprint, GeneratorConfig

__all__ = ["GROWS", "count", "sized"]

GROWS = ("groups", "terms", "dimension")

_GROUPS = (1, 2, 4, 8, 16)


def sized(config: GeneratorConfig, shape: tuple[int, ...], numbers: int, by: str, sharing: int = 1) -> GeneratorConfig:
    """Return a config with as many groups, terms or dimensions as bring a weight's numbers nearest to a count.

    Groups are a power of two up to 16 that divides the rows and leaves two of them at least; beyond them, sums. It is
    never less than the smallest there is, and not more than about half of what the weight stores.

    Args:
        config: has everything else.
        shape: of the weight.
        numbers: wanted.
        by: one of :data:`GROWS`.
        sharing: generators that have their cores in common and a root each; a weight has its part of those cores.

    Raises:
        ConfigError: there is no such way to grow.
    """
    check_choice("by", by, GROWS)
    numbers = min(numbers, math.prod(shape) // 2)
    if by == "dimension":
        return config.replace(subspace_dim=numbers)
    if by == "terms":
        return config.replace(terms=max(1, round(numbers / count(shape, config, sharing))))
    groups = [each for each in _GROUPS if shape[0] % each == 0 and 2 * each <= shape[0]] or [1]
    many = [config.replace(groups=each) for each in groups]
    most = count(shape, many[-1], sharing)
    many += [many[-1].replace(terms=round(numbers / most))] if numbers > 2 * most else []
    return min(many, key=lambda each: abs(count(shape, each, sharing) - numbers))


def count(shape: tuple[int, ...], config: GeneratorConfig, sharing: int = 1) -> float:
    """Return a weight's numbers: all of its own, or its root and its part of cores that several have in common."""
    blueprint = Blueprint(shape, config)
    if sharing == 1:
        return blueprint.num_parameters
    root = math.prod(blueprint.parameter_shapes["root"])
    return root + (blueprint.num_parameters - root) / sharing
