"""How long a step of training takes, in turns with the dense network's."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adntn.errors import ConfigError, TrainingStopped
from adntn.experiments.data import ImageData, normalize
from adntn.experiments.reproduce.rows import Folder, Row
from adntn.training.folder import describe_machine, read_json, write_json
from adntn.training.looking import forward
from adntn.training.optimization import Optimization
from adntn.training.rates import make_optimizer, set_rates

__all__ = ["ROUNDS", "Timed", "read_timings", "time_row", "time_steps"]

#: Rounds that are timed, after those that warm up.
ROUNDS = 7

# A turn of several steps, so that it takes about so many seconds and is not lost in the clock and the launches.
_TURN, _MOST = 0.05, 20
# What makes two machines one, as far as times go.
_MACHINE = {"cuda": ("device", "gpu", "torch"), "cpu": ("device", "processor", "threads", "torch")}


@dataclass(frozen=True)
class Timed:
    """What is said while steps are timed.

    Attributes:
        row: its name; None where only something is to be said.
        number: of this row among those timed, from 1.
        total: of those.
        values: its ``"milliseconds"`` and ``"dense_ratio"``, or None when it begins.
        text: why rows are not timed.
    """

    row: str | None
    number: int
    total: int
    values: Mapping[str, float] | None = None
    text: str = ""


class _Step:
    """A step of training of a network on one batch: forward, backward, clipping, optimiser."""

    def __init__(self, model: nn.Module, how: Optimization, inputs: Tensor, labels: Tensor) -> None:
        model.to(inputs.device).train()
        if how.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.how, self.inputs, self.labels = how, inputs, labels
        self.run: Callable[[Tensor], Tensor] = torch.compile(model) if how.compile else model
        self.optimizer = make_optimizer(model, how)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        # At the rates of a first step: however many there are, nothing grows out of all bounds.
        set_rates(self.optimizer.param_groups, how, 0, 1000)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        how = self.how
        logits = forward(self.run, self.inputs, how.precision, channels_last=how.channels_last).float()
        F.cross_entropy(logits, self.labels, label_smoothing=how.label_smoothing).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, math.inf if how.clip is None else how.clip)
        self.optimizer.step()

    def seconds(self, steps: int) -> float:
        """Return the time of one of so many steps."""
        _wait(self.inputs)
        began = time.perf_counter()
        for _ in range(steps):
            self()
        _wait(self.inputs)
        return (time.perf_counter() - began) / steps


def read_timings(folder: Folder) -> dict[str, Any]:
    """Read the times that are kept in a folder, by network."""
    file = folder.timings_file
    found: dict[str, Any] = read_json(file) if file.is_file() else {}
    return found


def time_steps(
    rows: Sequence[Row],
    every: Sequence[Row],
    images: ImageData,
    folder: Folder,
    *,
    device: str = "cpu",
    deadline: float | None = None,
    tell: Callable[[Timed], None] = lambda told: None,
) -> None:
    """Time a step of training of each row's untrained network, where it is not timed yet.

    In turns with the dense network, in one process. What is kept is the median of its times and that of its ratios,
    round by round, and on a GPU the most memory that a step took, the network's own included. A step is forward,
    backward, clipping and optimiser, without augmentation. Rows with a teacher are left out: a step is its too.

    One process does it at a time; another one passes it over. All times of a network are of one machine: on another one
    none is added.

    Args:
        rows: to time.
        every: all rows of the experiment; among them each network's dense one.
        images: a batch of their training images is the input.
        folder: claimed for the experiment; ``timings.json`` is written into it after each row.
        device: ``"cpu"`` or ``"cuda"``.
        deadline: of :func:`time.monotonic`, at which to stop.
        tell: is told the progress.

    Raises:
        TrainingStopped: the time was up. Run again to go on.
    """
    with folder.holding("timings") as mine:
        if not mine:
            return
        known = read_timings(folder)
        machine = {**describe_machine(), "device": device}
        rows = [row for row in rows if row.teacher is None]
        todo: list[Row] = []
        for network in dict.fromkeys(row.network for row in rows):
            missing = [r for r in rows if r.network == network and r.name not in known.get(network, {}).get("rows", {})]
            other = _difference(known[network]["environment"], machine) if network in known and missing else ""
            if other:
                text = f"{network}: the times so far are of another machine ({other}), so {len(missing)} rows have none"
                tell(Timed(None, 0, 0, text=f"{text}; without {folder.timings_file} all are timed again"))
            else:
                todo += missing
        for number, row in enumerate(todo, 1):
            if deadline is not None and time.monotonic() >= deadline:
                left = f"{len(todo) - number + 1} of {len(todo)}"
                raise TrainingStopped(f"the time was over with {left} rows still to be timed.")
            tell(Timed(row.name, number, len(todo)))
            inputs = normalize(images.train.images[: row.optimization.batch_size], images).to(device)
            labels = images.train.labels[: len(inputs)].to(device)
            values = time_row(row, _dense(row, every), inputs, labels)
            of_network = known.setdefault(
                row.network, {"batch": len(inputs), "rounds": ROUNDS, "environment": machine, "rows": {}}
            )
            of_network["rows"][row.name] = values
            write_json(folder.timings_file, known)
            tell(Timed(row.name, number, len(todo), values=values))


def _dense(row: Row, every: Sequence[Row]) -> Row:
    name = f"{row.network}/dense"
    for each in every:
        if each.name == name:
            return each
    raise ConfigError(f"{row.name} cannot be timed beside its network as it stands: there is no row {name!r}.")


def time_row(
    row: Row,
    dense: Row,
    inputs: Tensor,  # shape: (batch, C, H, W)
    labels: Tensor,  # shape: (batch,)
) -> dict[str, float]:
    """Time a step of training of a row's untrained network on one batch, in turns with its dense network's.

    Returns:
        ``"milliseconds"``, the median of seven rounds; ``"dense_ratio"``, that of the ratios round by round; and on a
        GPU ``"peak_bytes"``.
    """
    cuda = list(range(torch.cuda.device_count())) if inputs.is_cuda else []
    if row.optimization.compile:
        torch.compiler.reset()  # or after some networks torch has enough of it, and runs the next ones as they are
    with torch.random.fork_rng(cuda):
        reference = None if row is dense else _Step(dense.make(0), dense.optimization, inputs, labels)
        if reference is not None:
            reference.seconds(2)
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        step = _Step(row.make(0), row.optimization, inputs, labels)
        step.seconds(2)
        peak = torch.cuda.max_memory_allocated() - before if cuda else 0
        turns = [(each, min(_MOST, max(1, round(_TURN / each.seconds(1))))) for each in (step, reference or step)]
        taken = []
        for _ in range(ROUNDS):
            seconds = [each.seconds(steps) for each, steps in turns[: 1 if reference is None else 2]]
            taken.append((seconds[0], seconds[-1]))
    values = {
        "milliseconds": 1e3 * statistics.median(own for own, _ in taken),
        "dense_ratio": statistics.median(own / other for own, other in taken),
    }
    if cuda:
        values["peak_bytes"] = peak
    return values


def _wait(inputs: Tensor) -> None:
    if inputs.is_cuda:
        torch.cuda.synchronize()


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = _MACHINE["cpu" if now["device"] == "cpu" else "cuda"]
    found = [f"{name} was {then.get(name)!r} and is {now[name]!r}" for name in names if then.get(name) != now[name]]
    return ", ".join(found)
