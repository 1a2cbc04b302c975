"""Norms of a hidden state: what they bring about, and their adjoint against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adntn.norms import NORMS, normalize, normalize_adjoint

every_norm = pytest.mark.parametrize("norm", [None, *NORMS])


def states(**options: Any) -> Tensor:
    # Trees of quite different means and deviations: each has statistics of its own.
    scale, shift = torch.tensor([[1e-2], [1.0], [30.0]]), torch.tensor([[0.0], [-2.0], [100.0]])
    return (scale * torch.randn(3, 16) + shift).to(torch.float64).requires_grad_(options.get("grad", False))


def test_none_changes_nothing() -> None:
    state = states()
    assert torch.equal(normalize(None, state), state)


@pytest.mark.parametrize("norm", ["center", "layer"])
def test_the_mean_of_every_tree_is_zero(norm: str) -> None:
    assert normalize(norm, states()).mean(dim=1).abs().max() < 1e-12


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_the_mean_square_of_every_tree_is_one(norm: str) -> None:
    square = normalize(norm, states() * 100).square().mean(dim=1)
    torch.testing.assert_close(square, torch.ones_like(square), rtol=1e-5, atol=0)


def test_rms_keeps_directions_and_layer_norm_is_torchs() -> None:
    state = states()
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(normalize("rms", state), state), torch.ones(3, dtype=state.dtype)
    )
    expected = torch.nn.functional.layer_norm(state, (16,), eps=1e-6)
    torch.testing.assert_close(normalize("layer", state), expected, rtol=1e-12, atol=1e-12)


@every_norm
@pytest.mark.parametrize("entries", [1, 5])
def test_a_state_of_zeros_stays_finite(norm: str | None, entries: int) -> None:
    state = torch.zeros(2, entries, requires_grad=True)
    made = normalize(norm, state)
    made.sum().backward()
    assert torch.equal(made.detach(), torch.zeros(2, entries))
    assert state.grad is not None
    assert state.grad.isfinite().all()


@every_norm
def test_the_adjoint_is_autograds(norm: str | None) -> None:
    state = states(grad=True)
    upstream = torch.randn(3, 16, dtype=state.dtype)
    (expected,) = torch.autograd.grad(normalize(norm, state), state, upstream)
    torch.testing.assert_close(normalize_adjoint(norm, state.detach(), upstream), expected, rtol=1e-10, atol=1e-10)


@every_norm
def test_derivatives_are_those_of_finite_differences_in_both_modes(norm: str | None) -> None:
    state = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: normalize(norm, x), state, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: normalize(norm, x), state)


@every_norm
def test_forward_mode_is_the_transpose_of_the_adjoint(norm: str | None) -> None:
    state = states()
    tangent, upstream = torch.randn_like(state), torch.randn_like(state)
    _, forward = torch.func.jvp(lambda x: normalize(norm, x), (state,), (tangent,))
    reverse = normalize_adjoint(norm, state, upstream)
    torch.testing.assert_close((forward * upstream).sum(), (reverse * tangent).sum(), rtol=1e-9, atol=1e-12)
