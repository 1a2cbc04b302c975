"""Which way a layer runs, and why."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conformance_layers import LAYERS, LayerCase
from torch.utils._python_dispatch import TorchDispatchMode

from adntn import Generator, GeneratorConfig
from adntn.errors import ConfigError
from adntn.execution.machine import using
from adntn.execution.plan import Work, choose, multiply_adds
from adntn.nn import Conv2d, ConvTranspose2d, Embedding, Linear


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
    work = multiply_adds(generator(shape, **options))
    assert (work.dense, work.factored) == (dense, factored)


@pytest.mark.parametrize(
    "groups, trees, factored",
    [
        # B once a block on each of the input positions, C once a block, A once for each row of the weight.
        (1, 1, 4 * 64 * 8 + 8 * 16 * 9 + 128 * 16),
        (4, 1, 4 * (4 * 64 * 8 + 8 * 16 * 9) + 128 * 16),
        (1, 2, 2 * (4 * 64 * 8 + 8 * 8 * 9) + 128 * 8),
        (4, 2, 4 * (4 * 64 * 8 + 8 * 8 * 9) + 128 * 8),
        (2, 8, 8 * (4 * 64 * 8 + 8 * 4 * 9) + 128 * 4),
        (32, 1, 32 * (4 * 64 * 8 + 8 * 16 * 9) + 128 * 16),
    ],
    ids=str,
)
def test_multiply_adds_of_a_strided_convolution_with_groups(groups: int, trees: int, factored: int) -> None:
    gen = generator((128, 64, 3, 3), groups=trees)
    work = multiply_adds(gen, groups=groups, stride=4)
    assert (work.dense, work.factored) == (128 * 64 * 9, factored)


class Products(TorchDispatchMode):
    """Counts the multiply-adds of convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            x, weight = args[:2]
            # Transposed, every input position meets the whole weight of its group; else every output position.
            positions = x if args[6] else result
            self.total += weight.numel() * positions[0, 0].numel() * positions.shape[0]
        return result


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("execution", ["dense", "factored"])
@pytest.mark.parametrize("groups, trees", [(1, 1), (1, 2), (4, 1), (4, 2), (2, 4), (2, 3)], ids=str)
def test_multiply_adds_are_those_that_a_layer_does(transposed: bool, execution: str, groups: int, trees: int) -> None:
    kind = ConvTranspose2d if transposed else Conv2d
    config = GeneratorConfig(order="blocked", groups=trees)
    layer = kind(24, 48, 2, stride=2, groups=groups, bias=False, config=config, execution=execution, device="meta")
    with Products() as counted:
        # In stages, which there are in one memory format only, less is done.
        layer(torch.empty(3, 24, 8, 8, device="meta").to(memory_format=torch.channels_last))
    positions = 3 * (64 if transposed else 16)
    work = multiply_adds(layer, groups=groups, stride=4)
    assert counted.total == positions * (work.dense if execution == "dense" else work.factored)


def test_a_large_layer_runs_factored_and_says_what_it_saves() -> None:
    way = choose("auto", generator(), multiply_adds(generator()))
    assert way.name == "factored"
    assert str(way) == "factored"
    assert "528,384" in way.reason
    assert "16,777,216" in way.reason


def test_a_small_layer_runs_dense() -> None:
    small = generator((8, 8))
    assert choose("auto", small, multiply_adds(small)).name == "dense"


def test_lookups_run_factored_whatever_the_size() -> None:
    for rows, size in ((8, 8), (65536, 64)):
        layer = Embedding(rows, size, config=GeneratorConfig(order="blocked"), device="meta")
        assert layer.way.name == "factored"
        assert "looked up" in layer.way.reason
    assert Embedding(8, 8, config=GeneratorConfig(order="paired")).way.name == "dense"


@pytest.mark.parametrize("terms, way", [(1, "factored"), (3, "factored"), (4, "dense"), (8, "dense")])
def test_auto_makes_the_weight_of_a_convolution_that_many_kronecker_products_have_to_pass(terms: int, way: str) -> None:
    config = GeneratorConfig.kronecker((128, 128, 3, 3), terms=terms)
    layer = Conv2d(128, 128, 3, padding=1, config=config, device="meta")
    with using(None):
        layer.execution = "auto"
    assert layer.way.name == way
    assert Linear(128, 128, config=GeneratorConfig.kronecker((128, 128)), device="meta").way.name == "factored"


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_auto_takes_the_way_with_clearly_less_arithmetic(layer: LayerCase) -> None:
    module = layer.build()
    groups, stride = getattr(module, "groups", 1), math.prod(getattr(module, "stride", ()))
    work = multiply_adds(module, groups=groups, stride=stride)
    if layer.splits and layer.rows is None:
        assert module.way.name == ("factored" if work.factored < min(0.75, work.worthwhile) * work.dense else "dense")
    else:
        assert module.way.name == ("factored" if layer.splits else "dense")


@pytest.mark.parametrize(
    "options, why",
    [
        ({"order": "paired"}, "order='paired' has no split"),
        ({"order": "block_paired", "topology": "mera"}, "topology='mera' with order='block_paired' has no split"),
        ({"order": "paired", "topology": "tt"}, "order='paired' has no split"),
        ({"topology": "frozen"}, "topology='frozen' has no split"),
    ],
    ids=str,
)
def test_what_has_no_split_runs_dense_and_says_why(options: dict[str, Any], why: str) -> None:
    gen = generator((64, 64), **options)
    way = choose("auto", gen, Work(2, 1))
    assert (way.name, way.reason) == ("dense", f"{why} into factors")
    assert gen.factors() is None


def test_what_is_asked_for_is_done() -> None:
    assert choose("dense", generator(), Work(2, 1)).name == "dense"
    assert choose("factored", generator((8, 8)), Work(1, 2)).name == "factored"


@pytest.mark.parametrize("execution, near", [("fact", "factored"), ("Dense", "dense"), ("automatic", "auto")])
def test_an_unknown_execution_is_met_with_the_nearest(execution: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"execution='{execution}' is not known.*Did you mean '{near}'\?"):
        choose(execution, generator((8, 8)), Work(1, 1))


@pytest.mark.parametrize("execution", [None, 3, True])
def test_what_is_no_execution_is_refused(execution: Any) -> None:
    with pytest.raises(ConfigError, match="choose one of auto, factored, dense"):
        choose(execution, generator((8, 8)), Work(1, 1))


def test_factored_is_refused_without_a_split() -> None:
    with pytest.raises(ConfigError, match=r"order='paired' has no split.*'auto' or 'dense'"):
        Linear(8, 8, config=GeneratorConfig(order="paired"), execution="factored")


def test_a_layer_says_how_it_would_run() -> None:
    layer = Conv2d(256, 256, 3, groups=2, config=GeneratorConfig(order="blocked"), execution="dense")
    assert layer.would_run("factored").name == layer.would_run("auto").name == "factored"
    assert layer.way.name == "dense"
    with pytest.raises(ConfigError, match="sideways"):
        layer.would_run("sideways")


def test_convolution_groups_are_counted() -> None:
    config = GeneratorConfig(order="blocked")
    assert Conv2d(256, 256, 3, groups=4, config=config).way.name == "factored"
    depthwise = Conv2d(256, 256, 3, groups=256, config=config)
    assert depthwise.way.name == "dense"
    assert "2,304 dense" in depthwise.way.reason


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
