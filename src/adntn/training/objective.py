"""What a training run minimises: a weighted sum of named losses, from a table of options (paper, Eqs. 31 and 35)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from adntn.errors import ConfigError, ShapeError
from adntn.losses import WeightedSum
from adntn.options import Options
from adntn.training.pair import Pair
from adntn.training.seeds import derive_seed
from adntn.training.terms import (
    L1,
    ActivationScale,
    AttentionTransfer,
    Calibration,
    CrossEntropy,
    Distillation,
    FeatureMatching,
    Frobenius,
    GateSparsity,
    Hardware,
    Huber,
    Isometry,
    Quantization,
    SampledFrobenius,
    Step,
    Term,
)

__all__ = ["Losses", "Objective"]


@dataclass(frozen=True, kw_only=True)
class Losses(Options):
    """The terms of an objective by name, each with its weight and options.

    In place of a term stands its weight, or a table of its options, where that is handier; in a recipe::

        [stage.losses]
        cross_entropy = { weight = 1.0, label_smoothing = 0.1 }
        distillation = { weight = 0.5, temperature = 4.0 }
        features = { weight = 0.1, layers = ["conv2"] }
        isometry = 1e-3

    Cross-entropy counts with weight 1 unless it is given another; ``cross_entropy = 0`` leaves it out. Every other
    term is left out unless it is named.

    Attributes:
        cross_entropy: with the labels.
        distillation: from the teacher's logits.
        features: outputs of modules beside the teacher's.
        attention: where modules look, beside the teacher's.
        calibration: of confidences.
        frobenius: weights beside the teacher's.
        sampled_frobenius: a sample of their entries.
        l1: their absolute differences.
        huber: between both.
        isometry: of cores.
        gate_sparsity: of gates.
        activation_scale: of hidden levels.
        quantization: distance of root and cores from what few bits can store.
        hardware: the predicted time.

    Raises:
        ConfigError: an option is unknown or impossible, or no term has a weight.

    Example:
        >>> Losses.from_dict({"distillation": {"weight": 0.5, "temperature": 4.0}, "isometry": 1e-3})
    """

    cross_entropy: CrossEntropy = field(default_factory=CrossEntropy)
    distillation: Distillation | None = None
    features: FeatureMatching | None = None
    attention: AttentionTransfer | None = None
    calibration: Calibration | None = None
    frobenius: Frobenius | None = None
    sampled_frobenius: SampledFrobenius | None = None
    l1: L1 | None = None
    huber: Huber | None = None
    isometry: Isometry | None = None
    gate_sparsity: GateSparsity | None = None
    activation_scale: ActivationScale | None = None
    quantization: Quantization | None = None
    hardware: Hardware | None = None

    what = "a table of losses"

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            object.__setattr__(self, name, _term(name, kind, getattr(self, name)))
        if not self.terms:
            raise ConfigError("no loss has a weight above 0, so there is nothing to train for; give cross_entropy one.")

    @property
    def terms(self) -> dict[str, Term]:
        """The terms that count, by name."""
        named = {name: getattr(self, name) for name in _KINDS}
        return {name: term for name, term in named.items() if term is not None and term.weight > 0}

    @property
    def needs_teacher(self) -> bool:
        """Whether a term needs a teacher."""
        return any(term.needs_teacher for term in self.terms.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_dict` reads back to equal options; terms left out are not there."""
        named = {name: getattr(self, name) for name in _KINDS}
        return {name: term.to_dict() for name, term in named.items() if term is not None}


_KINDS: dict[str, type[Term]] = {
    "cross_entropy": CrossEntropy,
    "distillation": Distillation,
    "features": FeatureMatching,
    "attention": AttentionTransfer,
    "calibration": Calibration,
    "frobenius": Frobenius,
    "sampled_frobenius": SampledFrobenius,
    "l1": L1,
    "huber": Huber,
    "isometry": Isometry,
    "gate_sparsity": GateSparsity,
    "activation_scale": ActivationScale,
    "quantization": Quantization,
    "hardware": Hardware,
}


def _term(name: str, kind: type[Term], given: object) -> Term | None:
    if given is None:
        return CrossEntropy(weight=0.0) if kind is CrossEntropy else None
    if isinstance(given, kind):
        return given
    if isinstance(given, Mapping):
        return kind.from_dict(given)
    if isinstance(given, (int, float)):
        return kind(weight=given)
    raise ConfigError(f"{name}={given!r} is not possible; give a number, its weight, or a table of options.")


class Objective:
    """The losses of a model and its teacher, to be called once a training step.

    Modules whose outputs a term compares have a hook until :meth:`close`, in model and teacher; it keeps outputs only
    while the objective runs. The teacher is run only if a term compares outputs with its own, without gradients and in
    evaluation mode, in which it is left.

    Args:
        losses: which terms, with which weights.
        model: as it is trained, wrapped by DistributedDataParallel or torch.compile or not. Names of layers are
            those of the inner model.
        teacher: the dense model, where a term needs one.
        seed: of what is drawn anew in each step.

    Attributes:
        step: calls so far. What is drawn depends on it and the seed alone: a run that goes on from a checkpoint sets it
            to what it was.

    Raises:
        ConfigError: a term needs a teacher or generated layers and there are none, or a name is in neither.
        ShapeError: a weight of the teacher has another shape.

    Example:
        >>> objective = Objective(Losses(distillation=Distillation(weight=0.5)), model, teacher)
        >>> loss, values = objective(model, images, labels)
        >>> loss.backward()
        >>> objective.close()
    """

    def __init__(self, losses: Losses, model: nn.Module, teacher: nn.Module | None = None, *, seed: int = 0) -> None:
        self.losses, self.seed, self.step = losses, seed, 0
        terms = losses.terms
        needy = [name for name, term in terms.items() if term.needs_teacher]
        if teacher is None and needy:
            raise ConfigError(f"{', '.join(needy)}: a teacher is needed and there is none.")
        pair = Pair(model, teacher)
        if needy and pair.teacher is pair.model:
            raise ConfigError(
                f"{', '.join(needy)}: the teacher is the model itself, from which there is nothing to learn."
            )
        self._sum = WeightedSum({name: (term.weight, term.bind(pair)) for name, term in terms.items()})
        self._labelled = [name for name, term in terms.items() if term.needs_labels]
        self._teacher = teacher if any(term.runs_teacher for term in terms.values()) else None
        watched = list(dict.fromkeys(name for term in terms.values() for name in term.watched))
        both = {name: pair.modules(name) for name in watched}
        self._ours = _Watch({name: modules[0] for name, modules in both.items()})
        self._theirs = _Watch({name: modules[1] for name, modules in both.items()})

    def __call__(
        self,
        forward: Callable[[Tensor], Tensor],
        inputs: Tensor,  # shape: (batch, ...), as the model takes them
        labels: Tensor | None = None,  # shape: (batch,)
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the model, and the teacher if needed, and return the loss and its terms.

        Args:
            forward: the model as it is to be called, in whatever it is wrapped.
            inputs: of the model.
            labels: None where no term needs them.

        Returns:
            The sum, and every term by name, without its weight and detached.

        Raises:
            ConfigError: a term needs labels and there are none, or a named module was not called.
            ShapeError: outputs of model and teacher do not fit each other.
        """
        if labels is None and self._labelled:
            raise ConfigError(f"{', '.join(self._labelled)}: labels are needed and there are none.")
        with self._ours:
            logits = forward(inputs)
            ours = self._ours.taken()
        teachers = None
        theirs: dict[str, list[Tensor]] = {}
        if self._teacher is not None:
            if self._teacher.training:
                self._teacher.eval()
            with self._theirs, torch.no_grad():
                teachers = self._teacher(inputs)
                theirs = self._theirs.taken()
        chance = torch.Generator().manual_seed(derive_seed(self.seed, "objective", self.step))
        self.step += 1
        features = {name: _side_by_side(name, ours[name], theirs[name]) for name in ours}
        return self._sum(Step(inputs, logits, labels, teachers, features, chance))

    def close(self) -> None:
        """Take the hooks out again. It may be called more than once."""
        self._ours.close()
        self._theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _side_by_side(name: str, ours: list[Tensor], theirs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    if len(ours) != len(theirs):
        raise ShapeError(
            f"{name!r} is called {len(ours)} times in the model and {len(theirs)} times in the teacher, so their "
            "outputs cannot be compared."
        )
    return list(zip(ours, theirs, strict=True))


class _Watch:
    """Keeps what named modules give while it is entered."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._names, self._on = list(modules), False
        self._seen: dict[str, list[Tensor]] = {name: [] for name in modules}
        self._handles = [
            module.register_forward_hook(functools.partial(self._keep, name)) for name, module in modules.items()
        ]
        self._forget_graphs()

    def _keep(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self._on:
            # Of a module that gives several, as an attention or an LSTM, the first.
            self._seen[name].append(output[0] if isinstance(output, (tuple, list)) else output)

    def _forget_graphs(self) -> None:
        # Compiled graphs do not look whether hooks came or went.
        if self._handles and "torch._dynamo" in sys.modules:
            torch.compiler.reset()

    def taken(self) -> dict[str, list[Tensor]]:
        """Return what was seen, by name, once a call."""
        seen = dict(self._seen)
        self._seen = {name: [] for name in self._names}
        for name, outputs in seen.items():
            if not outputs:
                raise ConfigError(f"{name!r} was not called in the forward pass, so there is no output to compare.")
            if not all(isinstance(output, Tensor) for output in outputs):
                raise ConfigError(f"{name!r} gives no tensor but {outputs[0]!r:.60}, which cannot be compared.")
        return seen

    def __enter__(self) -> None:
        self._on = True

    def __exit__(self, *_: object) -> None:
        self._on = False
        self._seen = {name: [] for name in self._names}

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._forget_graphs()
        self._handles = []
