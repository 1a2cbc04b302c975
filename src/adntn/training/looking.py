"""A look at how good a model is."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adntn.compress import cached
from adntn.training.data import Batches, Part, TrainingData
from adntn.training.distributed import share, total

__all__ = ["forward", "look"]


def forward(
    model: Callable[[Tensor], Tensor], inputs: Tensor, precision: str = "float32", *, channels_last: bool = False
) -> Tensor:
    """Run a model, in bfloat16 under autocast if asked for, on images that lie in memory channels last if asked for."""
    if channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        outputs: Tensor = model(inputs)
    return outputs


def look(
    model: nn.Module,
    data: TrainingData,
    part: Part,
    *,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    channels_last: bool = False,
) -> tuple[float, float]:
    """Return a model's accuracy, 0 ... 1, and its cross-entropy on some images.

    The model is put into evaluation mode for it and back. Where several processes train together each of them looks at
    its share, and all must call this.

    Args:
        model: takes normalised images and returns logits.
        data: says how images are normalised.
        part: the images.
        device: that the model is on.
        precision: ``"float32"`` or ``"bfloat16"``.
        channels_last: whether images are to lie in memory channels last.
    """
    modes = {module: module.training for module in model.modules()}
    rank, world = share()
    own = Part(part.images[rank::world], part.labels[rank::world])
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    model.eval()
    try:
        with cached(model):
            for images, labels in Batches(own, 1024):
                inputs = data.normalized(images.to(device))
                logits = forward(model, inputs, precision, channels_last=channels_last).float()
                labels = labels.to(device)
                sums[0] += (logits.argmax(1) == labels).sum()
                sums[1] += F.cross_entropy(logits, labels, reduction="sum")
    finally:
        for module, mode in modes.items():
            module.training = mode
    right, loss = (total(sums) / max(1, len(part))).tolist()
    return right, loss
