"""Sizes without tuning by hand: which layers to generate, and by what, so that a whole model meets a budget."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adntn.candidates import QUALITIES, describe_config, families
from adntn.compress import compress_
from adntn.describe import CompressionReport
from adntn.errors import CompressionError, ConfigError, check_choice
from adntn.forward_times import forward_times
from adntn.options import check_whole
from adntn.spending import BESIDE, OTHER_KIND, Book, choose, remainder, spend, units_of
from adntn.targets import find_places, refuse_broken_ties, refuse_wrapped
from adntn.tensorize import Order
from adntn.topology import TREES, GeneratorConfig

__all__ = ["RANKINGS", "BudgetPlan", "KeptDense", "PlannedLayer", "fit_budget"]

RANKINGS = ("parameters", "time", "named")

_COUNTS = ("numbers", "products")  # measures that are whole numbers


@dataclass(frozen=True)
class PlannedLayer:
    """A layer that a plan has generated.

    Attributes:
        name: in the model.
        shapes: of its weights; an attention has several.
        config: of their generators.
        dense: numbers of the dense weights.
        generated: numbers stored instead.
        quality: of the start, by the plan's measure; see :func:`adntn.candidates.quality`.
        why: it was chosen, and has the size that it has.
        tied: other names that are generated along with it: those that share its weight, an attention's ``out_proj``.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    config: GeneratorConfig
    dense: int
    generated: int
    quality: float
    why: str
    tied: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeptDense:
    """What a plan leaves as it is in one module: weights, biases, norms, as ``kind`` and ``why`` say.

    Attributes:
        name: of the module.
        kind: of the module.
        numbers: stored.
        why: they stay.
    """

    name: str
    kind: str
    numbers: int
    why: str


@dataclass(frozen=True)
class BudgetPlan:
    """What to generate in a model, and by what; from :func:`fit_budget` or :func:`adntn.kronecker_budget`.

    Print it, keep it as JSON, apply it.

    Attributes:
        layers: that are generated, in the order in which they were chosen.
        kept: what is stored beside them, largest first.
        unit: what is counted, ``"numbers"`` or ``"bytes"``.
        limit: of them at most.
        before: of them in the model as it was.
        after: in the model as it will be.
        measure: of quality.
        ignore: names and patterns that were left out.
        share_cores: whether layers of one shape have their cores in common, see :func:`adntn.kronecker_budget`.
    """

    layers: tuple[PlannedLayer, ...]
    kept: tuple[KeptDense, ...]
    unit: str
    limit: int
    before: int
    after: int
    measure: str
    ignore: tuple[str, ...] = ()
    share_cores: bool = False

    @property
    def overrides(self) -> dict[str, GeneratorConfig]:
        """The config of each layer, as :func:`adntn.compress_` takes them; the names are its targets."""
        return {name: layer.config for layer in self.layers for name in (layer.name, *layer.tied)}

    def apply_(self, model: nn.Module, **options: Any) -> CompressionReport:
        """Generate the plan's layers in a model, in place.

        Args:
            model: the one that the plan was made for, or another of the same layers.
            **options: of :func:`adntn.compress_`, as ``init="fit"``.

        Raises:
            CompressionError: as :func:`adntn.compress_`.
        """
        configs = self.overrides
        options = {"share_cores": self.share_cores, **options}
        return compress_(model, targets=list(configs), ignore=list(self.ignore), overrides=configs, **options)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_dict` reads back to an equal plan."""
        layers = [vars(layer) | {"config": layer.config.to_dict()} for layer in self.layers]
        plain = vars(self) | {"layers": layers, "kept": [vars(each) for each in self.kept]}
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BudgetPlan:
        """Build a plan from :meth:`to_dict`'s values.

        Raises:
            ConfigError: they are not a plan's.
        """
        try:
            layers = tuple(
                PlannedLayer(
                    **layer
                    | {
                        "config": GeneratorConfig.from_dict(layer["config"]),
                        "shapes": tuple(map(tuple, layer["shapes"])),
                        "tied": tuple(layer["tied"]),
                    }
                )
                for layer in values["layers"]
            )
            kept = tuple(KeptDense(**each) for each in values["kept"])
            return cls(**{**values, "layers": layers, "kept": kept, "ignore": tuple(values["ignore"])})
        except (TypeError, KeyError) as error:
            raise ConfigError(f"these are not the values of a plan: {error}") from None

    def to_json(self) -> str:
        """Return one line of JSON that :meth:`from_json` reads back to an equal plan."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> BudgetPlan:
        """Build a plan from :meth:`to_json`'s text; errors as :meth:`from_dict`."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"this is not the JSON of a plan: {error}") from None
        return cls.from_dict(values)

    def __str__(self) -> str:
        head = ("layer", "weight", "dense", "generated by", "numbers", "share", self.measure, "why")
        stored = sum(layer.generated for layer in self.layers) + sum(each.numbers for each in self.kept)
        rows = [
            (
                layer.name,
                " ".join("x".join(map(str, shape)) for shape in layer.shapes),
                f"{layer.dense:,}",
                _described(layer, self.measure),
                f"{layer.generated:,}",
                f"{layer.generated / stored:.1%}",
                f"{layer.quality:,.0f}" if self.measure in _COUNTS else f"{layer.quality:.1f}",
                layer.why,
            )
            for layer in self.layers
        ]
        for name, kind, numbers, why in self._kept_by_kind():
            rows.append((name, kind, f"{numbers:,}", "dense", f"{numbers:,}", f"{numbers / stored:.1%}", "", why))
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        align = [str.ljust if i in (0, 1, 3, 7) else str.rjust for i in range(len(head))]
        lines = ["  ".join(a(c, w) for a, c, w in zip(align, r, widths, strict=True)).rstrip() for r in (head, *rows)]
        rule = "-" * max(map(len, lines))
        used = f"whole model: {self.before:,} -> {self.after:,} {self.unit}, of at most {self.limit:,}"
        return "\n".join([lines[0], rule, *lines[1:], rule, used])

    def _kept_by_kind(self) -> list[tuple[str, str, int, str]]:
        """Return what stays dense as rows of the table; several of one kind that are not layers in one."""
        alike: dict[tuple[str, str], list[KeptDense]] = {}
        for each in self.kept:
            key = (each.kind, each.why) if each.why in (OTHER_KIND, BESIDE) else (each.name, "")
            alike.setdefault(key, []).append(each)
        return [
            (
                group[0].name if len(group) == 1 else f"{len(group)} more",
                group[0].kind,
                sum(each.numbers for each in group),
                group[0].why,
            )
            for group in alike.values()
        ]


@torch.no_grad()
def fit_budget(
    model: nn.Module,
    *,
    parameters: int | None = None,
    bytes: int | None = None,  # noqa: A002 - what is counted, like parameters
    targets: str | Sequence[str] = ("re:.*",),
    ignore: str | Sequence[str] = (),
    config: GeneratorConfig | None = None,
    topologies: str | Sequence[str] = TREES,
    orders: str | Sequence[Order] = ("blocked",),
    rank_by: str = "parameters",
    layers: int | str | None = None,
    example: object = None,
    measure: str = "stable-rank",
) -> BudgetPlan:
    """Choose which layers of a model to generate, and each one's config, so that the whole model meets a budget.

    What stays dense, biases, norms and heads among it, counts. As few layers are generated as the budget needs, the
    first by ``rank_by`` first; what then is left of the budget is spent on larger configs. Every layer has a finite
    family of them (:func:`adntn.candidates.families`); from the cheapest up, the step is taken that gains most by the
    number it stores more. A step's gain is the logarithm of the factor by which it raises the untrained weight's stable
    rank: at the same numbers, accuracy after training follows that (``docs/budget.md``). Nothing is changed in the
    model, and the plan depends on shapes alone, unless times are measured.

    Args:
        model: to be compressed. On the meta device too.
        parameters: numbers that the whole model may store, as :class:`adntn.CompressionReport` counts them.
        bytes: bytes that its parameters and buffers may take, instead of ``parameters``. A file has a header on top.
        targets: layers that may be generated, as in :func:`adntn.compress_`.
        ignore: names or patterns to leave out again.
        config: has all options that are not chosen; its radix, bond, root, groups and terms are the smallest choice.
            None means the default config.
        topologies: to choose from. Baselines too: ``("lowrank",)`` plans a low-rank model of the same size.
        orders: to choose from. ``"paired"`` starts with higher ranks at the same numbers, but has no factors to run by.
        rank_by: ``"parameters"``, the layers of the largest weights first; ``"time"``, by a forward pass on
            ``example``; ``"named"``, in the order of ``targets``.
        layers: how many to generate; ``"all"``, or None for as few as the budget needs.
        example: an input of the model, or a tuple of its arguments, for ``rank_by="time"``.
        measure: of a config's quality: ``"stable-rank"``, ``"rank-bound"`` or ``"numbers"``.

    Returns:
        A plan; print it, or :meth:`~BudgetPlan.apply_` it.

    Raises:
        ConfigError: an option is unknown or impossible.
        CompressionError: the budget is too small, the model meets it as it is, or a target cannot be generated.

    Example:
        >>> plan = adntn.fit_budget(model, parameters=50_000)
        >>> print(plan)
        >>> report = plan.apply_(model)
    """
    check_choice("rank_by", rank_by, RANKINGS)
    check_choice("measure", measure, QUALITIES)
    book = Book.open(model, parameters, bytes)
    if layers is not None and layers != "all":
        check_whole("layers", layers, 1)
    topologies = [topologies] if isinstance(topologies, str) else topologies
    orders = [orders] if isinstance(orders, str) else orders
    kinds = families(config or GeneratorConfig(), topologies, orders)
    if layers is None and book.is_met is not None:
        raise CompressionError(f"{book.is_met}; layers=3, or 'all', says how many to generate all the same.")
    refuse_wrapped(model)
    units = units_of(model, targets, ignore)
    times = forward_times(model, example) if rank_by == "time" else {}
    if rank_by != "named":
        units.sort(key=lambda unit: -(unit.seconds(times) if times else unit.dense))
    chosen, others = choose(units, kinds, book, layers)
    refuse_broken_ties(model, find_places(model), {place.name: place for unit in chosen for place in unit.places})
    taken, after = spend(chosen, book, measure)
    planned = [
        PlannedLayer(
            name=unit.name,
            shapes=unit.shapes,
            config=step.now.config,
            dense=unit.dense,
            generated=step.now.numbers,
            quality=step.now.quality,
            why=f"{_place(number, rank_by)}; {step}",
            tied=tuple(place.name for place in unit.places[1:]),
        )
        for number, (unit, step) in enumerate(zip(chosen, taken, strict=True))
    ]
    ignored = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    kept = tuple(KeptDense(*row) for row in remainder(model, chosen, others, book))
    return BudgetPlan(tuple(planned), kept, book.unit, book.limit, book.before, after, measure, ignored)


def _described(layer: PlannedLayer, measure: str) -> str:
    if measure == "products":
        return f"kronecker radix={layer.config.radix} terms={layer.config.terms}"
    return describe_config(layer.config)


def _place(place: int, rank_by: str) -> str:
    return f"no. {place + 1} " + ("named" if rank_by == "named" else f"by {rank_by}")
