"""Whether a generator fits into memory, known before anything is allocated; and whether given memory fits a weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from adntn.errors import ConfigError, GeneratorTooLargeError, ShapeError
from adntn.topology import TREES, Blueprint

__all__ = ["can_write", "check_memory", "check_out"]


def check_memory(blueprint: Blueprint, device: torch.device) -> None:
    """Refuse a generator whose arrays cannot fit, before any is allocated.

    Raises:
        GeneratorTooLargeError: the estimate from the schedule exceeds the free memory.
    """
    free = _free_memory(device)
    # Calibration works in float64 on the CPU; on another device only the float32 pass counts, or a hash's integers.
    needed = blueprint.peak_entries() * (8 if device.type == "cpu" or blueprint.buffer_shapes else 4)
    if free is None or needed <= free:
        return
    c = blueprint.config
    advice = "A smaller bond_dim, or a smaller weight, needs less."
    size, states = f"bond_dim={c.chi}", ""
    if c.topology in TREES:
        states = (
            f"has a hidden state of {c.chi}**{blueprint.schedule[-2]} = {blueprint.hidden_size:,} entries in each of "
            f"{c.groups} group(s) and {c.terms} term(s), and "
        )
        advice = (
            f"A smaller bond_dim, or bond_dim and radix raised together (radix={c.chi} has fewer modes), or groups of "
            "a small bond_dim need less."
        )
    elif c.topology == "brickwall":
        states = (
            f"keeps the state of each of {c.num_blocks} block(s) and {c.terms} term(s), as large as the weight, and "
        )
        advice = "Fewer blocks or terms, or a tree, need less."
    elif blueprint.buffer_shapes:
        states = "hashes the place of every entry at once, and "
        advice = "A smaller weight needs less."
        if c.topology == "subspace":
            size = f"{blueprint.parameter_shapes['coordinates'][1]:,} numbers"
            advice = "A smaller subspace_dim, or a smaller weight, needs less."
        else:
            size = "nothing stored"
    raise GeneratorTooLargeError(
        f"{c.topology} with {size} for a weight of shape {blueprint.shape} {states}needs about "
        f"{_gib(needed)}; {_gib(free)} are free. {advice}"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count < 2**80 else f"{count >> 30:,} GiB"


def _free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a device, or None where that cannot be asked."""
    if device.type == "cuda":
        # What torch's allocator holds and nobody uses is free too.
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + idle
    if device.type != "cpu":
        return None
    try:
        with Path("/proc/meminfo").open() as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def check_out(out: Tensor, shape: tuple[int, ...], parameters: Sequence[Tensor]) -> None:
    """Refuse memory in which a weight cannot be made.

    Args:
        out: the memory.
        shape: of the weight.
        parameters: of its generator.

    Raises:
        ShapeError: ``out`` has another shape.
        ConfigError: it has another dtype or device, its entries share memory, or a derivative is being taken.
    """
    like = parameters[0]
    if tuple(out.shape) != shape:
        raise ShapeError(f"out= has shape {tuple(out.shape)}; the weight has {shape}.")
    if (out.dtype, out.device) != (like.dtype, like.device):
        raise ConfigError(
            f"out= is of {out.dtype} on {out.device}; the weight is of {like.dtype} on {like.device}, as its "
            "parameters are."
        )
    if any(size > 1 and not stride for size, stride in zip(shape, out.stride(), strict=True)):
        raise ConfigError(f"out= has strides {out.stride()}, so that some of its entries share their memory.")
    if _is_differentiated([*parameters, out]):
        raise ConfigError(
            "out= takes no derivatives: the weight in it would have none. Call generate() without out=, or under "
            "torch.no_grad()."
        )


def can_write(parameters: Sequence[Tensor]) -> bool:
    """Return whether a weight of these parameters can be written into memory part by part, nobody following."""
    plain = all(type(p) in (Tensor, nn.Parameter) for p in parameters)
    return plain and not torch.compiler.is_compiling() and not _is_differentiated(parameters)


def _is_differentiated(tensors: Sequence[Tensor]) -> bool:
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return True
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
