"""What all generated layers share."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from adntn.errors import CompressionError, ShapeError
from adntn.execution.cache import keep
from adntn.execution.factored import Factors
from adntn.execution.plan import Way, choose
from adntn.generator import GeneratorModule
from adntn.topology import GeneratorConfig

__all__ = ["GeneratedLayer", "dense_weight"]

# What nn.Module keeps for itself; everything else in a layer's __dict__ describes the layer: sizes, stride, padding ...
_MODULE_STATE = frozenset(vars(nn.Module()))

# What a generated layer adds to that.
_OWN = ("blueprint", "std", "_network", "_paths", "_backward", "_execution", "_way")


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
    """

    dense_type: ClassVar[type[nn.Module]]
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
            ShapeError: the weight cannot be generated, or is not of the shape of the one shared.
        """
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        _copy_description(dense, layer)
        layer.register_parameter("bias", dense._parameters["bias"])
        if share is None:
            weight = dense_weight(dense)
            layer._grow(tuple(weight.shape), config, None, weight.device, weight.dtype)
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
        nn.Module.__init__(self)
        _copy_description(template, self)
        self._grow(tuple(dense_weight(template).shape), config, None, device, dtype)
        bias = template._parameters["bias"]
        if bias is not None:
            bias = nn.Parameter(torch.empty(bias.shape, device=self.device, dtype=self.dtype))
        self.register_parameter("bias", bias)
        self._reset_bias()
        self.execution = execution

    def to_dense(self) -> nn.Module:
        """Return a plain torch layer with the same options and hooks, and the weight as it is now."""
        dense = self.dense_type.__new__(self.dense_type)
        nn.Module.__init__(dense)
        _copy_description(self, dense, leave=_OWN)
        dense.weight = nn.Parameter(self.weight.detach().clone())
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
        stride = math.prod(getattr(self, "stride", ()))
        self._way = choose(value, self, splits_input=getattr(self, "groups", 1) > 1, stride=stride)
        self._execution = value

    @property
    def way(self) -> Way:
        """How the layer runs, and why."""
        return self._way

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
