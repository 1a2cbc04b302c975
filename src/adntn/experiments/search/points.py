"""What a trial comes to, and which of them are on the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ["MEASURES", "Measured", "Point", "front"]

#: The measures that a front can be made of, and whether more of it is better.
MEASURES: Mapping[str, bool] = MappingProxyType(
    {
        "parameters": False,
        "file_bytes": False,
        "latency_ratio": False,
        "energy_wh": False,
        "validation_accuracy": True,
        "test_accuracy": True,
        "agreement": True,
        "calibration_error": False,
        "train_seconds": False,
    }
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a trained configuration is measured at.

    Attributes:
        parameters: of the whole model.
        file_bytes: of its safetensors file.
        validation_accuracy: after the last epoch, 0 ... 1. The search goes by it.
        test_accuracy: likewise; nothing goes by it.
        agreement: share of the test images to which model and dense teacher give the same class.
        calibration_error: expected, over 15 bins, on the test images.
        train_seconds: wall-clock time of training, evaluations left out.
        energy_wh: of training, watt-hours, as codecarbon has it; None where it is not there.
        energy_note: how the energy was measured, or why it was not.
        curve: validation accuracy after each epoch.
    """

    parameters: int
    file_bytes: int
    validation_accuracy: float
    test_accuracy: float
    agreement: float
    calibration_error: float
    train_seconds: float
    energy_wh: float | None = None
    energy_note: str = ""
    curve: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measured:
        return cls(**{**values, "curve": tuple(values["curve"])})


@dataclass(frozen=True, kw_only=True)
class Point(Measured):
    """A finished trial.

    Attributes:
        trial: its number in the search of its budget.
        budget: parameters of the whole model that it was allowed.
        settings: the value of each knob.
        recipe: that ``adntn train`` runs.
        file: the model's, relative to the search folder.
        latency_ms: median forward time of a batch, under :func:`adntn.cached`.
        latency_ratio: over the dense model's, in turns with it; None before it is timed.
    """

    trial: int
    budget: int
    settings: dict[str, Any]
    recipe: dict[str, Any] = field(repr=False)
    file: str
    latency_ms: float | None = None
    latency_ratio: float | None = None

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.budget}-{self.trial:02d}"


def front(points: Sequence[Point], measures: Sequence[str]) -> list[Point]:
    """Return the points that no other is at least as good as in every measure and better in one.

    Args:
        points: finished trials; one that lacks a measure is on no front.
        measures: some of :data:`MEASURES`.

    Returns:
        The points by rising first measure; of equal ones the first.
    """
    costs: list[tuple[tuple[float, ...], Point]] = []
    for point in points:
        values = [getattr(point, name) for name in measures]
        if None not in values:
            costs.append((tuple(-v if MEASURES[n] else v for v, n in zip(values, measures, strict=True)), point))
    costs.sort(key=lambda each: each[0])
    kept: list[tuple[tuple[float, ...], Point]] = []
    for cost, point in costs:
        # Sorted, a point can only be beaten by an earlier one.
        if not any(all(a <= b for a, b in zip(other, cost, strict=True)) for other, _ in kept):
            kept.append((cost, point))
    return [point for _, point in kept]
