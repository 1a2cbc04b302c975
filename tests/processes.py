"""What each of two processes does in the tests of DDP and FSDP2; started by torchrun.

usage: torchrun --nproc-per-node 2 processes.py (ddp|fsdp) MODEL CONFIG FILE
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from odd_models import CONFIGS, MODELS
from torch import Tensor, nn

STEPS = 3
LEARNING_RATE = 1e-2


def build(name: str, config: str) -> nn.Module:
    """The model that every process builds alike, compressed."""
    torch.manual_seed(0)
    model = MODELS[name]()
    model.compress(CONFIGS[config])
    return model


def train(model: nn.Module, batches: list[tuple[Tensor, ...]]) -> None:
    """Train with plain gradient descent, whose steps do not magnify rounding as Adam's do."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    for batch in batches:
        optimizer.zero_grad()
        model(*batch).square().mean().backward()
        optimizer.step()


def main(how: str, name: str, config: str, file: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    model = build(name, config)
    if how == "ddp":
        wrapped: nn.Module = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        wrapped = fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    # Each process sees its half of every batch; gradients are averaged, so it is one model trained on whole batches.
    parts = [tuple(x.chunk(world)[rank] for x in model.inputs(4, seed=step)) for step in range(STEPS)]
    train(wrapped, parts)
    state = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in model.state_dict().items()}
    if rank == 0:
        torch.save(state, file)
    dist.barrier()  # without it the exit of gloo's processes crashes in four runs of ten
    dist.destroy_process_group()
    os._exit(0)  # with it still, though rarely, in a destructor of a thread; all work is done and on the disk


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
