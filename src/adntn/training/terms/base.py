"""What a term of an objective is, and what it sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from adntn.errors import ConfigError
from adntn.options import Options, check_number
from adntn.training.pair import Pair

__all__ = ["Bound", "Step", "Term", "check_layers", "given", "mean", "on_one_device"]


@dataclass(frozen=True, eq=False)
class Step:
    """What terms see of one training step.

    Attributes:
        inputs: of the model, shape ``(batch, ...)``.
        logits: of the model, shape ``(batch, classes)``.
        labels: shape ``(batch,)``; None where nobody needs them.
        teacher: its logits, shape ``(batch, classes)``; None where nobody needs them.
        features: by the name of a module, what it gave in the model and in the teacher, once a call.
        chance: for what is drawn anew in each step.
    """

    inputs: Tensor
    logits: Tensor
    labels: Tensor | None
    teacher: Tensor | None
    features: Mapping[str, Sequence[tuple[Tensor, Tensor]]]
    chance: torch.Generator


#: A term of a model and its teacher.
Bound = Callable[[Step], Tensor]


@dataclass(frozen=True, kw_only=True)
class Term(Options, ABC):
    """One term of an objective.

    Attributes:
        weight: its factor in the sum, lambda; 0 leaves it out.
    """

    weight: float = 1.0

    what = "a term"
    has_shorthand: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    runs_teacher: ClassVar[bool] = False
    """Whether the teacher has to be run on the inputs, too."""

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0)

    @property
    def watched(self) -> tuple[str, ...]:
        """Names of the modules whose outputs it compares."""
        return ()

    @abstractmethod
    def bind(self, pair: Pair) -> Bound:
        """Return the term for a model and its teacher.

        Raises:
            ConfigError: they lack something that it needs.
        """


def given(tensor: Tensor | None) -> Tensor:
    """Return what the objective has made sure is there."""
    assert tensor is not None
    return tensor


def mean(values: Iterable[Tensor]) -> Tensor:
    """Return the mean of scalars."""
    return torch.stack(on_one_device(list(values))).mean()


def on_one_device(values: Sequence[Tensor]) -> list[Tensor]:
    """Return scalars on the device of the first."""
    return [value.to(values[0].device) for value in values]


def check_layers(term: Any) -> None:
    """Make a term's ``layers`` a tuple of names, or raise.

    Raises:
        ConfigError: they are something else.
    """
    layers = (term.layers,) if isinstance(term.layers, str) else term.layers
    if not isinstance(layers, (tuple, list)) or not all(isinstance(name, str) for name in layers):
        raise ConfigError(f"layers={layers!r} is not possible; give names of layers, as ['conv2', 'fc1'].")
    object.__setattr__(term, "layers", tuple(layers))
