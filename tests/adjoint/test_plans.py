"""A plan's adjoint against the paper's equations, run one after the other over the whole tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from adjoint_cases import CASES, build
from conformance_cases import Case
from torch import Tensor

from adntn.adjoint.equations import (
    block_matrix,
    core_gradient,
    expand_or_mix,
    gate_gradient,
    level_blocks,
    state_adjoint,
)
from adntn.adjoint.plans import Parts, level_adjoint, stacked
from adntn.adjoint.readout import ReadoutAdjoint
from adntn.contraction import Contraction
from adntn.levels import Core, Level


def by_the_equations(
    level: Level, cores: Mapping[str, Tensor], state: Tensor, upstream: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Eqs. 49 and 55 there, 52, 53, 57 and 58 back."""
    met = []
    for block in level_blocks(level):
        matrix = block_matrix(block, cores, state)
        met.append((block, matrix, state))
        state = expand_or_mix(block, matrix, state)
    gradients: dict[Core, Tensor] = {}
    for block, matrix, before in reversed(met):
        gradients |= (gate_gradient if block.gates else core_gradient)(block, cores, before, upstream)
        upstream = state_adjoint(block, matrix, upstream)
    stacks = {
        stack.name: torch.stack([gradients[Core(stack.name, place)] for place in range(stack.count)], dim=1)
        for stack in level.stacks
    }
    return {name: stack.flatten(0, 1) for name, stack in stacks.items()}, upstream


def check(level: Level, found: tuple[Parts, Tensor], expected: tuple[dict[str, Tensor], Tensor], trees: int) -> None:
    gradients = {stack.name: stacked(found[0], stack, trees) for stack in level.stacks}
    for name, gradient in gradients.items():
        assert gradient is not None
        torch.testing.assert_close(gradient, expected[0][name], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("no_autograd")
def test_a_plans_adjoint_is_the_papers(case: Case) -> None:
    check_plans(case)


@pytest.mark.parametrize("case", list(CASES.values())[::5], ids=list(CASES)[::5])
@pytest.mark.usefixtures("no_autograd")
def test_so_it_is_wherever_circuits_are_cut(case: Case, plan_with_bounds: Callable[[int], None]) -> None:
    plan_with_bounds(8)  # small weights too are then made by a head and a tail
    check_plans(case)


def check_plans(case: Case) -> None:
    gen = build(case)
    network, parameters = Contraction(gen.blueprint), dict(gen.generator_parameters())
    trees, tensorization = gen.config.trees, gen.blueprint.tensorization
    *hidden, last = gen.blueprint.levels
    with torch.inference_mode():
        for level, plans in zip(hidden, network.hidden_plans, strict=True):
            cores = network.cores(parameters, level)
            state = torch.randn(trees, level.entries_in, dtype=torch.float64)
            upstream = torch.randn(trees, *plans[-1].size_out, dtype=torch.float64)
            found = level_adjoint(plans, cores, state, upstream)
            check(level, found, by_the_equations(level, cores, state, upstream), trees)

        cores = network.cores(parameters, last)
        state = torch.randn(trees, last.entries_in, dtype=torch.float64)
        upstream = torch.randn(gen.shape, dtype=torch.float64)
        # Folding puts zeros where the weight was cropped; every term meets the same.
        folded = tensorization.fold(upstream).repeat_interleave(gen.config.terms, dim=0)
        found = ReadoutAdjoint(network, cores).weight(state, upstream)
        check(last, found, by_the_equations(last, cores, state, folded), trees)
