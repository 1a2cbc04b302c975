"""Gradients of the factors A, C and B without autograd, against autograd's."""

from __future__ import annotations

import pytest
import torch
from adjoint_cases import CASES, build
from conformance_cases import Case
from torch import Tensor

from adntn.adjoint.reverse import Made, Reverse
from adntn.contraction import Contraction

FACTORS: tuple[Made, ...] = ("outer", "centre", "inner")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_of_the_factors_are_autograds_and_need_none(case: Case, no_autograd: pytest.MonkeyPatch) -> None:
    gen = build(case)
    reverse = Reverse(Contraction(gen.blueprint), gen.activation)
    index = torch.randint(gen.shape[0], (2, 3))
    factors = gen.factors()
    if factors is None:
        assert gen.factors_at(index) is None
        return
    rows = gen.factors_at(index)
    assert rows is not None
    parameters = dict(gen.generator_parameters())
    found = []
    made: list[tuple[Made, Tensor, Tensor | None]] = [
        *zip(FACTORS, factors, (None,) * 3, strict=True),
        ("outer", rows[0], index),
    ]
    with torch.inference_mode():
        for what, value, at in made:
            mine = {name: parameters[name] for name in reverse.depends_on(what, parameters)}
            assert value.requires_grad == bool(mine)
            if mine:
                upstream = torch.randn_like(value)
                found.append((value, upstream, reverse.adjoint(what, mine, upstream, at)))
                torch.testing.assert_close(reverse.make(what, mine, at), value, rtol=1e-12, atol=1e-12)
    no_autograd.undo()
    for value, upstream, gradients in found:
        every = torch.autograd.grad(value, list(parameters.values()), upstream, allow_unused=True, retain_graph=True)
        expected = {name: gradient for name, gradient in zip(parameters, every, strict=True) if gradient is not None}
        assert gradients.keys() == expected.keys()
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        for name, theirs in expected.items():
            error = float((gradients[name] - theirs).norm() / max(float(theirs.norm()), 1e-3 * largest))
            assert error < 1e-10, name
