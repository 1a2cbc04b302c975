"""The stage that prunes generated weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from adntn.describe import stored_bytes
from adntn.options import check_number
from adntn.prune import prune_
from adntn.training.looking import look
from adntn.training.objective import Losses
from adntn.training.optimization import Optimization
from adntn.training.stages.base import Event, Outcome, Stage, State
from adntn.training.stages.fitting import fit_state

__all__ = ["Prune"]


@dataclass(frozen=True, kw_only=True)
class Prune(Stage):
    """Take out gates, disentanglers, terms and ranks that do next to nothing (:func:`adntn.prune_`), and train on.

    The outcome has accuracy on the validation images, numbers and bytes, before and after, and what changed each weight
    by how much.

    Attributes:
        threshold: under which they are taken out.
        tolerance: the largest relative change of a weight that is accepted; None accepts any.
        targets: names of generated weights, or ``"re:"`` and a pattern.
        ignore: the same, to leave out again.
        optimization: how to train afterwards; None means not at all.
        losses: what to train for; None means cross-entropy.

    Raises:
        ConfigError: an option is impossible.
    """

    kind: ClassVar[str] = "prune"
    in_every_process: ClassVar[bool] = True
    what = "a prune stage"

    threshold: float = 1e-2
    tolerance: float | None = 0.05
    targets: tuple[str, ...] = ("re:.*",)
    ignore: tuple[str, ...] = ()
    optimization: Optimization | None = None
    losses: Losses | None = None

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, least=0)
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, least=0)

    def run(self, state: State) -> Outcome:
        state.model.to(state.device)
        looks = {"before": _looked_at(state)}
        size = stored_bytes(state.model)
        report = prune_(state.model, self.threshold, self.targets, ignore=self.ignore, tolerance=self.tolerance)
        looks["pruned"] = _looked_at(state)
        before, after = report.numbers_before, report.numbers_after
        state.tell(Event(0, 1, f"{before:,} -> {after:,} numbers, validation {100 * looks['pruned'][0]:.1f} %"))
        fitted = None
        if self.optimization is not None:
            fitted = fit_state(state, self.optimization, self.losses)
            looks["trained"] = (fitted.validation_accuracy, fitted.validation_loss)
        return {
            "validation_accuracy": {when: accuracy for when, (accuracy, _) in looks.items()},
            "validation_loss": {when: loss for when, (_, loss) in looks.items()},
            "numbers": {"before": before, "after": after},
            "model_bytes": {"before": size, "after": stored_bytes(state.model)},
            "weights": {
                row.name: {
                    "before": row.before.to_dict(),
                    "after": row.after.to_dict(),
                    "found": dict(row.found),
                    "relative_change": row.relative_change,
                    "accepted": row.accepted,
                }
                for row in report.layers
            },
            "training": None if fitted is None else asdict(fitted),
        }


def _looked_at(state: State) -> tuple[float, float]:
    return look(state.model, state.data, state.data.validation, device=state.device)
