"""Which layers compress_ takes, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import CONFIG, IMAGES, LAYERS, OTHER, THIRD, Net, names, pair, tied_pair
from torch import nn
from torch.nn.utils import parametrizations, prune

import adntn
from adntn import (
    AdntnError,
    CompressionError,
    ConfigError,
    GeneratorConfig,
    GeneratorTooLargeError,
    ShapeError,
    compress_,
    materialize,
)
from adntn.targets import obstacle, select

pytestmark = pytest.mark.usefixtures("few_objects")


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets, expected",
    [
        ("head.0", ["head.0"]),
        (["head.2", "features.0"], ["features.0", "head.2"]),
        (["head.0", "head.0"], ["head.0"]),
        ("re:.*", LAYERS),
        (r"re:features\..*", ["features.0", "features.3"]),
        (r"re:.*\.0", ["features.0", "head.0"]),
        ([r"re:features\.0", "head.2"], ["features.0", "head.2"]),
        ("_orig_mod.head.0", ["head.0"]),
        (r"re:_orig_mod\.head\..*", ["head.0", "head.2"]),
    ],
)
def test_targets_are_names_and_patterns(targets: str | list[str], expected: list[str]) -> None:
    model = Net()
    assert sorted(select(model, targets)) == expected
    assert names(compress_(model, CONFIG, targets)) == expected
    for name in LAYERS:
        assert isinstance(model.get_submodule(name), adntn.nn.GeneratedLayer) == (name in expected)


def test_without_targets_every_possible_layer_is_generated() -> None:
    assert names(compress_(Net(), CONFIG)) == LAYERS


def test_without_config_the_default_one_is_used() -> None:
    model = pair()
    compress_(model)
    assert model[0].config == GeneratorConfig()


@pytest.mark.parametrize("pattern", ["re:head", "re:ead.*", "re:head.", "re:eatures"])
def test_a_pattern_must_match_the_whole_name(pattern: str) -> None:
    with pytest.raises(CompressionError, match="as a whole"):
        compress_(Net(), CONFIG, pattern)


@pytest.mark.parametrize(
    "ignore, left",
    [
        ("head.2", ["features.0", "features.3", "head.0"]),
        ([r"re:features\..*", "head.0"], ["head.2"]),
        ("re:nothing has this name", LAYERS),
        ("features.1", LAYERS),
    ],
)
def test_ignored_layers_stay_as_they_are(ignore: str | list[str], left: list[str]) -> None:
    assert names(compress_(Net(), CONFIG, ignore=ignore)) == left


def test_ignoring_all_targets_is_refused() -> None:
    with pytest.raises(CompressionError, match="ignore"):
        compress_(Net(), CONFIG, "head.0", ignore="re:head.*")


def test_no_targets_at_all_are_refused() -> None:
    with pytest.raises(CompressionError, match="targets is empty"):
        compress_(Net(), CONFIG, [])


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ({"head.0": OTHER}, [CONFIG, CONFIG, OTHER, CONFIG]),
        ({"re:head.*": OTHER}, [CONFIG, CONFIG, OTHER, OTHER]),
        ({"re:head.*": OTHER, "head.2": THIRD}, [CONFIG, CONFIG, OTHER, THIRD]),
        ({"head.2": THIRD, "re:head.*": OTHER}, [CONFIG, CONFIG, OTHER, OTHER]),
    ],
)
def test_of_several_overrides_the_last_wins(overrides: dict[str, GeneratorConfig], expected: list[Any]) -> None:
    model = Net()
    compress_(model, CONFIG, overrides=overrides)
    assert [model.get_submodule(name).config for name in LAYERS] == expected


def test_an_override_by_pattern_may_reach_beyond_the_targets() -> None:
    model = Net()
    assert names(compress_(model, CONFIG, "head.0", overrides={"re:.*": OTHER})) == ["head.0"]
    assert model.head[0].config == OTHER


def test_an_override_by_name_must_be_a_target() -> None:
    with pytest.raises(CompressionError, match=r"'head\.2'.*not among the targets.*'head\.0'"):
        compress_(Net(), CONFIG, "head.0", overrides={"head.2": OTHER})


# --- modules and weights in several places ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["0", "2", "re:[02]"])
def test_a_module_in_two_places_is_replaced_in_both(target: str) -> None:
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    report = compress_(model, CONFIG, target)
    assert isinstance(model[0], adntn.nn.Linear)
    assert model[0] is model[2]
    assert names(report) == ["0"]


def test_a_module_inside_a_reused_block_has_all_its_names() -> None:
    block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model = nn.ModuleDict({"a": block, "b": block})
    assert select(model, "b.0") == ["a.0"]
    compress_(model, CONFIG, "b.0")
    assert isinstance(model["a"][0], adntn.nn.Linear)


def test_a_module_ignored_under_one_name_is_ignored() -> None:
    layer = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": layer, "b": layer, "c": nn.Linear(8, 8)})
    assert names(compress_(model, CONFIG, ignore="b")) == ["c"]


def test_layers_that_share_a_weight_share_a_generator() -> None:
    model = tied_pair()
    biases = [layer.bias for layer in model]
    report = compress_(model, CONFIG)
    assert model[0].root is model[1].root
    assert [layer.bias for layer in model] == biases
    assert [row.generated for row in report.layers] == [32, 0]
    assert report.layers[1].ratio == float("inf")
    assert "shared" in str(report)
    assert (report.dense, report.generated, report.model_before, report.model_after) == (64, 32, 80, 48)
    twin = copy.deepcopy(model)
    assert twin[0].root is twin[1].root
    assert twin[0].root is not model[0].root


@pytest.mark.parametrize("target, partner", [("0", "1.weight"), ("1", "0.weight")])
def test_untying_a_weight_is_refused_and_names_the_partner(target: str, partner: str) -> None:
    with pytest.raises(CompressionError, match=f"'{target}' shares its weight with '{partner}'"):
        compress_(tied_pair(), CONFIG, target)


def test_a_weight_tied_to_an_embedding_is_refused() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(8, 8), "head": nn.Linear(8, 8)})
    model["head"].weight = model["embedding"].weight
    with pytest.raises(CompressionError, match=r"'embedding\.weight'"):
        compress_(model, CONFIG, "head")


def test_a_weight_tied_to_a_parameter_of_the_model_itself_is_refused() -> None:
    model = pair()
    model.register_parameter("codebook", model[0].weight)
    with pytest.raises(CompressionError, match="'codebook'"):
        compress_(model, CONFIG, "0")


def test_one_weight_cannot_have_two_configs() -> None:
    with pytest.raises(CompressionError, match="one config"):
        compress_(tied_pair(), CONFIG, overrides={"1": OTHER})


# --- compiled models --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize("ran", [False, True], ids=["before it ran", "after it ran"])
@pytest.mark.parametrize("target", ["_orig_mod.0", "0"])
def test_a_compiled_model_is_seen_through(ran: bool, target: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(2, 8)
    old = model(x)
    if ran:
        assert torch.equal(compiled(x), old)
    assert names(compress_(compiled, CONFIG, target)) == ["0"]
    assert isinstance(model[0], adntn.nn.Linear)
    new = compiled(x)
    torch.testing.assert_close(new, model(x))
    assert not torch.allclose(new, old)


@pytest.mark.usefixtures("no_graphs")
def test_a_compiled_block_of_a_model_is_seen_through() -> None:
    model = Net()
    model.head = torch.compile(model.head, backend="eager")
    model.features.compile(backend="eager")
    model.eval()
    x = torch.randn(IMAGES)
    with torch.no_grad():
        old = model(x)
        assert names(compress_(model, CONFIG, ["head.0", "features.3"])) == ["features.3", "head.0"]
        new = model(x)
        assert not torch.allclose(new, old)
        torch.testing.assert_close(new, materialize(model)(x), rtol=1e-4, atol=1e-5)


def compile_outside(model: nn.Sequential) -> None:
    model[1] = torch.compile(model[1], backend="eager")


def compile_in_place(model: nn.Sequential) -> None:
    model[1].compile(backend="eager")


@pytest.mark.parametrize("how", [compile_outside, compile_in_place], ids=lambda f: f.__name__)
def test_a_layer_compiled_on_its_own_is_refused(how: Callable[[nn.Sequential], None]) -> None:
    model = pair()
    how(model)
    with pytest.raises(CompressionError, match="'1' is compiled on its own"):
        compress_(model, CONFIG)
    assert not isinstance(model[0], adntn.nn.Linear)
    compress_(model, CONFIG, "0")  # the other layer is free


# --- errors -----------------------------------------------------------------------------------------------------------


class Subclass(nn.Linear):
    """Might do anything in its forward pass."""


def with_weight(value: float) -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.weight.data[3, 3] = value
    return layer


def without_inputs() -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(torch.empty(8, 0))
    return layer


IMPOSSIBLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a batch norm": (lambda: nn.BatchNorm2d(8), "BatchNorm2d, and only Linear, Conv1d, Conv2d, "),
    "a container": (lambda: nn.Sequential(nn.Linear(8, 8)), "Sequential, and only Linear, Conv1d, Conv2d, "),
    "a subclass": (lambda: Subclass(8, 8), "Subclass, and only Linear, Conv1d, Conv2d, "),
    "a lazy layer": (lambda: nn.LazyLinear(8), "LazyLinear"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(8, 8)), "weight_norm.*must be removed first"),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(8, 8)), "spectral_norm"),
    "pruned": (lambda: prune.identity(nn.Linear(8, 8), "weight"), "not a plain parameter"),
    "NaN weight": (lambda: with_weight(float("nan")), "NaN or infinite"),
    "infinite weight": (lambda: with_weight(float("-inf")), "NaN or infinite"),
    "no inputs": (without_inputs, r"shape \(8, 0\), which has a zero"),
    "whole numbers": (
        lambda: nn.Linear(8, 8).requires_grad_(False)._apply(lambda t: t.to(torch.int8)),
        "torch.int8",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_layer_is_an_error_by_name_and_passed_over_by_pattern(name: str) -> None:
    make, why = IMPOSSIBLE[name]
    model = nn.ModuleDict({"good": nn.Linear(8, 8), "bad": make()})
    assert re.search(why, obstacle(model["bad"]) or "")
    with pytest.raises(CompressionError, match=f"'bad' cannot be generated: .*{why}.*Possible are .*'good'"):
        compress_(model, CONFIG, "bad")
    assert isinstance(model["good"], nn.Linear)
    assert "bad" not in names(compress_(model, CONFIG, ["re:good|bad"]))


def test_a_name_that_is_not_there_brings_the_nearest_and_the_possible_ones() -> None:
    with pytest.raises(CompressionError, match=r"'head\.O'.*'features\.0', .*'head\.2'.*Did you mean 'head\.\d'"):
        compress_(Net(), CONFIG, "head.O")


def test_of_many_possible_layers_only_some_are_listed() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20)))
    with pytest.raises(CompressionError, match=r"'0', '1', .*'11' and 8 more"):
        compress_(model, CONFIG, "twenty")


def test_a_generated_layer_is_refused_by_name_and_passed_over_by_pattern() -> None:
    model = Net()
    compress_(model, CONFIG, "head.0")
    first = model.head[0]
    with pytest.raises(CompressionError, match=r"'head\.0' cannot be generated: it is generated already"):
        compress_(model, CONFIG, "head.0")
    assert names(compress_(model, OTHER)) == LAYERS
    assert model.head[0] is first
    with pytest.raises(CompressionError, match="no layer that can be generated"):
        compress_(model, CONFIG)


Wrong = tuple[type[AdntnError], str, dict[str, Any]]

MISTAKES: dict[str, Wrong] = {
    "pattern matches nothing": (CompressionError, r"'re:classifier'.*'features\.0'", {"targets": "re:classifier"}),
    "pattern matches only a norm": (CompressionError, "no layer that can be", {"targets": r"re:features\.1"}),
    "not a pattern": (CompressionError, r"'re:\(' is not a regular expression", {"targets": "re:("}),
    "ignore is not a pattern": (CompressionError, "ignore: .*not a regular expression", {"ignore": "re:["}),
    "ignore is not there": (CompressionError, "ignore: the model has no module 'head_7'", {"ignore": "head_7"}),
    "override is not there": (CompressionError, "overrides: the model has no", {"overrides": {"haed": OTHER}}),
    "override matches nothing": (CompressionError, "overrides: no layer", {"overrides": {"re:x": OTHER}}),
    "unknown init": (ConfigError, "init='randm'.*Did you mean 'random'", {"init": "randm"}),
    "unknown execution": (
        ConfigError,
        "execution='fast'.*auto, factored, dense",
        {"execution": "fast"},
    ),
    "config is a dict": (ConfigError, "GeneratorConfig, not a dict", {"config": {"topology": "ttn"}}),
    "targets in place of config": (ConfigError, "GeneratorConfig, not a list", {"config": ["head.0"]}),
    "override is a dict": (ConfigError, "GeneratorConfig, not a dict", {"overrides": {"head.0": {}}}),
    "no split": (
        ConfigError,
        r"'head\.0': execution='factored' is not possible: order='paired'",
        {"execution": "factored", "overrides": {"head.0": THIRD}},
    ),
    "groups do not divide": (ShapeError, r"'head\.0': .*3.*32", {"overrides": {"head.0": CONFIG.replace(groups=3)}}),
    "too large": (
        GeneratorTooLargeError,
        r"'head\.0': .*\(32, 32\).*GiB are free",
        {"overrides": {"head.0": CONFIG.replace(bond_dim=400)}},
    ),
    "order does not fit": (ConfigError, r"'head\.2'", {"overrides": {"head.2": CONFIG.replace(order=(0, 1))}}),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_changes_nothing(name: str) -> None:
    error, message, options = MISTAKES[name]
    model = Net()
    modules = dict(model.named_modules())
    parameters = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    with pytest.raises(error, match=message):
        compress_(model, **{"config": CONFIG, **options})
    assert dict(model.named_modules()) == modules
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[name] is p and torch.equal(p, value) for name, (p, value) in parameters.items())


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(8, 8),
        nn.Sequential(),
        torch.compile(nn.Linear(8, 8), backend="eager"),
        nn.MultiheadAttention(8, 2),
        adntn.nn.Linear(8, 8),
    ],
)
def test_a_layer_as_the_model_has_no_place_for_another(model: nn.Module) -> None:
    with pytest.raises(CompressionError, match=r"(Linear|Sequential|MultiheadAttention) on its own has no place"):
        compress_(model, CONFIG)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(CompressionError, match=r"nn\.Module, not list"):
        compress_([nn.Linear(8, 8)], CONFIG)  # type: ignore[arg-type]


def test_a_model_in_ddp_is_refused(tmp_path: Path) -> None:
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(pair())
        for model in (wrapped, nn.Sequential(wrapped)):
            with pytest.raises(CompressionError, match=r"DistributedDataParallel.*plain model, then wrap"):
                compress_(model, CONFIG)
        assert isinstance(wrapped.module[0], nn.Linear)
        dist.barrier()
    finally:
        dist.destroy_process_group()


# --- optimisers -------------------------------------------------------------------------------------------------------


def test_an_optimiser_over_the_weights_is_refused() -> None:
    model = Net()
    optimizer = torch.optim.AdamW([{"params": model.features.parameters()}, {"params": model.head.parameters()}])
    with pytest.raises(CompressionError, match=r"AdamW optimiser already holds the weight of 'head\.2'.*first"):
        compress_(model, CONFIG, "head.2")
    assert isinstance(model.head[2], nn.Linear)
    assert optimizer.param_groups


@pytest.mark.parametrize("whose", ["another model", "the bias", "a layer that stays"])
def test_an_optimiser_over_other_parameters_is_no_obstacle(whose: str) -> None:
    model = Net()
    held = {
        "another model": Net().parameters(),
        "the bias": [model.head[0].bias],
        "a layer that stays": model.head[2].parameters(),
    }
    optimizer = torch.optim.SGD(held[whose], lr=0.1)
    assert names(compress_(model, CONFIG, "head.0")) == ["head.0"]
    assert optimizer.param_groups


def test_an_optimiser_that_was_thrown_away_is_no_obstacle() -> None:
    model = pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.me = optimizer  # type: ignore[attr-defined]  # waits for the garbage collector
    del optimizer
    compress_(model, CONFIG)


def test_an_optimiser_whose_constructor_failed_is_no_obstacle() -> None:
    model = pair()
    with pytest.raises(ValueError, match="learning rate") as caught:  # keeps the traceback, and so the optimiser
        torch.optim.SGD(model.parameters(), lr=-1.0)
    compress_(model, CONFIG)
    assert caught.tb is not None
