"""The stage that trains the whole model, end to end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import ClassVar

from adntn.training.optimization import Optimization
from adntn.training.stages.base import Outcome, Stage, State

__all__ = ["FineTune"]


@dataclass(frozen=True, kw_only=True)
class FineTune(Stage):
    """Train the whole model; the teacher stays as it is.

    Attributes:
        optimization: how to train.
    """

    kind: ClassVar[str] = "fine-tune"
    what = "a fine-tune stage"

    optimization: Optimization = field(default_factory=Optimization)

    def run(self, state: State) -> Outcome:
        from adntn.training.loop import fit

        fitted = fit(
            state.model,
            state.data,
            self.optimization,
            teacher=state.teacher,
            folder=state.folder,
            seed=state.seed,
            device=state.device,
            log=state.log,
            tell=state.tell,
            deadline=state.deadline,
        )
        return asdict(fitted)
