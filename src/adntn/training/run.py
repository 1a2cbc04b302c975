"""Running a recipe's stages, one after the other, so that nothing is lost whenever the run is ended."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from adntn.checkpoint import load, save
from adntn.errors import ConfigError, TrainingStopped
from adntn.savefile import is_ours
from adntn.training.data import TrainingData
from adntn.training.distributed import one_process, share
from adntn.training.folder import RunFolder, read_json, write_json
from adntn.training.measure import measure
from adntn.training.recipe import Recipe
from adntn.training.seeds import derive_seed
from adntn.training.stages.base import Event, Stage, State

__all__ = ["Finished", "Tell", "run_stages", "seed_of"]

_MODEL, _RESULT = "model.safetensors", "result.json"


@dataclass(frozen=True)
class Finished:
    """A stage that has ended, the training of the teacher too.

    Attributes:
        number: its place in the recipe, from 1; 0 for the teacher.
        kind: as in the recipe.
        seconds: wall time, evaluation left out; of an interrupted stage that of all its sessions that ended orderly.
        measures: of the model after it, see :class:`adntn.training.measure.Measures`.
        outcome: what the stage says of itself.
        file: the model after it.
    """

    number: int
    kind: str
    seconds: float
    measures: Mapping[str, Any]
    outcome: Mapping[str, Any]
    file: Path

    def to_dict(self) -> dict[str, Any]:
        plain = {"number": self.number, "kind": self.kind, "seconds": self.seconds}
        return {**plain, "measures": dict(self.measures), "outcome": dict(self.outcome)}


class Tell:
    """What a run says while it runs; does nothing unless overridden."""

    def begins(self, number: int, kind: str) -> None:
        """Be told that a stage begins."""

    def moves(self, event: Event) -> None:
        """Be told how far it is."""

    def ends(self, finished: Finished) -> None:
        """Be told that it has ended."""


def seed_of(recipe: Recipe, *names: int | str) -> int:
    """Return the seed of a part of a run, below 2**32."""
    return derive_seed(recipe.seed, *names) % 2**32


def run_stages(
    recipe: Recipe,
    build: Callable[[], nn.Module],
    data: TrainingData,
    folder: RunFolder,
    *,
    tell: Tell | None = None,
    deadline: float | None = None,
) -> list[Finished]:
    """Run what is not finished of a recipe's stages, and write each one's model and result into its folder.

    After every stage the next one takes the model from its file, so that a run that was ended and taken up again sees
    the very same numbers as one that was not. SIGTERM ends the run at the next safe place.

    Args:
        recipe: what to run.
        build: makes the dense model.
        data: to train on.
        folder: of the run, claimed for this recipe.
        tell: is told the progress.
        deadline: of :func:`time.monotonic`, at which to stop; None means never.

    Returns:
        The teacher, if there is one, and all stages, in their order.

    Raises:
        TrainingStopped: the time was up, or SIGTERM came. Run again to go on.
        AdntnError: whatever is wrong with the recipe, the model or a file.
    """
    tell = tell if tell is not None else Tell()

    def built() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(recipe, "model"))
            return build()

    finished: list[Finished] = []
    teacher: nn.Module | None = None
    steps: list[tuple[int, str, Stage | None]] = [(n, stage.kind, stage) for n, stage in enumerate(recipe.stages, 1)]
    if recipe.teacher is not None:
        steps.insert(0, (0, "teacher", None))
    for each in recipe.stages:
        each.check(built())  # what cannot be done is said now, not after the teacher has been trained
    previous: Path | None = None
    stopped = deadline is not None and time.monotonic() >= deadline
    with _together():
        for number, kind, stage in steps:
            here = folder.stage(number, kind)
            state = State(
                model=built() if previous is None else load(built(), previous),
                teacher=teacher,
                data=data,
                folder=here,
                seed=seed_of(recipe, number, kind),
                device=recipe.device,
                tell=tell.moves,
                deadline=deadline,
            )
            if _agree(not (here / _RESULT).is_file()):
                if not _agree(not stopped):
                    raise TrainingStopped(f"it was asked to end before stage {number}, {kind}, which has not begun.")
                tell.begins(number, kind)
                with _stopping(state):
                    _run_one(recipe, state, number, kind, stage)
                stopped = state.out_of_time()  # a short stage ends before it looks
            result = read_json(here / _RESULT)
            done = Finished(number, kind, result["seconds"], result["measures"], result["outcome"], here / _MODEL)
            finished.append(done)
            tell.ends(done)
            previous = done.file
            if stage is None:
                teacher = load(built(), done.file).eval().requires_grad_(False)
    return finished


def _run_one(recipe: Recipe, state: State, number: int, kind: str, stage: Stage | None) -> None:
    """Run a stage to its end, or note the time that it has taken so far."""
    spent = state.folder / "spent.json"
    before = read_json(spent)["seconds"] if spent.is_file() else 0.0
    began = time.perf_counter()
    alone = stage is not None and not stage.in_every_process
    outcome: Mapping[str, Any] = {}
    failure: Exception | None = None
    try:
        if stage is None:
            outcome = _make_teacher(recipe, state)
        elif not alone:
            outcome = stage.run(state)
        elif _is_first():
            with one_process():
                outcome = stage.run(state)
    except Exception as error:
        if isinstance(error, TrainingStopped) and _is_first():
            write_json(spent, {"seconds": before + time.perf_counter() - began})
        if not alone:  # then all processes have it
            raise
        failure = error
    if alone and not _agree(failure is None):
        raise failure or TrainingStopped(f"the first process did not finish {kind}; it says why.")
    seconds = before + time.perf_counter() - began
    if _is_first():
        state.model.to("cpu")
        file = save(state.model, state.folder / _MODEL)
        with one_process():
            measures = measure(state.model, state.data, file=file, device=state.device).to_dict()
        write_json(
            state.folder / _RESULT,
            {"number": number, "kind": kind, "seconds": seconds, "measures": measures, "outcome": dict(outcome)},
        )
        spent.unlink(missing_ok=True)
    if dist.is_initialized():
        dist.barrier()


def _make_teacher(recipe: Recipe, state: State) -> Mapping[str, Any]:
    given = recipe.teacher
    assert given is not None
    if given.file:
        return _read_teacher(state.model, Path(given.file))
    if given.as_built:
        return {"source": "as it was built"}
    from adntn.training.loop import fit

    fitted = fit(
        state.model,
        state.data,
        given.optimization,
        folder=state.folder,
        seed=state.seed,
        device=state.device,
        log=state.log,
        tell=state.tell,
        deadline=state.deadline,
    )
    return {"source": "trained here", "epochs": fitted.epochs, "steps": fitted.steps}


def _read_teacher(model: nn.Module, file: Path) -> Mapping[str, Any]:
    """Load a file of :func:`adntn.save`, or another safetensors file with a ``state_dict``."""
    if not file.is_file():
        raise ConfigError(f"there is no file {file} to take the teacher's weights from.")
    if is_ours(file):
        load(model, file)
    else:
        try:
            model.load_state_dict(load_file(file))
        except (RuntimeError, SafetensorError, OSError) as error:
            raise ConfigError(f"the teacher's file {file} does not fit the model: {error}") from None
    return {"source": file.name}


def _agree(answer: bool) -> bool:
    """Return the first process's answer, in all of them: another may look when that one is further already."""
    if not dist.is_initialized():
        return answer
    shared = torch.tensor([answer], dtype=torch.int64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(shared, 0)
    return bool(shared.item())


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Join the processes that torchrun has started, if it has."""
    joins = share()[1] > 1 and not dist.is_initialized()
    if joins:
        # The others wait while the first one does a stage alone, however long that takes.
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=7))
    yield
    if joins and dist.is_initialized():
        dist.barrier()  # without it the end of gloo's processes crashes in four runs of ten
        dist.destroy_process_group()


@contextlib.contextmanager
def _stopping(state: State) -> Iterator[None]:
    """Let SIGTERM set the deadline to now, where signals can be caught."""

    def stop(number: int, frame: object) -> None:
        state.deadline = time.monotonic()

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
