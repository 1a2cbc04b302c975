"""The stage that fits every generated layer, or block of layers, alone against the teacher's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from adntn.errors import ConfigError, TrainingStopped, check_choice
from adntn.options import check_flag, check_whole
from adntn.training.blocks.find import Block, check_names, find_blocks
from adntn.training.blocks.jobs import BlockFit, Done, Job, run_job
from adntn.training.blocks.make import Maker, threads
from adntn.training.blocks.results import fingerprint, keep, kept, put, refusal
from adntn.training.looking import look
from adntn.training.parallel import ENGINES, check_engine, count_workers, run_tasks
from adntn.training.recalibrate import recalibrate_norms
from adntn.training.stages.base import Event, Outcome, Stage, State

__all__ = ["Blocks"]


KEEP = ("unless-worse", "always")


@dataclass(frozen=True, kw_only=True)
class Blocks(BlockFit, Stage):
    """Fit generated layers, or named blocks of layers, each alone against the teacher's module of the same name.

    What comes out is the same for any engine and number of workers, bitwise on one kind of machine: each block has a
    seed of its own, made of the stage's seed and the block's name, and the same number of threads. A block runs as in
    inference while it is fitted, with the running statistics of its batch norms as they are in the model, which are the
    teacher's, and without dropout.

    Attributes:
        layers: names of generated layers, or ``"re:"`` and patterns, each fitted alone; those in a block are left out.
        blocks: names or patterns of modules, each fitted as a whole.
        recalibrate_norms: whether the running statistics of all batch norms of the model are estimated anew at the end,
            on the calibration images.
        keep: ``"always"``, or ``"unless-worse"``: blocks that are each nearer to the teacher can make a worse model, if
            it has been trained as a whole before. They are taken back if the accuracy on the validation images falls by
            more than two of its standard errors.
        workers: how many blocks at once; None means as many as there are CPUs.
        engine: ``"local"``, processes of this machine, or ``"ray"``, a Ray cluster.
        ray_address: of the cluster; None means the variable ``RAY_ADDRESS``, or a cluster that this process is
            connected to, or a new one on this machine.

    Raises:
        ConfigError: an option is impossible.

    Example:
        >>> stage = Blocks(objective="outputs", blocks=("features",), steps=200, workers=2)
        >>> outcome = stage.run(state)
    """

    kind: ClassVar[str] = "blocks"
    what = "a stage 'blocks'"

    layers: tuple[str, ...] = ("re:.*",)
    blocks: tuple[str, ...] = ()
    recalibrate_norms: bool = True
    keep: str = "unless-worse"
    workers: int | None = None
    engine: str = "local"
    ray_address: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("engine", self.engine, ENGINES)
        check_choice("keep", self.keep, KEEP)
        check_flag("recalibrate_norms", self.recalibrate_norms)
        if self.workers is not None:
            check_whole("workers", self.workers, 1)
        if self.ray_address is not None and self.engine != "ray":
            raise ConfigError(f"ray_address={self.ray_address!r} needs engine='ray', not {self.engine!r}.")
        for name in ("layers", "blocks"):
            given = getattr(self, name)
            if not isinstance(given, tuple) or not all(isinstance(each, str) for each in given):
                raise ConfigError(f"{name}={given!r} is not possible; give a list of names.")

    def check(self, model: nn.Module) -> None:
        check_engine(self.engine)
        check_names(model, self.layers, self.blocks)

    def run(self, state: State) -> Outcome:
        """Fit the blocks, and put what came of them into the model when all are done.

        Raises:
            CompressionError: the model has no such layers or blocks, or the teacher none of their names.
            ConfigError: there is no teacher, or a module cannot be sent to another process.
            TrainingStopped: the time was up; blocks that were finished are kept in the folder.
        """
        began = time.perf_counter()
        if state.teacher is None:
            raise ConfigError("the stage 'blocks' fits to a teacher, and there is none; give the dense model.")
        how = self.fit_options()
        blocks = find_blocks(state.model, how, self.layers, self.blocks)
        until = None if state.deadline is None else time.time() + state.deadline - time.monotonic()
        maker = Maker(state.teacher, state.data, how, seed=state.seed, device=state.device, until=until)
        marks = {block.name: fingerprint(block, how, state.seed) for block in blocks}
        found = {block.name: kept(state.folder, block.name, marks[block.name]) for block in blocks}
        done = {name: each for name, each in found.items() if each is not None}
        before = frozenset(done)
        rest = [block for block in blocks if block.name not in done]
        workers, why = self._workers(maker, rest)
        self._fit(state, maker, rest, workers, done, marks)
        accuracy = {"before": self._accuracy(state)}
        was = {name: value.clone() for name, value in state.model.state_dict().items()}
        for block in blocks:
            put(block, how, done[block.name])
        norms = 0
        if self.recalibrate_norms:
            with threads(how.threads):
                norms = recalibrate_norms(state.model, maker.calibration())
        accuracy["after"] = self._accuracy(state)
        error = math.sqrt(accuracy["before"] * (1 - accuracy["before"]) / len(state.data.validation))
        is_kept = self.keep == "always" or accuracy["after"] >= accuracy["before"] - 2 * error
        if not is_kept:
            state.model.load_state_dict(was)
        outcome: Outcome = {
            "objective": self.objective,
            "validation_accuracy": accuracy,
            "kept": is_kept,
            "blocks": [_row(block, done[block.name], block.name in before) for block in blocks],
            "recalibrated_norms": norms,
            "engine": self.engine,
            "workers": workers,
            "largest_job_bytes": maker.bytes,
            "seconds": time.perf_counter() - began,
        }
        return outcome if why is None else {**outcome, "one_worker_because": why}

    @staticmethod
    def _accuracy(state: State) -> float:
        return look(state.model, state.data, state.data.validation, device=state.device)[0]

    def fit_options(self) -> BlockFit:
        """Return how a single block is fitted."""
        return BlockFit(**{name: getattr(self, name) for name in BlockFit.__dataclass_fields__})

    def _workers(self, maker: Maker, blocks: list[Block]) -> tuple[int, str | None]:
        """Return how many workers there will be, and why it is one where that was not asked for."""
        workers = count_workers(self.engine, self.workers, len(blocks), self.ray_address)
        if workers == 1:
            return 1, None
        check_engine(self.engine)
        why = maker.obstacle(blocks)
        if why is not None and self.workers is not None:
            raise ConfigError(f"{why}.")
        return (workers, None) if why is None else (1, why)

    def _fit(
        self,
        state: State,
        maker: Maker,
        blocks: list[Block],
        workers: int,
        done: dict[str, Done],
        marks: dict[str, str],
    ) -> None:
        """Fit blocks, and keep each as it comes. If one fails, those under way are waited for, and kept."""
        total = len(blocks) + len(done)
        failed: list[Done] = []

        def jobs() -> Iterator[Job]:
            for block in blocks:
                if failed or state.out_of_time():
                    return
                yield maker.job(block, stays=workers == 1)

        results = run_tasks(run_job, jobs(), workers=workers, engine=self.engine, address=self.ray_address)
        try:
            for each in results:
                if each.problem is not None:
                    failed.append(each)
                    continue
                keep(state.folder, each, marks[each.name])
                done[each.name] = each
                text = f"{each.name}: error {each.before:.4f} -> {each.after:.4f}, {each.seconds:.1f} s"
                state.tell(Event(len(done), total, text))
                state.log(len(done), {f"{each.name}.before": each.before, f"{each.name}.after": each.after})
        except BrokenExecutor as error:
            raise TrainingStopped(
                f"a worker died, for want of memory perhaps: {len(done)} of {total} blocks are kept. Fewer workers "
                f"than {workers} need less."
            ) from error
        finally:
            results.close()
        for each in failed:
            if each.problem != ("time", ""):
                raise refusal(each)
        if len(done) < total:
            raise TrainingStopped(f"the time is up: {len(done)} of {total} blocks are fitted and kept.")


def _row(block: Block, done: Done, kept: bool) -> dict[str, object]:
    return {
        "name": block.name,
        "weights": list(block.weights),
        "before": done.before,
        "after": done.after,
        "steps": done.steps,
        "seconds": done.seconds,
        "kept": kept,
    }
