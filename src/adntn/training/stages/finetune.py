"""The stage that trains the whole model, end to end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import ClassVar

from adntn.training.objective import Losses
from adntn.training.optimization import Optimization
from adntn.training.stages.base import Outcome, Stage, State
from adntn.training.stages.fitting import fit_state

__all__ = ["FineTune"]


@dataclass(frozen=True, kw_only=True)
class FineTune(Stage):
    """Train the whole model; the teacher stays as it is.

    Attributes:
        optimization: how to train.
        losses: to train for; None means cross-entropy.
    """

    kind: ClassVar[str] = "fine-tune"
    in_every_process: ClassVar[bool] = True
    what = "a fine-tune stage"

    optimization: Optimization = field(default_factory=Optimization)
    losses: Losses | None = None

    def run(self, state: State) -> Outcome:
        return asdict(fit_state(state, self.optimization, self.losses))
