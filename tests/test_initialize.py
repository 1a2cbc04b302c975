"""Initial values: what is drawn, what calibration does to it, and that a seed decides all of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conformance_cases import BASELINES, CONFIGS, EVERYTHING, NETWORKS, ORDERS, SHAPES, TOPOLOGIES
from torch import Tensor

from adntn import Generator, GeneratorConfig
from adntn.initialize import default_std, draw, stable_rank
from adntn.topology import Blueprint

SIZES = {
    "square": (32, 64),
    "padded": (17, 33),
    "conv": (12, 10, 3, 3),
    "wide": (3, 700),
}


def build(shape: tuple[int, ...], seed: int = 0, **options: Any) -> Generator:
    torch.manual_seed(seed)
    return Generator(shape, GeneratorConfig(**options), dtype=torch.float64)


def pre_activations(gen: Generator) -> list[Tensor]:
    """What the hidden levels' activations are given, shape (groups, entries) each."""
    seen: list[Tensor] = []
    for activation in gen.activation.values():
        activation.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    gen.hidden()
    return seen


# --- calibration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [name for name in CONFIGS if name != "bond 1"])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("topology", ["ttn", "mera", "brickwall", "brickwall, three columns"])
def test_the_kept_entries_start_with_the_deviation_of_a_dense_layer(shape: str, topology: str, config: str) -> None:
    turn = list(CONFIGS).index(config) + list(SIZES).index(shape)
    for order in (ORDERS[turn % 4], ORDERS[(turn + 2) % 4]):
        gen = build(SIZES[shape], order=order, **NETWORKS[topology], **CONFIGS[config])
        fan_in = math.prod(SIZES[shape][1:])
        assert float(gen().detach().std(correction=0)) == pytest.approx((3 * fan_in) ** -0.5, rel=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(32, 64), (18, 33), (12, 10, 3, 3), (2, 3)], ids=str)
@pytest.mark.parametrize("topology", [*BASELINES, "brickwall", "ttn"])
def test_so_do_those_of_every_other_family(topology: str, shape: tuple[int, ...], groups: int) -> None:
    more = {} if topology in BASELINES else {"terms": 3, "gate": True}
    for seed in range(3):
        gen = build(shape, seed, groups=groups, **EVERYTHING[topology], **more)
        assert float(gen().detach().std(correction=0)) == pytest.approx(default_std(shape), rel=1e-9)


@pytest.mark.parametrize("topology", BASELINES)
def test_a_baselines_single_number_starts_at_the_deviation(topology: str) -> None:
    # Its own deviation is zero, and a factor that brings zero to anything is none.
    weight = build((1, 1), topology=topology)().detach()
    assert float(weight.abs()) == pytest.approx(default_std((1, 1)), rel=1e-9)


@pytest.mark.parametrize("topology", ["tt", "lowrank", "subspace", "frozen", "brickwall"])
def test_all_groups_of_a_baseline_start_alike(topology: str) -> None:
    each = build((64, 64), topology=topology, groups=4)().detach().reshape(4, -1).std(dim=1, correction=0)
    assert float(each.max() / each.min()) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("topology", ["ttn", "mera", "brickwall"])
def test_the_trees_of_a_sum_contribute_alike(topology: str) -> None:
    gen = build((32, 64), topology=topology, terms=3, groups=2, activation="prelu", initialization="paper")
    values = dict(gen._parameters_by_name())
    made = gen._network.readout(values, gen._network.hidden(values, gen._activate)).detach().flatten(1)
    each = made.std(dim=1, correction=0).view(2, 3)
    torch.testing.assert_close(each, each[:, :1].expand(2, 3), rtol=1e-9, atol=0)


def test_that_is_the_deviation_of_torchs_own_layers() -> None:
    linear, conv = torch.nn.Linear(400, 500), torch.nn.Conv2d(64, 128, 3)
    for layer in (linear, conv):
        assert default_std(tuple(layer.weight.shape)) == pytest.approx(float(layer.weight.detach().std()), rel=1e-2)


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("shape", [(12, 20), (18, 10, 3, 3)], ids=str)
def test_groups_start_with_one_deviation_together(shape: tuple[int, ...], groups: int) -> None:
    gen = build(shape, groups=groups, topology="mera", activation="prelu")
    weight = gen().detach()
    assert float(weight.std(correction=0)) == pytest.approx(default_std(shape), rel=1e-10)
    each = weight.reshape(groups, -1).std(dim=1, correction=0)
    assert float(each.max() / each.min()) == pytest.approx(1.0, rel=1e-10)


def test_another_deviation_can_be_asked_for() -> None:
    torch.manual_seed(0)
    gen = Generator((17, 33), GeneratorConfig(), std=0.5, dtype=torch.float64)
    assert float(gen().detach().std(correction=0)) == pytest.approx(0.5, rel=1e-10)
    gen.reset_parameters()
    assert float(gen().detach().std(correction=0)) == pytest.approx(0.5, rel=1e-10)


@pytest.mark.parametrize("config", [name for name in CONFIGS if name not in ("bond 1", "no hidden level")])
@pytest.mark.parametrize("topology", [*TOPOLOGIES, "brickwall, three columns", "brickwall, five columns in two"])
def test_every_levels_pre_activation_starts_with_variance_1(topology: str, config: str) -> None:
    gen = build((128, 100), **{"latent_order": 3, **CONFIGS[config]}, groups=2, **NETWORKS[topology])
    seen = pre_activations(gen)
    assert len(seen) == len(gen.schedule) - 2 > 0
    for z in seen:
        assert z.shape[0] == 2 * gen.config.terms
        assert z.var(dim=1, correction=0).tolist() == pytest.approx([1.0] * len(z), rel=1e-10)


@pytest.mark.parametrize("initialization", ["paper", "isometric", "conformal"])
def test_a_block_of_a_brick_wall_carries_its_scale_in_its_first_column(initialization: str) -> None:
    config = GeneratorConfig(
        topology="brickwall", columns=4, initialization=initialization, gate=True, activation="elu"
    )
    torch.manual_seed(5)
    drawn = draw(Blueprint((32, 20), config))
    torch.manual_seed(5)
    values = Generator((32, 20), config, dtype=torch.float64).state_dict()
    changed = {name for name, before in drawn.items() if not torch.equal(values[name], before)}
    assert changed == {"gate.1.1", "gate.2.1"}
    for name in changed:
        factor = values[name] / drawn[name]
        torch.testing.assert_close(factor, factor[:1, :1, :1].expand_as(factor), rtol=1e-9, atol=0)


@pytest.mark.parametrize("topology", ["mera", "brickwall"])
def test_gates_start_open_and_closing_them_does_what_they_say(topology: str) -> None:
    options = {"columns": 4} if topology == "brickwall" else {"latent_order": 2}
    gen = build((32, 32), topology=topology, gate=True, terms=2, activation="relu", **options)
    plain = build((32, 32), topology=topology, terms=2, activation="relu", **options)
    gates = {name: p for name, p in gen.named_parameters() if name.startswith("gate.") and p.ndim == 2}
    assert gates
    assert all(torch.equal(p, torch.ones_like(p)) for p in gates.values())
    torch.testing.assert_close(gen(), plain(), rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        gates["gate.term"][1] = 0.0
        before = gen()
        for name, parameter in gen.named_parameters():
            if parameter.ndim == 3 or name == "root":
                parameter.view(2, -1)[1] += 1.0  # of the tree that is switched off
        assert torch.equal(gen(), before)
        for parameter in gates.values():
            parameter.fill_(0.0)
        assert gen().abs().max() == 0
        gates["gate.term"].fill_(1.0)
        # With identities and no activation the weight is linear in the first cores, whatever the disentanglers are.
        first = next(gen.generator_parameters())[1]
        before = gen()
        for name, parameter in gen.named_parameters():
            if name.startswith("mix.") or name in ("gate.1.2", "gate.2.1", "gate.2.2"):
                parameter.add_(1.0)
        torch.testing.assert_close(gen(), before, rtol=1e-12, atol=1e-14)
        if topology == "mera":
            first.mul_(-2.0)
            torch.testing.assert_close(gen(), -2 * before, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("initialization", ["paper", "isometric", "conformal"])
def test_calibration_scales_expansions_and_carries_alike_and_leaves_the_rest(initialization: str) -> None:
    config = GeneratorConfig(topology="mera", initialization=initialization, groups=2, latent_order=3)
    torch.manual_seed(5)
    drawn = draw(Blueprint((128, 100), config))
    torch.manual_seed(5)
    values = Generator((128, 100), config, dtype=torch.float64).state_dict()
    factors: dict[str, Tensor] = {}
    for name, before in drawn.items():
        after = values[name]
        kind, _, level = name.partition(".")
        if kind not in ("expand", "carry"):
            assert torch.equal(after, before), name
            continue
        factor = (after / before).unflatten(0, (2, -1)).flatten(1)  # shape: (groups, entries of the stack)
        torch.testing.assert_close(factor, factor[:, :1].expand_as(factor), rtol=1e-9, atol=0)
        torch.testing.assert_close(factor[:, 0], factors.setdefault(level, factor[:, 0]), rtol=1e-9, atol=0)
    assert set(factors) == {"1", "2", "3"}
    assert all((factor - 1).abs().max() > 1e-3 for factor in factors.values())


@pytest.mark.parametrize("topology", ["ttn", "mera"])
@pytest.mark.parametrize("shape", ["one number", "column", "row"])
@pytest.mark.parametrize("config", [*CONFIGS, "relu"])
def test_even_the_smallest_weight_starts_finite_and_not_at_zero(shape: str, topology: str, config: str) -> None:
    options = CONFIGS.get(config, {"activation": "relu"})
    for seed in range(2):
        weight = build(SHAPES[shape], seed, **TOPOLOGIES[topology], **options)().detach()
        assert weight.isfinite().all()
        assert weight.norm() > 0


@pytest.mark.parametrize("latent_order", [1, 2])
def test_no_seed_starts_with_a_weight_of_zeros(latent_order: int) -> None:
    # A ReLU sends a small root wholly to zero in one draw of ten, and then nothing can ever learn.
    for seed in range(100):
        weight = build((8, 8), seed, activation="relu", initialization="paper", latent_order=latent_order)()
        assert weight.detach().norm() > 0, f"seed {seed}"


# --- draws ----------------------------------------------------------------------------------------

# Large stacks, so that moments are measured well.
WIDE = {"radix": 16, "latent_order": 1, "topology": "mera", "initialization": "paper"}


def drawn(name: str, **options: Any) -> Tensor:
    return draw(Blueprint((4096, 4096, 4, 4), GeneratorConfig(**{**WIDE, **options})))[name]


def test_the_root_is_normal_with_deviation_005() -> None:
    root = drawn("root", radix=2, latent_order=13)
    assert float(root.std()) == pytest.approx(0.05, rel=0.05)
    assert float((root.abs() > 0.1).double().mean()) == pytest.approx(0.0455, rel=0.2)


@pytest.mark.parametrize("activation, gain", [("relu", math.sqrt(2)), ("tanh", 1.0), ("prelu", math.sqrt(2 / 1.0625))])
def test_cores_before_an_activation_are_normal_with_the_activations_gain(activation: str, gain: float) -> None:
    for name in ("expand.1", "expand.2"):
        cores = drawn(name, activation=activation)
        assert float(cores.std()) == pytest.approx(gain / math.sqrt(16), rel=0.05)
        assert float(cores.abs().max()) > 3 * gain / math.sqrt(16)  # not uniform


def test_readout_cores_are_uniform_without_gain() -> None:
    cores = drawn("expand.3", activation="relu")
    bound = math.sqrt(6 / (16 + 256))
    assert float(cores.abs().max()) == pytest.approx(bound, rel=1e-2)
    assert float(cores.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_disentanglers_are_the_identity_and_a_little_noise() -> None:
    gates = drawn("mix.3.0")
    noise = gates - torch.eye(256, dtype=torch.float64)
    assert float(noise.std()) == pytest.approx(1e-2 / math.sqrt(256), rel=0.05)


@pytest.mark.parametrize("shape", [(64, 64), (17, 33), (12, 10, 3, 3)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"bond_dim": 3}, {"bond_dim": 5}, {"radix": 3, "bond_dim": 2}, {"groups": 1}], ids=str
)
def test_isometric_cores_are_semi_orthogonal_and_disentanglers_orthogonal(
    shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    gen = build(shape, initialization="isometric", topology="mera", latent_order=2, **options)
    for name, parameter in gen.named_parameters():
        stack = parameter.detach()
        if name.startswith("mix"):
            eye = torch.eye(stack.shape[-1], dtype=stack.dtype).expand_as(stack)
            torch.testing.assert_close(stack.mT @ stack, eye, rtol=0, atol=1e-12)
            assert (stack - eye).abs().max() > 0
        elif name.startswith(("expand", "carry")):
            short = stack if stack.shape[1] <= stack.shape[2] else stack.mT
            gram = short @ short.mT
            scale = gram.diagonal(dim1=1, dim2=2).mean()
            eye = torch.eye(gram.shape[-1], dtype=stack.dtype).expand_as(gram)
            torch.testing.assert_close(gram / scale, eye, rtol=0, atol=1e-12)


def test_isometric_cores_are_drawn_evenly_from_all_rotations() -> None:
    # QR alone fixes the signs of R's diagonal, which shows as a mean of the orthogonal factor's far from zero.
    blueprint = Blueprint((4096, 4096), GeneratorConfig(initialization="isometric"))
    cores = torch.cat([draw(blueprint)["carry.2"] for _ in range(50)])
    for entry in (cores[:, 0, 0], cores[:, 1, 1]):
        assert float(entry.square().mean()) == pytest.approx(0.5, rel=0.2)
        assert float(entry.mean().abs()) < 4 * math.sqrt(0.5 / len(cores))


# --- seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", EVERYTHING)
def test_a_seed_gives_the_same_start_again(topology: str) -> None:
    first, again, other = (build((17, 33), seed, **EVERYTHING[topology])() for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_reset_parameters_draws_anew() -> None:
    gen = build((17, 33), 3, topology="mera", activation="prelu")
    first = {name: value.clone() for name, value in gen.state_dict().items()}
    gen.reset_parameters()
    assert not torch.equal(gen.root, first["root"])
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.fill_(3.0)
    torch.manual_seed(3)
    gen.reset_parameters()
    assert all(torch.equal(value, first[name]) for name, value in gen.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("config", ["prelu, centred", "sine, isometric", "bridge"])
def test_the_start_does_not_depend_on_the_dtype(config: str, dtype: torch.dtype) -> None:
    exact = build((17, 33), 3, topology="mera", **CONFIGS[config]).state_dict()
    torch.manual_seed(3)
    gen = Generator((17, 33), GeneratorConfig(topology="mera", **CONFIGS[config]), dtype=dtype)
    for name, value in gen.state_dict().items():
        assert value.dtype == dtype
        assert torch.equal(value, exact[name].to(dtype)), name


def test_the_start_does_not_depend_on_the_default_dtype() -> None:
    expected = build((17, 33), 3).state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(3)
        gen = Generator((17, 33))
    finally:
        torch.set_default_dtype(torch.float32)
    assert gen.root.dtype == torch.float64
    assert all(torch.equal(value, expected[name]) for name, value in gen.state_dict().items())


# --- stable rank ----------------------------------------------------------------------------------


def by_svd(matrix: Tensor) -> float:
    s = torch.linalg.svdvals(matrix.double())
    return float(s.square().sum() / s[0].square())


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (30, 50), (50, 30), (16, 8, 3, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_stable_rank_is_that_of_the_singular_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = torch.randn(shape).to(dtype)
    assert stable_rank(weight) == pytest.approx(by_svd(weight.flatten(1)), rel=1e-4)


@pytest.mark.parametrize(
    "kind, shape", [("gaussian", (1030, 1100)), ("one large value", (1100, 1030)), ("flat spectrum", (1030, 1100))]
)
def test_stable_rank_of_a_large_weight(shape: tuple[int, int], kind: str) -> None:
    if kind == "flat spectrum":
        weight = torch.eye(*shape)
        expected = 1030.0
    else:
        weight = torch.randn(shape)
        if kind == "one large value":
            weight = weight + 1.0
        expected = by_svd(weight)
    state = torch.random.get_rng_state()
    # Near the edge of a Gaussian's spectrum the values lie close together, and an estimate is a little low.
    assert stable_rank(weight) == pytest.approx(expected, rel=2e-2)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_stable_rank_does_not_depend_on_the_scale(scale: float) -> None:
    weight = torch.randn(20, 30)
    assert stable_rank(weight * scale) == pytest.approx(stable_rank(weight), rel=1e-3)


def test_stable_rank_of_known_matrices() -> None:
    assert stable_rank(torch.eye(7)) == pytest.approx(7.0)
    assert stable_rank(torch.ones(5, 8)) == pytest.approx(1.0)
    assert stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(1.5)
