"""What all generated layers share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from adntn.contraction import KroneckerPlan
from adntn.cores import CoreModule
from adntn.errors import CompressionError, ConfigError, ShapeError
from adntn.execution.cache import keep
from adntn.execution.factored import Factors
from adntn.execution.kronecker import Kronecker, merges
from adntn.execution.staged import FEW, SMALL, Staged
from adntn.generator import Generator, GeneratorModule
from adntn.memory import check_out
from adntn.nn._ways import MODULE_STATE, Planned
from adntn.topology import GeneratorConfig

__all__ = ["GeneratedLayer", "GeneratedWeight", "Source", "StandIn", "dense_weight", "plain_weight", "rows_of"]

Rows = tuple[int, int]
#: What makes a weight: root and cores, and which of the rows that they make; None for all.
Source = tuple[GeneratorModule, Rows | None]

# What a generated layer adds to that.
_OWN = (
    *("blueprint", "std", "rows", "dense_type", "_network", "_paths"),
    *("_backward", "_quantization", "_execution", "_way", "_given", "_zero_rows", "reuse"),
)

Value = TypeVar("Value")


def _copy_description(source: nn.Module, target: nn.Module, leave: tuple[str, ...] = ()) -> None:
    """Copy a layer's options and hooks, without parameters, buffers and children."""
    for name, value in vars(source).items():
        if (name not in MODULE_STATE or "hook" in name) and name not in leave:
            object.__setattr__(target, name, value)


def dense_weight(dense: nn.Module) -> nn.Parameter:
    """Return the weight of a torch layer that has one."""
    weight = dense._parameters.get("weight")
    if weight is None:
        raise CompressionError(f"this {type(dense).__name__} has no weight of its own; is it parametrized?")
    return weight


def rows_of(factors: Factors, start: int, stop: int) -> Factors | None:
    """Return the factors of some rows of a weight, or None where they cut through groups of the generator."""
    a, c, b = factors
    size = a.shape[1]
    first, last = start // size, -(-stop // size)
    if last - first == 1:
        return a[first:last, start - first * size : stop - first * size], c[first:last], b[first:last]
    return None if start % size or stop % size else (a[first:last], c[first:last], b[first:last])


class GeneratedWeight(Planned):
    """Root and cores that stand for one weight of a model: for all that they make, or for some rows of it (Eq. 6).

    Attributes:
        kind: what it is a weight of, for reports and files.
        rows: the first row that is this weight's, and the one behind its last; None for all.
    """

    kind: str
    rows: Rows | None = None

    def _take(self, source: Source) -> None:
        """Register another module's root and cores as this one's too."""
        generator, rows = source
        self.rows = rows
        self._share(generator)

    def _replace(self, other: CoreModule) -> None:
        super()._replace(other)
        self.execution = self.execution  # what is faster may have changed

    def dense_name(self, name: str) -> str:
        """Return what the weight is called in the plain model, for the name of this module."""
        return name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        whole = self.blueprint.shape
        return whole if self.rows is None else (self.rows[1] - self.rows[0], *whole[1:])

    @property
    def ranks(self) -> tuple[int, int] | None:
        """The sizes r and r' of the factors, or None where order or rows have no split."""
        return None if self._cuts_groups() else super().ranks

    #: Whether it can run through a sum of Kronecker products.
    takes_kronecker: bool = False

    @property
    def kronecker(self) -> KroneckerPlan | None:
        """The weight as a sum of Kronecker products, where it runs as one."""
        runs = self.takes_kronecker and not self._zero_rows and not self._cuts_groups()
        return self._sum() if runs else None

    def _cuts_groups(self) -> bool:
        size = self.blueprint.shape[0] // self.config.groups
        return self.rows is not None and self.factored_groups > 1 and any(row % size for row in self.rows)

    @property
    def split_obstacle(self) -> str | None:
        """Why there are neither factors nor a sum of Kronecker products to run through; None where there are."""
        why = super().split_obstacle
        if self.rows is not None and self._cuts_groups() and (why is None or self._sum() is not None):
            (start, stop), size = self.rows, self.blueprint.shape[0] // self.config.groups
            return f"its rows {start} to {stop} cut through the generator's groups of {size}, which have factors each"
        if why is None or self._sum() is None:
            return why
        if self.takes_kronecker:
            return f"{why}, and some rows of its sum of Kronecker products are zero"
        return f"{why}, and its sum of Kronecker products is one for linear layers and convolutions without groups"

    @property
    def factored_groups(self) -> int:
        """How many groups the factors have: of the generator's, those that the weight's rows are in."""
        if self.rows is None:
            return super().factored_groups
        size = self.blueprint.shape[0] // self.config.groups
        return -(-self.rows[1] // size) - self.rows[0] // size

    def rank_bound(self) -> int:
        """Return the greatest rank that the weight, seen as the matrix (out, in * kernel), can have."""
        return min(super().rank_bound(), self.shape[0])

    def generate(self, out: Tensor | None = None) -> Tensor:
        """Return the weight, shape ``(out, in, *kernel)``, made in ``out`` if that is given."""
        if out is None:
            return self._cut(self._whole())
        if self.rows is None and not self._zero_rows:
            return super().generate(out)
        check_out(out, tuple(self.shape), [*self._all_tensors()])
        return out.copy_(self._cut(self._whole()))

    def factors(self) -> Factors | None:
        """Return A, C, B with ``W = A C B^T`` in every group of the weight's rows, or None where they have no split."""
        return self._cut_factors(self._whole_factors())

    @property
    def weight(self) -> Tensor:
        """The generated weight, made anew at each access; read-only."""
        # All rows are kept, not these: other weights have others of the same generator.
        return self._cut(self._keep("weight", self._whole))

    def _factors(self) -> Factors:
        factors = self._cut_factors(self._keep("factors", self._whole_factors))
        assert factors is not None  # choose() does not take this way otherwise
        return factors

    def _staged(self, positions: int, *, one_stage: bool = False) -> Staged | None:
        """Return the weight as stages to run so many rows, or places of a map, through; None: rather as factors.

        Args:
            positions: rows or places.
            one_stage: whether sides of a single stage are wanted too.
        """
        sides = self.sides
        if sides is None or self._zero_rows:
            return None
        outer, inner = sides
        if not one_stage and len(outer.stages) == len(inner.stages) == 1:
            return None
        if positions < FEW and self._is_kept() and outer.rank * outer.made + inner.rank * inner.made <= SMALL:
            return None
        whole = Staged(outer, inner, self._keep("staged", self.staged))
        return whole if self.rows is None else whole.rows(*self.rows)

    def _kronecker(self) -> Kronecker | None:
        """Return the weight as a sum of Kronecker products to run through; None where it is none."""
        plan = self.kronecker
        if plan is None:
            return None
        device = self._stands_for or self.device
        make = functools.partial(self.kronecker_matrices, merged=merges(device, self.dtype))
        shape, rows = self.blueprint.shape, self.rows or (0, self.blueprint.shape[0])
        return Kronecker(plan, self._keep("kronecker", make), shape[2:], rows, device.type in ("cpu", "meta"))

    def _keep(self, name: str, make: Callable[[], Value]) -> Value:
        # All that a layer keeps goes this way, so that a rehearsal sees what is made and what is applied.
        return keep(self, name, make)

    def _whole(self) -> Tensor:
        return self._zeroed(super().generate())

    def _whole_factors(self) -> Factors | None:
        factors = super().factors()
        if factors is None or not self._zero_rows:
            return factors
        a, c, b = factors
        return self._zeroed(a.flatten(0, 1)).view_as(a), c, b

    def _cut(self, weight: Tensor) -> Tensor:
        return weight if self.rows is None else weight[self.rows[0] : self.rows[1]]

    def _cut_factors(self, factors: Factors | None) -> Factors | None:
        return factors if self.rows is None or factors is None else rows_of(factors, *self.rows)

    # --- rows that are zero: padding, see adntn.nn.Embedding --------------------------------------------------------

    def _grow(self, *args: Any) -> None:
        super()._grow(*args)
        self._zero_rows: list[int] = []

    def _share(self, other: CoreModule) -> None:
        super()._share(other)
        # One list for all that share, as a tied weight of torch's is one tensor.
        self._zero_rows = vars(other).setdefault("_zero_rows", [])

    def factors_at(self, index: Tensor) -> Factors | None:
        """Return rows of A at an index, and C and B, as :meth:`adntn.Generator.factors_at`."""
        factors = super().factors_at(index)
        if factors is None:
            return None
        rows, c, b = factors
        return self._zeroed_at(rows, index), c, b

    def _entries(self, index: Tensor) -> Tensor:
        # Counted in all rows of the generator, whose those of this weight may be only some.
        index = torch.cat([self._of_all(index[..., :1]), index[..., 1:]], -1)
        return self._zeroed_at(super()._entries(index), index[..., 0])

    def _rows_at(self, index: Tensor) -> Tensor:
        index = self._of_all(index)
        return self._zeroed_at(super()._rows_at(index), index)

    def _of_all(self, index: Tensor) -> Tensor:
        return index if self.rows is None else index + self.rows[0]

    def _zeroed_at(self, made: Tensor, index: Tensor) -> Tensor:
        here = index.reshape(*index.shape, *(1,) * (made.ndim - index.ndim))
        for row in self._zero_rows:
            made = made.masked_fill(here == row, 0.0)
        return made

    def _zeroed(self, rows: Tensor) -> Tensor:  # shape: (out, n)
        for row in self._zero_rows:
            here = torch.arange(len(rows), device=rows.device) == row
            rows = rows.masked_fill(here.unsqueeze(1), 0.0)
        return rows


def plain_weight(source: GeneratedWeight, made: dict[object, nn.Parameter]) -> nn.Parameter:
    """Return a generated weight as it is now, the same parameter for all that share it."""
    key = (id(source._network), source.rows)
    if key not in made:
        made[key] = nn.Parameter(source.weight.detach().clone())
    return made[key]


class StandIn(nn.Module):
    """A module that stands in for a torch layer, with generated weights.

    Attributes:
        dense_type: the torch layer.
        other_types: subclasses of it that do the same.
        dense_std: deviation of that layer's weight at the start; None for that of linear layers and convolutions.
    """

    dense_type: ClassVar[type[nn.Module]]
    other_types: ClassVar[tuple[type[nn.Module], ...]] = ()
    dense_std: ClassVar[float | None] = None
    _generated: ClassVar[tuple[str, ...]] = ("weight",)

    @classmethod
    def generated_names(cls, dense: nn.Module) -> tuple[str, ...]:
        """Return which parameters of a torch layer are generated here."""
        return cls._generated

    @classmethod
    def initial_std(cls, dense: nn.Module, name: str) -> float | None:
        """Return the deviation that torch gives that parameter at the start, or None for the usual one."""
        return cls.dense_std

    @classmethod
    def refusal(cls, dense: nn.Module) -> str | None:
        """Return why a torch layer of this type cannot have a generated weight, or None if it can."""
        return None

    @classmethod
    def _refuse(cls, dense: nn.Module) -> None:
        why = cls.refusal(dense)
        if why is not None:
            raise ConfigError(f"this {cls.dense_type.__name__} cannot be generated: {why}.")

    @classmethod
    def _assemble(cls, dense: nn.Module, sources: Mapping[str, Source], execution: str) -> Self:
        """Build the module that stands in for a torch layer, with these root and cores for each generated name."""
        raise NotImplementedError(f"{cls.__name__}, as every family of layers, has to say how it is put together")

    def _plain(self, made: dict[object, nn.Parameter] | None) -> nn.Module:
        """Return the torch layer with the weights as they are now; with ``made``, it shares those and its biases."""
        raise NotImplementedError(f"{type(self).__name__}, as every family of layers, has to say what is left of it")

    def to_dense(self) -> nn.Module:
        """Return a plain torch layer with the same options and hooks, and the weights as they are now."""
        return self._plain(None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._generated:
            raise AttributeError(
                f"the {name} of {type(self).__module__}.{type(self).__name__} is generated and read-only; "
                "change its root and cores, or make the layer plain with adntn.materialize()."
            )
        super().__setattr__(name, value)


class GeneratedLayer(GeneratedWeight, StandIn):
    """Mixed into a torch layer's subclass: root and cores are its parameters, ``weight`` is a read-only property."""

    bias: nn.Parameter | None

    @classmethod
    def from_dense(
        cls,
        dense: nn.Module,
        config: GeneratorConfig | None = None,
        *,
        share: GeneratorModule | None = None,
        rows: tuple[int, int] | None = None,
        execution: str = "auto",
    ) -> Self:
        """Build the layer that stands in for a dense one, with the same options, bias, hooks, device, dtype and mode.

        Args:
            dense: a torch layer; its weight may lie on the meta device.
            config: of the generator, which starts at random values; None means the default.
            share: whose root and cores to share, as for tied weights, instead of new ones.
            rows: which rows of the shared weight are this layer's, ``(start, stop)``; None means those that ``share``
                itself has.
            execution: how to run, see :attr:`execution`.

        Raises:
            ConfigError: the layer has an option that a generated weight cannot have.
            ShapeError: the weight cannot be generated, or is not of the shape of the one shared.
        """
        cls._refuse(dense)
        weight, std = dense_weight(dense), cls.dense_std
        if share is None:
            share = Generator(tuple(weight.shape), config, std=std, device=weight.device, dtype=weight.dtype)
        elif rows is None:
            rows = getattr(share, "rows", None)
        return cls._assemble(dense, {"weight": (share, rows)}, execution)

    @classmethod
    def _assemble(cls, dense: nn.Module, sources: Mapping[str, Source], execution: str) -> Self:
        cls._refuse(dense)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        _copy_description(dense, layer)
        if type(dense) in cls.other_types:
            object.__setattr__(layer, "dense_type", type(dense))
        for name in dense._parameters.keys() & {"bias"}:
            layer.register_parameter(name, dense._parameters[name])
        layer._take(sources["weight"])
        if layer.shape != tuple(dense_weight(dense).shape):
            raise ShapeError(
                f"a weight of shape {tuple(dense_weight(dense).shape)} cannot share the root and cores of one of "
                f"shape {layer.shape}."
            )
        layer.execution = execution
        return layer.train(dense.training)

    def _build(
        self,
        template: nn.Module,
        config: GeneratorConfig | None,
        execution: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Become the layer that a torch layer on the meta device describes. Runs in place of the torch ``__init__``."""
        self._refuse(template)
        nn.Module.__init__(self)
        _copy_description(template, self)
        self._grow(tuple(dense_weight(template).shape), config, self.dense_std, device, dtype)
        if "bias" in template._parameters:
            bias = template._parameters["bias"]
            if bias is not None:
                bias = nn.Parameter(torch.empty(bias.shape, device=self.device, dtype=self.dtype))
            self.register_parameter("bias", bias)
            self._reset_bias()
        self.execution = execution

    def _plain(self, made: dict[object, nn.Parameter] | None) -> nn.Module:
        dense = self.dense_type.__new__(self.dense_type)
        nn.Module.__init__(dense)
        _copy_description(self, dense, leave=_OWN)
        dense.weight = plain_weight(self, {} if made is None else made)
        for name in self._parameters.keys() & {"bias"}:
            bias = self.bias
            if bias is not None and made is None:
                bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
            dense.register_parameter(name, bias)
        return dense.train(self.training)

    def _on_meta(self) -> Self:
        """Return a layer of the same options on the meta device, with root and cores of its own."""
        twin = type(self).__new__(type(self))
        nn.Module.__init__(twin)
        for name, value in vars(self).items():
            if name not in MODULE_STATE and name not in ("_network", "_paths", "_zero_rows"):
                object.__setattr__(twin, name, value)
        generator = Generator(self.blueprint.shape, self.config, device="meta", dtype=self.dtype)
        generator._backward = self._backward
        twin._stands_for = self.device
        twin._take((generator, self.rows))
        twin._zero_rows = list(self._zero_rows)
        if "bias" in self._parameters:
            bias = None if self.bias is None else nn.Parameter(torch.empty_like(self.bias, device="meta"))
            twin.register_parameter("bias", bias)
        return twin

    @property
    def kind(self) -> str:  # type: ignore[override]
        """What it is a weight of, for reports and files."""
        return self.dense_type.__name__

    def reset_parameters(self) -> None:
        """Draw root, cores and bias anew, the bias as torch's own layer does."""
        self.draw_()
        self._reset_bias()

    def _reset_bias(self) -> None:
        if self.bias is not None and not self.bias.is_meta:
            fan_in = self.blueprint.size // self.blueprint.shape[0]
            nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)

    def __repr__(self) -> str:
        # One line: root and cores as children would say less than this does.
        c, stored = self.config, self.num_parameters
        whose = "" if self.rows is None else f", rows {self.rows[0]} to {self.rows[1]} of {self.blueprint.shape[0]}"
        bits = "" if self.quantization is None else f", {self.quantization.bits} bits"
        tree = (
            f"{c.topology} of {stored:,} for {self.blueprint.size:,}{whose}{bits}, order={c.order!r}, runs {self.way}"
        )
        return f"{type(self).__name__}({self.extra_repr()}, {tree})"
