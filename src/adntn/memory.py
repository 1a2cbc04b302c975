"""Whether a generator fits into memory, known from its schedule before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import torch

from adntn.errors import GeneratorTooLargeError
from adntn.topology import TREES, Blueprint

__all__ = ["check_memory"]


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
        return int(torch.cuda.mem_get_info(device)[0])
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
