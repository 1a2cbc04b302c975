"""Losses on weights against values worked by hand, and their gradients."""

from __future__ import annotations

import pytest
import torch
from allocations import Allocations

import adntn
from adntn import ConfigError, Generator, GeneratorConfig, ShapeError
from adntn.losses import frobenius, huber, l1, sampled_frobenius

W = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64)
T = torch.tensor([[1.0, 0.0], [4.0, 2.0]], dtype=torch.float64)


def test_the_distances_of_weights_are_those_worked_by_hand() -> None:
    # Differences 0, 2, -1, 3.
    assert float(frobenius(W, T)) == (0 + 4 + 1 + 9) / 2
    assert float(l1(W, T)) == 0 + 2 + 1 + 3
    assert float(huber(W, T)) == 0 + (2 - 0.5) + 0.5 + (3 - 0.5)
    assert float(huber(W, T, delta=2.0)) == 0 + 2 + 0.5 + 2 * (3 - 1)


def test_at_sampled_entries_only_these_count() -> None:
    index = torch.tensor([[0, 1], [1, 1]])
    assert float(sampled_frobenius(W, T, index)) == (4 + 9) / (2 * 2)
    weight = W.clone().requires_grad_()
    sampled_frobenius(weight, T, index).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 1.0], [0.0, 1.5]]


def test_all_entries_sampled_once_are_the_mean_of_the_whole() -> None:
    index = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    assert float(sampled_frobenius(W, T, index)) == float(frobenius(W, T)) / 4


@pytest.mark.parametrize("order", ["blocked", "paired"])
def test_of_a_generator_only_the_sampled_entries_are_made(order: str) -> None:
    layer = adntn.nn.Linear(600, 500, bias=False, config=GeneratorConfig(order=order), dtype=torch.float64)
    target = torch.randn(500, 600, dtype=torch.float64)
    index = torch.stack([torch.randint(-500, 500, (30,)), torch.randint(600, (30,))], 1)
    expected = torch.autograd.grad(sampled_frobenius(layer.weight, target, index), list(layer.parameters()))
    for given in (target, target[index.unbind(1)]):
        with Allocations() as seen:
            loss = sampled_frobenius(layer, given, index)
            ours = torch.autograd.grad(loss, list(layer.parameters()))
        assert float(loss.detach()) == pytest.approx(float(sampled_frobenius(layer.weight, target, index).detach()))
        assert seen.largest < 8 * 500 * 600 / 8, seen.by
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_subgradient_of_l1_at_zero_is_zero() -> None:
    weight = W.clone().requires_grad_()
    l1(weight, T).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 1.0], [-1.0, 1.0]]


def test_mistakes_are_refused_with_what_was_given() -> None:
    for loss in (frobenius, l1, huber):
        with pytest.raises(ShapeError, match=r"\(2, 2\) and \(2, 3\)"):
            loss(W, torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"index of shape \(2, 3\)"):
        sampled_frobenius(W, T, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"target of shape \(3,\) and a weight of shape \(8, 8\) .* its 2 values"):
        sampled_frobenius(Generator((8, 8)), torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"target of shape \(2,\) .* whole target\.$"):
        sampled_frobenius(W, torch.zeros(2), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(adntn.EntryIndexError, match="index 2 is out of range for axis 1"):
        sampled_frobenius(W, T, torch.tensor([[0, 2]]))
    with pytest.raises(ShapeError, match="at least one row"):
        sampled_frobenius(W, T, torch.zeros(0, 2, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"delta=-1\.0"):
        huber(W, T, delta=-1.0)
