"""No factored layer makes anything of its weight's size, forwards or backwards, in training or under cached."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from allocations import Allocations
from torch import Tensor, nn

import adntn
from adntn import Generator, GeneratorConfig

GENERATORS: dict[str, dict[str, Any]] = {
    "ttn": {},
    "attn": {"topology": "attn"},
    "mera": {"topology": "mera"},
    "brickwall": {"topology": "brickwall"},
    "tt": {"topology": "tt", "bond_dim": 4},
    "lowrank": {"topology": "lowrank", "bond_dim": 4},
    "2 groups": {"groups": 2},
    "2 terms": {"topology": "attn", "terms": 2},
}


@dataclass(frozen=True)
class Case:
    """A layer whose weight is far larger than its input and output.

    Attributes:
        make: builds it from a config.
        input: its shape; of indices if ``rows`` are given.
        share: which part of the weight's memory the largest allocation may have.
        rows: of a table.
    """

    make: Callable[..., nn.Module]
    input: tuple[int, ...]
    share: float
    rows: int | None = None


def _shared(config: GeneratorConfig, **options: Any) -> nn.Module:
    """The second half of the rows that one generator makes."""
    dense = nn.Linear(4096, 2048, device="meta").to_empty(device="cpu")
    return adntn.nn.Linear.from_dense(dense, share=Generator((4096, 4096), config), rows=(2048, 4096), **options)


def _attention(config: GeneratorConfig, execution: str) -> nn.Module:
    return adntn.nn.MultiheadAttention(1024, 8, config=config, execution=execution)


LAYERS = {
    "linear 4096x4096": Case(partial(adntn.nn.Linear, 4096, 4096), (2, 4096), 1 / 15),
    "linear 1000x4096": Case(partial(adntn.nn.Linear, 4096, 1000), (2, 4096), 1 / 3),
    "linear 384x1000": Case(partial(adntn.nn.Linear, 1000, 384), (2, 1000), 1 / 2),
    "rows of a shared generator": Case(_shared, (2, 4096), 1 / 7),
    "conv1d": Case(partial(adntn.nn.Conv1d, 512, 512, 9), (1, 512, 12), 1 / 2),
    "conv2d": Case(partial(adntn.nn.Conv2d, 512, 512, 3, padding=1), (1, 512, 3, 3), 1 / 2),
    "conv2d, 384 to 1000": Case(partial(adntn.nn.Conv2d, 384, 1000, 3, padding=1), (1, 384, 3, 3), 1 / 2),
    "conv3d": Case(partial(adntn.nn.Conv3d, 256, 256, 3, padding=1), (1, 256, 3, 3, 3), 1 / 12),
    "conv2d, 2 groups": Case(partial(adntn.nn.Conv2d, 1024, 1024, 3, groups=2), (1, 1024, 3, 3), 1 / 2),
    "transposed": Case(partial(adntn.nn.ConvTranspose2d, 512, 384, 4, stride=2), (1, 512, 3, 3), 1 / 2),
    "embedding": Case(partial(adntn.nn.Embedding, 20_000, 512, 0), (2, 5), 1 / 50, rows=20_000),
    # The smallest weight is that of out_proj, and A of in_proj has three times its rows.
    "attention": Case(_attention, (2, 3, 1024), 0.8),
}
#: Each layer with one generator and each generator with one layer are quick.
ROWS = [
    pytest.param(layer, generator, marks=() if (place + turn) % len(GENERATORS) == 0 else pytest.mark.slow)
    for place, layer in enumerate(LAYERS)
    for turn, generator in enumerate(GENERATORS)
]


def run(layer: nn.Module, x: Tensor) -> Tensor:
    y = layer(x, x, x, need_weights=False)[0] if isinstance(layer, nn.MultiheadAttention) else layer(x)
    assert isinstance(y, Tensor)
    return y


def smallest_weight(layer: nn.Module) -> int:
    """Entries of the smallest of its generated weights."""
    shapes = [part.shape for part in layer.modules() if isinstance(part, adntn.nn.GeneratedWeight)]
    return min(math.prod(shape) for shape in shapes)


@pytest.mark.parametrize("name, generator", ROWS)
def test_nothing_of_the_weights_size_is_made(name: str, generator: str) -> None:
    case = LAYERS[name]
    config = GeneratorConfig(**{"topology": "ttn", "order": "blocked", **GENERATORS[generator]})
    layer = case.make(config=config, execution="factored")
    weight = 4 * smallest_weight(layer)
    x = torch.randint(case.rows, case.input) if case.rows else torch.randn(case.input, requires_grad=True)
    with Allocations() as seen:
        y = run(layer, x)
        forward = len(seen.made)
        y.square().sum().backward()
    assert len(seen.made) > forward
    assert seen.largest < case.share * weight, f"1/{weight / seen.largest:.1f}: {seen.by}"
    model = nn.ModuleList([layer])
    with adntn.cached(model), Allocations() as seen:
        run(layer, x)
        run(layer, x)
    # A kept embedding keeps all rows of A.
    share = 0.6 if case.rows else case.share
    assert seen.largest < share * weight, f"1/{weight / seen.largest:.1f}: {seen.by}"


def test_the_same_watch_sees_the_weight_where_it_is_made() -> None:
    layer = adntn.nn.Linear(1000, 384, execution="dense")
    with Allocations() as seen:
        layer(torch.randn(2, 1000)).sum()
    assert seen.largest >= 4 * 1000 * 384
