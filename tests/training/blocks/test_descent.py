from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from adntn.training.blocks.descent import Descent


def square(at: nn.Parameter) -> Tensor:
    return (at - 3.0).square().sum()


def test_adam_and_lbfgs_go_down_and_are_counted() -> None:
    at = nn.Parameter(torch.zeros(2))
    descent = Descent([at], lambda: float(square(at.detach())), lambda: None)
    descent.adam(lambda: square(at), 20, 0.2)
    by_adam = descent.best
    descent.polish([lambda: at[0] * at[0] - 6 * at[0], lambda: (at[1] - 3.0).square() + 9.0], 10)
    assert descent.before == 18.0
    assert descent.best < 1e-8 < by_adam < 18.0
    assert descent.steps > 20
    assert descent.best == float(square(at.detach()))


def test_it_never_ends_above_its_start() -> None:
    at = nn.Parameter(torch.full((2,), 3.1))
    descent = Descent([at], lambda: float(square(at.detach())), lambda: None)
    descent.adam(lambda: -square(at), 10, 1.0)
    assert descent.best == descent.before
    assert torch.equal(at, torch.full((2,), 3.1))


def test_a_loss_that_is_not_finite_halves_the_rate_and_goes_on() -> None:
    at, losses = nn.Parameter(torch.zeros(1)), iter([math.nan, math.inf, *[1.0] * 40])
    descent = Descent([at], lambda: float(square(at.detach())), lambda: None)
    descent.adam(lambda: square(at) * next(losses), 40, 0.4)
    assert descent.best < descent.before


def test_pause_may_end_it() -> None:
    at = nn.Parameter(torch.zeros(1))

    def pause() -> None:
        raise TimeoutError

    descent = Descent([at], lambda: 1.0, pause)
    with pytest.raises(TimeoutError):
        descent.adam(lambda: square(at), 1, 0.1)
    with pytest.raises(TimeoutError):
        descent.polish([lambda: square(at)], 1)
    descent.polish([lambda: square(at)], 0)
