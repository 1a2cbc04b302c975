"""Training the whole model within a stage that does something else besides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adntn.training.objective import Losses, Objective
from adntn.training.optimization import Optimization
from adntn.training.stages.base import State

if TYPE_CHECKING:
    from adntn.training.loop import Fitted

__all__ = ["train"]


def train(state: State, how: Optimization, losses: Losses | None) -> Fitted:
    """Train a stage's model, with its folder for the checkpoints.

    Args:
        state: of the stage.
        how: to train.
        losses: what for; None means cross-entropy with ``how.label_smoothing``.
    """
    from adntn.training.loop import fit  # pytorch-lightning takes seconds to import

    objective = None if losses is None else Objective(losses, state.model, state.teacher, seed=state.seed)
    try:
        return fit(
            state.model,
            state.data,
            how,
            objective=objective,
            teacher=state.teacher,
            folder=state.folder,
            seed=state.seed,
            device=state.device,
            log=state.log,
            tell=state.tell,
            deadline=state.deadline,
        )
    finally:
        if objective is not None:
            objective.close()
