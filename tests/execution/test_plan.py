"""Which way a layer runs, and why."""

from __future__ import annotations

from typing import Any

import pytest
from conformance_cases import LAYERS, LayerCase

from adntn import Generator, GeneratorConfig
from adntn.errors import ConfigError
from adntn.execution.plan import choose, multiply_adds
from adntn.nn import Conv2d, Linear


def generator(shape: tuple[int, ...] = (4096, 4096), **options: Any) -> Generator:
    return Generator(shape, GeneratorConfig(**{"order": "blocked", **options}), device="meta")


@pytest.mark.parametrize(
    "shape, options, dense, factored",
    [
        # x B, then C, then A: (in r' + r' r + r out) a row of x.
        ((4096, 4096), {}, 4096**2, 4096 * 64 + 64 * 64 + 64 * 4096),
        ((4096, 4096), {"topology": "mera"}, 4096**2, 4096 * 128 + 128 * 128 + 128 * 4096),
        ((512, 512, 3, 3), {}, 512 * 512 * 9, 512 * 32 + 32 * 32 * 9 + 32 * 512),
        # B and C once a group, A once for each row of the weight.
        ((512, 256, 3, 3), {"groups": 2}, 512 * 256 * 9, 2 * (256 * 16 + 16 * 16 * 9) + 16 * 512),
        ((4096, 4096), {"order": "paired"}, 4096**2, 4096**2),
        ((100, 60), {"order": "flat"}, 6000, 6000),
    ],
    ids=str,
)
def test_multiply_adds_of_an_output_position(
    shape: tuple[int, ...], options: dict[str, Any], dense: int, factored: int
) -> None:
    assert multiply_adds(generator(shape, **options)) == (dense, factored)


def test_a_large_layer_runs_factored_and_says_what_it_saves() -> None:
    way = choose("auto", generator())
    assert way.name == "factored"
    assert str(way) == "factored"
    assert "528,384" in way.reason
    assert "16,777,216" in way.reason


def test_a_small_layer_runs_dense() -> None:
    assert choose("auto", generator((8, 8))).name == "dense"


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_auto_takes_the_way_with_clearly_less_arithmetic(layer: LayerCase) -> None:
    module = layer.build()
    dense, factored = multiply_adds(module)
    if layer.splits:
        assert module.way.name == ("factored" if factored < 0.75 * dense else "dense")
    else:
        assert module.way.name == "dense"


@pytest.mark.parametrize("options", [{"order": "paired"}, {"order": "block_paired", "topology": "mera"}], ids=str)
def test_an_order_without_split_runs_dense_and_says_why(options: dict[str, Any]) -> None:
    way = choose("auto", generator((64, 64), **options))
    assert way.name == "dense"
    assert repr(options["order"]) in way.reason


def test_what_is_asked_for_is_done() -> None:
    assert choose("dense", generator()).name == "dense"
    assert choose("factored", generator((8, 8))).name == "factored"


@pytest.mark.parametrize("execution, near", [("fact", "factored"), ("Dense", "dense"), ("automatic", "auto")])
def test_an_unknown_execution_is_met_with_the_nearest(execution: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"execution='{execution}' is not known.*Did you mean '{near}'\?"):
        choose(execution, generator((8, 8)))


@pytest.mark.parametrize("execution", [None, 3, True])
def test_what_is_no_execution_is_refused(execution: Any) -> None:
    with pytest.raises(ConfigError, match="choose one of auto, factored, dense"):
        choose(execution, generator((8, 8)))


def test_factored_is_refused_without_a_split() -> None:
    with pytest.raises(ConfigError, match=r"order='paired' has no split.*'auto' or 'dense'"):
        Linear(8, 8, config=GeneratorConfig(order="paired"), execution="factored")


def test_factored_is_refused_with_convolution_groups() -> None:
    config = GeneratorConfig(order="blocked")
    with pytest.raises(ConfigError, match="convolution groups"):
        Conv2d(8, 8, 3, groups=2, config=config, execution="factored")
    assert "convolution groups" in Conv2d(64, 64, 3, groups=2, config=config).way.reason


def test_execution_can_be_changed_later_and_a_refusal_changes_nothing() -> None:
    layer = Linear(64, 64, config=GeneratorConfig(order="blocked"))
    assert layer.way.name == "factored"
    layer.execution = "dense"
    assert (layer.execution, layer.way.name) == ("dense", "dense")
    with pytest.raises(ConfigError):
        layer.execution = "sideways"
    assert (layer.execution, layer.way.name) == ("dense", "dense")
    layer.execution = "auto"
    assert layer.way.name == "factored"
