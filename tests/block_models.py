"""Teachers, compressed models and data that the tests of the block-wise fit share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import adntn
from adntn import GeneratorConfig
from adntn.training.data import Part, TrainingData
from adntn.training.stages.base import State

CONFIG = GeneratorConfig(topology="ttn", latent_order=2)
IMAGE = (1, 4, 6)
CLASSES = 3


class Blocky(nn.Module):
    """Two blocks of two layers with norms, one of which writes into its input, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.first = nn.Sequential(
            nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, padding=1), nn.Dropout()
        )
        self.second = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 6, (1, 3)), nn.BatchNorm2d(6))
        self.head = nn.Linear(6 * 4 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.first(self.stem(x))).relu_().flatten(1))
        return logits


class Rows(nn.Module):
    """Layers of every other family, on the rows of an image as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6, padding_idx=0)
        self.q = nn.Linear(6, 6)
        self.k = nn.Linear(6, 5)
        self.v = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2)
        self.up = nn.ConvTranspose1d(4, 5, 3)
        self.tied = nn.Linear(6, 7, bias=False)
        self.tied.weight = self.embed.weight
        self.rnn = nn.LSTM(8, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # shape: (batch, 1, 4, 6) -> (batch, CLASSES)
        rows = x[:, 0].transpose(0, 1)  # shape: (4, batch, 6)
        attended, _ = self.attention(rows, rows, value=rows, need_weights=False)
        mixed = self.q(rows) * self.k(rows).sum(-1, keepdim=True) + self.v(attended)
        words = self.embed(self.tied(mixed).argmax(-1))
        steps, _ = self.rnn(self.up((mixed + words).transpose(0, 1)))
        logits: Tensor = self.head(steps[:, -1])
        return logits


def data(count: int = 40) -> TrainingData:
    random = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (count, *IMAGE), generator=random, dtype=torch.uint8)
    part = Part(images, torch.arange(count) % CLASSES)
    return TrainingData(part, part, part, CLASSES, torch.tensor([0.5]), torch.tensor([0.25]))


def teacher(build: Callable[[], nn.Module] = Blocky) -> nn.Module:
    """A dense model whose norms have seen data."""
    torch.manual_seed(1)
    model = build()
    for _ in range(3):
        model.train()(data().normalized(data().train.images))
    return model.eval().requires_grad_(False)


def compressed(dense: nn.Module, targets: list[str], **options: Any) -> nn.Module:
    torch.manual_seed(2)
    model = copy.deepcopy(dense).requires_grad_(True)
    adntn.compress_(model, options.pop("config", CONFIG), targets, **options)
    return model


def state(model: nn.Module, dense: nn.Module | None, folder: Path, **options: Any) -> State:
    return State(model, dense, data(), folder, seed=5, **options)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
