"""The report of ``adntn reproduce whole``: networks at equal budgets of trained numbers, ours beside the rivals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adntn.checkpoint import writing
from adntn.experiments.reproduce.networks import TEACHER
from adntn.experiments.reproduce.rows import Result
from adntn.report.figures import NONE, short
from adntn.report.pages import Table, markdown_table
from adntn.report.reproduce.lines import (
    Line,
    compare,
    conditions,
    counted,
    gather,
    judged_by,
    machines,
    read_finished,
    write_csv,
)
from adntn.report.reproduce.whole_plot import Series, whole_figure

__all__ = ["whole_text", "write_whole"]

_NETWORKS = {"vgg16": "VGG-16", "resnet20": "ResNet-20"}
_OWN_SIZE = "own size"


@dataclass(frozen=True)
class _Network:
    """The rows of a network.

    Attributes:
        group: its name.
        cells: by rival and budget; budget None is a rival that has one size only.
    """

    group: str
    cells: Mapping[tuple[str, int | None], Line]

    @property
    def title(self) -> str:
        return _NETWORKS.get(self.group, self.group)

    @property
    def budgets(self) -> list[int]:
        return sorted({budget for _, budget in self.cells if budget is not None})

    @property
    def rivals(self) -> list[str]:
        """Ours, then the others that have budgets, then those of one size, each by name."""
        names = {rival for rival, _ in self.cells}
        return sorted(names, key=lambda name: (not self.ours(name), (name, None) in self.cells, name))

    def ours(self, rival: str) -> bool:
        return any(_about(line.first)[2] for (name, _), line in self.cells.items() if name == rival)

    @property
    def dense(self) -> Line | None:
        return self.cells.get(("dense", None))

    def at(self, budget: int) -> list[Line]:
        """Rows that a budget pays for: those made for it, and of one size what fits; no dense network is a rival."""
        found = [line for (_, own), line in self.cells.items() if own == budget]
        return found + [
            line
            for (rival, own), line in self.cells.items()
            if own is None and rival not in ("dense", TEACHER) and line.first.model_trained <= budget
        ]


def _about(result: Result) -> tuple[str, int | None, bool]:
    """Return rival, budget, and whether it is ours."""
    about = result.about
    budget = about.get("budget")
    return str(about.get("rival", result.variant)), None if budget is None else int(budget), bool(about.get("ours"))


def _best(lines: Sequence[Line], ours: bool) -> Line | None:
    own = [line for line in lines if _about(line.first)[2] is ours]
    return max(own, key=lambda line: line.mean, default=None)


def write_whole(folder: Path) -> str:
    """Write ``table.md``, ``table.csv`` and ``accuracy.png`` of what is finished into its folder.

    The CSV has a line a row and seed.

    Returns:
        What it came to, in two or three sentences.

    Raises:
        RunFolderError: the folder holds no such experiment, or nothing of it is finished.
        CheckpointError: a file cannot be written.
    """
    settings, results, networks = _read(folder)
    title = conditions(settings, results)
    write_csv([_record(result) for result in results], folder / "table.csv")
    series = {network.title: [_series(network, rival) for rival in network.rivals] for network in networks}
    whole_figure(series, f"Every layer generated: accuracy against trained numbers · {title}", folder / "accuracy.png")
    text = "\n\n".join(
        [
            f"# Whole networks: {title}",
            whole_text(folder),
            "![Accuracy against the trained numbers of the whole model](accuracy.png)",
        ]
    )
    with writing(folder / "table.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return _headline(title, results, networks)


def whole_text(folder: Path, level: int = 2) -> str:
    """Return the tables of what is finished, with verdicts and notes, in Markdown.

    Args:
        folder: of the experiment.
        level: of the headings.

    Raises:
        RunFolderError: as :func:`write_whole`.
    """
    settings, results, networks = _read(folder)
    blocks = []
    for network in networks:
        verdicts = [f"- {_verdict(network, budget)}" for budget in network.budgets]
        blocks += [
            f"{'#' * level} {network.title}",
            "Accuracy in %, by budget of trained numbers (number of seeds); ours in bold:",
            markdown_table(_table(network, Line.written)),
            "\n".join(verdicts),
            "Trained numbers of the whole model; in brackets the stored ones, where they are more:",
            markdown_table(_table(network, _numbers)),
        ]
    return "\n\n".join([*filter(None, blocks), _notes(settings, results)])


def _read(folder: Path) -> tuple[dict[str, Any], list[Result], list[_Network]]:
    settings, results = read_finished(folder, "whole")
    lines = gather(results)
    order = [*(name for name in _NETWORKS if name in lines), *(name for name in lines if name not in _NETWORKS)]
    networks = [_Network(name, {_about(line.first)[:2]: line for line in lines[name].values()}) for name in order]
    return settings, results, networks


# --- tables ---------------------------------------------------------------------------------------------------------


def _table(network: _Network, cell: Callable[[Line], str]) -> Table:
    budgets: list[int | None] = [*network.budgets]
    if any(budget is None for _, budget in network.cells):
        budgets.append(None)
    titles = ("network", *(_OWN_SIZE if budget is None else f"{budget:,}" for budget in budgets))
    rows = []
    for rival in network.rivals:
        cells = [network.cells.get((rival, budget)) for budget in budgets]
        name = f"**{rival}**" if network.ours(rival) else rival
        rows.append((name, *(NONE if line is None else cell(line) for line in cells)))
    return Table(titles, tuple(rows))


def _numbers(line: Line) -> str:
    trained, stored = line.first.model_trained, line.first.model_stored
    return f"{trained:,}" if stored == trained else f"{trained:,} ({stored:,})"


def _verdict(network: _Network, budget: int) -> str:
    lines = network.at(budget)
    ours, rival = _best(lines, ours=True), _best(lines, ours=False)
    if ours is None or rival is None:
        return f"{budget:,}: no {'row of ours' if ours is None else 'rival'} is finished."
    names = f"best of ours `{_name(ours)}` {ours.written()}, best rival `{_name(rival)}` {rival.written()}"
    difference = compare(ours, rival)
    if difference is None:
        return f"{budget:,}: {names}; no seed is common to both."
    says = {
        1: "**ours is above by more than the spread**",
        0: "no more than the spread",
        -1: "the rival is above by more than the spread",
        None: "one seed, which says nothing about the spread",
    }[difference.sign]
    return f"{budget:,}: {names}; {difference.written()} points over {_seeds(len(difference.values))}: {says}."


def _name(line: Line) -> str:
    return _about(line.first)[0]


def _seeds(number: int) -> str:
    return counted(number, "seed")


def _notes(settings: Mapping[str, Any], results: Sequence[Result]) -> str:
    return "\n\n".join(
        [
            (
                f"{conditions(settings, results)}; batches of {settings.get('batch_size', NONE)}, "
                f"{settings.get('precision', 'unknown precision')}; the accuracy is that of the last epoch on "
                f"{judged_by(settings)}. Trained on: {machines(result.environment for result in results)}."
            ),
            (
                "Accuracy: mean ± sample deviation over the seeds. Verdicts: the best of ours by its mean against the "
                "best rival by its own, paired by seed, mean ± sample deviation; more than the spread means more than "
                "that deviation. A side is chosen by the images that it is judged by, which flatters the one with more "
                "rows. Rivals of one size, the dense network left out, count at every budget that they fit "
                f"into. {NONE}: not finished, or impossible at that budget."
            ),
        ]
    )


def _headline(title: str, results: Sequence[Result], networks: Sequence[_Network]) -> str:
    rows = counted(len({result.name for result in results}), "row")
    said = [f"Whole networks ({title}): {rows}, {counted(len(results), 'training')} finished."]
    for network in networks:
        places: dict[str, list[str]] = {}
        for budget in network.budgets:
            lines = network.at(budget)
            difference = compare(_best(lines, ours=True), _best(lines, ours=False))
            if difference is not None:
                where = {1: "above the best rival", 0: "level with it", -1: "below it", None: "not judged (one seed)"}
                places.setdefault(where[difference.sign], []).append(short(budget))
        if places:
            clauses = (f"{place} at {', '.join(budgets)}" for place, budgets in places.items())
            said.append(f"{network.title}, the best of ours: {'; '.join(clauses)}.")
    return " ".join(said)


# --- files ----------------------------------------------------------------------------------------------------------


def _record(result: Result) -> dict[str, Any]:
    rival, budget, ours = _about(result)
    config = result.about.get("config")
    return {
        "network": result.group,
        "rival": rival,
        "ours": ours,
        "budget": budget,
        "seed": result.seed,
        "accuracy": result.accuracy,
        "loss": result.loss,
        "layer_dense": result.layer_dense,
        "layer_stored": result.layer_stored,
        "layer_trained": result.layer_trained,
        "model_stored": result.model_stored,
        "model_trained": result.model_trained,
        "steps": result.steps,
        "train_seconds": result.train_seconds,
        "config": None if config is None else json.dumps(config, sort_keys=True),
    }


def _series(network: _Network, rival: str) -> Series:
    lines = [line for (name, _), line in network.cells.items() if name == rival]
    points = sorted((max(line.first.model_trained, 1), line.mean, line.deviation) for line in lines)
    return Series(rival, network.ours(rival), rival == "dense", tuple(points))
