"""What each process does in the tests of several processes; started alone or by torchrun.

usage: spread.py FOLDER (whole|stopped|full)
"""

from __future__ import annotations

import errno
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training_cases import DATA

import adntn
from adntn.errors import AdntnError
from adntn.training.distributed import leave, share
from adntn.training.loop import fit
from adntn.training.optimization import Optimization

# Plain gradient descent does not magnify rounding as Adam does.
HOW = Optimization(epochs=4, batch_size=20, optimizer="sgd", lr=0.1, ema=0.5)


def build() -> nn.Module:
    """Without batch normalisation and dropout, which make a model of shares of a batch another one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    adntn.compress_(model, adntn.GeneratorConfig(topology="attn"), ["2"])
    return model


def main(folder: Path, what: str) -> None:
    torch.set_num_threads(1)
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
