"""The stage that quantises root and cores."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from adntn.quantization import Quantization
from adntn.quantize import quantize_
from adntn.training.looking import look
from adntn.training.objective import Losses
from adntn.training.optimization import Optimization
from adntn.training.stages.base import Event, Outcome, Stage, State
from adntn.training.stages.fitting import fit_state

__all__ = ["Quantize"]


@dataclass(frozen=True, kw_only=True)
class Quantize(Stage):
    """Round root and cores to 8 or 4 bits (:func:`adntn.quantize_`), and train the model so that it gets along with it.

    The outcome has accuracy on the validation images, and bytes, before, after rounding and after training.

    Attributes:
        bits: 8 or 4.
        targets: names of generated weights, or ``"re:"`` and a pattern.
        ignore: the same, to leave out again.
        optimization: how to train, with the numbers on their grid; None means not at all.
        losses: what to train for; None means cross-entropy.

    Raises:
        ConfigError: an option is impossible.
    """

    kind: ClassVar[str] = "quantize"
    in_every_process: ClassVar[bool] = True
    what = "a quantize stage"

    bits: int = 8
    targets: tuple[str, ...] = ("re:.*",)
    ignore: tuple[str, ...] = ()
    optimization: Optimization | None = None
    losses: Losses | None = None

    def __post_init__(self) -> None:
        Quantization(self.bits)

    def run(self, state: State) -> Outcome:
        state.model.to(state.device)
        looks = {"before": _looked_at(state)}
        report = quantize_(state.model, self.bits, self.targets, ignore=self.ignore)
        looks["rounded"] = _looked_at(state)
        state.tell(Event(0, 1, f"{self.bits} bits, validation {100 * looks['rounded'][0]:.1f} %"))
        fitted = None
        if self.optimization is not None:
            fitted = fit_state(state, self.optimization, self.losses)
            looks["trained"] = (fitted.validation_accuracy, fitted.validation_loss)
        return {
            "bits": self.bits,
            "validation_accuracy": {when: accuracy for when, (accuracy, _) in looks.items()},
            "validation_loss": {when: loss for when, (_, loss) in looks.items()},
            "generated_bytes": {"before": report.bytes_before, "after": report.bytes_after},
            "model_bytes": {"before": report.model_bytes_before, "after": report.model_bytes_after},
            "weights": {row.name: asdict(row) for row in report.layers},
            "training": None if fitted is None else asdict(fitted),
        }


def _looked_at(state: State) -> tuple[float, float]:
    return look(state.model, state.data, state.data.validation, device=state.device)
