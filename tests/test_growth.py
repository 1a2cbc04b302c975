"""Growth: what keeps the weight keeps it exactly, what is new can learn, and what cannot be exact is refitted."""

from __future__ import annotations

import doctest

import pytest
import torch
from conformance_cases import CONFIGS, PERMUTATIONS, PLAIN, generator_cases
from growing import QUICK, TREES, WALL, Options, distance, step, trained
from torch import nn

import adntn
from adntn import FitOptions, Generator, GeneratorConfig, GrowthReport, grow_, quantize_
from adntn.errors import ConfigError, GeneratorTooLargeError
from adntn.nn import GeneratedLayer, Linear
from adntn.topology import TREES as TREE_NAMES
from adntn.topology import Blueprint

pytestmark = pytest.mark.usefixtures("few_objects")

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
