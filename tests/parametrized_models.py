"""Models whose modules have no generated class of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import CONFIG
from torch import Tensor, nn

from adntn import GeneratorConfig, compress_


class Table(nn.Module):
    """A module of a user's with parameters of three kinds and a child."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.table = nn.Parameter(torch.randn(7, 8))
        self.cube = nn.Parameter(torch.randn(4, 8, 3))
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:  # shape: (..., 8)
        return F.linear(self.inner(x * self.scale), self.table) @ self.table + self.cube.sum((0, 2))


class Doubled(nn.Linear):
    """Does something else than its parent."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.linear(input, 2 * self.weight, self.bias)


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(8, 8, batch_first=True),
    "two layers, both ways, projected": lambda: nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True, proj_size=4),
    "no bias": lambda: nn.LSTM(8, 8, bias=False, batch_first=True),
    "gru": lambda: nn.GRU(8, 4, 2, batch_first=True, bidirectional=True),
    "rnn": lambda: nn.RNN(8, 8, batch_first=True, nonlinearity="relu"),
}


class Cells(nn.Module):
    """Recurrent cells, a subclass of a layer, and a user's module."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(8, 8), nn.GRUCell(8, 8)
        self.doubled, self.mine = Doubled(8, 8), Table()

    def forward(self, x: Tensor) -> Tensor:  # shape: (batch, length, 8)
        h = c = g = x.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            h, c = self.lstm(x[:, t], (h, c))
            g = self.gru(h, g)
        result: Tensor = self.mine(self.doubled(g))
        return result


class Net(nn.Module):
    """A recurrent layer and a head."""

    def __init__(self, kind: str = "lstm") -> None:
        super().__init__()
        self.rnn = RECURRENT[kind]()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.rnn(x)[0])
        return result


X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
PATTERN = r"re:rnn\.weight_.*"
CELLS = ["lstm.weight_ih", "lstm.weight_hh", "gru.weight_hh", "doubled.weight", "mine.table", "mine.cube"]

BUILD: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    **{kind: (lambda kind=kind: Net(kind), [PATTERN]) for kind in RECURRENT},
    "cells": (Cells, CELLS),
}


def compressed(kind: str = "lstm", config: GeneratorConfig = CONFIG, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    make, targets = BUILD[kind]
    model = make()
    compress_(model, config, **{"targets": targets, **options})
    return model


every_kind = pytest.mark.parametrize("kind", BUILD)


def set_weights(dense: nn.Module, generated: nn.Module) -> nn.Module:
    """Give a plain model the weights of a generated one, by reading its parameters one by one."""
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            owner, _, key = name.rpartition(".")
            parameter.copy_(getattr(generated.get_submodule(owner), key))
    return dense
