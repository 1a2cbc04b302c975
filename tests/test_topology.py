"""Counts, schedules and levels: the paper's own numbers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from conformance_cases import CONFIGS, NETWORKS, ORDERS, SHAPES, WALLS
from hypothesis import given
from hypothesis import strategies as st

from adntn import Generator, GeneratorConfig
from adntn.errors import ConfigError, ShapeError
from adntn.topology import Blueprint, Mixer, schedule

# --- the paper's Table 3 --------------------------------------------------------------------------

FC2 = (4096, 4096)
VGG_CONV = (512, 512, 3, 3)
ALEXNET_CONVS = ((192, 64, 5, 5), (256, 256, 3, 3))


@pytest.mark.parametrize("order", ["flat", "blocked"])
@pytest.mark.parametrize("topology, count", [("ttn", 216), ("attn", 392), ("mera", 536)])
def test_counts_of_fc2(topology: str, count: int, order: str) -> None:
    assert Blueprint(FC2, GeneratorConfig(topology=topology, order=order)).num_parameters == count


@pytest.mark.parametrize("order", ["flat", "blocked"])
@pytest.mark.parametrize("topology, count, of_five", [("ttn", 204, 1020), ("attn", 364, 1820), ("mera", 508, 2540)])
def test_counts_of_the_five_vgg_convolutions(topology: str, count: int, of_five: int, order: str) -> None:
    blueprint = Blueprint(VGG_CONV, GeneratorConfig(topology=topology, order=order))
    assert blueprint.num_parameters == count
    assert 5 * blueprint.num_parameters == of_five
    assert 5 * blueprint.size == 5 * 512 * 512 * 9  # the paper's P is not padded here


@pytest.mark.parametrize("order", ["flat", "blocked"])
@pytest.mark.parametrize("topology, count, of_two", [("ttn", 152, 304), ("attn", 296, 592), ("mera", 360, 720)])
def test_counts_of_the_two_alexnet_convolutions(topology: str, count: int, of_two: int, order: str) -> None:
    config = GeneratorConfig(topology=topology, order=order)
    blueprints = [Blueprint(shape, config) for shape in ALEXNET_CONVS]
    assert [b.num_parameters for b in blueprints] == [count, count]
    assert sum(b.num_parameters for b in blueprints) == of_two
    assert [b.tensorization.num_modes for b in blueprints] == [19, 20]
    # The paper's P of this row, 1,572,864, is the padded size.
    assert sum(b.tensorization.padded_size for b in blueprints) == 2**20 + 2**19


# --- Qing et al.'s brick wall, and what a ttn has to beat ---------------------------------------------


@pytest.mark.parametrize(
    "shape, modes, columns, count",
    [
        ((384, 256, 3, 3), 21, 2, 40 + 160),
        ((4096, 4096), 24, 2, 48 + 176),
        ((256, 256, 3, 3), 20, 2, 40 + 144),
        ((192, 64, 5, 5), 19, 2, 36 + 144),
        ((512, 512, 3, 3), 22, 2, 44 + 160),
        ((512, 512, 3, 3), 22, 3, 44 + 160 + 160),
    ],
    ids=str,
)
def test_counts_of_a_brick_wall(shape: tuple[int, ...], modes: int, columns: int, count: int) -> None:
    blueprint = Blueprint(shape, GeneratorConfig(topology="brickwall", columns=columns))
    assert blueprint.tensorization.num_modes == modes
    assert blueprint.num_parameters == count


def test_those_are_the_figures_of_the_papers() -> None:
    def count(*shapes: tuple[int, ...], **options: Any) -> int:
        config = GeneratorConfig(topology="brickwall", **options)
        return sum(Blueprint(shape, config).num_parameters for shape in shapes)

    assert count((384, 256, 3, 3), FC2) == 200 + 224 == 424  # the abstract of Qing et al.
    assert count(*ALEXNET_CONVS) == 184 + 180 == 364
    assert count(VGG_CONV, columns=3) == 204 + 160 == 364


@pytest.mark.parametrize(
    "shape, options, count",
    [
        (FC2, {"topology": "tt"}, 4 + 22 * 8 + 4),
        (FC2, {"topology": "tt", "bond_dim": 5}, 10 + 22 * 50 + 10),
        (FC2, {"topology": "tt", "groups": 2}, 2 * (4 + 21 * 8 + 4)),
        (FC2, {"topology": "lowrank"}, 2 * (4096 + 4096)),
        (FC2, {"topology": "lowrank", "bond_dim": 3, "groups": 2}, 3 * (4096 + 2 * 4096)),
        (VGG_CONV, {"topology": "lowrank", "bond_dim": 1}, 512 + 512 * 9),
        (FC2, {"topology": "subspace"}, 216),
        (FC2, {"topology": "subspace", "groups": 2}, 2 * 216),
        (FC2, {"topology": "subspace", "bond_dim": 1, "norm": "center"}, 1 + 5 + 10 + 12 * 4),
        (FC2, {"topology": "subspace", "subspace_dim": 1000, "groups": 2}, 2000),
        (FC2, {"topology": "frozen"}, 1),
        (FC2, {"topology": "frozen", "groups": 4}, 4),
        # Gates: on 21 disentanglers, on two levels, on three terms.
        (FC2, {"topology": "mera", "gate": True}, 536 + (4 + 5 + 11) + 2),
        (FC2, {"gate": True}, 216 + 2),
        (FC2, {"gate": True, "terms": 3}, 3 * (216 + 2 + 1)),
        (FC2, {"terms": 3, "groups": 2, "activation": "prelu"}, 6 * (216 + 2)),
        (FC2, {"topology": "brickwall", "gate": True}, 224 + 11),
        (
            FC2,
            {"topology": "brickwall", "columns": 4, "gate": True, "terms": 2},
            2 * (224 + 12 * 16 + 176 + 34 + 1 + 1),
        ),
        # 9 + 9 binary modes and 2 of size 3: the last of ten cores makes these two.
        (VGG_CONV, {"kernel_radix": 3}, 32 + 5 * 8 + 9 * 8 + 2 * 9),
    ],
    ids=str,
)
def test_counts_of_the_other_families(shape: tuple[int, ...], options: dict[str, Any], count: int) -> None:
    assert Blueprint(shape, GeneratorConfig(**options)).num_parameters == count


def test_a_kernel_with_its_own_radix_is_not_padded() -> None:
    blueprint = Blueprint(VGG_CONV, GeneratorConfig(kernel_radix=3))
    t = blueprint.tensorization
    assert t.num_modes == 20
    assert [mode.size for mode in t.modes] == [2] * 18 + [3] * 2
    assert t.padded_size == t.size == 512 * 512 * 9
    assert blueprint.schedule == (5, 10, 20)
    assert list(blueprint.parameter_shapes) == ["root", "expand.1", "expand.2", "expand.2_3x3"]
    # A linear layer has no kernel, and the option no effect.
    plain = GeneratorConfig()
    assert Blueprint(FC2, plain.replace(kernel_radix=3)).parameter_shapes == Blueprint(FC2, plain).parameter_shapes


def test_names_of_gates_and_of_a_brick_walls_cores_do_not_meet() -> None:
    config = GeneratorConfig(topology="brickwall", columns=3, gate=True, terms=2)
    shapes = Blueprint((8, 4), config).parameter_shapes
    assert shapes == {
        "gate.1.1": (4, 1, 4),
        "gate.1.2": (4, 4, 4),
        "gate.2.1": (4, 4, 4),
        "gate.gate.1.2": (4, 1),
        "gate.gate.2.1": (4, 1),
        "gate.level.1": (2, 1),
        "gate.term": (2, 1),
    }


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "num_modes, latent_order, expected",
    [
        (24, 5, (5, 10, 12, 24)),
        (22, 5, (5, 10, 11, 22)),
        (21, 5, (5, 10, 11, 22)),
        (20, 5, (5, 10, 20)),
        (19, 5, (5, 10, 20)),
        (10, 5, (5, 10)),
        (9, 5, (5, 10)),
        (11, 5, (5, 6, 12)),
        (8, 5, (4, 8)),  # no hidden level
        (1, 5, (1, 2)),
        (24, 1, (1, 2, 4, 8, 12, 24)),
        (24, 12, (12, 24)),
        (24, 99, (12, 24)),
    ],
)
def test_schedule(num_modes: int, latent_order: int, expected: tuple[int, ...]) -> None:
    assert schedule(num_modes, latent_order) == expected


@given(num_modes=st.integers(1, 200), latent_order=st.integers(1, 40))
def test_a_schedule_doubles_but_for_one_bridge(num_modes: int, latent_order: int) -> None:
    modes = schedule(num_modes, latent_order)
    half = -(-num_modes // 2)
    assert modes[0] == min(latent_order, half)
    assert modes[-2] == half
    assert modes[-1] == 2 * half
    ratios = [(after, 2 * before) for before, after in itertools.pairwise(modes)]
    assert all(before < after <= double for (after, double), before in zip(ratios, modes, strict=False))
    bridges = [level for level, (after, double) in enumerate(ratios, start=1) if after < double]
    assert bridges in ([], [len(modes) - 2])


# --- levels ---------------------------------------------------------------------------------------


def test_a_bridge_has_expansions_first_and_carries_for_the_rest() -> None:
    levels = Blueprint(FC2, GeneratorConfig()).levels
    assert [(level.expansions, level.carries) for level in levels] == [(5, 0), (2, 8), (12, 0)]
    assert [(level.number, level.parents, level.children) for level in levels] == [(1, 5, 10), (2, 10, 12), (3, 12, 24)]


@pytest.mark.parametrize(
    "options, mixers",
    [
        ({"topology": "ttn"}, [(), (), ()]),
        ({"topology": "attn"}, [(), (), (Mixer(1, 11, "mix.3.0"),)]),
        ({"topology": "attn", "boundary_layers": 2}, [(), (), (Mixer(1, 11, "mix.3.0"), Mixer(0, 12, "mix.3.1"))]),
        ({"topology": "mera"}, [(Mixer(1, 4, "mix.1.0"),), (Mixer(1, 5, "mix.2.0"),), (Mixer(1, 11, "mix.3.0"),)]),
    ],
)
def test_where_a_topology_mixes(options: dict[str, Any], mixers: list[tuple[Mixer, ...]]) -> None:
    assert [level.mixers for level in Blueprint(FC2, GeneratorConfig(**options)).levels] == mixers


def test_bond_dim_is_inside_and_radix_at_the_readout() -> None:
    levels = Blueprint(FC2, GeneratorConfig(radix=4, bond_dim=3)).levels
    assert [(set(level.sizes_in), set(level.sizes_out)) for level in levels] == [({3}, {3}), ({3}, {4})]


@pytest.mark.parametrize(
    "options, count",
    [
        ({"topology": "attn", "boundary_layers": 2}, 392 + 12 * 16),
        # Two blocks of 2048 rows have 23 modes each, and so the tree of 24.
        ({"groups": 2}, 2 * 216),
        ({"groups": 2, "topology": "mera"}, 2 * 536),
        ({"activation": "prelu"}, 216 + 2),
        ({"activation": "prelu", "groups": 4}, 4 * (204 + 2)),
        ({"radix": 4}, 4**5 + (64 + 4 * 16) + 6 * 64),
        ({"bond_dim": 3}, 3**5 + 5 * 27 + (2 * 27 + 8 * 9) + 12 * 12),
        ({"bond_dim": 1}, 1 + 5 + 10 + 12 * 4),
        ({"latent_order": 12}, 2**12 + 12 * 8),
    ],
)
def test_counts_of_other_options_at_fc2(options: dict[str, Any], count: int) -> None:
    assert Blueprint(FC2, GeneratorConfig(**options)).num_parameters == count


@pytest.mark.parametrize("topology", NETWORKS)
@pytest.mark.parametrize("config", CONFIGS)
def test_the_count_is_what_a_module_holds(config: str, topology: str) -> None:
    shapes = [(64, 32), (17, 33), (12, 10, 3, 3), *SHAPES.values()]
    for place, shape in enumerate(shapes):
        if shape == (1, 1) and topology in WALLS:
            continue  # a single mode has no pair
        options = {"order": ORDERS[place % 4], **NETWORKS[topology], **CONFIGS[config]}
        generator = Generator(shape, GeneratorConfig(**options), device="meta")
        assert generator.num_parameters == sum(p.numel() for p in generator.parameters()), shape


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_groups_hold_a_generator_each(groups: int) -> None:
    config = GeneratorConfig(topology="mera", activation="prelu")
    one = Blueprint((12 // groups, 10), config)
    all_of_them = Blueprint((12, 10), config.replace(groups=groups))
    assert all_of_them.num_parameters == groups * one.num_parameters
    assert all_of_them.schedule == one.schedule


def test_sizes_of_a_blueprint() -> None:
    blueprint = Blueprint((384, 256, 3, 3), GeneratorConfig(bond_dim=3))
    assert blueprint.size == 384 * 256 * 9
    assert blueprint.tensorization.padded_size == 2**21
    assert blueprint.hidden_size == 3**11


def test_the_memory_estimate_counts_every_group_and_the_hidden_state() -> None:
    small = Blueprint(FC2, GeneratorConfig()).peak_entries()
    assert small >= 2 * 4096**2  # the padded weight and the cropped one
    assert Blueprint(FC2, GeneratorConfig(terms=3)).peak_entries() >= 4 * 4096**2
    one, two = (Blueprint(FC2, GeneratorConfig(topology="brickwall", columns=c)).peak_entries() for c in (2, 4))
    assert two - one >= 2 * 4096**2  # a state and its pre-activation
    for baseline in ("tt", "lowrank", "subspace", "frozen"):
        peak = Blueprint(FC2, GeneratorConfig(topology=baseline)).peak_entries()
        assert 2 * 4096**2 <= peak <= 6 * 4096**2
    large = Blueprint(FC2, GeneratorConfig(bond_dim=4)).peak_entries()
    assert large - small >= 4**12 - 2**12
    assert Blueprint((4096, 4096), GeneratorConfig(bond_dim=4, groups=2)).peak_entries() - small >= 2 * (4**12 - 2**12)


@pytest.mark.parametrize("digits", [2, 3, 4])
@pytest.mark.parametrize("shape", [(128, 128, 3, 3), (30, 17), (3, 2), (24, 90, 5)], ids=str)
def test_kronecker_products_have_so_many_digits(shape: tuple[int, ...], digits: int) -> None:
    config = GeneratorConfig.kronecker(shape, digits, terms=2)
    assert (config.order, config.bond_dim, config.terms) == ("paired", 1, 2)
    assert config.radix == 2 or (config.radix - 1) ** digits < max(shape[:2])
    assert max(shape[:2]) <= config.radix**digits
    assert Generator(shape, config)().shape == torch.Size(shape)


def test_kronecker_products_leave_a_kernel_unpadded_and_take_options() -> None:
    assert GeneratorConfig.kronecker((64, 64, 3, 3)).kernel_radix == 3
    assert GeneratorConfig.kronecker((64, 64, 5, 1)).kernel_radix == 5
    assert GeneratorConfig.kronecker((64, 64, 1, 1)).kernel_radix is None
    assert GeneratorConfig.kronecker((64, 64, 3, 5)).kernel_radix is None
    assert GeneratorConfig.kronecker((64, 64), initialization="isometric").initialization == "isometric"
    assert GeneratorConfig.kronecker((64, 16), groups=4).radix == 4


def test_kronecker_products_of_what_is_no_weight_are_an_error() -> None:
    with pytest.raises(ShapeError, match=r"a weight of shape \(64,\) has no rows and columns"):
        GeneratorConfig.kronecker((64,))
    with pytest.raises(ConfigError, match=r"digits=1 is not possible; give a whole number of at least 2"):
        GeneratorConfig.kronecker((64, 64), digits=1)
    with pytest.raises(ConfigError, match=r"no option 'term'"):
        GeneratorConfig.kronecker((64, 64), term=3)
