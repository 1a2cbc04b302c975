"""Terms on root, cores and gates alone, and on the time that layers are predicted to take."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adntn import losses
from adntn.errors import ConfigError, check_choice
from adntn.execution.choices import MODES
from adntn.generator import GeneratorModule
from adntn.losses.cores import has_cores, has_gates, has_levels
from adntn.nn import GeneratedParameter, GeneratedWeight
from adntn.options import check_number, check_whole
from adntn.training.pair import Pair
from adntn.training.terms.base import Bound, Step, Term, check_layers, mean, on_one_device

__all__ = ["ActivationScale", "GateSparsity", "Hardware", "Isometry", "Quantization"]


@dataclass(frozen=True, kw_only=True)
class _Penalty(Term):
    layers: tuple[str, ...] = ()

    wanted: ClassVar[str] = "generated layers"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self)

    @staticmethod
    def applies(generator: GeneratorModule) -> bool:
        """Return whether there is something in a generator to penalise."""
        return True

    def bind(self, pair: Pair) -> Bound:
        generators = pair.generators(self.layers, self.what, self.applies, self.wanted)
        return lambda s: self.total([self.penalty(generator) for generator in generators])

    def total(self, each: Sequence[Tensor]) -> Tensor:
        """Return the penalty of all generators."""
        return torch.stack(on_one_device(each)).sum()

    @abstractmethod
    def penalty(self, generator: GeneratorModule) -> Tensor:
        """Return the penalty of one generator."""


@dataclass(frozen=True, kw_only=True)
class Isometry(_Penalty):
    """:func:`adntn.losses.isometry`, the sum over generators (Eq. 19).

    Attributes:
        layers: names of generated layers; none means all that have cores to be isometries.
        expansions: the paper's lambda_V.
        disentanglers: the paper's lambda_U.
    """

    expansions: float = 1.0
    disentanglers: float = 1.0

    what = "isometry"
    wanted = "trees or brick walls"
    applies = staticmethod(has_cores)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("expansions", self.expansions, least=0)
        check_number("disentanglers", self.disentanglers, least=0)

    def penalty(self, generator: GeneratorModule) -> Tensor:
        return losses.isometry(generator, expansions=self.expansions, disentanglers=self.disentanglers)


@dataclass(frozen=True, kw_only=True)
class GateSparsity(_Penalty):
    """:func:`adntn.losses.gate_sparsity`, the sum over generators.

    Attributes:
        layers: names of generated layers; none means all that have gates.
        smooth: of the surrogate; 0 means the absolute value.
    """

    smooth: float = 0.0

    what = "gate_sparsity"
    wanted = "gates; GeneratorConfig(gate=True) makes them"
    applies = staticmethod(has_gates)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("smooth", self.smooth, least=0)

    def penalty(self, generator: GeneratorModule) -> Tensor:
        return losses.gate_sparsity(generator, smooth=self.smooth)


@dataclass(frozen=True, kw_only=True)
class ActivationScale(_Penalty):
    """:func:`adntn.losses.activation_scale`, the sum over generators.

    Attributes:
        layers: names of generated layers; none means all that have hidden levels.
        target: the deviation wanted, above 0.
    """

    target: float = 1.0

    what = "activation_scale"
    wanted = "levels before their readout"
    applies = staticmethod(has_levels)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("target", self.target, above=0)

    def penalty(self, generator: GeneratorModule) -> Tensor:
        return losses.activation_scale(generator, target=self.target)


@dataclass(frozen=True, kw_only=True)
class Quantization(_Penalty):
    """:func:`adntn.losses.quantization_penalty`, the mean over generators.

    Attributes:
        layers: names of generated layers; none means all.
        bits: of a stored number, at least 2.
    """

    bits: int = 8

    what = "quantization"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("bits", self.bits, 2)

    def total(self, each: Sequence[Tensor]) -> Tensor:
        return mean(each)

    def penalty(self, generator: GeneratorModule) -> Tensor:
        return losses.quantization_penalty(generator, bits=self.bits)


@dataclass(frozen=True, kw_only=True)
class Hardware(Term):
    """:func:`adntn.losses.predicted_time` of the generated layers together, over that of dense ones.

    The numbers of positions are those of the first batch.

    Attributes:
        layers: names of generated layers; none means all but parameters of other modules.
        mode: ``"training"``, ``"rebuilt"`` or ``"kept"``.
        width: of a gate's share around zero, above 0.
    """

    layers: tuple[str, ...] = ()
    mode: str = "rebuilt"
    width: float = 0.1

    what = "hardware"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self)
        check_choice("mode", self.mode, MODES)
        check_number("width", self.width, above=0)

    def bind(self, pair: Pair) -> Bound:
        layers = [
            layer
            for layer in pair.layers(self.layers, self.what).values()
            if self.layers or not isinstance(layer, GeneratedParameter)
        ]
        if not any(map(has_gates, layers)):
            raise ConfigError(
                f"{self.what} needs layers with gates, which alone can lower the predicted time; "
                "GeneratorConfig(gate=True) makes them."
            )
        positions: dict[GeneratedWeight, int] = {}

        def time(step: Step) -> Tensor:
            if not positions:
                seen = pair.positions(step.inputs)
                positions.update({layer: seen.get(layer, len(step.inputs)) for layer in layers})
            return losses.predicted_time(positions, mode=self.mode, width=self.width)

        return time
