"""The watcher of allocations that other tests trust."""

from __future__ import annotations

import torch
from allocations import Allocations
from torch import Tensor


def test_the_largest_allocation_is_seen_and_views_and_writes_in_place_are_none() -> None:
    x = torch.ones(1000)
    with Allocations() as seen:
        x.view(10, 100).T.mul_(2.0).expand(3, 100, 10)
        x.add_(1.0).sum()
    assert seen.largest == 4
    with Allocations() as seen:
        _ = (x.view(10, 100) + 1.0)[:2]
        _ = x[:50].clone()
    assert seen.largest == 4000
    assert "add" in seen.by


def test_memory_counts_whole_though_little_of_it_is_seen() -> None:
    with Allocations() as seen:
        _ = torch.empty(7, 100)[:, 0]
    assert seen.largest == 2800


class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.sum()

    @staticmethod
    def backward(ctx: object, upstream: Tensor) -> Tensor:  # type: ignore[override]
        return torch.outer(torch.ones(300), torch.ones(300)).diagonal() * upstream


def test_what_only_the_backward_pass_makes_is_seen() -> None:
    x = torch.ones(300, requires_grad=True)
    with Allocations() as seen:
        y = _Outer.apply(x)
        assert seen.largest < 2000
        y.backward()  # type: ignore[no-untyped-call]
    assert seen.largest == 4 * 300 * 300


def test_what_autograds_own_backward_makes_is_seen() -> None:
    x, w = torch.ones(1, 200), torch.ones(300, 200, requires_grad=True)
    with Allocations() as seen:
        y = torch.nn.functional.linear(x, w)
        assert seen.largest == 4 * 300
        y.sum().backward()
    assert seen.largest == 4 * 300 * 200  # the gradient of w
