"""Generators of about so many numbers."""

from __future__ import annotations

import math

import pytest

from adntn import Generator, GeneratorConfig
from adntn.errors import ConfigError
from adntn.experiments.reproduce.sizing import sized
from adntn.topology import Blueprint

PAIRED = GeneratorConfig(order="paired")


def numbers(config: GeneratorConfig, shape: tuple[int, ...]) -> int:
    return Blueprint(shape, config).num_parameters


@pytest.mark.parametrize("by", ["groups", "terms", "dimension"])
@pytest.mark.parametrize("wanted", [400, 1_000, 8_000])
def test_a_count_is_met_as_nearly_as_its_steps_allow(by: str, wanted: int) -> None:
    config = PAIRED.with_topology("subspace") if by == "dimension" else PAIRED
    for shape in ((128, 128, 3, 3), (96, 200)):
        made = sized(config, shape, wanted, by)
        assert numbers(made, shape) == pytest.approx(wanted, rel=0.35)
        Generator(shape, made, device="meta")


def test_small_weights_are_never_as_large_as_the_dense_ones() -> None:
    for by in ("groups", "terms"):
        assert numbers(sized(PAIRED, (16, 16, 3, 3), 10_000, by), (16, 16, 3, 3)) <= 0.75 * 16 * 16 * 9
    assert sized(PAIRED.with_topology("subspace"), (16, 16), 10_000, "dimension").subspace_dim == 128


def test_the_smallest_is_the_least() -> None:
    for by in ("groups", "terms"):
        assert sized(PAIRED, (128, 128), 1, by) == PAIRED


def test_groups_divide_the_rows_and_sums_go_on_where_they_end() -> None:
    assert sized(PAIRED, (12, 64), 10_000, "groups").groups in (2, 4)
    large = sized(PAIRED, (128, 128, 3, 3), 10_000, "groups")
    assert large.groups == 16
    assert large.terms > 1


def test_an_unknown_way_to_grow_is_an_error() -> None:
    with pytest.raises(ConfigError, match="by='group' is not known"):
        sized(PAIRED, (8, 8), 100, "group")


def test_layers_that_share_cores_have_more_of_them() -> None:
    alone = sized(PAIRED, (128, 128, 3, 3), 900, "groups")
    config = sized(PAIRED, (128, 128, 3, 3), 900, "groups", sharing=5)
    blueprint = Blueprint((128, 128, 3, 3), config)
    root = math.prod(blueprint.parameter_shapes["root"])
    assert config.groups > alone.groups
    assert root + (blueprint.num_parameters - root) / 5 == pytest.approx(900, rel=0.35)
