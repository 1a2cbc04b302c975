"""Starting a generator from a trained weight's decomposition."""

from __future__ import annotations

import doctest
import math
from typing import Any

import pytest
import torch
from conformance_cases import Case, generator_cases, relative_error
from torch import Tensor, nn

import adntn
from adntn import Generator, GeneratorConfig
from adntn.errors import ConfigError, ShapeError
from adntn.topology import TREES

TREE_CASES = {
    name: case
    for name, case in generator_cases().items()
    if case.blueprint().config.topology in TREES and case.blueprint().config.norm is None and case.bits is None
}
EXACT = {name: case for name, case in TREE_CASES.items() if case.options.get("terms", 1) == 1}
QUICK, SLOW = list(EXACT)[::3], [name for place, name in enumerate(EXACT) if place % 3]
MORE = {
    "bond above the pair's size": Case((8, 8), {"bond_dim": 7, "latent_order": 2}),
    "bond above it in one kernel mode": Case((4, 3, 3, 3), {"bond_dim": 5, "kernel_radix": 3, "latent_order": 2}),
    "mera, carries on two levels": Case((64, 32), {"topology": "mera", "latent_order": 4}),
    "block_paired, groups, bond 3": Case((8, 16), {"order": "block_paired", "groups": 2, "bond_dim": 3}),
    "paired, radix 3": Case((9, 27), {"order": "paired", "radix": 3, "latent_order": 2}),
    "gate": Case((8, 8), {"topology": "mera", "gate": True, "latent_order": 2}),
}


def linear(case: Case) -> Tensor:
    """Return a weight that the case's linear tree makes, zero where it is padded."""
    gen = case.build()
    gen.activation_strength = 0.0
    tensorization, last = gen.blueprint.tensorization, gen.blueprint.levels[-1]
    with torch.no_grad():
        for name, parameter in gen.named_parameters():
            if name.startswith("mix."):
                parameter.copy_(torch.eye(parameter.shape[-1]))
        for axis, (size, padded) in enumerate(zip(tensorization.axes, tensorization.padded_axes, strict=True)):
            modes = [place for place, mode in enumerate(tensorization.modes) if mode.axis == axis]
            digits = sorted(modes, key=lambda place: -tensorization.modes[place].stride)
            # Without the leading digits that reach beyond the axis.
            while digits and size < padded:
                place = digits.pop(0)
                core = last.cores[place // 2]
                assert core is not None
                left, right = (tensorization.modes[2 * (place // 2) + k].size for k in (0, 1))
                stack = gen.get_core(core.stack)
                count = next(stack.count for stack in last.stacks if stack.name == core.stack)
                own = stack.view(gen.config.trees, count, -1, left, right)[:, core.place]
                (own[:, :, 1:] if place % 2 == 0 else own[..., 1:]).zero_()
                padded //= tensorization.modes[place].size
    weight = gen().detach()
    assert weight.norm() > 0
    return weight


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW), *MORE])
def test_what_a_linear_tree_makes_is_found_again(name: str) -> None:
    case = {**EXACT, **MORE}[name]
    weight = linear(case)
    gen = case.build()  # with other values of activations and gates than those of a fresh one
    gen.activation_strength = 0.0
    report = adntn.warm_start_(gen, weight)
    assert relative_error(gen(), weight) < 1e-10
    assert report.truncation_error < 1e-10
    assert report.bound < 1e-6


@pytest.mark.parametrize("name", [*list(TREE_CASES)[::11], *MORE])
@pytest.mark.parametrize("sweeps", [0, 2])
def test_the_error_is_within_the_bound(name: str, sweeps: int) -> None:
    case = {**TREE_CASES, **MORE}[name]
    gen = case.build()
    torch.manual_seed(1)
    report = adntn.warm_start_(gen, torch.randn(case.shape, dtype=torch.float64), sweeps=sweeps)
    assert report.truncation_error <= report.bound + 1e-7
    assert report.bound <= 1 + 1e-9
    assert report.bound == pytest.approx(math.sqrt(sum(report.discarded)))
    assert len(report.discarded) == len(gen.blueprint.levels)


def test_without_padding_the_bound_is_the_error() -> None:
    gen = Generator((16, 16), dtype=torch.float64)
    torch.manual_seed(1)
    report = adntn.warm_start_(gen, torch.randn(16, 16, dtype=torch.float64))
    assert report.truncation_error == pytest.approx(report.bound, rel=1e-9)
    assert 0.1 < report.truncation_error < 1


def test_cores_are_isometric_up_to_a_factor_and_carries_identities() -> None:
    gen = Generator((64, 32), GeneratorConfig(topology="mera", latent_order=4), dtype=torch.float64)
    gen.activation_strength = 0.0
    torch.manual_seed(1)
    adntn.warm_start_(gen, torch.randn(64, 32), scale=0.2)
    values = {name: parameter.detach() for name, parameter in gen.named_parameters()}
    assert any(name.startswith("carry.") for name in values)
    for name, value in values.items():
        eye = torch.eye(value.shape[1], dtype=torch.float64)
        if name.startswith("expand."):
            gram = value @ value.mT
            torch.testing.assert_close(gram, gram[:, :1, :1] * eye.expand_as(gram), atol=1e-12, rtol=0)
        elif name.startswith(("carry.", "mix.")):
            assert torch.equal(value, eye.expand_as(value))
    assert values["root"].square().mean().sqrt() == pytest.approx(1.0)
    state = gen._network.start(values)
    for level in gen.blueprint.levels[:-1]:
        state = gen._network.pre_activation(values, level.number, state)
        assert float(state.square().mean().sqrt()) == pytest.approx(0.2)


def test_every_parameter_can_learn_after_it() -> None:
    config = GeneratorConfig(topology="mera", bond_dim=5, latent_order=2, gate=True, terms=2, groups=2)
    gen = Generator((8, 16), config, dtype=torch.float64)
    torch.manual_seed(1)
    adntn.warm_start_(gen, torch.randn(8, 16))
    (gen() - torch.randn(8, 16, dtype=torch.float64)).square().sum().backward()
    for name, parameter in gen.named_parameters():
        if name.startswith("gate.mix."):
            continue  # of identities
        assert parameter.grad is not None
        assert bool((parameter.grad != 0).flatten(1).any(dim=1).all()), name


def test_a_closed_gate_keeps_the_tree_linear_with_its_activation_in_full() -> None:
    case = Case((8, 8), {"gate": True, "latent_order": 1, "bond_dim": 3})
    weight = linear(case)
    gen = case.build()
    assert gen.activation_strength == 1.0
    report = adntn.warm_start_(gen, weight)
    assert relative_error(gen(), weight) < 1e-10
    assert report.relative_error < 1e-10
    assert bool((gen.get_core("gate.level.1") == 0).all())


@pytest.mark.parametrize("activation", ["sine(omega=3)", "elu", "tanh", "silu", "identity"])
@pytest.mark.parametrize("terms", [1, 2])
def test_small_states_keep_the_weight_with_the_activation_in_full(activation: str, terms: int) -> None:
    gen = Generator((16, 16), GeneratorConfig(activation=activation, terms=terms, latent_order=2), dtype=torch.float64)
    torch.manual_seed(1)
    weight = torch.randn(16, 16, dtype=torch.float64)
    report = adntn.warm_start_(gen, weight, scale=1e-3)
    assert report.relative_error == pytest.approx(report.truncation_error, abs=1e-3)
    assert relative_error(gen(), weight) == pytest.approx(report.relative_error, abs=1e-9)


def test_the_scale_fits_the_strength_at_which_the_generator_is() -> None:
    torch.manual_seed(1)
    weight = torch.randn(16, 16, dtype=torch.float64)
    errors, reports = {}, {}
    for strength in (0.0, 0.5, 1.0):
        gen = Generator((16, 16), dtype=torch.float64)
        gen.activation_strength = strength
        reports[strength] = adntn.warm_start_(gen, weight, scale=0.01)
        assert gen.activation_strength == strength
        errors[strength] = relative_error(gen(), weight)
    assert errors[0.0] == pytest.approx(reports[0.0].truncation_error)
    assert errors[0.5] == pytest.approx(errors[0.0], abs=1e-2)
    assert errors[1.0] == pytest.approx(reports[1.0].relative_error)
    assert reports[0.0].relative_error == reports[1.0].relative_error


def test_terms_and_sweeps_come_nearer() -> None:
    torch.manual_seed(1)
    weight = torch.randn(16, 16, dtype=torch.float64)

    def error(sweeps: int = 0, **options: Any) -> float:
        gen = Generator((16, 16), GeneratorConfig(**options), dtype=torch.float64)
        return adntn.warm_start_(gen, weight, sweeps=sweeps).truncation_error

    assert error(terms=3) < error(terms=2) < error()
    assert error(sweeps=3) < error()


@pytest.mark.parametrize(
    "options", [{}, {"groups": 2}, {"order": "paired"}, {"radix": 3}, {"order": (5, 0, 3, 1, 4, 2)}]
)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_tensor_train_is_found_again(options: dict[str, Any], rank: int) -> None:
    shape = (9, 9) if "radix" in options else (8, 8)
    config = GeneratorConfig(topology="tt", bond_dim=rank, **options)
    weight = Generator(shape, config, dtype=torch.float64)().detach()
    gen = Generator(shape, config, dtype=torch.float64)
    report = adntn.warm_start_(gen, weight)
    assert relative_error(gen(), weight) < 1e-10
    assert report.truncation_error < 1e-10
    sizes = torch.stack([p.square().mean() for p in gen.parameters()])
    torch.testing.assert_close(sizes, sizes[:1].expand_as(sizes), rtol=0.5 * len(options) + 1e-6, atol=0)


def test_a_tensor_train_is_tensorlys() -> None:
    tensorly = pytest.importorskip("tensorly")
    tensorly.set_backend("numpy")  # peers of the benchmarks set another
    from tensorly.decomposition import tensor_train

    torch.manual_seed(1)
    weight = torch.randn(8, 16, dtype=torch.float64)
    gen = Generator((8, 16), GeneratorConfig(topology="tt", bond_dim=3), dtype=torch.float64)
    report = adntn.warm_start_(gen, weight)
    theirs = tensorly.tt_to_tensor(tensor_train(weight.numpy().reshape((2,) * 7), [1, 2, 3, 3, 3, 3, 2, 1]))
    torch.testing.assert_close(gen(), torch.from_numpy(theirs.reshape(8, 16)), rtol=1e-9, atol=1e-9)
    assert report.truncation_error == pytest.approx(report.bound, rel=1e-9)


def test_a_tree_of_one_level_is_tensorlys_tucker() -> None:
    tensorly = pytest.importorskip("tensorly")
    tensorly.set_backend("numpy")  # peers of the benchmarks set another
    from tensorly.decomposition import tucker

    torch.manual_seed(1)
    weight = torch.randn(8, 8, dtype=torch.float64)
    gen = Generator((8, 8), GeneratorConfig(bond_dim=2, latent_order=3), dtype=torch.float64)
    assert len(gen.blueprint.levels) == 1
    report = adntn.warm_start_(gen, weight, sweeps=100)
    found = tucker(weight.numpy().reshape(4, 4, 4), rank=[2, 2, 2], init="svd", n_iter_max=200, tol=1e-12)
    theirs = torch.from_numpy(tensorly.tucker_to_tensor(found).reshape(8, 8))
    assert report.truncation_error == pytest.approx(relative_error(theirs, weight), rel=1e-3)


def test_low_rank_is_the_truncated_decomposition() -> None:
    torch.manual_seed(1)
    weight = torch.randn(12, 10, dtype=torch.float64)
    gen = Generator((12, 10), GeneratorConfig(topology="lowrank", bond_dim=3), dtype=torch.float64)
    report = adntn.warm_start_(gen, weight)
    values = torch.linalg.svdvals(weight)
    best = float(values[3:].norm() / values.norm())
    assert relative_error(gen(), weight) == pytest.approx(best, rel=1e-9)
    assert (report.truncation_error, report.bound, report.relative_error) == pytest.approx((best,) * 3, rel=1e-9)


def test_low_rank_of_a_large_weight_takes_no_whole_decomposition() -> None:
    torch.manual_seed(1)
    weight = torch.randn(1200, 2) @ torch.randn(2, 1100)
    gen = Generator(weight.shape, GeneratorConfig(topology="lowrank", bond_dim=2))
    before = torch.random.get_rng_state()
    assert adntn.warm_start_(gen, weight).relative_error < 1e-5
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_target_of_zeros() -> None:
    for options in ({}, {"topology": "tt"}, {"topology": "lowrank"}):
        gen = Generator((8, 8), GeneratorConfig(**options))
        report = adntn.warm_start_(gen, torch.zeros(8, 8))
        assert (report.truncation_error, report.bound, report.relative_error) == (0, 0, 0)
        assert not bool(gen().any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_bias_and_freezing_are_kept(dtype: torch.dtype) -> None:
    layer = adntn.nn.Linear(16, 24, dtype=dtype)
    layer.requires_grad_(False)
    bias = layer.bias.clone()
    torch.manual_seed(1)
    weight = torch.randn(24, 16, dtype=dtype)
    report = adntn.warm_start_(layer, weight)
    assert layer.weight.dtype == dtype
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert torch.equal(layer.bias, bias)
    assert relative_error(layer.weight.float(), weight.float()) == pytest.approx(report.relative_error, abs=0.02)


def test_the_same_weight_gives_the_same_start() -> None:
    weight = torch.randn(16, 24)
    values = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        gen = Generator((16, 24))
        adntn.warm_start_(gen, weight)
        values.append(torch.cat([parameter.detach().flatten() for parameter in gen.parameters()]))
    assert torch.equal(*values)


def test_compress_starts_every_layer_from_its_weight() -> None:
    torch.manual_seed(1)
    model = nn.ModuleDict({name: nn.Linear(16, 8) for name in ("q", "k", "other")})
    weights = {name: layer.weight.detach().clone() for name, layer in model.items()}
    report = adntn.compress_(model, GeneratorConfig(bond_dim=3), shared=[("q", "k")], init="svd")
    starts = {row.name: row.fit for row in report.layers}
    assert starts["q"] is starts["k"]
    for names in (("q", "k"), ("other",)):
        made = torch.cat([model[name].weight for name in names]).detach()
        wanted, start = torch.cat([weights[name] for name in names]), starts[names[0]]
        assert isinstance(start, adntn.WarmStartReport)
        assert relative_error(made, wanted) == pytest.approx(start.relative_error, rel=1e-4)
        assert f"{start.relative_error:.3f}" in str(report)


def test_compress_refuses_what_cannot_be_started_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ConfigError, match=r"'0': topology='brickwall' has no decomposition"):
        adntn.compress_(model, GeneratorConfig(topology="brickwall"), init="svd")
    with pytest.raises(ConfigError, match="needs init='fit', not init='svd'"):
        adntn.compress_(model, init="svd", fit=adntn.FitOptions())
    assert type(model[0]) is nn.Linear


def test_the_docstring_tells_the_truth() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(
        adntn.warm_start_, "warm_start_", globs={"adntn": adntn, "torch": torch}
    )
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_report_prints_its_errors() -> None:
    gen = Generator((16, 16), GeneratorConfig(latent_order=2))
    text = str(adntn.warm_start_(gen, torch.ones(16, 16)))
    assert text.startswith("truncation error 0.0000 (bound 0.0000; left out, from the leaves on: 0.0%, 0.0%")
    assert "with the activation in full, stable rank 1.0 of 1.0" in text


@pytest.mark.parametrize(
    "options, words",
    [
        ({"topology": "brickwall"}, "topology='brickwall' has no decomposition to start from; ttn, attn, mera, tt"),
        ({"topology": "subspace"}, "adntn.fit_ fits any generator"),
        ({"topology": "frozen"}, "topology='frozen'"),
        ({"norm": "rms"}, "norm='rms' leaves no linear tree"),
    ],
)
def test_what_has_no_linear_form_is_refused(options: dict[str, Any], words: str) -> None:
    gen = Generator((8, 8), GeneratorConfig(**options))
    before = [parameter.clone() for parameter in gen.parameters()]
    with pytest.raises(ConfigError, match=words):
        adntn.warm_start_(gen, torch.ones(8, 8))
    assert all(torch.equal(a, b) for a, b in zip(before, gen.parameters(), strict=True))


def test_mistakes_are_refused() -> None:
    gen = Generator((8, 8))
    with pytest.raises(ShapeError, match=r"\(8, 8\) cannot start from a target of shape \(8, 9\)"):
        adntn.warm_start_(gen, torch.ones(8, 9))
    with pytest.raises(ConfigError, match="NaN or infinite"):
        adntn.warm_start_(gen, torch.full((8, 8), math.nan))
    with pytest.raises(ConfigError, match="sweeps=-1"):
        adntn.warm_start_(gen, torch.ones(8, 8), sweeps=-1)
    with pytest.raises(ConfigError, match="scale=0"):
        adntn.warm_start_(gen, torch.ones(8, 8), scale=0)
    with pytest.raises(ConfigError, match="meta device"):
        adntn.warm_start_(Generator((8, 8), device="meta"), torch.ones(8, 8))
