"""Configs: there and back, and what they refuse."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import pytest
from conformance_cases import ORDERS
from hypothesis import given
from hypothesis import strategies as st

from adntn import Generator, GeneratorConfig
from adntn.errors import AdntnError, ConfigError, ShapeError
from adntn.topology import CONFIG_VERSION, OWNERS, TOPOLOGIES, Blueprint

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
    initialization=st.sampled_from(["paper", "isometric", "conformal"]),
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


@pytest.mark.parametrize(
    "given, nearest",
    [
        ("bond_dims", "bond_dim"),
        ("kernal_radix", "kernel_radix"),
        ("term", "terms"),
        ("gates", "gate"),
        ("column", "columns"),
        ("subspace_dims", "subspace_dim"),
    ],
)
def test_an_unknown_option_is_met_with_the_nearest_known(given: str, nearest: str) -> None:
    ways = (GeneratorConfig, GeneratorConfig().replace, lambda **options: GeneratorConfig.from_dict(options))
    for make in ways:
        with pytest.raises(ConfigError, match=rf"no option '{given}'; it has topology.*Did you mean '{nearest}'\?"):
            make(**{given: 3})


def test_the_signature_still_names_the_options() -> None:
    assert list(inspect.signature(GeneratorConfig).parameters) == [f.name for f in dataclasses.fields(GeneratorConfig)]


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
