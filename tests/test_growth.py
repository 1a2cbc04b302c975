"""Growth: what keeps the weight keeps it exactly, what is new can learn, and the optimiser goes on where it was."""

from __future__ import annotations

import copy
import doctest
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance_cases import CONFIGS, PERMUTATIONS, PLAIN, TOPOLOGIES, generator_cases, scramble
from torch import Tensor, nn

import adntn
from adntn import FitOptions, Generator, GeneratorConfig, GrowthReport, grow_, quantize_
from adntn.embedding import Embedding, embed
from adntn.errors import CompressionError, ConfigError, GeneratorTooLargeError
from adntn.generator import GeneratorModule
from adntn.nn import Conv2d, GeneratedLayer, Linear
from adntn.topology import TREES as TREE_NAMES
from adntn.topology import Blueprint

Options = dict[str, Any]
TREES = {name: {"latent_order": 2, **options} for name, options in TOPOLOGIES.items()}
WALL = {"topology": "brickwall", "columns": 2, "blocks": 1}
pytestmark = pytest.mark.usefixtures("few_objects")
QUICK = FitOptions(steps=12, polish=6)

# name: (shape, config, changes). All keep the weight.
EXACT: dict[str, tuple[tuple[int, ...], Options, Options]] = {
    **{f"bond of {name}": ((12, 10), options, {"bond_dim": 3}) for name, options in TREES.items()},
    **{
        f"bond by two of {name}": ((8, 16), {**options, "bond_dim": 3}, {"bond_dim": 5})
        for name, options in TREES.items()
    },
    **{
        f"bond, {config}": ((5, 11), options, {"bond_dim": 5})
        for config, options in CONFIGS.items()
        if "norm" not in options
    },
    "bond from one": ((12, 10), {"topology": "mera", "bond_dim": 1, "latent_order": 2}, {"bond_dim": 2}),
    "bond named that it had": ((8, 8), {}, {"bond_dim": 2}),
    "bond, convolution": ((6, 5, 3, 3), {"topology": "mera", "latent_order": 2}, {"bond_dim": 3}),
    "bond, kernel radix": ((6, 5, 3, 3), {"topology": "attn", "kernel_radix": 3, "latent_order": 2}, {"bond_dim": 3}),
    "bond, groups and terms": ((9, 5), {"groups": 3, "terms": 2, "latent_order": 1}, {"bond_dim": 3}),
    "bond, gates": ((12, 10), {"topology": "mera", "gate": True, "latent_order": 2}, {"bond_dim": 3}),
    "bond, prelu": ((12, 10), {"activation": "prelu", "latent_order": 2}, {"bond_dim": 3}),
    "bond, sine": ((12, 10), {"activation": "sine(omega=3)", "latent_order": 2}, {"bond_dim": 4}),
    "bond, shuffled": (
        *PERMUTATIONS["padded, shuffled"][:1],
        {"order": PERMUTATIONS["padded, shuffled"][1]},
        {"bond_dim": 3},
    ),
    "ttn to attn": ((12, 10), {"latent_order": 2}, {"topology": "attn"}),
    "ttn to attn of two layers": ((12, 10), {"latent_order": 2}, {"topology": "attn", "boundary_layers": 2}),
    "ttn to mera": ((12, 10), {"latent_order": 2}, {"topology": "mera"}),
    "attn to two layers": ((12, 10), TREES["attn"], {"boundary_layers": 2}),
    "attn to mera": ((12, 10), TREES["attn"], {"topology": "mera"}),
    "ttn to mera with a norm": ((12, 10), {"latent_order": 2, "norm": "layer"}, {"topology": "mera"}),
    "a term": ((12, 10), {"latent_order": 2}, {"terms": 2}),
    "terms, groups": ((12, 10), {"latent_order": 2, "groups": 2, "terms": 2, "topology": "mera"}, {"terms": 4}),
    "terms, prelu, norm": ((12, 10), {**CONFIGS["prelu, centred"]}, {"terms": 2}),
    "terms, gates": ((12, 10), {"latent_order": 2, "gate": True, "topology": "attn", "terms": 2}, {"terms": 3}),
    "gates": ((12, 10), {"latent_order": 2, "topology": "mera"}, {"gate": True}),
    "everything": (
        (12, 10),
        {"latent_order": 2, "groups": 2},
        {"bond_dim": 4, "topology": "mera", "terms": 3, "gate": True},
    ),
    "columns": ((12, 10), WALL, {"columns": 3}),
    "columns, where the last one moves": ((12, 10), {**WALL, "columns": 3}, {"columns": 4}),
    "columns of two blocks": ((12, 10), {**WALL, "columns": 4, "blocks": 2}, {"columns": 6}),
    "terms of a wall": ((12, 10), {**WALL, "columns": 4, "blocks": 2, "gate": True}, {"terms": 2}),
    "terms of a wall of one block": ((8, 16), {**WALL, "columns": 1}, {"terms": 2}),
    "tensor train from rank 1": ((12, 10), {"topology": "tt", "bond_dim": 1}, {"bond_dim": 2}),
    "tensor train": ((12, 10, 3), {"topology": "tt", "bond_dim": 2, "groups": 2}, {"bond_dim": 4}),
    "low rank": ((12, 10), {"topology": "lowrank", "bond_dim": 2, "groups": 3}, {"bond_dim": 4}),
    "terms, rational": (
        (12, 10),
        {"latent_order": 2, "activation": "rational", "groups": 2},
        {"terms": 2, "bond_dim": 3},
    ),
    "terms, swish": ((12, 10), {"latent_order": 2, "activation": "swish"}, {"terms": 2, "bond_dim": 3}),
    "only the start": ((8, 8), {"topology": "frozen"}, {"initialization": "isometric"}),
}


def trained(shape: tuple[int, ...], options: Options, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Tensor]:
    """A generator after some steps of Adam, its optimiser, and what it was trained to be."""
    torch.manual_seed(0)
    generator = scramble(Generator(shape, GeneratorConfig(**{**PLAIN, **options}), dtype=dtype))
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3, amsgrad=True)
    target = torch.randn(shape, dtype=dtype)
    for _ in range(3):
        step(generator, optimizer, target)
    return generator, optimizer, target


def step(generator: Any, optimizer: torch.optim.Optimizer, target: Tensor) -> None:
    optimizer.zero_grad()
    (generator() - target).square().sum().backward()
    optimizer.step()


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().norm() / other.detach().norm())


@pytest.mark.parametrize("name", EXACT)
def test_exact_growth_keeps_the_weight_and_what_is_new_can_learn(name: str) -> None:
    shape, options, changes = EXACT[name]
    generator, optimizer, target = trained(shape, options)
    before = generator().detach()
    report = grow_(generator, optimizer=optimizer, exact=True, **changes)
    expected = GeneratorConfig(**{**PLAIN, **options, **changes})
    assert generator.config == expected
    assert {n: tuple(p.shape) for n, p in generator.named_parameters()} == Blueprint(shape, expected).parameter_shapes
    assert distance(generator(), before) < 1e-12
    assert report.exact
    assert report.relative_error < 1e-12
    assert not report.reason
    assert report.fit is None
    assert (report.parameters_before, report.parameters_after) == (
        Blueprint(shape, report.before).num_parameters,
        generator.num_parameters,
    )
    # Training goes on, and reaches every parameter.
    values = {n: p.detach().clone() for n, p in generator.named_parameters()}
    for _ in range(2):
        step(generator, optimizer, target)
    for n, p in generator.named_parameters():
        assert not torch.equal(p, values[n]), n
    assert torch.isfinite(generator()).all()


def test_new_parents_are_zero_with_a_gradient_and_new_children_are_small_random_numbers() -> None:
    for topology in TREES.values():
        generator, optimizer, target = trained((16, 16), {**topology, "activation": "sine(omega=3)"})
        optimizer.zero_grad()
        old = {n: p.detach().clone() for n, p in generator.named_parameters()}
        grow_(generator, bond_dim=4, noise=0.01, optimizer=optimizer)
        (generator() - target).square().sum().backward()
        for level in generator.blueprint.levels:
            core, before = generator.get_core(f"expand.{level.number}"), old[f"expand.{level.number}"]
            last = level.number == len(generator.blueprint.levels)
            assert (core[:, 2:] == 0).all()
            assert (core.grad[:, 2:].flatten(1).norm(dim=1) > 1e-8).all()
            assert (core.grad[:, 2:] != 0).all(dim=0).any()
            if last:
                assert torch.equal(core[:, :2], before)
                continue
            children = core.detach().view(-1, 4, 4, 4)
            assert torch.equal(children[:, :2, :2, :2].reshape_as(before), before)
            new = torch.ones(4, 4, dtype=torch.bool)
            new[:2, :2] = False
            sizes = before.square().mean(dim=(1, 2)).sqrt()
            spread = children[:, :2][:, :, new].square().mean(dim=(1, 2)).sqrt() / sizes
            assert ((spread > 0.003) & (spread < 0.03)).all()
        root = generator.root.detach().view(4, 4)
        assert torch.equal(root[:2, :2].reshape(1, -1), old["root"])
        assert (root[2:] != 0).all()


def test_grown_disentanglers_are_the_sum_with_an_identity_and_new_ones_the_identity() -> None:
    generator, _, _ = trained((16, 16), {"topology": "mera", "latent_order": 2})
    before = generator.get_core("mix.1.0").detach().clone()
    grow_(generator, bond_dim=3)
    gate = generator.get_core("mix.1.0").detach().view(-1, 3, 3, 3, 3)
    assert torch.equal(gate[:, :2, :2, :2, :2].reshape_as(before), before)
    assert torch.equal(gate[:, :2, :2].flatten(3)[..., [2, 5, 6, 7, 8]], torch.zeros(len(gate), 2, 2, 5).double())
    assert torch.equal(gate[:, 2].reshape(-1, 3, 9), torch.eye(9).double()[6:].expand(len(gate), -1, -1))
    tree, _, _ = trained((16, 16), {"latent_order": 2})
    grow_(tree, topology="mera")
    for level in tree.blueprint.levels:
        mixing = tree.get_core(f"mix.{level.number}.0")
        assert torch.equal(mixing, torch.eye(mixing.shape[-1]).double().expand_as(mixing))


def test_growth_in_small_steps_is_growth() -> None:
    generator, optimizer, target = trained((12, 10), {"latent_order": 2, "topology": "mera"})
    for bond in (3, 4, 5):
        before = generator().detach()
        assert grow_(generator, bond_dim=bond, optimizer=optimizer).exact
        assert distance(generator(), before) < 1e-12
        step(generator, optimizer, target)
    assert generator.num_parameters == Generator((12, 10), generator.config, device="meta").num_parameters


#: Cases of the suite that can grow exactly, and how.
GROWN: dict[str, Options] = {}
for _name, _case in generator_cases().items():
    _topology = _case.options.get("topology", "ttn")
    if _topology in TREE_NAMES and "norm" not in _case.options:
        GROWN[_name] = {"bond_dim": (_case.options.get("bond_dim") or _case.options.get("radix", 2)) + 1, "terms": 4}
    elif _topology in (*TREE_NAMES, "brickwall"):
        GROWN[_name] = {"terms": 4}
    elif _topology in ("tt", "lowrank"):
        GROWN[_name] = {"bond_dim": 9}


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWN)
def test_every_case_of_the_suite_grows_exactly(name: str) -> None:
    generator = generator_cases()[name].build()
    quantize_(generator, None)  # the grids of larger cores may be others
    before = generator().detach()
    assert grow_(generator, exact=True, **GROWN[name]).exact
    assert float((generator() - before).detach().norm()) <= 1e-12 * float(before.norm())


# --- what cannot be exact ---------------------------------------------------------------------------------------------

REFITTED: dict[str, tuple[Options, Options, str]] = {
    "groups": ({"latent_order": 2}, {"groups": 2}, "other modes"),
    "radix": ({"latent_order": 2}, {"radix": 3}, "other modes"),
    "latent_order": ({"latent_order": 2}, {"latent_order": 3}, "levels of"),
    "order": ({"latent_order": 2}, {"order": "paired"}, "other modes"),
    "a smaller bond": ({"latent_order": 2, "bond_dim": 3}, {"bond_dim": 2}, "bond_dim would shrink"),
    "fewer terms": ({"latent_order": 2, "terms": 2}, {"terms": 1}, "terms would shrink"),
    "no gates": ({"latent_order": 2, "gate": True}, {"gate": False}, "gate would shrink"),
    "fewer disentanglers": (TREES["mera"], {"topology": "ttn"}, "not all of the old layers"),
    "two boundary layers to mera": (TREES["attn, two layers"], {"topology": "mera", "boundary_layers": 1}, "not all"),
    "activation": ({"latent_order": 2}, {"activation": "tanh"}, "activation='tanh' instead of 'elu'"),
    "a block more": ({**WALL, "columns": 4, "blocks": 2}, {"columns": 6, "blocks": 3}, "3 blocks instead of 2"),
    "another family": ({"latent_order": 2}, {"topology": "tt"}, "a tt cannot take over the cores of a ttn"),
    "bond with a norm": ({"latent_order": 1, "norm": "center"}, {"bond_dim": 3}, "sees the whole state"),
}


@pytest.mark.parametrize("name", REFITTED)
def test_other_changes_are_refitted_and_say_so(name: str) -> None:
    options, changes, reason = REFITTED[name]
    generator, optimizer, target = trained((12, 10), options)
    before = generator().detach()
    state = {n: p.detach().clone() for n, p in generator.named_parameters()}
    with pytest.raises(ConfigError, match=f"not exact: .*{reason}"):
        grow_(generator, optimizer=optimizer, exact=True, **changes)
    assert all(torch.equal(p, state[n]) for n, p in generator.named_parameters())
    report = grow_(generator, optimizer=optimizer, fit=QUICK, **changes)
    assert not report.exact
    assert reason in report.reason
    assert report.relative_error == pytest.approx(distance(generator(), before), rel=1e-6, abs=1e-12)
    assert report.fit is not None
    assert report.fit.relative_error <= report.fit.start_error
    assert generator.config == GeneratorConfig(**{**PLAIN, **options, **changes})
    step(generator, optimizer, target)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in generator.parameters()}


def test_a_refit_comes_near_where_the_new_generator_can_make_the_weight() -> None:
    generator, _, _ = trained((16, 16), {"topology": "lowrank", "bond_dim": 2})
    report = grow_(generator, bond_dim=1)
    spectrum = torch.linalg.svdvals(generator().detach())
    assert 0 < report.relative_error < 1
    assert int((spectrum > 1e-9 * spectrum[0]).sum()) == 1
    tree, _, _ = trained((16, 16), {"latent_order": 2, "activation": "identity"})
    assert grow_(tree, activation="sine", latent_order=3, fit=FitOptions(steps=100)).relative_error < 0.5


def test_a_bond_under_a_norm_starts_its_refit_from_the_old_cores_and_keeps_the_optimisers_state() -> None:
    generator, optimizer, _ = trained((16, 16), {"latent_order": 1, "norm": "layer"})
    report = grow_(generator, bond_dim=3, optimizer=optimizer, fit=QUICK)
    assert report.relative_error < 0.2
    assert report.optimizer.reset == ()
    assert optimizer.state[generator.root]["exp_avg"].shape == generator.root.shape


# --- optimisers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, keys",
    [
        (lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9), {"momentum_buffer"}),
        (lambda p: torch.optim.Adam(p, 1e-3), {"exp_avg", "exp_avg_sq"}),
        (lambda p: torch.optim.AdamW(p, 1e-3, amsgrad=True), {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
        (lambda p: torch.optim.RMSprop(p, 1e-3), {"square_avg"}),
        (lambda p: torch.optim.Adagrad(p, 1e-3), {"sum"}),
    ],
    ids=["sgd", "adam", "amsgrad", "rmsprop", "adagrad"],
)
def test_the_optimisers_state_is_carried_over(make: Callable[..., torch.optim.Optimizer], keys: set[str]) -> None:
    torch.manual_seed(0)
    generator = Generator((12, 10), GeneratorConfig(topology="mera", latent_order=2), dtype=torch.float64)
    optimizer, target = make(generator.parameters()), torch.randn(12, 10, dtype=torch.float64)
    for _ in range(2):
        step(generator, optimizer, target)
    before = {
        n: {k: torch.as_tensor(v).clone() for k, v in optimizer.state[p].items()}
        for n, p in generator.named_parameters()
    }
    old = generator.blueprint
    report = grow_(generator, bond_dim=4, optimizer=optimizer)
    assert report.optimizer.kept == tuple(n for n, _ in generator.named_parameters())
    embedding = embed(old, generator.blueprint)
    assert isinstance(embedding, Embedding)
    for name, parameter in generator.named_parameters():
        state = optimizer.state[parameter]
        for key, value in before[name].items():
            if key in keys:
                assert state[key].shape == parameter.shape
                assert state[key].abs().sum() == pytest.approx(float(value.abs().sum()))  # nothing else but zeros
                assert torch.equal(state[key], embedding.copy(name, {name: value}, torch.zeros_like(parameter)))
            else:
                assert torch.as_tensor(state[key]) == value
    core, was = optimizer.state[generator.get_core("expand.1")], before["expand.1"]
    for key in keys:
        assert torch.equal(core[key].view(-1, 4, 4, 4)[:, :2, :2, :2].reshape_as(was[key]), was[key])
    assert len(optimizer.state) == len(list(generator.parameters()))
    step(generator, optimizer, target)


def test_an_optimiser_of_one_that_grew_is_one_built_anew() -> None:
    # Saved states go by the order of the parameters, so that new ones have to stand where a fresh module has them.
    model = nn.Sequential(Linear(12, 10, config=GeneratorConfig(latent_order=2)), nn.Linear(10, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 12)).sum().backward()
    optimizer.step()
    report = grow_(model[0], topology="attn", boundary_layers=2, bond_dim=3, optimizer=optimizer)
    assert set(report.optimizer.added) == {"mix.2.0", "mix.2.1"}
    fresh = nn.Sequential(Linear(12, 10, config=model[0].config), nn.Linear(10, 3))
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in fresh.named_parameters()]
    assert list(model.state_dict()) == list(fresh.state_dict())
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    other = torch.optim.AdamW(fresh.parameters())
    other.load_state_dict(optimizer.state_dict())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh[0].weight, model[0].weight)


def test_new_parameters_join_the_group_of_the_one_before_and_frozen_ones_stay_out() -> None:
    layer = Linear(12, 10, config=GeneratorConfig(latent_order=2))
    cores = [p for n, p in layer.named_parameters() if n.startswith("expand")]
    optimizer = torch.optim.SGD([{"params": [layer.root], "lr": 1.0}, {"params": cores, "lr": 2.0}])
    grow_(layer, topology="attn", optimizer=optimizer)
    assert any(p is layer.get_core("mix.2.0") for p in optimizer.param_groups[1]["params"])
    assert len(optimizer.param_groups[0]["params"]) == 1
    for p in layer.parameters():
        p.requires_grad_(False)
    layer.root.requires_grad_(True)
    only_root = torch.optim.SGD([layer.root], 1.0)
    del optimizer
    grow_(layer, bond_dim=3, optimizer=only_root)
    assert only_root.param_groups[0]["params"][0] is layer.root
    assert len(only_root.param_groups[0]["params"]) == 1
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["root"]


def test_named_parameters_of_an_optimiser_stay_aligned() -> None:
    model = nn.Sequential(Linear(12, 10, config=GeneratorConfig(latent_order=2)))
    optimizer = torch.optim.SGD(model.named_parameters(), 1.0)
    grow_(model[0], topology="mera", optimizer=optimizer)
    group = optimizer.param_groups[0]
    assert group["param_names"] == [n for n, _ in model.named_parameters()]
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


def test_two_optimisers_of_one_generator_each_keep_their_part() -> None:
    layer = Linear(12, 10, config=GeneratorConfig(latent_order=2))
    cores = [p for n, p in layer.named_parameters() if n.startswith("expand")]
    one, other = torch.optim.Adam([layer.root]), torch.optim.SGD(cores, 1.0)
    grow_(layer, topology="attn", bond_dim=3, optimizer=[one, other])
    assert [id(p) for p in one.param_groups[0]["params"]] == [id(layer.root)]
    rest = {id(p) for n, p in layer.generator_parameters() if n != "root"}
    assert {id(p) for p in other.param_groups[0]["params"]} == rest


@pytest.mark.parametrize("kind", ["adafactor", "lbfgs"])
def test_state_of_another_shape_is_dropped_and_training_goes_on(kind: str) -> None:
    torch.manual_seed(0)
    generator = Generator((12, 10), GeneratorConfig(latent_order=2))
    target = torch.randn(12, 10)
    make = {"adafactor": torch.optim.Adafactor, "lbfgs": torch.optim.LBFGS}[kind]
    optimizer = make(generator.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (generator() - target).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    report = grow_(generator, bond_dim=3, optimizer=optimizer)
    assert report.optimizer.reset
    assert "dropped" in str(report)
    before = float(closure().detach())
    for _ in range(3):
        optimizer.step(closure)
    assert float(closure().detach()) < before


def test_an_optimiser_that_was_not_given_is_an_error_and_nothing_changes() -> None:
    layer = Linear(12, 10, config=GeneratorConfig(latent_order=2))
    optimizer = torch.optim.AdamW(layer.parameters())
    config, weight = layer.config, layer.weight.detach()
    with pytest.raises(CompressionError, match=r"AdamW optimiser already holds .*optimizer="):
        grow_(layer, bond_dim=3)
    assert layer.config == config
    assert torch.equal(layer.weight, weight)
    assert grow_(layer, bond_dim=3, optimizer=[optimizer]).exact


# --- layers in models -------------------------------------------------------------------------------------------------


def test_layers_that_share_a_generator_grow_together() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    adntn.compress_(model, GeneratorConfig(latent_order=2))
    twin = copy.deepcopy(model)
    loaded = pickle.loads(pickle.dumps(model))
    before = model[0].weight.detach()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 16)).sum().backward()
    optimizer.step()
    before = model[0].weight.detach()
    report = grow_(model[1], topology="mera", bond_dim=3, optimizer=optimizer)
    assert report.layers == 2
    assert model[0].config == model[1].config == report.after
    assert model[0].shares_generator_with(model[1])
    assert all(
        a is b for (_, a), (_, b) in zip(model[0].generator_parameters(), model[1].generator_parameters(), strict=True)
    )
    for layer in model:
        assert distance(layer.weight, before) < 1e-6
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    for other in (twin, loaded):  # copies are their own
        assert other[0].config.topology == "ttn"
        assert grow_(other[0], terms=2).layers == 2
        assert other[1].config.terms == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_keeps_its_place_bias_and_mode(dtype: torch.dtype) -> None:
    model = nn.Sequential(Conv2d(4, 8, 3, config=GeneratorConfig(latent_order=2), dtype=dtype), nn.ReLU())
    layer, bias = model[0].eval(), model[0].bias
    x = torch.randn(2, 4, 5, 5, dtype=dtype)
    before = model(x).detach()
    report = grow_(layer, bond_dim=3, topology="mera")
    assert report.exact
    assert model[0] is layer
    assert layer.bias is bias
    assert not layer.training
    assert layer.dtype == dtype
    torch.testing.assert_close(
        model(x), before, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=2e-2 if dtype == torch.bfloat16 else 1e-5
    )


def test_a_layer_runs_the_way_that_suits_its_new_generator() -> None:
    layer = Linear(64, 64, config=GeneratorConfig(latent_order=2))
    assert layer.way.name == "factored"
    grow_(layer, bond_dim=8)
    assert layer.way.name == "dense"
    asked = Linear(64, 64, config=GeneratorConfig(latent_order=2), execution="factored")
    with pytest.raises(ConfigError, match="no split"):
        grow_(asked, order="paired", fit=QUICK)
    assert asked.config.order == "blocked"
    asked(torch.randn(2, 64))


def test_layers_of_which_one_cannot_run_as_asked_stay_as_they_were() -> None:
    # Rows 6 to 16 cut through four groups of four rows, so that they have no factors.
    model = nn.ModuleDict({"q": nn.Linear(16, 6), "k": nn.Linear(16, 10)})
    adntn.compress_(model, GeneratorConfig(latent_order=2), shared=[("q", "k")], execution="factored")
    before = {name: layer.weight.detach() for name, layer in model.items()}
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    held = [id(p) for p in optimizer.param_groups[0]["params"]]
    with pytest.raises(ConfigError, match="not possible"):
        grow_(model["q"], groups=4, fit=QUICK, optimizer=optimizer)
    for name, layer in model.items():
        assert layer.config.groups == 1
        assert torch.equal(layer.weight, before[name])
        assert layer.way.name == "factored"
        layer(torch.randn(2, 16))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == held
    report = grow_(model["q"], bond_dim=3, optimizer=optimizer)
    assert report.layers == 2
    for name, layer in model.items():
        assert distance(layer.weight, before[name]) < 1e-6


def test_an_attention_and_a_recurrent_layer_grow() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2, batch_first=True), "rnn": nn.LSTM(16, 8)})
    adntn.compress_(model, GeneratorConfig(latent_order=2), ["attention", "rnn.weight_ih_l0"])
    x = torch.randn(2, 3, 16)
    before = [model["attention"](x, x, x)[0].detach(), model["rnn"](x)[0].detach()]
    for generated in adntn.describe(model).layers:
        assert generated.topology == "ttn"
    for each in [m for m in model.modules() if isinstance(m, GeneratorModule)]:
        assert grow_(each, bond_dim=3, topology="attn").exact
    after = [model["attention"](x, x, x)[0].detach(), model["rnn"](x)[0].detach()]
    torch.testing.assert_close(after, before)
    assert {row.topology for row in adntn.describe(model).layers} == {"attn"}


def test_the_adjoint_way_back_is_kept() -> None:
    generator = Generator((12, 10), GeneratorConfig(latent_order=2), backward="adjoint")
    grow_(generator, bond_dim=3)
    assert generator.backward == "adjoint"
    generator().sum().backward()
    grow_(generator, topology="tt", fit=QUICK)
    assert generator.backward == "autograd"
    generator().sum().backward()


def test_nothing_old_is_kept_under_cached() -> None:
    layer = Linear(32, 32, config=GeneratorConfig(latent_order=2))
    x = torch.randn(2, 32)
    with adntn.cached(layer):
        layer(x)
        grow_(layer, bond_dim=3, topology="attn")
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.generate(), layer.bias))
        with torch.no_grad():
            layer.root.mul_(2.0)
        grow_(layer, groups=2, fit=QUICK)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.generate(), layer.bias))
    from adntn.execution.cache import _KEPT

    assert not _KEPT


def test_a_grown_model_is_saved_and_loaded(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 12))
    adntn.compress_(model, GeneratorConfig(latent_order=2))
    grow_(model[0], bond_dim=3, terms=2)
    grow_(model[1], topology="mera", gate=True)
    adntn.save(model, tmp_path / "m.safetensors")
    again = adntn.load(nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 12)), tmp_path / "m.safetensors")
    x = torch.randn(2, 12)
    assert torch.equal(model(x), again(x))
    assert torch.equal(model(x), copy.deepcopy(model)(x))
    assert adntn.describe(model).generated == sum(layer.num_parameters for layer in model)
    assert torch.allclose(adntn.materialize(model)(x), model(x), atol=1e-6)


def test_growth_of_a_compiled_layer_is_seen(no_graphs: None) -> None:
    layer = Linear(16, 16, config=GeneratorConfig(latent_order=2))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x = torch.randn(2, 16)
    before = compiled(x).detach()
    grow_(layer, bond_dim=3, topology="attn")
    torch.testing.assert_close(compiled(x), before)
    with torch.no_grad():
        layer.get_core("mix.2.0").mul_(2.0)
    torch.testing.assert_close(compiled(x), layer(x))


def test_growth_on_the_meta_device_has_the_shapes_of_it() -> None:
    layer = Linear(12, 10, config=GeneratorConfig(latent_order=2), device="meta")
    report = grow_(layer, bond_dim=3, topology="mera", terms=2)
    assert math.isnan(report.relative_error)
    assert {n: tuple(p.shape) for n, p in layer.generator_parameters()} == layer.blueprint.parameter_shapes
    assert layer.device.type == "meta"
    layer.to_empty(device="cpu").reset_parameters()
    assert torch.isfinite(layer.weight).all()


def test_growth_works_where_gradients_are_off_and_leaves_them_alone() -> None:
    layer = Linear(12, 10, config=GeneratorConfig(latent_order=2))
    with torch.inference_mode():
        grow_(layer, bond_dim=3)
        grow_(layer, groups=2, fit=QUICK)
    layer(torch.randn(2, 12)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_an_activation_that_is_no_function_of_single_entries_is_noticed() -> None:
    layer = Generator((16, 16), GeneratorConfig(latent_order=1, activation="tanh"))
    for key in list(layer.activation):
        layer.activation[key] = nn.Softmax(dim=1)
    with pytest.raises(ConfigError, match="no function of single entries"):
        grow_(layer, bond_dim=3, exact=True)
    report = grow_(layer, bond_dim=3, fit=QUICK)
    assert "no function of single entries" in report.reason
    assert not report.exact


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({}, ConfigError, "nothing to grow"),
        ({"bond": 3}, ConfigError, "Did you mean 'bond_dim'"),
        ({"bond_dim": 0}, ConfigError, "bond_dim=0 is not possible"),
        ({"topology": "merra"}, ConfigError, "Did you mean 'mera'"),
        ({"groups": 5}, adntn.ShapeError, "groups=5 does not divide the 12 rows"),
        ({"bond_dim": 4000, "latent_order": 4}, GeneratorTooLargeError, "bond_dim=4000"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_changes(
    changes: Options, error: type[Exception], message: str
) -> None:
    generator = Generator((12, 10))
    config, before = generator.config, generator().detach()
    with pytest.raises(error, match=message):
        grow_(generator, **changes)
    assert generator.config == config
    assert torch.equal(generator(), before)


def test_a_report_says_what_happened() -> None:
    generator, optimizer, _ = trained((12, 10), {"latent_order": 2})
    report = grow_(generator, topology="attn", optimizer=optimizer)
    assert isinstance(report, GrowthReport)
    assert "the weight stays as it is" in str(report)
    assert "1 added" in str(report)
    assert "no optimiser" in str(grow_(Generator((8, 8)), bond_dim=3))
    assert "refitted, since other modes" in str(grow_(Generator((8, 8)), groups=2, fit=QUICK))


def test_the_docstring_tells_the_truth() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(grow_, "grow_", globs={"adntn": adntn, "torch": torch})
    assert doctest.DocTestRunner().run(example).failed == 0


def test_generated_layers_know_who_shares_their_generator() -> None:
    layers: list[GeneratedLayer] = [Linear(8, 8), Linear(8, 8)]
    assert [set(layer.users()) for layer in layers] == [{layer} for layer in layers]
