"""``prune_``: what does nothing goes without a trace, what does little with the change that it made, and only then."""

from __future__ import annotations

import copy
import doctest
from typing import Any

import pytest
import torch
from checkpoints import CONFIG, same, state
from conformance_cases import CONFIGS, PLAIN, TOPOLOGIES, put_on_grid, scramble
from torch import nn

import adntn
from adntn import Generator, GeneratorConfig, grow_, prune_, quantize_
from adntn.errors import CompressionError, ConfigError
from adntn.fit import relative_error

pytestmark = pytest.mark.usefixtures("few_objects")
TREES = {name: {"latent_order": 2, **options} for name, options in TOPOLOGIES.items()}


def built(shape: tuple[int, ...] = (12, 10), **options: Any) -> Generator:
    gen: Generator = scramble(Generator(shape, GeneratorConfig(**{**PLAIN, **options}), dtype=torch.float64))
    return gen


def shuffled(gen: Generator) -> None:
    """Put terms and the indices of the first bond into another order, so that what goes is not what stands last."""
    c = gen.config
    with torch.no_grad():
        for name, parameter in gen.generator_parameters():
            if c.terms > 1 and (not name.startswith("activation.") or len(parameter) == c.trees):
                by_term = parameter.unflatten(0, (c.groups, c.terms, -1))
                parameter.copy_(by_term.flip(1).reshape(parameter.shape))
        if c.topology in TOPOLOGIES or c.topology == "ttn":
            level = gen.blueprint.levels[0]
            root = gen.root.view(c.trees, c.chi, -1)
            root.copy_(root.flip(1))
            core = gen.get_core(level.cores[0].stack).view(c.trees, -1, *level.stacks[0].shape)[:, 0]
            core.copy_(core.flip(1))


# --- what growth adds and does nothing is found and goes --------------------------------------------------------------

GROWN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{f"bond of {name}": (options, {"bond_dim": 4}) for name, options in TREES.items()},
    "bond, groups and terms": ({"groups": 2, "terms": 2, "latent_order": 1}, {"bond_dim": 3}),
    "bond, gates, prelu": ({"gate": True, "activation": "prelu", "topology": "mera"}, {"bond_dim": 3}),
    "bond, bridge": ({"latent_order": 3}, {"bond_dim": 3}),
    "ttn to mera": ({"latent_order": 2}, {"topology": "mera"}),
    "ttn to attn of two layers": ({"latent_order": 2}, {"topology": "attn", "boundary_layers": 2}),
    "attn to two layers": (TREES["attn"], {"boundary_layers": 2}),
    "attn to mera": (TREES["attn"], {"topology": "mera"}),
    "mera and bond": ({"latent_order": 2}, {"topology": "mera", "bond_dim": 3}),
    "lowrank": ({"topology": "lowrank", "groups": 2}, {"bond_dim": 4}),
    "tt": ({"topology": "tt"}, {"bond_dim": 4}),
    "tt, groups, paired": ({"topology": "tt", "groups": 2, "order": "paired"}, {"bond_dim": 3}),
}


@pytest.mark.parametrize("name", GROWN)
def test_what_was_grown_and_does_nothing_goes_without_a_trace(name: str) -> None:
    options, changes = GROWN[name]
    gen = built(**options)
    before, weight = gen.config, gen().detach()
    grow_(gen, exact=True, **changes)
    shuffled(gen)
    assert relative_error(gen().detach(), weight) < 1e-12
    (row,) = prune_(gen, 1e-9, tolerance=1e-9).layers
    assert row.accepted
    assert row.relative_change < 1e-12
    assert gen.config == before.replace(bond_dim=before.chi if "bond_dim" in changes else before.bond_dim)
    assert relative_error(gen().detach(), weight) < 1e-12
    assert row.numbers_after == gen.num_parameters < row.numbers_before
    fresh = Generator(gen.shape, gen.config, dtype=torch.float64)
    fresh.load_state_dict(gen.state_dict())  # of the names and shapes of its config
    assert torch.equal(fresh(), gen())
    assert not prune_(gen, 1e-9).layers[0].found


@pytest.mark.parametrize("activation", ["elu", "prelu"])
@pytest.mark.parametrize("closed", [(1,), (0, 2)])
def test_terms_with_closed_gates_go(closed: tuple[int, ...], activation: str) -> None:
    gen = built(terms=3, groups=2, gate=True, latent_order=2, activation=activation)
    gate = gen.get_core("gate.term").view(2, 3)
    with torch.no_grad():
        gate[:, list(closed)] = 0.0
        gate[:, 1 - min(closed)] = torch.tensor([0.7, -1.3], dtype=torch.float64)
    weight = gen().detach()
    (row,) = prune_(gen).layers
    assert row.found["terms"] == len(closed)
    assert gen.config.terms == 3 - len(closed)
    assert row.relative_change < 1e-12
    assert relative_error(gen().detach(), weight) < 1e-12


def test_one_term_stays_and_one_that_only_a_group_needs() -> None:
    gen = built(terms=2, groups=2, gate=True, latent_order=2)
    with torch.no_grad():
        gen.get_core("gate.term").view(2, 2).copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert "terms" not in prune_(gen).layers[0].found
    with torch.no_grad():
        gen.get_core("gate.term").fill_(0.0)
    assert prune_(gen).layers[0].found["terms"] == 1
    assert gen.config.terms == 1
    assert not gen().any()


def test_single_disentanglers_become_the_identity_and_gates_of_levels_close() -> None:
    gen = built(topology="mera", gate=True, latent_order=2, groups=2)
    with torch.no_grad():
        gen.get_core("gate.mix.1.0").fill_(1.0)[0] = 1e-3
        gen.get_core("gate.level.1")[1] = -1e-3
    (row,) = prune_(gen, 0.01).layers
    assert row.found == {"level gates": 1, "disentanglers": 1}
    assert torch.equal(gen.get_core("mix.1.0")[0], torch.eye(4, dtype=torch.float64))
    assert not torch.equal(gen.get_core("mix.1.0")[1], torch.eye(4, dtype=torch.float64))
    assert not gen.get_core("gate.level.1")[1].any()
    assert gen.config.topology == "mera"
    assert 0 < row.relative_change < 0.1


def test_a_mera_whose_hidden_disentanglers_do_nothing_is_an_attn() -> None:
    gen = built(topology="mera", latent_order=2)
    last = gen.blueprint.levels[-1].number
    with torch.no_grad():
        for name, parameter in gen.generator_parameters():
            if name.startswith("mix.") and not name.startswith(f"mix.{last}."):
                parameter.copy_(torch.eye(4) + 1e-4 * torch.randn_like(parameter))
    (row,) = prune_(gen).layers
    assert gen.config.topology == "attn"
    assert row.found["mixing layers"] == last - 1
    assert 0 < row.relative_change < 1e-2


def test_where_a_norm_sees_the_state_or_a_disentangler_leaks_the_bond_stays() -> None:
    gen = built(**CONFIGS["rms"])
    with torch.no_grad():
        for level in gen.blueprint.levels:
            for stack in level.stacks:
                gen.get_core(stack.name)[:, 1] = 0.0
    assert not prune_(gen).layers[0].found
    gen = built(topology="mera", latent_order=2, bond_dim=2)
    grow_(gen, bond_dim=3)
    with torch.no_grad():
        gen.get_core("mix.1.0").copy_(torch.randn(len(gen.get_core("mix.1.0")), 9, 9))
    assert "bond" not in prune_(gen).layers[0].found


def test_the_tolerance_decides_and_the_report_says_what_would_have_been() -> None:
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in "ab"})
    adntn.compress_(model, CONFIG.replace(topology="mera"))
    scramble(model["b"])  # far from the identity
    before = state(model)
    for tolerance in (0.0, 1e-6):
        report = prune_(model, 0.5, tolerance=tolerance)
        a, b = report.layers
        assert (a.accepted, b.accepted) == (False, True)
        assert a.relative_change > tolerance
        assert a.found["mixing layers"] > 0
        assert same(state(model), before)
        assert report.numbers_after == report.numbers_before
    assert "left as it was" in str(report)
    report = prune_(model, 0.5, tolerance=a.relative_change)
    assert model["a"].config.topology == "ttn"
    assert model["b"].config.topology == "mera"
    assert report.numbers_after == sum(model[name].num_parameters for name in "ab")


def test_sharers_shrink_together_and_rows_have_changes_of_their_own() -> None:
    model = nn.ModuleDict({"q": nn.Linear(8, 8), "k": nn.Linear(8, 4)})
    adntn.compress_(model, CONFIG.replace(topology="mera"), shared=[("q", "k")])
    x = torch.randn(3, 8)
    bias = model["k"].bias
    report = prune_(model, 0.5, ["k"])
    assert [row.name for row in report.layers] == ["q", "k"]
    assert report.layers[0].relative_change != report.layers[1].relative_change
    assert report.layers[1].numbers_before == 0
    assert model["q"].root is model["k"].root
    assert model["q"].config.topology == model["k"].config.topology == "ttn"
    assert model["k"].bias is bias
    assert model["k"](x).shape == (3, 4)


def test_a_quantised_generator_stays_quantised() -> None:
    gen = built(topology="mera", latent_order=2)
    quantize_(gen, 8)
    put_on_grid(gen)
    prune_(gen, 2.0)
    assert gen.quantization == adntn.Quantization(8)
    assert gen.config.topology == "ttn"


def test_what_is_kept_is_not_stale() -> None:
    model = nn.Sequential(adntn.nn.Linear(16, 16, config=CONFIG.replace(topology="mera")))
    x = torch.randn(2, 16)
    with adntn.cached(model):
        before = model(x)
        prune_(model, 0.5)
        after = model(x)
    assert not torch.equal(before, after)
    assert torch.allclose(model(x), after)


# --- optimisers, mistakes ---------------------------------------------------------------------------------------------


def test_optimisers_go_on_with_what_is_left() -> None:
    gen = built(topology="mera", latent_order=2)
    with torch.no_grad():
        for name, parameter in gen.generator_parameters():
            if name.startswith("mix."):
                parameter.copy_(torch.eye(4))
    optimizer = torch.optim.AdamW(gen.parameters(), lr=1e-3)
    gen().square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    before = copy.deepcopy(gen.state_dict())
    with pytest.raises(CompressionError, match="Give it as optimizer="):
        prune_(gen, 0.5)
    assert gen.config.topology == "mera"
    assert same(gen.state_dict(), before)
    (row,) = prune_(gen, 0.5, optimizer=optimizer).layers
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in gen.parameters()]
    assert all(name.startswith("mix.") for name in row.optimizer.removed)
    assert row.optimizer.removed
    assert not row.optimizer.reset
    assert optimizer.state[gen.root]["step"] == 1
    gen().square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"threshold": -1}, ConfigError, "threshold=-1"),
        ({"tolerance": float("nan")}, ConfigError, "tolerance=nan"),
        ({"targets": "b"}, CompressionError, "no generated weight .*'b'"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = nn.ModuleDict({"a": adntn.nn.Linear(8, 8)})
    with pytest.raises(error, match=message):
        prune_(model, **options)


def test_nothing_can_be_pruned_on_the_meta_device() -> None:
    with pytest.raises(CompressionError, match="meta device"):
        prune_(adntn.nn.Linear(8, 8, device="meta"))


def test_the_example_runs() -> None:
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for test in finder.find(prune_, "prune_", globs={"adntn": adntn}):
        assert runner.run(test).failed == 0
