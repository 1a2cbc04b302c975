"""The table that says how faithful a model is to its teacher."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from adntn.experiments.faithfulness import Faithfulness
from adntn.report.figures import NONE, percent, points
from adntn.report.pages import Table, markdown_table, to_text

__all__ = ["faithfulness_markdown", "faithfulness_table", "faithfulness_text"]


def faithfulness_table(found: Faithfulness | Mapping[str, Any], classes: Sequence[str] = ()) -> Table:
    """Return the table.

    Args:
        found: what :func:`adntn.experiments.faithfulness.faithfulness` returned, or its ``to_dict()``.
        classes: names of the classes; their numbers stand where there are none.
    """
    values = found.to_dict() if isinstance(found, Faithfulness) else found
    own, teacher = values["model"], values["teacher"]

    def worst(scores: Mapping[str, Any]) -> str:
        number = scores["worst_class"]
        return f"{percent(scores['worst_accuracy'])} ({classes[number] if classes else f'class {number}'})"

    rows = [
        _row("accuracy, %", own, teacher, "accuracy"),
        _row("expected calibration error, %", own, teacher, "calibration_error"),
        ("worst class, %", worst(own), *(() if teacher is None else (worst(teacher), NONE))),
    ]
    if own["corrupted"]:
        corrupted = [{"mean": statistics.mean(s["corrupted"].values())} if s else None for s in (own, teacher)]
        rows.append(_row("under corruptions, mean, %", corrupted[0], corrupted[1], "mean"))
        others = None if teacher is None else teacher["corrupted"]
        rows += [_row(f"under {name}, %", own["corrupted"], others, name) for name in own["corrupted"]]
    if teacher is None:
        return Table(("measure", "model"), tuple(rows))
    rows.append(("agreement, %", percent(values["agreement"]), "", ""))
    rows.append(("KL(teacher ‖ model), nats", f"{values['divergence']:.4f}", "", ""))
    similarity = values["similarity"] or {}
    rows += [
        (f"similarity of features, {layer}", NONE if value is None else f"{value:.3f}", "", "")
        for layer, value in similarity.items()
    ]
    return Table(("measure", "model", "teacher", "Δ points"), tuple(rows))


def _row(title: str, own: Any, teacher: Any, name: str) -> tuple[str, ...]:
    if teacher is None:
        return title, percent(own[name])
    return title, percent(own[name]), percent(teacher[name]), points(own[name] - teacher[name])


def faithfulness_markdown(found: Faithfulness | Mapping[str, Any], classes: Sequence[str] = ()) -> str:
    """Return the table in Markdown."""
    return markdown_table(faithfulness_table(found, classes))


def faithfulness_text(found: Faithfulness | Mapping[str, Any], classes: Sequence[str] = ()) -> str:
    """Return the table as plain lines, for a screen without colours."""
    return to_text(faithfulness_table(found, classes))
