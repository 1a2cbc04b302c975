"""Terms that compare generated weights with the teacher's.

Each is a mean over the entries, in units of the root mean square of the teacher's weight, so that layers of any size
and scale count alike.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from adntn import losses
from adntn.nn import GeneratedWeight
from adntn.options import check_number, check_whole
from adntn.training.pair import Pair, Target
from adntn.training.terms.base import Bound, Step, Term, check_layers, mean

__all__ = ["L1", "Frobenius", "Huber", "SampledFrobenius"]


@dataclass(frozen=True, kw_only=True)
class _Reconstruction(Term):
    layers: tuple[str, ...] = ()

    needs_teacher = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self)

    def bind(self, pair: Pair) -> Bound:
        targets = pair.targets(self.layers, self.what)
        return lambda s: mean(self.compare(layer, target, s) for layer, target in targets)

    @abstractmethod
    def compare(self, layer: GeneratedWeight, target: Target, step: Step) -> Tensor:
        """Return the loss of one weight, over its entries in units of the target's root mean square."""


@dataclass(frozen=True, kw_only=True)
class Frobenius(_Reconstruction):
    """Distance to the teacher's weights: ``||W - T||_F^2 / (2 ||T||_F^2)``, the mean over layers (Eq. 28).

    It makes the whole weights in each step; :class:`SampledFrobenius` does not.

    Attributes:
        layers: names of generated layers; none means all.
    """

    what = "frobenius"

    def compare(self, layer: GeneratedWeight, target: Target, step: Step) -> Tensor:
        return losses.frobenius(*target.beside(layer)) / (target.size * target.rms**2)


@dataclass(frozen=True, kw_only=True)
class SampledFrobenius(_Reconstruction):
    """An estimate of :class:`Frobenius` at entries drawn anew in each step: ``P L_Omega / ||T||_F^2`` (Eq. 32).

    Attributes:
        layers: names of generated layers; none means all.
        samples: entries of each layer.
    """

    samples: int = 1024

    what = "sampled_frobenius"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("samples", self.samples, 1)

    def compare(self, layer: GeneratedWeight, target: Target, step: Step) -> Tensor:
        columns = [torch.randint(size, (self.samples,), generator=step.chance) for size in layer.shape]
        index = torch.stack(columns, 1).to(layer.device)
        values = target.values
        wanted = values[index.to(values.device).unbind(1)].to(layer.device)
        return losses.sampled_frobenius(layer, wanted, index) / target.rms**2


@dataclass(frozen=True, kw_only=True)
class L1(_Reconstruction):
    """Absolute distance to the teacher's weights: ``sum |W - T| / (P rms(T))``, the mean over layers (Eq. 33).

    Attributes:
        layers: names of generated layers; none means all.
    """

    what = "l1"

    def compare(self, layer: GeneratedWeight, target: Target, step: Step) -> Tensor:
        return losses.l1(*target.beside(layer)) / (target.size * target.rms)


@dataclass(frozen=True, kw_only=True)
class Huber(_Reconstruction):
    """Huber's distance to the teacher's weights, of the entries ``(W - T) / rms(T)``: their mean, and that over layers.

    Where no entry differs by more than ``delta`` it is :class:`Frobenius`.

    Attributes:
        layers: names of generated layers; none means all.
        delta: where squares end, in units of the teacher's root mean square.
    """

    delta: float = 1.0

    what = "huber"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("delta", self.delta, above=0)

    def compare(self, layer: GeneratedWeight, target: Target, step: Step) -> Tensor:
        loss = losses.huber(*target.beside(layer), delta=self.delta * target.rms)
        return loss / (target.size * target.rms**2)
