"""Configs, schedules and parameter counts: the paper's own numbers, and what a config refuses."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest
from conformance_cases import CONFIGS, NETWORKS, ORDERS, SHAPES, WALLS
from hypothesis import given
from hypothesis import strategies as st

from adntn import Generator, GeneratorConfig
from adntn.errors import AdntnError, ConfigError, ShapeError
from adntn.topology import CONFIG_VERSION, OWNERS, TOPOLOGIES, Blueprint, Mixer, schedule

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


# --- configs --------------------------------------------------------------------------------------

own = st.one_of(
    st.fixed_dictionaries({"topology": st.sampled_from(["ttn", "mera", "tt", "lowrank", "frozen"])}),
    st.fixed_dictionaries(
        {
            "topology": st.sampled_from(["ttn", "mera", "brickwall"]),
            "gate": st.booleans(),
            "terms": st.integers(1, 5),
        }
    ),
    st.fixed_dictionaries({"topology": st.just("attn"), "boundary_layers": st.integers(1, 2)}),
    st.fixed_dictionaries(
        {"topology": st.just("brickwall"), "columns": st.integers(5, 9), "blocks": st.none() | st.integers(1, 3)}
    ),
    st.fixed_dictionaries({"topology": st.just("subspace"), "subspace_dim": st.none() | st.integers(1, 10**6)}),
)


def _build(own: dict[str, Any], **options: Any) -> GeneratorConfig:
    return GeneratorConfig(**options, **own)


configs = st.builds(
    _build,
    own=own,
    radix=st.integers(2, 9),
    bond_dim=st.none() | st.integers(2, 9),
    latent_order=st.integers(1, 20),
    activation=st.sampled_from(["elu", "prelu(slope=0.5)", "tanh"])
    | st.floats(0.01, 100).map(lambda w: f"sine(omega={w!r})"),
    order=st.sampled_from(ORDERS) | st.permutations(range(6)).map(tuple),
    groups=st.integers(1, 64),
    initialization=st.sampled_from(["paper", "isometric"]),
    norm=st.sampled_from([None, "center", "rms", "layer"]),
    kernel_radix=st.none() | st.integers(2, 9),
)


@pytest.mark.parametrize("norm", ["center", "layer"])
def test_a_state_of_one_entry_cannot_be_centred(norm: str) -> None:
    with pytest.raises(ConfigError, match="bond_dim=1"):
        GeneratorConfig(bond_dim=1, norm=norm)
    # A brick wall's states have all modes, and a mean square of 1 leaves the sign.
    GeneratorConfig(bond_dim=1, norm=norm, topology="brickwall")
    GeneratorConfig(bond_dim=1, norm="rms")


@given(config=configs, topology=st.sampled_from(TOPOLOGIES))
def test_a_config_of_another_topology_keeps_what_that_one_takes(config: GeneratorConfig, topology: str) -> None:
    other = config.with_topology(topology)
    assert other.topology == topology
    default = GeneratorConfig()
    for f in dataclasses.fields(GeneratorConfig):
        if f.name != "topology":
            takes = topology in OWNERS.get(f.name, TOPOLOGIES)
            assert getattr(other, f.name) == getattr(config if takes else default, f.name)
    assert config.with_topology(config.topology) == config


def test_a_config_of_an_unknown_topology_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'mera'"):
        GeneratorConfig().with_topology("mero")


#: As the first version wrote it, which had neither gates that did anything nor the options below.
VERSION_1 = (
    '{"version": 1, "topology": "mera", "radix": 2, "bond_dim": 3, "latent_order": 5, "activation": "elu", '
    '"order": "blocked", "groups": 2, "boundary_layers": 1, "initialization": "paper", "norm": "center", "gate": false}'
)


def test_a_config_of_version_1_is_still_read() -> None:
    config = GeneratorConfig.from_json(VERSION_1)
    assert config == GeneratorConfig(
        topology="mera", bond_dim=3, activation="elu", groups=2, initialization="paper", norm="center"
    )
    assert json.loads(config.to_json())["version"] == CONFIG_VERSION == 2


@given(config=configs)
def test_a_config_goes_to_json_and_back(config: GeneratorConfig) -> None:
    again = GeneratorConfig.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)
    assert again.to_dict() == config.to_dict()
    assert json.loads(config.to_json())["version"] == CONFIG_VERSION


def test_every_option_has_a_place_in_the_json() -> None:
    names = {f.name for f in dataclasses.fields(GeneratorConfig)}
    assert set(json.loads(GeneratorConfig().to_json())) == names | {"version"}


def test_a_config_without_version_or_options_is_the_default() -> None:
    assert GeneratorConfig.from_dict({}) == GeneratorConfig()


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GeneratorConfig().radix = 3  # type: ignore[misc]


def test_a_config_is_a_key() -> None:
    table = {GeneratorConfig(order=(1, 0)): "a", GeneratorConfig(activation="sine(omega=3)"): "b"}
    assert table[GeneratorConfig(order=[1, 0])] == "a"  # type: ignore[arg-type]
    assert table[GeneratorConfig(activation=" sine( omega = 3.0 )")] == "b"
    assert GeneratorConfig() != GeneratorConfig(radix=3)


def test_bond_dim_defaults_to_radix() -> None:
    assert GeneratorConfig(radix=3).chi == 3
    assert GeneratorConfig(radix=3, bond_dim=2).chi == 2


def test_the_papers_own_config_has_a_name() -> None:
    config = GeneratorConfig.paper(topology="mera")
    assert (config.activation, config.initialization, config.order) == ("elu", "paper", "flat")
    assert config.topology == "mera"
    assert GeneratorConfig.paper(activation="tanh").activation == "tanh"


def test_replace_changes_some_options() -> None:
    config = GeneratorConfig(radix=3).replace(topology="mera")
    assert (config.radix, config.topology) == (3, "mera")
    with pytest.raises(ConfigError, match="latent_order"):
        config.replace(latent_oder=3)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, named",
    [
        ({"topology": "tnn"}, "'ttn'"),
        ({"topology": "Mera"}, "'mera'"),
        ({"order": "blocks"}, "'blocked'"),
        ({"order": "pair"}, "'paired'"),
        ({"initialization": "isometry"}, "'isometric'"),
        ({"norm": "centre"}, "'center'"),
        ({"activation": "slu"}, "'silu'"),
        ({"activation": "sine(omeg=3)"}, "'omega'"),
    ],
)
def test_an_unknown_value_is_met_with_the_nearest_known(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GeneratorConfig(**options)
    assert f"Did you mean {named}?" in str(caught.value)
    assert repr(next(iter(options.values()))) in str(caught.value)


def test_an_unknown_option_is_met_with_the_nearest_known() -> None:
    with pytest.raises(ConfigError, match=r"no option 'bond_dims'.*Did you mean 'bond_dim'\?"):
        GeneratorConfig.from_dict({"bond_dims": 3})


@pytest.mark.parametrize(
    "options",
    [
        {"radix": 1},
        {"radix": 2.0},
        {"radix": True},
        {"radix": "2"},
        {"bond_dim": 0},
        {"bond_dim": -1},
        {"latent_order": 0},
        {"groups": 0},
        {"groups": None},
        {"boundary_layers": 0},
        {"boundary_layers": 3, "topology": "attn"},
        {"boundary_layers": 2.0, "topology": "attn"},
        {"boundary_layers": True, "topology": "attn"},
        {"boundary_layers": 2, "topology": "ttn"},
        {"boundary_layers": 2, "topology": "mera"},
        {"gate": None},
        {"gate": 1},
        {"terms": 0},
        {"terms": 2.0},
        {"kernel_radix": 1},
        {"columns": 0, "topology": "brickwall"},
        {"columns": None, "topology": "brickwall"},
        {"blocks": 0, "topology": "brickwall"},
        {"subspace_dim": 0, "topology": "subspace"},
        {"subspace_dim": True, "topology": "subspace"},
        {"topology": None},
        {"topology": ["ttn"]},
        {"order": None},
        {"order": 3},
        {"order": (0, 1.0)},
        {"order": (0, True)},
        {"norm": ""},
        {"activation": None},
        {"activation": ""},
        {"activation": "ELU"},
        {"activation": "elu(alpha=x)"},
        {"activation": "elu(alpha=inf)"},
        {"activation": "elu(alpha=1"},
        {"activation": "tanh(omega=1)"},
    ],
    ids=str,
)
def test_an_impossible_value_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        GeneratorConfig(**options)
    assert any(name in str(caught.value) for name in options)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"columns": 4}, "columns=4 needs topology='brickwall', not 'ttn'"),
        ({"blocks": 1, "topology": "tt"}, "blocks=1 needs topology='brickwall', not 'tt'"),
        ({"topology": "brickwall", "blocks": 2}, "blocks=2 with columns=2 is not possible.*at most 1 blocks"),
        ({"topology": "brickwall", "columns": 5, "blocks": 4}, "at most 3 blocks"),
        ({"topology": "lowrank", "terms": 2}, "terms=2 needs a tree or a brick wall; topology='lowrank'"),
        ({"topology": "frozen", "gate": True}, "gate=True needs a tree or a brick wall; topology='frozen'"),
        ({"topology": "mera", "subspace_dim": 3}, "subspace_dim=3 needs topology='subspace', not 'mera'"),
        ({"topology": "brickwall", "boundary_layers": 2}, "boundary_layers=2 needs topology='attn', not 'brickwall'"),
        ({"gate": "yes"}, "gate='yes' is neither True nor False"),
    ],
    ids=str,
)
def test_a_combination_that_is_none_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GeneratorConfig(**options)


@pytest.mark.parametrize(
    "shape, options, words",
    [
        ((5, 5, 3, 3), {"order": "flat", "kernel_radix": 3}, "kernel_radix=3; use order='blocked'"),
        ((4, 4, 5), {"order": "flat", "kernel_radix": 3}, "kernel_radix=3; use order='blocked'"),
        ((1, 1), {"topology": "brickwall"}, "single mode"),
        ((1, 2), {"topology": "brickwall"}, "single mode"),
        ((1, 2), {"topology": "brickwall", "groups": 1, "columns": 3}, "single mode"),
    ],
    ids=str,
)
def test_a_combination_that_a_shape_does_not_allow_is_refused(
    shape: tuple[int, ...], options: dict[str, Any], words: str
) -> None:
    with pytest.raises((ConfigError, ShapeError), match=words):
        Generator(shape, GeneratorConfig(**options), device="meta")


@pytest.mark.parametrize("version", [CONFIG_VERSION + 1, 10**9])
def test_a_config_from_a_newer_version_is_refused(version: int) -> None:
    with pytest.raises(ConfigError, match=f"version {version}, newer"):
        GeneratorConfig.from_dict({**GeneratorConfig().to_dict(), "version": version})


def test_a_newer_version_is_named_before_the_options_it_brings() -> None:
    with pytest.raises(ConfigError, match="newer"):
        GeneratorConfig.from_dict({"version": CONFIG_VERSION + 1, "wormholes": 3})


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, None, True])
def test_a_version_that_is_none_is_refused(version: object) -> None:
    with pytest.raises(ConfigError, match="version"):
        GeneratorConfig.from_dict({"version": version})


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"ttn"', "{'radix': 2}", '{"radix": NaN}', "[" * 100_000])
def test_what_is_not_the_json_of_a_config_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        GeneratorConfig.from_json(text)


def test_errors_are_the_librarys_and_pythons_own() -> None:
    assert issubclass(ConfigError, AdntnError)
    assert issubclass(ConfigError, ValueError)


def test_a_shape_that_cannot_be_generated_is_refused_at_once() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 0\)"):
        Blueprint((4, 0), GeneratorConfig())
    with pytest.raises(ConfigError, match="permutation"):
        Blueprint((4, 4), GeneratorConfig(order=(0, 1)))
