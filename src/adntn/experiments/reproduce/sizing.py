"""Generators of about so many numbers: what makes them larger."""

from __future__ import annotations

import math

from adntn.errors import check_choice
from adntn.topology import Blueprint, GeneratorConfig

__all__ = ["GROWS", "sized"]

GROWS = ("groups", "terms", "dimension")

_GROUPS = (1, 2, 4, 8, 16)


def sized(config: GeneratorConfig, shape: tuple[int, ...], numbers: int, by: str) -> GeneratorConfig:
    """Return a config with as many groups, terms or dimensions as bring a weight's numbers nearest to a count.

    Groups are a power of two up to 16 that divides the rows and leaves two of them at least; beyond them, sums. It is
    never less than the smallest there is, and not more than about half of what the weight stores.

    Args:
        config: has everything else.
        shape: of the weight.
        numbers: wanted.
        by: one of :data:`GROWS`.

    Raises:
        ConfigError: there is no such way to grow.
    """
    check_choice("by", by, GROWS)
    numbers = min(numbers, math.prod(shape) // 2)
    if by == "dimension":
        return config.replace(subspace_dim=numbers)
    if by == "terms":
        return config.replace(terms=max(1, round(numbers / Blueprint(shape, config).num_parameters)))
    groups = [count for count in _GROUPS if shape[0] % count == 0 and 2 * count <= shape[0]] or [1]
    many = [config.replace(groups=count) for count in groups]
    most = Blueprint(shape, many[-1]).num_parameters
    many += [many[-1].replace(terms=round(numbers / most))] if numbers > 2 * most else []
    return min(many, key=lambda each: abs(Blueprint(shape, each).num_parameters - numbers))
