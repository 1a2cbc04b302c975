"""A run as Lightning sees it: what happens in a step and after an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adntn.checkpoint import execution_state
from adntn.errors import TrainingStopped
from adntn.training.average import Average
from adntn.training.checkpoints import ENTRY, EPOCH, PAUSE, Keeper, Position, keep
from adntn.training.data import Batches, TrainingData, augment
from adntn.training.distributed import Traffic, agree, share, spread_buffers, total
from adntn.training.looking import forward, look
from adntn.training.metrics import Metrics
from adntn.training.optimization import Optimization
from adntn.training.rates import make_optimizer, set_rates
from adntn.training.seeds import derive_seed
from adntn.training.stages.base import Event
from adntn.training.watching import Interruptions

__all__ = ["Feed", "NonFinite", "Objective", "Run", "Task"]

_TELL_EVERY = 0.2  # seconds


class Objective(Protocol):
    """What is made small: ``loss, terms = objective(forward, inputs, labels)``."""

    def __call__(
        self, forward: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor, /
    ) -> tuple[Tensor, Mapping[str, Tensor]]: ...


@dataclass(frozen=True, eq=False)
class Task:
    """All that a run is given."""

    data: TrainingData
    how: Optimization
    objective: Objective | None
    seed: int
    keeper: Keeper
    log: Callable[[int, Mapping[str, float]], None]
    tell: Callable[[Event], None]
    on_step: Callable[[int, int], None] | None
    interruptions: Interruptions

    @property
    def batches(self) -> int:
        """Batches an epoch."""
        return math.ceil(len(self.data.train) / self.how.batch_size)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.how.epochs * self.batches


class NonFinite(Exception):
    """A step came to NaN or infinity; the weights are still those before it.

    Attributes:
        rerun: runs the model on the same batch again and returns the loss.
    """

    def __init__(self, what: str, rerun: Callable[[], Tensor]) -> None:
        super().__init__(what)
        self.rerun = rerun


class Feed:
    """The batches of an epoch that are still to come, as Lightning takes them."""

    def __init__(self, task: Task, position: Position) -> None:
        self._batches = Batches(task.data.train, task.how.batch_size, derive_seed(task.seed, "batches"), share())
        self._position = position

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Read when the first batch is asked for: Lightning makes iterators earlier, and more than it uses.
        self._batches.set_epoch(self._position.epoch)
        self._batches.first = self._position.batch
        yield from self._batches


class Run(pl.LightningModule):
    """A model that is trained.

    Args:
        model: to train.
        task: how, on what.
        position: how far it is.
        checkpoint: to go on from; the model has its weights already.
    """

    def __init__(self, model: nn.Module, task: Task, position: Position, checkpoint: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.model, self.task, self.position = model, task, position
        # Looks run the model itself: they come in other batches and under a cache, for which it would compile anew.
        compiled: Callable[[Tensor], Tensor] = torch.compile(model) if task.how.compile else model
        self._callable = lambda inputs: compiled(inputs)
        self.average: Average | None = None
        self.metrics = Metrics(None)
        self.traffic = Traffic()
        self.stop: str | None = None
        self._optimizer_state = None if checkpoint is None else checkpoint["optimizer_states"][0]
        self._averages = None if checkpoint is None else checkpoint[ENTRY]["average"]
        self._values: dict[str, Tensor] = {}
        self._batch: tuple[Tensor, Tensor] | None = None
        self._told = 0.0
        self._since = 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = make_optimizer(self.model, self.task.how)
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
            self._optimizer_state = None
        return optimizer

    def on_train_start(self) -> None:
        self.task.interruptions.listen()  # Lightning hears SIGTERM too, and would leave without a checkpoint
        if self.task.how.ema is not None:
            self.average = Average(self.model, self.task.how.ema, self._averages)
        if isinstance(self.trainer.model, nn.parallel.DistributedDataParallel):
            self.traffic.watch(self.trainer.model)
        if self.global_rank == 0:
            self.metrics = Metrics(self.task.keeper.folder, self.position.rows)
            for row in self.position.rows:
                self.task.log(int(row["step"]), row)
        if self.task.how.on_nonfinite == "lower-rate" and self.task.keeper.newest(EPOCH) is None:
            self.save(EPOCH)
        self._since = time.perf_counter()

    # --- a step ------------------------------------------------------------------------------------------------------

    def _reseed(self) -> None:
        # A step's chance depends on nothing that was before, so that no state of a generator has to be kept.
        torch.manual_seed(derive_seed(self.task.seed, "step", self.position.step, self.global_rank))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        position, task = self.position, self.task
        if task.on_step is not None:
            task.on_step(position.step, task.steps)
        set_rates(self.trainer.optimizers[0].param_groups, task.how, position.step, task.steps, position.lowered)
        self._reseed()

    def loss_and_terms(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return what is made small, and its terms."""
        images, labels = batch
        how = self.task.how
        inputs = self.task.data.normalized(augment(images) if how.augment else images)

        def run(given: Tensor) -> Tensor:
            return forward(self._callable, given, how.precision, channels_last=how.channels_last)

        if self.task.objective is not None:
            return self.task.objective(run, inputs, labels)
        return F.cross_entropy(run(inputs).float(), labels, label_smoothing=how.label_smoothing), {}

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        self._batch = batch
        loss, terms = self.loss_and_terms(batch)
        self._values = {"loss": loss.detach(), **{name: value.detach() for name, value in terms.items()}}
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient, and stop before a step that is none."""
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        clip = self.task.how.clip
        norm = torch.nn.utils.clip_grad_norm_(trained, math.inf if clip is None else clip)
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        loss = self._values["loss"]
        bad = not bool((loss.isfinite() & norm.isfinite()).item())
        wanted = self.task.interruptions.reason
        bad, stop = agree([bad, wanted is not None], self.device)
        self.stop = (wanted or "another of its processes was asked to end") if stop else None
        if bad:
            what = "the loss" if not bool(loss.isfinite()) else "the gradient"
            raise NonFinite(what, self._rerun)

    def _rerun(self) -> Tensor:
        assert self._batch is not None
        if self.task.on_step is not None:
            self.task.on_step(self.position.step, self.task.steps)
        self._reseed()
        device = next(self.model.parameters()).device
        images, labels = self._batch
        return self.loss_and_terms((images.to(device), labels.to(device)))[0]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        position, task = self.position, self.task
        position.step += 1
        position.batch += 1
        position.sent, self.traffic.bytes = position.sent + self.traffic.bytes, 0
        if self.average is not None:
            self.average.update(position.step)
        count = len(batch[1])
        for name, value in zip(self._values, torch.stack(list(self._values.values())).tolist(), strict=True):
            position.sums[name] = position.sums.get(name, 0.0) + count * value
        position.sums["images"] = position.sums.get("images", 0.0) + count
        now = time.perf_counter()
        position.seconds, self._since = position.seconds + now - self._since, now
        if now - self._told > _TELL_EVERY:
            self._tell()
        if self.stop is not None and position.batch < task.batches:
            position.sums = self._totals()
            self.save(PAUSE)
            self._leave(self.stop)

    # --- an epoch ----------------------------------------------------------------------------------------------------

    def on_train_epoch_end(self) -> None:
        position, task = self.position, self.task
        spread_buffers(self.model)
        with self.average.shown() if self.average is not None else nullcontext():
            accuracy, loss = look(
                self.model,
                task.data,
                task.data.validation,
                device=self.device,
                precision=task.how.precision,
                channels_last=task.how.channels_last,
            )
        if not math.isfinite(loss):
            raise NonFinite("the loss on the validation images", self._rerun)
        position.rows.append({**self._means(), "validation_loss": loss, "validation_accuracy": accuracy})
        position.epoch, position.batch, position.sums = position.epoch + 1, 0, {}
        position.stopped_early = self._out_of_patience() and position.epoch < task.how.epochs
        position.finished = position.stopped_early or position.epoch == task.how.epochs
        self.save(EPOCH)
        if self.global_rank == 0:
            task.keeper.remove_checkpoint(task.keeper.path(PAUSE))
            self.metrics.write(position.rows[-1])
            task.log(position.step, position.rows[-1])
        self._tell()
        if position.stopped_early:
            self.trainer.should_stop = True
        elif not position.finished:
            reason = task.interruptions.reason
            if agree([reason is not None], self.device)[0]:
                self._leave(reason or "another of its processes was asked to end")
        self._since = time.perf_counter()

    def _means(self) -> dict[str, float]:
        sums = self._totals()
        images = sums.pop("images")
        row: dict[str, float] = {"step": self.position.step, "epoch": self.position.epoch + 1}
        row |= {name: value / images for name, value in sums.items()}
        row["rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        if share()[1] > 1:
            row["bytes_per_step"] = self.position.sent / self.position.step
        return row

    def _totals(self) -> dict[str, float]:
        """Return the epoch's sums over all processes."""
        sums = self.position.sums
        values = total(torch.tensor(list(sums.values()), dtype=torch.float64, device=self.device))
        return dict(zip(sums, values.tolist(), strict=True))

    def _out_of_patience(self) -> bool:
        patience, curve = self.task.how.patience, self.position.curve
        return patience is not None and len(curve) - 1 - curve.index(max(curve)) >= patience

    # --- what is kept and told ---------------------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: it cannot be written; every process hears of it.
        """
        keeper = self.task.keeper
        if keeper.folder is None and self.task.how.on_nonfinite != "lower-rate":
            return
        keeper.failure = None
        self.trainer.save_checkpoint(keeper.path(name))
        if agree([keeper.failure is not None], self.device)[0]:
            raise keeper.failure or TrainingStopped(f"another process could not write {keeper.path(name)}.")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[ENTRY] = {
            "position": keep(self.position),
            "execution": execution_state(self.model),
            "average": None if self.average is None else dict(self.average.values),
        }

    def _leave(self, reason: str) -> None:
        folder = self.task.keeper.folder
        kept = f"what it has done is in {folder}; the same call goes on from there" if folder else "nothing was kept"
        raise TrainingStopped(
            f"training ended after step {self.position.step} of {self.task.steps} because {reason}; {kept}."
        )

    def _tell(self) -> None:
        if self.global_rank != 0:
            return
        self._told = time.perf_counter()
        position = self.position
        text = [f"epoch {min(position.epoch + 1, self.task.how.epochs)}/{self.task.how.epochs}"]
        text.append(f"loss {float(self._values['loss']):.3g}")
        text.append(f"rate {self.trainer.optimizers[0].param_groups[0]['lr']:.2g}")
        if position.rows:
            text.append(f"validation {100 * position.curve[-1]:.1f} %")
        self.task.tell(Event(position.step, self.task.steps, ", ".join(text)))
