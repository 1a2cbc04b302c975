"""What stages with gradient steps share: the loop, with the stage's losses and everything that a state says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from adntn.training.objective import Losses, Objective
from adntn.training.optimization import Optimization
from adntn.training.stages.base import State

if TYPE_CHECKING:
    from adntn.training.loop import Fitted

__all__ = ["fit_state"]


def fit_state(
    state: State,
    how: Optimization,
    losses: Losses | None = None,
    *,
    folder: Path | None = None,
    seed: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Train a state's model.

    Args:
        state: has model, teacher, data and whoever is told.
        how: to train.
        losses: to train for; None means cross-entropy with ``how.label_smoothing``.
        folder: of the checkpoints; None means the state's own.
        seed: None means the state's own.
        on_step: called before each step with the steps done and the steps in all.
    """
    from adntn.training.loop import fit

    seed = state.seed if seed is None else seed
    objective = None if losses is None else Objective(losses, state.model, state.teacher, seed=seed)

    def before_step(step: int, total: int) -> None:
        if objective is not None:
            objective.step = step  # what is drawn in a step is then the same where a run goes on
        if on_step is not None:
            on_step(step, total)

    try:
        return fit(
            state.model,
            state.data,
            how,
            objective=objective,
            teacher=state.teacher,
            folder=state.folder if folder is None else folder,
            seed=seed,
            device=state.device,
            log=state.log,
            tell=state.tell,
            deadline=state.deadline,
            on_step=before_step,
        )
    finally:
        if objective is not None:
            objective.close()
