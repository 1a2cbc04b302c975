"""What all generated layers share."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from adntn.errors import CompressionError, ConfigError, ShapeError
from adntn.execution.cache import keep
from adntn.execution.factored import Factors
from adntn.execution.plan import Way, Work, choose, multiply_adds
from adntn.generator import GeneratorModule
from adntn.topology import GeneratorConfig

__all__ = ["GeneratedLayer", "dense_weight"]

# What nn.Module keeps for itself; everything else in a layer's __dict__ describes the layer: sizes, stride, padding ...
_MODULE_STATE = frozenset(vars(nn.Module()))

# What a generated layer adds to that.
_OWN = ("blueprint", "std", "_network", "_paths", "_backward", "_execution", "_way", "_zero_rows")


def _copy_description(source: nn.Module, target: nn.Module, leave: tuple[str, ...] = ()) -> None:
    """Copy a layer's options and hooks, without parameters, buffers and children."""
    for name, value in vars(source).items():
        if (name not in _MODULE_STATE or "hook" in name) and name not in leave:
            object.__setattr__(target, name, value)


def dense_weight(dense: nn.Module) -> nn.Parameter:
    """Return the weight of a torch layer that has one."""
    weight = dense._parameters.get("weight")
    if weight is None:
        raise CompressionError(f"this {type(dense).__name__} has no weight of its own; is it parametrized?")
    return weight


class GeneratedLayer(GeneratorModule):
    """Mixed into a torch layer's subclass: root and cores are its parameters, ``weight`` is a read-only property.

    Attributes:
        dense_type: the torch layer that the class stands in for.
        dense_std: deviation of that layer's weight at the start; None for that of linear layers and convolutions.
    """

    dense_type: ClassVar[type[nn.Module]]
    dense_std: ClassVar[float | None] = None
    bias: nn.Parameter | None

    @classmethod
    def from_dense(
        cls,
        dense: nn.Module,
        config: GeneratorConfig | None = None,
        *,
        share: GeneratedLayer | None = None,
        execution: str = "auto",
    ) -> Self:
        """Build the layer that stands in for a dense one, with the same options, bias, hooks, device, dtype and mode.

        Args:
            dense: a torch layer; its weight may lie on the meta device.
            config: of the generator, which starts at random values; None means the default.
            share: a layer whose root and cores to share, as for tied weights, instead of new ones.
            execution: how to run, see :attr:`execution`.

        Raises:
            ConfigError: the layer has an option that a generated weight cannot have.
            ShapeError: the weight cannot be generated, or is not of the shape of the one shared.
        """
        cls._refuse(dense)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        _copy_description(dense, layer)
        if "bias" in dense._parameters:
            layer.register_parameter("bias", dense._parameters["bias"])
        if share is None:
            weight = dense_weight(dense)
            layer._grow(tuple(weight.shape), config, cls.dense_std, weight.device, weight.dtype)
        else:
            if share.blueprint.shape != tuple(dense_weight(dense).shape):
                raise ShapeError(
                    f"a weight of shape {tuple(dense_weight(dense).shape)} cannot share the root and cores of one of "
                    f"shape {share.blueprint.shape}."
                )
            layer._share(share)
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

    @classmethod
    def refusal(cls, dense: nn.Module) -> str | None:
        """Return why a torch layer of this type cannot have a generated weight, or None if it can."""
        return None

    @classmethod
    def _refuse(cls, dense: nn.Module) -> None:
        why = cls.refusal(dense)
        if why is not None:
            raise ConfigError(f"this {cls.dense_type.__name__} cannot be generated: {why}.")

    def to_dense(self) -> nn.Module:
        """Return a plain torch layer with the same options and hooks, and the weight as it is now."""
        dense = self.dense_type.__new__(self.dense_type)
        nn.Module.__init__(dense)
        _copy_description(self, dense, leave=_OWN)
        dense.weight = nn.Parameter(self.weight.detach().clone())
        if "bias" in self._parameters:
            bias = self.bias
            if bias is not None:
                bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
            dense.register_parameter("bias", bias)
        return dense.train(self.training)

    @property
    def weight(self) -> Tensor:
        """The generated weight, made anew at each access; read-only."""
        weight: Tensor = keep(self, "weight", self.generate)
        return weight

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                f"the weight of {type(self).__module__}.{type(self).__name__} is generated and read-only; "
                "change its root and cores, or make the layer plain with adntn.materialize()."
            )
        super().__setattr__(name, value)

    @property
    def execution(self) -> str:
        """How the layer was asked to run: ``"auto"``, ``"factored"`` or ``"dense"``."""
        return self._execution

    @execution.setter
    def execution(self, value: str) -> None:
        self._way = self.would_run(value)
        self._execution = value

    def would_run(self, execution: str) -> Way:
        """Return how the layer would run if it were asked for this execution.

        Raises:
            ConfigError: the execution is unknown, or ``"factored"`` where the weight has no split.
        """
        return choose(execution, self, self._work())

    def _work(self) -> Work | None:
        """Return what ``execution="auto"`` compares; None where there is nothing to compare."""
        return multiply_adds(self)

    @property
    def way(self) -> Way:
        """How the layer runs, and why."""
        return self._way

    # --- rows that are zero: padding, see adntn.nn.Embedding --------------------------------------------------------

    def _grow(self, *args: Any) -> None:
        super()._grow(*args)
        self._zero_rows: list[int] = []

    def _share(self, other: GeneratorModule) -> None:
        super()._share(other)
        # One list for all that share, as a tied weight of torch's is one tensor.
        self._zero_rows = other._zero_rows if isinstance(other, GeneratedLayer) else []

    def generate(self) -> Tensor:
        """Return the weight, shape ``(out, in, *kernel)``."""
        return self._zeroed(super().generate())

    def factors(self) -> Factors | None:
        """Return A, C, B with ``W = A C B^T`` in every group, as :meth:`adntn.Generator.factors`."""
        factors = super().factors()
        if factors is None or not self._zero_rows:
            return factors
        a, c, b = factors
        return self._zeroed(a.flatten(0, 1)).view_as(a), c, b

    def factors_at(self, index: Tensor) -> Factors | None:
        """Return rows of A at an index, and C and B, as :meth:`adntn.Generator.factors_at`."""
        factors = super().factors_at(index)
        if factors is None:
            return None
        rows, c, b = factors
        for row in self._zero_rows:
            rows = rows.masked_fill((index == row).unsqueeze(-1), 0.0)
        return rows, c, b

    def _zeroed(self, rows: Tensor) -> Tensor:  # shape: (out, n)
        for row in self._zero_rows:
            here = torch.arange(len(rows), device=rows.device) == row
            rows = rows.masked_fill(here.unsqueeze(1), 0.0)
        return rows

    def _factors(self) -> Factors:
        factors = keep(self, "factors", self.factors)
        assert factors is not None  # choose() does not take this way otherwise
        return factors

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
        tree = f"{c.topology} of {stored:,} for {self.blueprint.size:,}, order={c.order!r}, runs {self.way}"
        return f"{type(self).__name__}({self.extra_repr()}, {tree})"
