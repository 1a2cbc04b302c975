"""What stages say of themselves, as rows of a table, a few words, and a curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

__all__ = ["curve_of", "note_of", "rows_of"]

Outcome = Mapping[str, Any]
Rows = list[dict[str, Any]]


def rows_of(kind: str, outcome: Outcome) -> Rows:
    """Return a table's rows of plain values; none for a stage that has none.

    Args:
        kind: of the stage.
        outcome: that it returned. Its own ``"rows"`` go before what this library makes of the stages that it knows.
    """
    if "rows" in outcome:
        return [dict(row) for row in outcome["rows"]]
    return _ROWS[kind](outcome) if kind in _ROWS else []


def note_of(kind: str, outcome: Outcome) -> str:
    """Return a few words on a stage; its own ``"note"`` if it has one."""
    if "note" in outcome:
        return str(outcome["note"])
    return _NOTES[kind](outcome) if kind in _NOTES else ""


def curve_of(outcome: Outcome) -> Sequence[float]:
    """Return the validation accuracies of a stage's epochs, the first one first."""
    training = outcome.get("training")
    inside = training.get("curve", ()) if isinstance(training, Mapping) else ()
    curve: Sequence[float] = outcome.get("curve", inside)
    return curve


def _picked(row: Outcome, **names: str) -> dict[str, Any]:
    """Return some of a row's values under other names; what is not there is left out."""
    return {new: row[old] for new, old in names.items() if old in row}


def _selected(outcome: Outcome) -> Rows:
    return [
        {
            "layer": row["name"],
            "weight": "x".join(map(str, row["weight"])),
            **_picked(row, topology="topology", dense="dense", generated="generated", rank_bound="rank_bound"),
            **_picked(row, runs="runs"),
        }
        for row in outcome.get("layers", ())
    ]


def _warm_started(outcome: Outcome) -> Rows:
    return [
        {
            "layer": name,
            **_picked(row, error_of_the_linear_tree="truncation_error", bound="bound"),
            **_picked(row, error_with_the_activation="relative_error", stable_rank="stable_rank"),
            **_picked(row, of_the_teacher="target_stable_rank", seconds="seconds"),
        }
        for name, row in outcome.get("layers", {}).items()
    ]


def _blocks_note(outcome: Outcome) -> str:
    if "objective" not in outcome:
        return ""
    accuracy = outcome.get("validation_accuracy")
    if outcome.get("kept", True) or accuracy is None:
        return f"by {outcome['objective']}"
    return f"by {outcome['objective']}; taken back, validation would have been {100 * accuracy['after']:.1f} %"


def _blocks(outcome: Outcome) -> Rows:
    return [
        {"block": row["name"], **_picked(row, before="before", after="after", steps="steps", seconds="seconds")}
        for row in outcome.get("blocks", ())
    ]


def _grown(outcome: Outcome) -> Rows:
    return [
        {
            "leg": row["leg"],
            **{name: row.get(name) for name in ("layer", "change", "cost")},
            **_picked(row, numbers="parameters", validation="accuracy"),
            "gain": row.get("gain"),
            **_picked(row, epochs="epochs", seconds="seconds"),
            "kept": row["leg"] == outcome.get("kept"),
        }
        for row in outcome.get("legs", ())
    ]


def _quantized(outcome: Outcome) -> Rows:
    sizes = {name: outcome.get(f"{name}_bytes", {}) for name in ("generated", "model")}
    return [
        {
            "when": when,
            "validation": accuracy,
            # Training moves the numbers on their grid, and takes no bytes.
            **{f"{name}_bytes": size.get("before" if when == "before" else "after") for name, size in sizes.items()},
        }
        for when, accuracy in outcome.get("validation_accuracy", {}).items()
    ]


def _finished(outcome: Outcome) -> Rows:
    return [
        {"form": name, **_picked(outcome[name], file="file", bytes="bytes", difference="difference")}
        for name in ("cores", "dense")
        if name in outcome
    ]


_ROWS: Mapping[str, Callable[[Outcome], Rows]] = MappingProxyType(
    {
        "select": _selected,
        "warm-start": _warm_started,
        "blocks": _blocks,
        "grow": _grown,
        "quantize": _quantized,
        "finish": _finished,
    }
)


def _select_note(outcome: Outcome) -> str:
    layers = outcome.get("layers", ())
    topologies = ", ".join(dict.fromkeys(str(row["topology"]) for row in layers))
    return f"{len(layers)} layer{'s' * (len(layers) != 1)}: {topologies}" if layers else ""


def _grow_note(outcome: Outcome) -> str:
    grown = max(0, len(outcome.get("legs", ())) - 1)
    times = f"{grown} time{'s' * (grown != 1)}"
    return "; ".join(filter(None, (times, str(outcome.get("ended", "")))))


_NOTES: Mapping[str, Callable[[Outcome], str]] = MappingProxyType(
    {
        "select": _select_note,
        "blocks": _blocks_note,
        "grow": _grow_note,
        "quantize": lambda outcome: f"{outcome['bits']} bits" if "bits" in outcome else "",
    }
)
