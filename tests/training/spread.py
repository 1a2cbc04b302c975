"""What each process does in the tests of several processes; started alone or by torchrun.

usage: spread.py FOLDER (whole|stopped|full|sharded|first)
"""

from __future__ import annotations

import errno
import json
import signal
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training_cases import DATA

import adntn
from adntn.errors import AdntnError
from adntn.training.data import Batches
from adntn.training.distributed import leave, one_process, share
from adntn.training.loop import fit
from adntn.training.optimization import Optimization
from adntn.training.rates import make_optimizer, set_rates

# Plain gradient descent does not magnify rounding as Adam does.
HOW = Optimization(epochs=4, batch_size=20, optimizer="sgd", lr=0.1, ema=0.5)


def build() -> nn.Module:
    """Without batch normalisation and dropout, which make a model of shares of a batch another one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    adntn.compress_(model, adntn.GeneratorConfig(topology="attn"), ["2"])
    return model


def sharded(folder: Path) -> None:
    """A few steps of what the loop does in one, with the parameters spread over the processes by FSDP2."""
    rank, world = share()
    model = build()
    if world > 1:
        dist.init_process_group("gloo")
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    optimizer = make_optimizer(model, HOW)
    batches = Batches(DATA.train, HOW.batch_size, 0, (rank, world))
    for step, (images, labels) in enumerate(batches):
        set_rates(optimizer.param_groups, HOW, step, len(batches))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(DATA.normalized(images)), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    state = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in model.state_dict().items()}
    if rank == 0:
        torch.save(state, folder / "final.pt")
    leave()


def main(folder: Path, what: str) -> None:
    torch.set_num_threads(1)
    if what == "sharded":
        sharded(folder)
    if what == "first":
        dist.init_process_group("gloo")
    model = build()
    rank, _ = share()

    def on_step(step: int, total: int) -> None:
        if what == "stopped" and step == 7 and rank == 1:
            signal.raise_signal(signal.SIGTERM)

    if what == "full" and rank == 0:
        write = Path.write_bytes
        sizes = iter((0, 1))

        def full(self: Path, content: Any) -> int:
            if next(sizes):
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(self, content)

        Path.write_bytes = full  # type: ignore[method-assign]
    try:
        if what == "first" and rank > 0:
            leave()
        with one_process() if what == "first" else nullcontext():
            fitted = fit(model, DATA, HOW, folder=folder / "run", on_step=on_step)
    except AdntnError as error:
        (folder / f"error{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        leave(1)
    if rank == 0:
        (folder / "fitted.json").write_text(json.dumps(asdict(fitted)))
        torch.save(model.state_dict(), folder / "final.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
