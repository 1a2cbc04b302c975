"""What all generated layers share."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from adntn.execution.cache import keep
from adntn.execution.factored import Factors
from adntn.execution.plan import Way, choose
from adntn.generator import Generator
from adntn.topology import GeneratorConfig

__all__ = ["GeneratedLayer", "dense_weight"]

# What nn.Module keeps for itself; everything else in a layer's __dict__ describes the layer: sizes, stride, padding ...
_MODULE_STATE = frozenset(vars(nn.Module()))


def _copy_description(source: nn.Module, target: nn.Module, leave: tuple[str, ...] = ()) -> None:
    """Copy a layer's options and hooks, without parameters, buffers and children."""
    for name, value in vars(source).items():
        if (name not in _MODULE_STATE or "hooks" in name) and name not in leave:
            object.__setattr__(target, name, value)


def dense_weight(dense: nn.Module) -> nn.Parameter:
    """Return the weight of a torch layer that has one."""
    weight = dense._parameters["weight"]
    assert weight is not None
    return weight


class GeneratedLayer(nn.Module):
    """Mixed into a subclass of a torch layer, whose ``weight`` becomes a read-only property.

    Attributes:
        generator: makes the weight; its parameters are the layer's.
        dense_type: the torch layer that the class stands in for.
    """

    dense_type: ClassVar[type[nn.Module]]
    generator: Generator
    bias: nn.Parameter | None

    @classmethod
    def from_dense(
        cls,
        dense: nn.Module,
        config: GeneratorConfig | None = None,
        *,
        generator: Generator | None = None,
        execution: str = "auto",
    ) -> Self:
        """Build the layer that stands in for a dense one, with the same options, bias, hooks, device, dtype and mode.

        Args:
            dense: a torch layer; its weight may lie on the meta device.
            config: of the generator, which starts at random values.
            generator: an existing one to use instead, as for tied weights.
            execution: how to run, see :attr:`execution`.
        """
        weight = dense_weight(dense)
        if generator is None:
            generator = Generator(tuple(weight.shape), config, device=weight.device, dtype=weight.dtype)
        layer = cls.__new__(cls)
        layer._adopt(dense, generator, execution)
        return layer

    def _adopt(self, dense: nn.Module, generator: Generator, execution: str) -> None:
        """Take over everything of a dense layer but its weight. Runs instead of the torch layer's ``__init__``."""
        nn.Module.__init__(self)
        _copy_description(dense, self)
        self.register_parameter("bias", dense._parameters["bias"])
        self.generator = generator
        self.execution = execution
        self.train(dense.training)

    def to_dense(self) -> nn.Module:
        """Return a plain torch layer with the same options and hooks, and the weight as it is now."""
        dense = self.dense_type.__new__(self.dense_type)
        nn.Module.__init__(dense)
        _copy_description(self, dense, leave=("_execution", "_way"))
        dense.weight = nn.Parameter(self.weight.detach().clone())
        bias = self.bias
        if bias is not None:
            bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        dense.register_parameter("bias", bias)
        return dense.train(self.training)

    @property
    def weight(self) -> Tensor:
        """The generated weight, made anew at each access; read-only."""
        weight: Tensor = keep(self.generator, "weight", self.generator)
        return weight

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                f"the weight of {type(self).__module__}.{type(self).__name__} is generated and read-only; "
                "change the parameters of its .generator, or make the layer plain with adntn.materialize()."
            )
        super().__setattr__(name, value)

    @property
    def execution(self) -> str:
        """How the layer was asked to run: ``"auto"``, ``"factored"`` or ``"dense"``."""
        return self._execution

    @execution.setter
    def execution(self, value: str) -> None:
        self._way = choose(value, self.generator, splits_input=getattr(self, "groups", 1) > 1)
        self._execution = value

    @property
    def way(self) -> Way:
        """How the layer runs, and why."""
        return self._way

    def _factors(self) -> Factors:
        factors = keep(self.generator, "factors", self.generator.factors)
        assert factors is not None  # choose() does not take this way otherwise
        return factors

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the generator and the bias anew, the bias as torch's own layer does."""
        self.generator.reset_parameters()
        if self.bias is not None and not self.bias.is_meta:
            fan_in = self.generator.blueprint.size // self.generator.shape[0]
            bound = fan_in**-0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, runs {self.way}"
