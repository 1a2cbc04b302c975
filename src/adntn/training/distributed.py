"""Several processes that train one model, as torchrun starts them; with one process none of this does anything."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Traffic", "agree", "leave", "one_process", "share", "spread_buffers", "total"]


# Whether this process works for itself though there are others, see :func:`one_process`.
_by_itself: ContextVar[bool] = ContextVar("adntn_by_itself", default=False)


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Work in this process alone within a block, though there are others: they wait, and exchange nothing with it."""
    before = _by_itself.set(True)
    try:
        yield
    finally:
        _by_itself.reset(before)


def share() -> tuple[int, int]:
    """Return this process's number, from 0, and how many there are."""
    if _by_itself.get():
        return 0, 1
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def _alone() -> bool:
    return _by_itself.get() or not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def agree(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Return which flags any process has raised."""
    if _alone():
        return list(flags)
    given = torch.tensor([float(flag) for flag in flags], device=device)
    dist.all_reduce(given, dist.ReduceOp.MAX)
    return [bool(flag) for flag in given.tolist()]


def total(values: Tensor) -> Tensor:
    """Return the sum of each value over all processes."""
    if not _alone():
        dist.all_reduce(values)
    return values


def spread_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers, which are what is saved."""
    if not _alone():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


class Traffic:
    """Counts what a process hands to the all-reduce of gradients.

    With n processes in a ring each sends 2·(n−1)/n times as many bytes, with two processes just as many.
    """

    def __init__(self) -> None:
        self.bytes = 0

    def watch(self, model: nn.parallel.DistributedDataParallel) -> None:
        """Count from now on; the gradients are averaged as they are without."""
        # Torch reads a hook's annotations, and understands none that are texts.
        model.register_comm_hook(None, lambda group, bucket: self._averaged(group, bucket))

    def _averaged(self, group: Any, bucket: Any) -> torch.futures.Future[Tensor]:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        self.bytes += bucket.buffer().numel() * bucket.buffer().element_size()
        return allreduce_hook(group, bucket)


def leave(status: int = 0) -> NoReturn:
    """End a process that torchrun has started, when all its work is on the disk.

    Gloo's threads now and then abort in their destructors at a usual exit, after all is done; this one leaves them no
    time for it. All processes meet here first if they end well.
    """
    if dist.is_available() and dist.is_initialized() and status == 0:
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
