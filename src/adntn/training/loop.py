"""The loop of every stage with gradient steps: pytorch-lightning's, such that nothing is lost when it ends early."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import nn

from adntn.checkpoint import load_execution_state
from adntn.errors import CheckpointError, NonFiniteError
from adntn.training.average import Average
from adntn.training.checkpoints import ENTRY, EPOCH, Keeper, Position, fingerprint
from adntn.training.data import TrainingData
from adntn.training.distributed import share
from adntn.training.looking import look
from adntn.training.metrics import Metrics
from adntn.training.module import Feed, NonFinite, Objective, Run, Task
from adntn.training.optimization import Optimization
from adntn.training.stages.base import Event
from adntn.training.watching import Interruptions, find_nonfinite

__all__ = ["MOST_LOWERED", "Fitted", "fit"]

#: How often ``on_nonfinite="lower-rate"`` lowers the rate before it gives up.
MOST_LOWERED = 4


@dataclass(frozen=True)
class Fitted:
    """What training came to.

    Attributes:
        validation_accuracy: after the last epoch, 0 ... 1, with the averaged weights if they are asked for.
        validation_loss: cross-entropy on the validation images.
        curve: validation accuracy after each epoch.
        epochs: that were run.
        steps: of the optimiser.
        seconds: wall-clock time of the steps, looks left out; over all of a run that was interrupted.
        stopped_early: whether it ended by its patience.
        lowered: how often the rate was lowered because a step came to NaN or infinity.
        bytes_per_step: of gradients that each process handed to the all-reduce; 0 with one process.
    """

    validation_accuracy: float
    validation_loss: float
    curve: tuple[float, ...]
    epochs: int
    steps: int
    seconds: float
    stopped_early: bool
    lowered: int = 0
    bytes_per_step: float = 0.0


def fit(
    model: nn.Module,
    data: TrainingData,
    how: Optimization,
    *,
    objective: Objective | None = None,
    teacher: nn.Module | None = None,
    folder: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    log: Callable[[int, Mapping[str, float]], None] = lambda step, values: None,
    tell: Callable[[Event], None] = lambda event: None,
    deadline: float | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Train a model in place; one that has nothing to train is only looked at, once.

    With a folder it is checkpointed after each epoch, and where SIGTERM or the deadline ends it. The same call goes on
    from there, and on a CPU comes to the same weights, to the bit, as without the interruption. Started by torchrun in
    several processes, which all must call it, it trains one model on shares of each batch.

    Chance is torch's own generator, seeded before each step and given back as it was at the end; two runs in threads of
    one process would draw from each other's. Run them in processes.

    Args:
        model: takes normalised images ``(batch, C, H, W)`` and returns logits ``(batch, num_classes)``.
        data: to train on; it is looked at the validation images after each epoch.
        how: to train.
        objective: ``objective(forward, inputs, labels)`` returns the loss and its terms, which are logged; None means
            cross-entropy with ``how.label_smoothing``.
        teacher: put into evaluation mode and onto the device for the objective, which alone makes use of it.
        folder: of the checkpoints and of ``metrics/``; None keeps nothing.
        seed: of the order of the batches, of augmentation and of dropout.
        device: ``"cpu"`` or ``"cuda"``.
        log: takes the metrics of each epoch with the steps done; those of earlier epochs first where a run goes on.
        tell: takes progress.
        deadline: of :func:`time.monotonic`, at which to stop.
        on_step: called before each step with the steps done and the steps in all.

    Returns:
        What it came to.

    Raises:
        TrainingStopped: SIGTERM has come or the time was over; the step before was kept.
        NonFiniteError: a step came to NaN or infinity.
        CheckpointError: the folder cannot be written, or holds another run's checkpoint or a broken one.

    Example:
        >>> fitted = fit(model, data, Optimization(epochs=20), folder=Path("run"))
    """
    keeper = Keeper(folder, fingerprint(model, data, how, seed, objective))
    interruptions = Interruptions(deadline)
    task = Task(data, how, objective, seed, keeper, log, tell, on_step, interruptions)
    if how.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if teacher is not None:
        teacher.to(device).eval()
    if not any(p.requires_grad for p in model.parameters()):
        model.to(device)
        accuracy, loss = look(
            model, data, data.validation, device=device, precision=how.precision, channels_last=how.channels_last
        )
        return Fitted(accuracy, loss, (accuracy,), 0, 0, 0.0, False)
    keeper.tidy()
    mode = model.training
    checkpoint = keeper.newest()
    cuda = list(range(torch.cuda.device_count())) if device != "cpu" else []
    with torch.random.fork_rng(cuda), interruptions.listening():
        while True:
            position = _restore(model, checkpoint)
            if position.finished:
                # It may have ended between the last checkpoint and the last row.
                if share()[0] == 0:
                    Metrics(folder, position.rows).close()
                    for row in position.rows:
                        log(int(row["step"]), row)
                break
            try:
                position = _attempt(model, task, position, checkpoint, device)
                break
            except NonFinite as bad:
                checkpoint = _taken_back(model, task, position, bad)
    model.train(mode)
    return _fitted(position)


def _restore(model: nn.Module, checkpoint: Mapping[str, Any] | None) -> Position:
    """Give a model what a checkpoint says, and return the position."""
    if checkpoint is None:
        return Position()
    try:
        state = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
        model.load_state_dict(state)
        load_execution_state(model, checkpoint[ENTRY]["execution"])
        values = checkpoint[ENTRY]["position"]
        position = Position(**{f.name: values[f.name] for f in fields(Position)})
        if share()[0] > 0:
            position.sums = dict.fromkeys(position.sums, 0.0)  # the first process goes on with those of all
        if position.finished and checkpoint[ENTRY]["average"] is not None:
            Average(model, 0.0, checkpoint[ENTRY]["average"]).put()
        return position
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint does not fit the model: {error}") from None


def _attempt(
    model: nn.Module, task: Task, position: Position, checkpoint: Mapping[str, Any] | None, device: str
) -> Position:
    run = Run(model, task, position, checkpoint)
    home = next(model.parameters()).device
    model.train()
    try:
        with _quiet():
            trainer = _trainer(task, position, device)
            _run(trainer, run, Feed(task, position))
        if run.average is not None:
            run.average.put()
    finally:
        run.metrics.close()
        model.to(home)
    return position


def _trainer(task: Task, position: Position, device: str) -> pl.Trainer:
    # Lightning would look for torchrun's environment itself, also where this process works alone.
    options: dict[str, Any] = {"devices": 1, "plugins": [task.keeper, LightningEnvironment()]}
    if share()[1] > 1:
        from pytorch_lightning.strategies import DDPStrategy

        local = int(os.environ["LOCAL_WORLD_SIZE"])
        backend = "gloo" if device == "cpu" else None
        options = {
            "strategy": DDPStrategy(process_group_backend=backend),
            "devices": local,
            "num_nodes": share()[1] // local,
            "plugins": [task.keeper],
        }
    return pl.Trainer(
        accelerator="cpu" if device == "cpu" else "gpu",
        max_epochs=task.how.epochs - position.epoch,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=task.keeper.folder,
        **options,
    )


def _run(trainer: pl.Trainer, run: Run, feed: Feed) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(run, feed)
    except SystemExit as leaving:
        # Lightning makes Ctrl+C an exit of the program, and is deaf to the next one.
        if not isinstance(leaving.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Lightning advises more loader processes; the images are in memory and need none.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
        # The gradient of a convolution of one channel may have any of several strides, which all mean the same.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # Lightning walks batches with a pytree check that torch has since renamed.
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        yield


def _taken_back(model: nn.Module, task: Task, position: Position, bad: NonFinite) -> dict[str, Any]:
    """Return the state to go on from with a lower rate.

    Raises:
        NonFiniteError: it is not to be lowered, or not once more.
    """
    good = task.keeper.newest(EPOCH)
    lower = task.how.on_nonfinite == "lower-rate"
    if lower and good is not None and position.lowered < MOST_LOWERED:
        good[ENTRY]["position"]["lowered"] = position.lowered + 1
        task.tell(
            Event(
                position.step,
                task.steps,
                f"{bad} is not finite: back to step {good[ENTRY]['position']['step']}, rate lowered",
            )
        )
        return good
    model.train()
    first = find_nonfinite(model, bad.rerun)
    where = task.keeper.path(EPOCH) if task.keeper.folder is not None and good is not None else None
    raise NonFiniteError(
        f"{bad} is NaN or infinite at step {position.step + 1}, epoch {position.epoch + 1}: "
        f"first {first or 'not found when the batch was run again'}. "
        + (f"The rate was lowered {position.lowered} times. " if lower else "")
        + (f"The last good state is {where}." if where else "No state was kept before it.")
    )


def _fitted(position: Position) -> Fitted:
    last = position.rows[-1]
    return Fitted(
        validation_accuracy=last["validation_accuracy"],
        validation_loss=last["validation_loss"],
        curve=position.curve,
        epochs=position.epoch,
        steps=position.step,
        seconds=position.seconds,
        stopped_early=position.stopped_early,
        lowered=position.lowered,
        bytes_per_step=position.sent / max(1, position.step),
    )
