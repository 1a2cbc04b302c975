"""A budget of a whole model spread over sums of Kronecker products: ``kronecker_budget``."""

from __future__ import annotations

import functools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from adntn.budget import BudgetPlan, KeptDense, PlannedLayer
from adntn.candidates import usable
from adntn.errors import CompressionError
from adntn.options import check_flag, check_whole
from adntn.spending import Book, Unit, remainder, units_of
from adntn.targets import find_places, refuse_broken_ties, refuse_wrapped
from adntn.topology import Blueprint, GeneratorConfig

__all__ = ["PRODUCTS", "choose_digits", "kronecker_budget", "most_within", "spread_products"]

#: How recipes and the command line ask for them where a topology is asked for: a family of configs, one a shape.
PRODUCTS = "kronecker"

Shape = tuple[int, ...]
Sized = TypeVar("Sized")

# More would make the matrices so small that hardly anything is left of them: 2x2 or 3x3 for 32 to 128 channels.
_MOST_DIGITS = 4
# Where cores are common a layer's root chooses among products; with fewer there is too little to choose from. Measured
# on the page about whole networks.
_LEAST_PRODUCTS = 4


def kronecker_budget(
    model: nn.Module,
    *,
    parameters: int | None = None,
    bytes: int | None = None,  # noqa: A002 - what is counted, like parameters
    targets: str | Sequence[str] = ("re:.*",),
    ignore: str | Sequence[str] = (),
    digits: int | None = None,
    share_cores: bool = False,
) -> BudgetPlan:
    """Spread a budget of a whole model over sums of Kronecker products, a share of numbers to each layer alike.

    All targets are generated, each by :meth:`GeneratorConfig.kronecker` with as many products as its share pays for;
    what is left over buys one more here and there. Where a small layer cannot use its share, as no weight gets more
    than about half of the numbers that it had, larger ones have more. The networks of ``adntn reproduce whole`` have
    such shares, and there the first convolution and the head stayed dense: name the first layer and the last in
    ``ignore`` to have it so. Nothing is changed in the model.

    Root and cores were trained there at a peak rate of 2e-2, AdamW, where norms and head had 1e-2; times the square
    root of 20,000 over the budget beyond that, and at half of it where there are four digits.

    Args:
        model: to be compressed. On the meta device too.
        parameters: numbers that the whole model may store, as :class:`adntn.CompressionReport` counts them.
        bytes: bytes that its parameters and buffers may take, instead of ``parameters``. A file has a header on top.
        targets: layers to generate, as in :func:`adntn.compress_`. One that a single product is no smaller than stays
            dense.
        ignore: names or patterns to leave out again.
        digits: matrices of a product, besides the kernel's; None means two, or as many more, up to four, as the budget
            needs to be met, and with ``share_cores`` to have four products a layer on average.
        share_cores: whether layers of one shape have their cores in common and a root each, as by
            :func:`adntn.share_cores_`. Their cores are then sqrt(n) times as many as one of n layers would have: each
            of the layers counts, but not as if they were apart.

    Returns:
        A plan; print it, or :meth:`~BudgetPlan.apply_` it. Its quality is the number of products.

    Raises:
        ConfigError: an option is impossible.
        CompressionError: the budget is too small, the model meets it as it is, a target cannot be generated, or no two
            layers can have their cores in common.

    Example:
        >>> plan = adntn.kronecker_budget(model, parameters=5_000, share_cores=True)
        >>> print(plan)
        >>> report = plan.apply_(model)
    """
    book = Book.open(model, parameters, bytes)
    check_flag("share_cores", share_cores)
    if digits is not None:
        check_whole("digits", digits, 2)
    if book.is_met is not None:
        raise CompressionError(f"{book.is_met}.")
    refuse_wrapped(model)
    chosen = units_of(model, targets, ignore)
    used = 2 if digits is None else digits
    attempt = _Attempt.make(chosen, book, used, share_cores)
    while digits is None and used < _MOST_DIGITS and not attempt.enough:
        used += 1
        attempt = _Attempt.make(chosen, book, used, share_cores)
    units, spread = attempt.units, attempt.spread
    if not units:
        raise CompressionError("no target has a sum of Kronecker products that is smaller than its dense weight.")
    refuse_broken_ties(model, find_places(model), {place.name: place for unit in units for place in unit.places})
    planned = _planned(units, spread.configs(attempt.terms, used), used, share_cores)
    after = book.without(units) + sum(layer.generated * spread.costs[layer.name] for layer in planned)
    if after > book.limit:
        raise CompressionError(_impossible(units, after, used, book))
    if share_cores and not any("common" in layer.why for layer in planned):
        shapes = ", ".join(f"{unit.name!r} {unit.shapes[0]}" for unit in units)
        raise CompressionError(f"share_cores=True, but no two targets are of one shape: {shapes}.")
    kept = tuple(KeptDense(*row) for row in remainder(model, units, attempt.others, book))
    ignored = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    return BudgetPlan(
        planned, kept, book.unit, book.limit, book.before, after, "products", ignored, share_cores=share_cores
    )


def spread_products(
    weights: Mapping[str, Shape], numbers: int, digits: int, *, share_cores: bool = False
) -> dict[str, GeneratorConfig]:
    """Return the config of each weight, for so many numbers in all or a little less: a share to each alike.

    The least, which may be more than that, is one product of each.

    Args:
        weights: shapes, by name.
        numbers: of all of them.
        digits: of every product.
        share_cores: whether weights of one shape have their cores in common.
    """
    spread = _Spread({name: (shape,) for name, shape in weights.items()}, {}, share_cores)
    return spread.configs(spread.terms(numbers, digits), digits)


def choose_digits(weights: Mapping[str, Shape], numbers: int, *, share_cores: bool = False) -> int:
    """Return how many digits products of some weights have, for so many numbers, see :func:`kronecker_budget`."""
    spread = _Spread({name: (shape,) for name, shape in weights.items()}, {}, share_cores)
    for digits in range(2, _MOST_DIGITS):
        if spread.is_enough(spread.terms(numbers, digits), digits, numbers):
            return digits
    return _MOST_DIGITS


def most_within(size: Callable[[float], Sized], cost: Callable[[Sized], float], limit: float) -> Sized:
    """Return the largest of some sizes that costs no more than a limit, or the least where all cost more.

    Args:
        size: for a scale; the larger the scale, the larger.
        cost: of a size.
        limit: of the cost.
    """
    low, high = 0.0, 8.0
    best = size(low)
    while high < 2**20 and cost(largest := size(high)) <= limit and cost(largest) > cost(size(low)):
        low, high, best = high, 2 * high, largest
    for _ in range(12):
        middle = (low + high) / 2
        made = size(middle)
        if cost(made) <= limit:
            low, best = middle, made
        else:
            high = middle
    return best


class _Spread:
    """Weights that a number of products is chosen for.

    Args:
        shapes: of the weights of each layer.
        costs: of a number, by layer; one where it is left out.
        share_cores: whether weights of one shape have their cores in common.
    """

    def __init__(self, shapes: Mapping[str, Sequence[Shape]], costs: Mapping[str, int], share_cores: bool) -> None:
        self.shapes = {name: tuple(each) for name, each in shapes.items()}
        self.costs = {name: costs.get(name, 1) for name in shapes}
        self.share_cores = share_cores
        many = Counter(self._kind(name) for name in shapes)
        self.alike = {name: many[self._kind(name)] if share_cores else 1 for name in shapes}

    def _kind(self, name: str) -> tuple[tuple[Shape, ...], int]:
        return self.shapes[name], self.costs[name]

    def is_enough(self, terms: Mapping[str, int], digits: int, limit: int) -> bool:
        """Return whether products meet a limit, and are as many as it takes where cores are common."""
        enough = not self.share_cores or (bool(terms) and statistics.mean(terms.values()) >= _LEAST_PRODUCTS)
        return enough and self.cost(terms, digits) <= limit

    def terms(self, limit: int, digits: int) -> dict[str, int]:
        """Return the products of each layer."""

        def size(scale: float) -> dict[str, int]:
            return {name: self._share(name, scale * limit / len(self.shapes), digits) for name in self.shapes}

        return most_within(size, lambda terms: self.cost(terms, digits), limit)

    def _share(self, name: str, share: float, digits: int) -> int:
        alike, cost = self.alike[name], self.costs[name]
        numbers = max(1, round(share / cost / math.sqrt(alike)))
        numbers = min(numbers, sum(map(math.prod, self.shapes[name])) // 2)
        root, cores = self._one(name, digits)
        return max(1, round(numbers / (root + cores / alike)))

    def cost(self, terms: Mapping[str, int], digits: int) -> int:
        """Return what layers of so many products store in all."""
        total = 0.0
        for name, count in terms.items():
            root, cores = self._one(name, digits)
            total += self.costs[name] * count * (root + cores / self.alike[name])
        return round(total)

    def fill(self, terms: Mapping[str, int], digits: int, limit: int) -> dict[str, int]:
        """Return the products with one more here and there, as long as the limit allows: where numbers are fewest."""
        terms = dict(terms)
        groups: dict[object, list[str]] = {}
        for name in terms:
            groups.setdefault(self._kind(name) if self.share_cores else name, []).append(name)

        def numbers(names: list[str], more: int = 0) -> float:
            root, cores = self._one(names[0], digits)
            return (terms[names[0]] + more) * (root + cores / self.alike[names[0]])

        def fits(names: list[str]) -> bool:
            if numbers(names, 1) > sum(map(math.prod, self.shapes[names[0]])) // 2:
                return False
            return self.cost(terms | {name: terms[name] + 1 for name in names}, digits) <= limit

        while open_groups := [names for names in groups.values() if fits(names)]:
            for name in min(open_groups, key=numbers):
                terms[name] += 1
        return terms

    def _one(self, name: str, digits: int) -> tuple[int, int]:
        """Return the numbers of the roots and of the cores of a layer with one product."""
        first, *_ = self.shapes[name]
        config = GeneratorConfig.kronecker(first, digits)
        common = set(self.shapes[name]) if self.share_cores else self.shapes[name]
        roots = sum(_counts(shape, config)[0] for shape in self.shapes[name])
        return roots, sum(_counts(shape, config)[1] for shape in common)

    def configs(self, terms: Mapping[str, int], digits: int) -> dict[str, GeneratorConfig]:
        """Return the config of each layer."""
        return {
            name: GeneratorConfig.kronecker(self.shapes[name][0], digits, terms=count) for name, count in terms.items()
        }


@functools.lru_cache(maxsize=4096)
def _counts(shape: Shape, config: GeneratorConfig) -> tuple[int, int]:
    blueprint = Blueprint(shape, config)
    root = math.prod(blueprint.parameter_shapes["root"])
    return root, blueprint.num_parameters - root


@dataclass(frozen=True)
class _Attempt:
    """What products of so many digits come to.

    Attributes:
        units: that they are for.
        others: units that they are not for, and why.
        spread: over the units.
        terms: products of each.
        enough: whether they meet the budget, and are as many as it takes.
    """

    units: list[Unit]
    others: dict[str, str]
    spread: _Spread
    terms: dict[str, int]
    enough: bool

    @classmethod
    def make(cls, chosen: Sequence[Unit], book: Book, digits: int, share_cores: bool) -> _Attempt:
        units, others = _possible(chosen, digits)
        costs = {unit.name: unit.weights[0].element_size() if book.in_bytes else 1 for unit in units}
        spread = _Spread({unit.name: unit.shapes for unit in units}, costs, share_cores)
        limit = book.limit - book.without(units)
        terms = spread.terms(limit, digits) if units else {}
        enough = spread.is_enough(terms, digits, limit)
        return cls(units, others, spread, spread.fill(terms, digits, limit), enough)


def _possible(units: Sequence[Unit], digits: int) -> tuple[list[Unit], dict[str, str]]:
    """Return the units that a product is smaller than, and why each of the others is left out."""
    possible, others = [], {}
    for unit in units:
        config, device = GeneratorConfig.kronecker(unit.shapes[0], digits), unit.weights[0].device
        if all(usable(config, shape, device, fast=False) is not None for shape in unit.shapes):
            possible.append(unit)
        else:
            others[unit.name] = "no product is smaller"
    return possible, others


def _planned(
    units: Sequence[Unit], configs: Mapping[str, GeneratorConfig], digits: int, share_cores: bool
) -> tuple[PlannedLayer, ...]:
    """Return the units as planned. As a report has it, cores in common stand with the first layer that they are of."""

    def kinds(unit: Unit) -> list[tuple[Shape, GeneratorConfig, torch.dtype]]:
        return [(tuple(weight.shape), configs[unit.name], weight.dtype) for weight in unit.weights]

    many = Counter(kind for unit in units for kind in kinds(unit))
    seen: set[tuple[Shape, GeneratorConfig, torch.dtype]] = set()
    planned = []
    for unit in units:
        config, generated = configs[unit.name], 0
        for kind in kinds(unit):
            root, cores = _counts(*kind[:2])
            generated += root if share_cores and kind in seen else root + cores
            seen.add(kind)
        others = max(many[kind] for kind in kinds(unit)) - 1
        why = f"{config.terms} product{'s' * (config.terms > 1)} of {digits} digits"
        planned.append(
            PlannedLayer(
                name=unit.name,
                shapes=unit.shapes,
                config=config,
                dense=unit.dense,
                generated=generated,
                quality=float(config.terms),
                why=f"{why}, cores in common with {others} more" if share_cores and others else why,
                tied=tuple(place.name for place in unit.places[1:]),
            )
        )
    return tuple(planned)


def _impossible(units: Sequence[Unit], least: int, digits: int, book: Book) -> str:
    beside = book.without(units)
    return (
        f"a model of at most {book.limit:,} {book.unit} is not possible: the least is {least:,}, {least - beside:,} of "
        f"them for one product of {digits} digits in each of {len(units)} layers, and {beside:,} that stay dense. Make "
        "more layers targets, let layers share cores (share_cores=True), or raise the budget."
    )
