"""The layer groups of Table 3 in its report: what is finished of each, beside the dense network of the same seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adntn.experiments.reproduce.rows import Result
from adntn.experiments.reproduce.table3 import GROUPS, PAPER, Published
from adntn.report.figures import NONE
from adntn.report.reproduce.lines import Difference, Line, compare, gather, read_finished
from adntn.training.folder import read_json

__all__ = ["CONTROLS", "JUDGES", "TOPOLOGIES", "Section", "read_sections"]

#: The paper's generators, in its order.
TOPOLOGIES = ("ttn", "attn", "mera", "brickwall")

#: What a generator has to beat, and what each is.
CONTROLS: Mapping[str, str] = {
    "deleted": "nothing learned in the layers' place",
    "frozen-dense": "their dense weights left as they were drawn",
    "frozen-tree": "a ttn left as it was drawn",
    "frozen-scale": "random weights made again from a seed, with one learned scale each",
    "lowrank": "rank 1",
    "tt": "a tensor train of rank 2",
    "subspace": "a random subspace with as many coefficients as a ttn has numbers",
    "ttn-linear": "a ttn without activations",
}
_NETWORKS = {"vgg16": "VGG-16", "alexnet": "AlexNet"}
#: The controls that the verdict is about.
JUDGES = ("deleted", "frozen-dense")


@dataclass(frozen=True)
class Section:
    """A layer group, with the dense row of its network.

    Attributes:
        group: its name; a network's, where none of its groups has a row.
        title: what it is, in words.
        network: that it is in.
        layers: by name; None for all that the dense row is about.
        dense: the network's dense row, or None where it is not finished.
        own: its rows by variant.
        steps: times of the network's rows by name, as in ``timings.json``.
    """

    group: str
    title: str
    network: str
    layers: tuple[str, ...] | None
    dense: Line | None
    own: Mapping[str, Line]
    steps: Mapping[str, Any]

    @cached_property
    def lines(self) -> list[Line]:
        """Dense, the paper's topologies, other generators, controls."""
        names = [name for name in TOPOLOGIES if name in self.own]
        others = [name for name in self.own if name not in TOPOLOGIES and name not in CONTROLS]
        names += sorted(others) + [name for name in CONTROLS if name in self.own]
        return ([self.dense] if self.dense is not None else []) + [self.own[name] for name in names]

    @property
    def generated(self) -> list[Line]:
        """What is judged."""
        return [line for line in self.lines if line is not self.dense and line.variant not in CONTROLS]

    def kind(self, line: Line) -> str:
        if line is self.dense:
            return "dense"
        if line.variant in CONTROLS:
            return "control"
        return "generator" if self.published(line) is None else "the paper's"

    def published(self, line: Line) -> Published | None:
        return PAPER.get((self.group, line.variant))

    def delta(self, line: Line, to: str = "dense") -> Difference | None:
        """How far a row is from the dense one, or from a control; None for that one itself."""
        other = self.dense if to == "dense" else self.own.get(to)
        return None if line is other else compare(line, other)

    @property
    def dense_numbers(self) -> int | None:
        """Numbers of the group's dense weights, which the dense row, that all groups share, does not have."""
        if self.own:
            return next(iter(self.own.values())).first.layer_dense
        return self.dense.first.layer_dense if self.dense is not None else None

    def layer_stored(self, line: Line) -> int | None:
        return self.dense_numbers if line is self.dense else line.first.layer_stored

    def layer_trained(self, line: Line) -> int | None:
        return self.dense_numbers if line is self.dense else line.first.layer_trained

    def layer_ratio(self, line: Line) -> float | None:
        stored, dense = self.layer_stored(line), self.dense_numbers
        return dense / stored if stored and dense else None

    def model_ratio(self, line: Line) -> float | None:
        whole_network = self.dense or self.own.get("frozen-dense")
        stored = line.first.model_stored
        return None if whole_network is None or not stored else whole_network.first.model_stored / stored

    def stable_rank(self, line: Line, when: str) -> float | None:
        """Mean over this group's layers and the seeds."""
        values = [
            rank
            for result in line.results
            for name, rank in getattr(result, f"stable_rank_{when}").items()
            if self.layers is None or any(name == layer or name.startswith(f"{layer}.") for layer in self.layers)
        ]
        return statistics.mean(values) if values else None

    def rank_bound(self, line: Line) -> str:
        bounds = sorted(set(line.first.rank_bound.values()))
        return NONE if not bounds else f"{bounds[0]:,}" if len(bounds) == 1 else f"{bounds[0]:,}–{bounds[-1]:,}"

    def step(self, line: Line, key: str) -> float | None:
        value = (self.steps.get(line.name) or {}).get(key)
        return None if value is None else float(value)


def read_sections(folder: Path) -> tuple[dict[str, Any], list[Result], list[Section], dict[str, Any]]:
    """Return settings, results, a section a layer group of which something is finished, and timings.

    Raises:
        RunFolderError: the folder holds no such experiment, or nothing of it is finished.
    """
    settings, results = read_finished(folder, "table3")
    file = folder / "timings.json"
    timings: dict[str, Any] = read_json(file) if file.is_file() else {}
    lines = gather(results)
    sections = [
        Section(
            group=name,
            title=group.says,
            network=group.network,
            layers=group.layers,
            dense=lines.get(group.network, {}).get("dense"),
            own=lines[name],
            steps=timings.get(group.network, {}).get("rows", {}),
        )
        for name, group in GROUPS.items()
        if name in lines
    ]
    # A network of whose groups nothing is finished yet stands for itself.
    sections += [
        Section(network, _NETWORKS[network], network, None, lines[network].get("dense"), {}, {})
        for network in _NETWORKS
        if network in lines and all(section.network != network for section in sections)
    ]
    return settings, results, sections, timings
