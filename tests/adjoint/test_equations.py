"""Each function against the sums of its equation, index by index."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from adntn.activations import ACTIVATIONS, derivative, make_activation, parameter_gradients
from adntn.adjoint import equations
from adntn.adjoint.equations import (
    block_matrix,
    core_gradient,
    expand_or_mix,
    gate_gradient,
    level_blocks,
    nonlinearity,
    pre_activation_adjoint,
    state_adjoint,
)
from adntn.errors import ConfigError
from adntn.levels import Core, Level, Mixer
from adntn.norms import NORMS, normalize, normalize_adjoint

TREES = 2
SIZES = (2, 3, 2, 2)
#: One operator each, with modes of different sizes.
OPERATORS = {
    "a parent of two children, a carry, one that passes": Level(1, (3, 2, 2), SIZES, 1, 1),
    "a carry behind two expansions": Level(1, (3, 1, 2), (2, 3, 2, 2, 2), 2, 1),
    "one gate between modes that pass": Level(1, SIZES, SIZES, 0, 0, (Mixer(1, 1, "mix"),)),
    "two gates": Level(1, SIZES, SIZES, 0, 0, (Mixer(0, 2, "mix"),)),
}


def joint(indices: tuple[int, ...], sizes: tuple[int, ...], modes: tuple[int, ...]) -> int:
    place = 0
    for mode in modes:
        place = place * sizes[mode] + indices[mode]
    return place


def entries(
    level: Level, before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[dict[Core, tuple[int, int]], list[bool]]:
    """Which entry of each core stands in the sum at these indices (Eqs. 49, 56), and the deltas of what passes."""
    found: dict[Core, tuple[int, int]] = {}
    deltas = []
    sizes = level.sizes_out
    if not level.mixers:
        for parent, core in enumerate(level.cores):
            column = joint(after, sizes, level.children_of(parent))
            if core is None:
                deltas.append(before[parent] == column)
            else:
                found[core] = (before[parent], column)
        return found, deltas
    touched = set()
    for k, core in enumerate(level.gates[0]):
        pair = (level.mixers[0].first + 2 * k, level.mixers[0].first + 2 * k + 1)
        found[core] = (joint(after, sizes, pair), joint(before, sizes, pair))
        touched.update(pair)
    return found, [before[m] == after[m] for m in range(level.children) if m not in touched]


@pytest.fixture(params=[1, 1 << 12], ids=["a block a core", "one block"])
def bound(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(equations, "_MAX_ENTRIES", request.param)
    level_blocks.cache_clear()
    yield request.param
    level_blocks.cache_clear()


@pytest.mark.parametrize("level", OPERATORS.values(), ids=OPERATORS)
def test_an_operator_its_adjoint_and_its_cores_gradients_are_the_papers_sums(level: Level, bound: int) -> None:
    cores = {s.name: torch.randn(TREES, s.count, *s.shape, dtype=torch.float64) for s in level.stacks}
    x = torch.randn(TREES, *level.sizes_in, dtype=torch.float64)
    y_bar = torch.randn(TREES, *level.sizes_out, dtype=torch.float64)
    y, x_bar = torch.zeros_like(y_bar), torch.zeros_like(x)
    gradients: dict[Core, Tensor] = {}
    for p, c in itertools.product(*(itertools.product(*map(range, sizes)) for sizes in (x.shape[1:], y.shape[1:]))):
        mine, deltas = entries(level, p, c)
        if not all(deltas):
            continue
        values = {core: cores[core.stack][:, core.place, row, column] for core, (row, column) in mine.items()}
        at_p, at_c = (slice(None), *p), (slice(None), *c)
        whole = torch.stack(list(values.values())).prod(0)
        y[at_c] += whole * x[at_p]  # Eqs. 49, 55
        x_bar[at_p] += whole * y_bar[at_c]  # Eqs. 52, 57
        for core, (row, column) in mine.items():  # Eqs. 53, 58
            others = [value for other, value in values.items() if other != core]
            rest = torch.stack([torch.ones_like(whole), *others]).prod(0)
            gradient = gradients.setdefault(core, torch.zeros_like(cores[core.stack][:, core.place]))
            gradient[:, row, column] += rest * x[at_p] * y_bar[at_c]

    blocks = level_blocks(level)
    assert (len(blocks) > 1) == (bound == 1)
    state, states = x.flatten(1), []
    for block in blocks:
        states.append(state)
        state = expand_or_mix(block, block_matrix(block, cores, state), state)
    torch.testing.assert_close(state, y.flatten(1), rtol=1e-12, atol=1e-12)

    upstream, found = y_bar.flatten(1), dict[Core, Tensor]()
    for block, before in zip(reversed(blocks), reversed(states), strict=True):
        gradient_of = gate_gradient if block.gates else core_gradient
        found.update(gradient_of(block, cores, before, upstream))
        upstream = state_adjoint(block, block_matrix(block, cores, before), upstream)
    torch.testing.assert_close(upstream, x_bar.flatten(1), rtol=1e-12, atol=1e-12)
    assert found.keys() == gradients.keys()
    for core, expected in gradients.items():
        torch.testing.assert_close(found[core], expected, rtol=1e-12, atol=1e-12)


# --- between the levels -----------------------------------------------------------------------------


class Bound:
    """A module with its derivatives beside it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, z: Tensor) -> Tensor:
        state: Tensor = self.module(z)
        return state

    def derivative(self, z: Tensor) -> Tensor:
        return derivative(self.module, z)

    def parameter_gradients(self, z: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        return parameter_gradients(self.module, z, upstream)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("norm", [None, *NORMS])
@pytest.mark.parametrize("name", [*ACTIVATIONS, "elu(alpha=0.5)", "sine(omega=3)"])
def test_the_pre_activations_adjoint_is_autograds(name: str, norm: str | None, gated: bool) -> None:
    module = make_activation(name, TREES).double()
    for parameter in module.parameters():
        nn.init.uniform_(parameter)
    z = torch.randn(TREES, 12, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(TREES, 1, dtype=torch.float64, requires_grad=True) if gated else None
    upstream = torch.randn(TREES, 12, dtype=torch.float64)
    state = nonlinearity(module, norm, gate, z)
    wanted = [z, *([gate] if gate is not None else []), *module.parameters()]
    expected = torch.autograd.grad(state, wanted, upstream)
    with torch.no_grad():
        z_bar, gate_bar, learned = pre_activation_adjoint(Bound(module), norm, gate, z, upstream)
    assert (gate_bar is None) == (gate is None)
    assert list(learned) == [n for n, _ in module.named_parameters()]
    found = [z_bar, *([gate_bar] if gate_bar is not None else []), *learned.values()]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("norm", [None, *NORMS])
def test_a_norms_adjoint_is_autograds_also_of_a_state_near_zero(norm: str | None) -> None:
    for scale in (1.0, 1e-4):
        state = (scale * torch.randn(3, 16, dtype=torch.float64)).requires_grad_()
        upstream = torch.randn(3, 16, dtype=torch.float64)
        (expected,) = torch.autograd.grad(normalize(norm, state), state, upstream)
        torch.testing.assert_close(normalize_adjoint(norm, state.detach(), upstream), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["relu", "elu", "prelu", "elu(alpha=0.5)"])
def test_at_the_kink_the_derivative_is_torchs(name: str) -> None:
    module = make_activation(name, 1).double()
    z = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(module(z).sum(), z)
    assert torch.equal(derivative(module, z), expected)


def test_derivatives_stay_finite_far_out() -> None:
    z = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    for name in ACTIVATIONS:
        slope = derivative(make_activation(name, 1), z)
        if slope.requires_grad:
            (curvature,) = torch.autograd.grad(slope.sum(), z, allow_unused=True)
            assert curvature is None or curvature.isfinite().all(), name
        assert slope.isfinite().all(), name


def test_an_activation_without_a_known_derivative_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match="Softsign"):
        derivative(nn.Softsign(), torch.zeros(1))
