"""Running statistics of batch norms, estimated anew: those of a dense network do not fit the compressed one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["recalibrate_norms"]


@torch.no_grad()
def recalibrate_norms(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Estimate the running mean and variance of every batch norm anew, in place, as the average over batches.

    All else is as in inference: dropout is off, and no parameter changes. torch's
    :func:`torch.optim.swa_utils.update_bn` does the same with dropout on.

    Args:
        model: takes one of the batches.
        batches: inputs, some hundreds of images in all; the larger each, the better the variance.

    Returns:
        How many norms there are; where there is none, no batch is asked for.

    Example:
        >>> recalibrate_norms(model, images.split(128))
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over all batches
            norm.train()
        for batch in batches:
            model(batch)
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(norms)
