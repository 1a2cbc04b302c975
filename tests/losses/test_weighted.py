"""A weighted sum of losses."""

from __future__ import annotations

import math

import pytest
import torch

from adntn import ConfigError, Generator
from adntn.losses import WeightedSum, frobenius, isometry


def test_a_weighted_sum_tells_its_terms_apart() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    loss = WeightedSum({"square": (2.0, lambda x: x**2), "cube": (0.5, lambda x: x**3), "off": (0.0, lambda x: 1 / 0)})
    total, terms = loss(x)
    total.backward()
    assert float(total.detach()) == 2 * 9 + 0.5 * 27
    assert {name: float(value) for name, value in terms.items()} == {"square": 9.0, "cube": 27.0}
    assert not any(value.requires_grad for value in terms.values())
    assert float(x.grad) == 2 * 6 + 0.5 * 27  # type: ignore[arg-type]


def test_a_generator_learns_from_a_composite_loss() -> None:
    gen = Generator((16, 16))
    target = torch.randn(16, 16)
    loss = WeightedSum({"fit": (1.0, lambda: frobenius(gen(), target)), "isometry": (1e-2, lambda: isometry(gen))})
    optimizer = torch.optim.Adam(gen.parameters(), lr=1e-2)
    totals = []
    for _ in range(30):
        optimizer.zero_grad()
        total, _ = loss()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < totals[0]


def test_mistakes_are_refused_with_what_was_given() -> None:
    with pytest.raises(ConfigError, match="factor of 'task'"):
        WeightedSum({"task": (math.nan, lambda: torch.zeros(()))})
    with pytest.raises(ConfigError, match="at least one term"):
        WeightedSum({})
