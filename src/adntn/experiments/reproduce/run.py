"""Training the rows of an experiment that are not finished yet."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from adntn.checkpoint import load, save
from adntn.errors import ConfigError, NonFiniteError, TrainingStopped
from adntn.experiments.data import ImageData
from adntn.experiments.lessons import fit_weights_, take_rest_
from adntn.experiments.parts import all_to_learn_from, hold_out
from adntn.experiments.reproduce.counts import count_numbers, row_weights
from adntn.experiments.reproduce.rows import Folder, Result, Row
from adntn.experiments.seeded import SeededConv2d
from adntn.initialize import stable_rank
from adntn.nn import GeneratedWeight
from adntn.training.data import TrainingData
from adntn.training.folder import describe_machine, write_json
from adntn.training.loop import fit
from adntn.training.objective import Losses, Objective
from adntn.training.stages.base import Event
from adntn.training.terms import CrossEntropy, Distillation

__all__ = ["Told", "run_rows"]

# Of the loss, the teacher's share, and the temperature at which its answers are compared (Hinton et al. 2015).
_TEACHING, _TEMPERATURE = 0.5, 4.0


@dataclass(frozen=True)
class Told:
    """What is said while rows are trained.

    Attributes:
        row: its name.
        seed: of it.
        number: of this row and seed among those asked for, from 1.
        total: of those.
        event: how far it is, or None when it begins or ends.
        result: what it came to, when it ends.
        earlier: whether that was known before.
        failed: why it came to nothing.
    """

    row: str
    seed: int
    number: int
    total: int
    event: Event | None = None
    result: Result | None = None
    earlier: bool = False
    failed: str = ""


def run_rows(
    rows: Sequence[Row],
    seeds: Sequence[int],
    images: ImageData,
    folder: Folder,
    *,
    device: str = "cpu",
    deadline: float | None = None,
    held_out: int | None = None,
    tell: Callable[[Told], None] = lambda told: None,
) -> list[Result]:
    """Train what is not finished, each row with the first seed before any with the second, its teacher before it.

    Several processes may work on one folder: what another one is training is passed over, with what learns from it. A
    row that comes to NaN or infinity does not keep the others from being trained. A teacher whose network is not in the
    folder any more is trained again.

    Args:
        rows: to train.
        seeds: each row is trained once with each.
        images: to train and to test on.
        folder: claimed for the experiment.
        device: ``"cpu"`` or ``"cuda"``.
        deadline: of :func:`time.monotonic`, at which to stop; None means never.
        held_out: training images, the same for every row and seed, that are judged by in place of the test images.
        tell: is told the progress.

    Returns:
        What is finished of the rows and seeds asked for, and of their teachers.

    Raises:
        TrainingStopped: the time was up, or SIGTERM came. Run again to go on.
        ConfigError: the device is not there, or so many images cannot be kept out.
        NonFiniteError: some rows came to NaN or infinity; all others are finished.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda' is not possible here: torch sees no CUDA device.")
    data: TrainingData | None = None
    with_teachers = [each for row in rows for each in (row.teacher, row) if each is not None]
    todo = [(row, seed) for seed in seeds for row in dict.fromkeys(with_teachers)]
    results: list[Result] = []
    failures: list[str] = []
    for number, (row, seed) in enumerate(todo, 1):
        at = (row.name, seed, number, len(todo))
        known = _finished(row, seed, rows, folder)
        if known is not None:
            results.append(known)
            tell(Told(*at, result=known, earlier=True))
            continue
        with folder.holding(row.name, seed) as mine:
            if not mine or (row.teacher is not None and not folder.model_file(row.teacher.name, seed).is_file()):
                continue
            known = _finished(row, seed, rows, folder)
            earlier = known is not None
            if known is None:
                if deadline is not None and time.monotonic() >= deadline:
                    raise TrainingStopped(
                        f"the time was over before {row.name}, seed {seed}; {len(results)} of {len(todo)} are finished."
                    )
                data = data or _parts(images, held_out).to(device)
                tell(Told(*at))

                def moves(event: Event, at: tuple[str, int, int, int] = at) -> None:
                    tell(Told(*at, event=event))

                try:
                    known = _train(row, seed, data, folder, device, deadline, moves)
                except NonFiniteError as error:
                    failures.append(f"{row.name}, seed {seed}: {error}")
                    tell(Told(*at, failed=str(error)))
                    continue
            results.append(known)
            tell(Told(*at, result=known, earlier=earlier))
    if failures:
        raise NonFiniteError(" ".join(failures))
    return results


def _parts(images: ImageData, held_out: int | None) -> TrainingData:
    return all_to_learn_from(images) if held_out is None else hold_out(images, held_out, seed=0)


def _finished(row: Row, seed: int, rows: Sequence[Row], folder: Folder) -> Result | None:
    """Return a row's result; None where it has none, or is to teach another row and its network is gone."""
    teaches = any(each.teacher is row and folder.result(each.name, seed) is None for each in rows)
    gone = teaches and not folder.model_file(row.name, seed).is_file()
    return None if gone else folder.result(row.name, seed)


def _train(
    row: Row,
    seed: int,
    data: TrainingData,
    folder: Folder,
    device: str,
    deadline: float | None,
    tell: Callable[[Event], None],
) -> Result:
    model = row.make(seed)
    teacher: nn.Module | None = None
    if row.teacher is not None:
        teacher = load(row.teacher.make(seed), folder.model_file(row.teacher.name, seed))
        if "rest" in row.lessons:
            take_rest_(model, teacher)
        if "weights" in row.lessons:
            fit_weights_(model, teacher)
        if "answers" not in row.lessons:
            teacher = None
    start = _stable_ranks(model, row)
    checkpoints = folder.checkpoints(row.name, seed)
    if row.optimization.compile:
        torch.compiler.reset()  # or after some networks torch has enough of it, and runs the next ones as they are
    with contextlib.nullcontext() if teacher is None else Objective(_taught(row), model, teacher, seed=seed) as taught:
        fitted = fit(
            model,
            data,
            row.optimization,
            objective=taught,
            teacher=teacher,
            folder=checkpoints,
            seed=seed,
            device=device,
            tell=tell,
            deadline=deadline,
        )
    model.to("cpu")
    if not any(isinstance(layer, SeededConv2d) for layer in model.modules()):
        # What is mixed into those is not in a file: their numbers, loaded, would be those of another network.
        file = folder.model_file(row.name, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        save(model, file)
    result = Result(
        group=row.group,
        variant=row.variant,
        seed=seed,
        accuracy=fitted.validation_accuracy,
        loss=fitted.validation_loss,
        curve=fitted.curve,
        **asdict(count_numbers(row, model)),
        stable_rank_start=start,
        stable_rank_end=_stable_ranks(model, row),
        rank_bound=_rank_bounds(model, row),
        steps=fitted.steps,
        train_seconds=fitted.seconds,
        optimization=row.optimization.to_dict(),
        about=dict(row.about),
        environment={**describe_machine(), "device": device},
    )
    path = folder.result_file(row.name, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result.to_dict())
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _taught(row: Row) -> Losses:
    how = row.optimization
    labels = CrossEntropy(weight=1 - _TEACHING, label_smoothing=how.label_smoothing)
    return Losses(cross_entropy=labels, distillation=Distillation(weight=_TEACHING, temperature=_TEMPERATURE))


@torch.no_grad()
def _stable_ranks(model: nn.Module, row: Row) -> dict[str, float]:
    made = {name: w.weight if isinstance(w, GeneratedWeight) else w for name, w in row_weights(row, model).items()}
    ranks = {name: stable_rank(weight.cpu()) for name, weight in made.items()}
    return {name: rank for name, rank in ranks.items() if math.isfinite(rank)}


def _rank_bounds(model: nn.Module, row: Row) -> dict[str, int]:
    return {name: w.rank_bound() for name, w in row_weights(row, model).items() if isinstance(w, GeneratedWeight)}
