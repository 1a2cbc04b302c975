"""A small task that several files of tests train on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adntn import GeneratorConfig, compress_
from adntn.training.data import Part, TrainingData
from adntn.training.loop import Fitted, fit
from adntn.training.optimization import Optimization


def bars(count: int, seed: int) -> Part:
    """Three classes: the bright third of an image."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 90, (count, 1, 6, 6), generator=random)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * int(label) : 2 * int(label) + 2] += 120
    return Part(images.to(torch.uint8), labels)


DATA = TrainingData(bars(90, 0), bars(30, 1), bars(30, 2), 3, torch.tensor([0.3]), torch.tensor([0.2]))


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def generated(seed: int = 0, topology: str = "attn") -> nn.Sequential:
    """A small network with a generated layer, batch normalisation and dropout."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 3)
    )
    compress_(model, GeneratorConfig(topology=topology), ["1"])
    return model


def fitted(model: nn.Module, how: Optimization | None = None, **options: Any) -> Fitted:
    how = how or Optimization(epochs=2, batch_size=32, lr=1e-2)
    return fit(model, options.pop("data", DATA), how, **options)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two state_dicts are equal to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
