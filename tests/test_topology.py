"""Configs, schedules and parameter counts: the paper's own numbers, and what a config refuses."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest
from conformance_cases import CONFIGS, ORDERS, SHAPES, TOPOLOGIES
from hypothesis import given
from hypothesis import strategies as st

from adntn import Generator, GeneratorConfig
from adntn.errors import AdntnError, ConfigError, ShapeError
from adntn.topology import CONFIG_VERSION, Blueprint, Mixer, schedule

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


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("config", CONFIGS)
def test_the_count_is_what_a_module_holds(config: str, topology: str, order: str) -> None:
    options = {"order": order, **TOPOLOGIES[topology], **CONFIGS[config]}
    for shape in ((64, 32), (17, 33), (12, 10, 3, 3), *SHAPES.values()):
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
    large = Blueprint(FC2, GeneratorConfig(bond_dim=4)).peak_entries()
    assert large - small >= 4**12 - 2**12
    assert Blueprint((4096, 4096), GeneratorConfig(bond_dim=4, groups=2)).peak_entries() - small >= 2 * (4**12 - 2**12)


# --- configs --------------------------------------------------------------------------------------

configs = st.builds(
    GeneratorConfig,
    radix=st.integers(2, 9),
    bond_dim=st.none() | st.integers(2, 9),
    latent_order=st.integers(1, 20),
    topology=st.sampled_from(["ttn", "attn", "mera"]),
    activation=st.sampled_from(["elu", "prelu(slope=0.5)", "tanh"])
    | st.floats(0.01, 100).map(lambda w: f"sine(omega={w!r})"),
    order=st.sampled_from(ORDERS) | st.permutations(range(6)).map(tuple),
    groups=st.integers(1, 64),
    initialization=st.sampled_from(["paper", "isometric"]),
    norm=st.sampled_from([None, "center"]),
)


def test_a_state_of_one_entry_cannot_be_centred() -> None:
    with pytest.raises(ConfigError, match="bond_dim=1"):
        GeneratorConfig(bond_dim=1, norm="center")


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
