"""Terms on what the model gives: logits, and outputs of named modules."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from adntn import losses
from adntn.errors import ConfigError
from adntn.options import check_flag, check_number
from adntn.training.pair import Pair
from adntn.training.terms.base import Bound, Term, check_layers, given, mean

__all__ = ["AttentionTransfer", "Calibration", "CrossEntropy", "Distillation", "FeatureMatching"]


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Term):
    """:func:`adntn.losses.cross_entropy` of the logits (Eq. 29).

    Attributes:
        label_smoothing: at least 0 and below 1.
    """

    label_smoothing: float = 0.0

    what = "cross_entropy"
    needs_labels = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("label_smoothing", self.label_smoothing, least=0, below=1)

    def bind(self, pair: Pair) -> Bound:
        return lambda s: losses.cross_entropy(s.logits, given(s.labels), label_smoothing=self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Distillation(Term):
    """:func:`adntn.losses.distillation` from the teacher's logits (Eq. 34).

    Attributes:
        temperature: above 0.
        delta: above 0.
    """

    temperature: float = 1.0
    delta: float = 1e-8

    what = "distillation"
    needs_teacher = runs_teacher = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("temperature", self.temperature, above=0)
        check_number("delta", self.delta, above=0)

    def bind(self, pair: Pair) -> Bound:
        options = {"temperature": self.temperature, "delta": self.delta}
        return lambda s: losses.distillation(s.logits, given(s.teacher), **options)


@dataclass(frozen=True, kw_only=True)
class Calibration(Term):
    """:func:`adntn.losses.calibration` of the logits.

    Attributes:
        width: of the kernel, above 0.
    """

    width: float = 0.4

    what = "calibration"
    needs_labels = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("width", self.width, above=0)

    def bind(self, pair: Pair) -> Bound:
        return lambda s: losses.calibration(s.logits, given(s.labels), width=self.width)


@dataclass(frozen=True, kw_only=True)
class _Watching(Term):
    layers: tuple[str, ...] = ()

    needs_teacher = runs_teacher = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self)
        if not self.layers and self.weight:
            raise ConfigError(f"{self.what} compares outputs of named modules; give layers=['conv2', ...].")

    @property
    def watched(self) -> tuple[str, ...]:
        return self.layers

    def bind(self, pair: Pair) -> Bound:
        for name in self.layers:
            pair.check_module(name, self.what)
        return lambda s: mean(self.compare(*each) for name in self.layers for each in s.features[name])

    @abstractmethod
    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return the loss of one output."""


@dataclass(frozen=True, kw_only=True)
class FeatureMatching(_Watching):
    """:func:`adntn.losses.feature_matching` of the outputs of modules, the mean over these.

    Attributes:
        layers: names of modules, in model and teacher alike.
        normalize: whether to divide by the mean square of the teacher's outputs.
    """

    normalize: bool = False

    what = "features"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("normalize", self.normalize)

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return losses.feature_matching(ours, theirs, normalize=self.normalize)


@dataclass(frozen=True, kw_only=True)
class AttentionTransfer(_Watching):
    """:func:`adntn.losses.attention_transfer` of the outputs of modules, the mean over these.

    Attributes:
        layers: names of modules, in model and teacher alike.
        power: at least 1.
    """

    power: float = 2.0

    what = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("power", self.power, least=1)

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return losses.attention_transfer(ours, theirs, power=self.power)
