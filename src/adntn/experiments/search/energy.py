"""What a training run takes in watt-hours, by codecarbon's tracker that asks nobody."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Energy", "measured_energy"]


@dataclass
class Energy:
    """Watt-hours of a block of code.

    Attributes:
        watt_hours: of this process; None where it is not measured.
        note: how it was measured, or why it was not.
    """

    watt_hours: float | None = None
    note: str = "left out by energy = false"


@contextlib.contextmanager
def measured_energy(wanted: bool = True) -> Iterator[Energy]:
    """Measure the energy of a block; what it is stands in the given object after the block.

    Example:
        >>> with measured_energy() as energy:
        ...     train(model)
        >>> energy.watt_hours
    """
    energy = Energy()
    if not wanted:
        yield energy
        return
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError:
        energy.note = "absent: codecarbon is not installed (pip install 'adntn[energy]')"
        yield energy
        return
    # It says on stderr what it finds out about the machine, before it reads that it is not to.
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The country only tells its emissions, which are not asked for; the energy does not depend on it.
        tracker = OfflineEmissionsTracker(
            country_iso_code="USA", output_methods=[], log_level="critical", tracking_mode="process"
        )
        tracker.start()
    try:
        yield energy
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tracker.stop()
    found = getattr(tracker, "final_emissions_data", None)
    if found is None or not found.energy_consumed > 0:
        energy.note = "absent: codecarbon found nothing on this machine that it can measure"
        return
    energy.watt_hours = 1e3 * found.energy_consumed
    energy.note = f"codecarbon {found.codecarbon_version}, {found.tracking_mode}: " + ", ".join(_hardware(tracker))


def _hardware(tracker: object) -> list[str]:
    # As "CPU(Cpu Load)": by load and rated power; "CPU(RAPL)" is a counter of the processor's.
    return [str(part) for part in getattr(tracker, "_conf", {}).get("hardware", ())]
