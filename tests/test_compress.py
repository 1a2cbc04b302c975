"""compress_ and back: what is chosen, kept, refused and reported, and that a refusal changes nothing."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import adntn
from adntn import (
    AdntnError,
    CompressionError,
    ConfigError,
    GeneratorConfig,
    GeneratorTooLargeError,
    ShapeError,
    cached,
    compress_,
    materialize,
)
from adntn.execution import cache
from adntn.targets import obstacle, select

pytestmark = pytest.mark.usefixtures("few_objects")

CONFIG = GeneratorConfig(topology="ttn", order="blocked", activation="elu", initialization="paper")
OTHER = CONFIG.replace(topology="mera")
THIRD = CONFIG.replace(order="paired")


class Net(nn.Module):
    """Two convolutions with a norm between them, and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        )
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.features(x).flatten(1))
        return result


IMAGES = (2, 3, 4, 4)
LAYERS = ["features.0", "features.3", "head.0", "head.2"]


def pair(size: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, size), nn.Linear(size, size))


def tied_pair() -> nn.Sequential:
    model = pair()
    model[1].weight = model[0].weight
    return model


def names(report: adntn.CompressionReport) -> list[str]:
    return [row.name for row in report.layers]


@pytest.fixture
def no_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


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


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_mode_dtype_and_bias_are_kept(training: bool, dtype: torch.dtype, bias: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=bias, dtype=dtype)).train(training)
    kept = model[0].bias
    compress_(model, CONFIG)
    assert model[0].training == model[0].training == training
    assert model[0].weight.dtype == model[0].root.dtype == dtype
    assert model[0].bias is kept
    assert ("0.bias" in model.state_dict()) == bias


def test_the_device_is_kept() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, device="meta"))
    compress_(model, CONFIG)
    assert [layer.root.device.type for layer in model] == ["cpu", "meta"]


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"stride": (1, 2), "padding": (2, 1)},
        {"padding": "same"},
        {"padding": "valid", "dilation": 2},
        {"groups": 2},
        {"groups": 4, "padding": 1, "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "circular", "bias": False},
        {"kernel_size": (1, 5), "dilation": (1, 2)},
    ],
    ids=str,
)
def test_options_of_a_convolution_are_kept(options: dict[str, Any]) -> None:
    dense = nn.Conv2d(4, 8, **{"kernel_size": 3, **options})
    model = nn.Sequential(dense)
    compress_(model, CONFIG)
    with torch.no_grad():
        dense.weight.copy_(model[0].weight)
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


def test_hooks_are_kept_and_run() -> None:
    calls: list[str] = []
    model = pair()
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[0].register_forward_hook(lambda *_: calls.append("after"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    compress_(model, CONFIG, "0")
    model(torch.randn(2, 8, requires_grad=True)).sum().backward()
    assert calls == ["before", "after", "backward"]


def test_no_tensor_of_the_dense_weight_is_left() -> None:
    model = Net()
    before = dict(model.named_parameters())
    compress_(model, CONFIG)
    after = {id(p) for p in model.parameters()}
    assert [name for name, p in before.items() if id(p) not in after] == [f"{name}.weight" for name in LAYERS]
    assert not [name for name in model.state_dict() if name.removesuffix(".weight") in LAYERS]


@pytest.mark.parametrize("execution", ["auto", "dense", "factored"])
def test_the_execution_is_that_of_every_new_layer(execution: str) -> None:
    model = pair()
    compress_(model, CONFIG, execution=execution)
    assert [layer.execution for layer in model] == [execution] * 2
    assert execution == "auto" or model[0].way.name == execution


def test_a_seed_gives_the_same_start() -> None:
    models = [Net(), Net()]
    for model in models:
        torch.manual_seed(7)
        compress_(model, CONFIG)
    first, second = (dict(model.features[0].generator_parameters()) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


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
    "a batch norm": (lambda: nn.BatchNorm2d(8), "BatchNorm2d, and only Linear, Conv2d"),
    "a container": (lambda: nn.Sequential(nn.Linear(8, 8)), "Sequential, and only Linear, Conv2d"),
    "a subclass": (lambda: Subclass(8, 8), "Subclass, and only Linear, Conv2d"),
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


@pytest.mark.parametrize("model", [nn.Linear(8, 8), nn.Sequential(), torch.compile(nn.Linear(8, 8), backend="eager")])
def test_a_layer_as_the_model_has_no_place_for_another(model: nn.Module) -> None:
    with pytest.raises(CompressionError, match=r"(Linear|Sequential) on its own has no place"):
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


# --- the report -------------------------------------------------------------------------------------------------------


def mixed_report(dtype: torch.dtype = torch.float32) -> adntn.CompressionReport:
    layers = (nn.Conv2d(4, 8, 3), nn.Linear(64, 64), nn.Linear(11, 5, bias=False), nn.BatchNorm1d(7))
    paired = CONFIG.replace(order="paired", latent_order=2)
    return compress_(nn.Sequential(*layers).to(dtype), CONFIG, ["0", "1", "2"], overrides={"2": paired})


def test_the_report_has_the_numbers_of_every_layer() -> None:
    conv, square, padded = mixed_report().layers
    # 3 + 2 + 4 modes, H = 5: one level; root 2**5, five cores of 2x2x2.
    assert (conv.name, conv.kind, conv.shape, conv.topology) == ("0", "Conv2d", (8, 4, 3, 3), "ttn")
    assert (conv.dense, conv.padded, conv.generated) == (8 * 4 * 9, 8 * 4 * 16, 32 + 40)
    assert (conv.dense_bytes, conv.generated_bytes, conv.ratio) == (4 * 288, 4 * 72, 4.0)
    # 6 + 6 modes, H = 6: 5 -> 6 -> 12; root 2**5, a bridge of one core and four carries of 2x2, six cores.
    assert (square.dense, square.padded, square.generated) == (4096, 4096, 32 + 8 + 16 + 48)
    assert (square.rank_bound, square.way) == (8, "factored")
    assert "multiply-adds" in square.reason
    # 3 + 4 modes, H = 4: 2 -> 4 -> 8; the eighth mode is cut off. No split: only the sides bound the rank.
    assert (padded.shape, padded.dense, padded.padded, padded.generated) == ((5, 11), 55, 8 * 16, 4 + 16 + 32)
    assert (padded.rank_bound, padded.way) == (5, "dense")


def test_the_report_sums_up_layers_and_model() -> None:
    report = mixed_report()
    assert (report.dense, report.generated) == (288 + 4096 + 55, 72 + 104 + 52)
    assert report.ratio == pytest.approx(4439 / 228)
    assert (report.model_before, report.model_after) == (4439 + 8 + 64 + 14, 228 + 8 + 64 + 14)
    assert report.model_ratio == pytest.approx(4525 / 314)


def test_the_report_counts_bytes_in_the_layers_own_type() -> None:
    assert [row.generated_bytes for row in mixed_report(torch.bfloat16).layers] == [144, 208, 104]
    assert [row.dense_bytes for row in mixed_report(torch.float64).layers] == [2304, 32768, 440]


def test_the_printed_report_has_a_row_a_layer_and_the_sums() -> None:
    lines = [line.split() for line in str(mixed_report()).splitlines()]
    assert lines[0][:5] == ["layer", "weight", "topology", "P", "P"]
    assert lines[2] == ["0", "8x4x3x3", "ttn", "288", "512", "72", "4.0x", "288", "4", "factored"]
    assert lines[3] == ["1", "64x64", "ttn", "4,096", "4,096", "104", "39.4x", "416", "8", "factored"]
    assert lines[4] == ["2", "5x11", "ttn", "55", "128", "52", "1.1x", "208", "5", "dense"]
    assert lines[6] == ["these", "layers", "4,439", "4,736", "228", "19.5x", "912"]
    assert lines[7] == ["whole", "model", "4,525", "314", "14.4x"]
    assert len(lines) == 8


def test_a_model_without_generated_layers_has_an_empty_report() -> None:
    report = adntn.describe(pair())
    assert report.layers == ()
    assert report.model_before == report.model_after == 144
    assert "whole model" in str(report)


def test_the_report_of_a_model_covers_what_was_generated_before() -> None:
    model = Net()
    compress_(model, CONFIG, "head.0")
    report = compress_(model, CONFIG, "head.2")
    assert names(report) == ["head.0", "head.2"]
    assert report == adntn.describe(model)
    assert report.model_before == sum(p.numel() for p in Net().parameters())


# --- materialize ------------------------------------------------------------------------------------------------------


def test_a_materialized_model_is_plain_and_gives_the_same() -> None:
    model = Net().eval()
    compress_(model, CONFIG)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(IMAGES)
    dense = materialize(model)
    torch.testing.assert_close(dense(x), model(x), rtol=1e-4, atol=1e-5)
    assert {type(m) for m in dense.modules()} == {type(m) for m in Net().modules()}
    assert [type(dense.get_submodule(name)) for name in LAYERS] == [nn.Conv2d, nn.Conv2d, nn.Linear, nn.Linear]
    assert not dense.training
    fresh = Net().eval()
    fresh.load_state_dict(dense.state_dict(), strict=True)
    assert torch.equal(fresh(x), dense(x))
    # The original is as it was, and independent.
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.zero_()
    assert all(isinstance(model.get_submodule(name), adntn.nn.GeneratedLayer) for name in LAYERS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_materialized_layer_trains() -> None:
    model = pair()
    compress_(model, CONFIG)
    dense = materialize(model)
    dense(torch.randn(2, 8)).square().sum().backward()
    assert all(p.is_leaf and p.grad is not None for p in dense.parameters())


def test_options_and_hooks_survive_the_way_there_and_back() -> None:
    calls: list[int] = []
    layer = nn.Conv2d(4, 8, (3, 1), (2, 1), (1, 0), (1, 2), 2, False, "circular")
    layer.register_forward_hook(lambda *_: calls.append(1))
    model = nn.Sequential(layer)
    compress_(model, CONFIG)
    dense = materialize(model)
    assert repr(dense) == repr(nn.Sequential(layer))
    assert not isinstance(dense[0], adntn.nn.GeneratedLayer)
    dense(torch.randn(1, 4, 5, 5))
    assert calls == [1]


def test_what_was_shared_is_shared_after_materialize() -> None:
    reused = nn.Linear(8, 8)
    model = nn.Sequential(*tied_pair(), reused, reused)
    model[1].bias = model[0].bias
    compress_(model, CONFIG)
    dense = materialize(model)
    assert dense[0].weight is dense[1].weight
    assert dense[0].bias is dense[1].bias
    assert dense[2] is dense[3]
    assert dense[2].weight is not dense[0].weight


def test_a_single_layer_is_materialized() -> None:
    layer = adntn.nn.Linear(8, 8, config=CONFIG)
    dense = materialize(layer)
    assert type(dense) is nn.Linear
    assert torch.equal(dense.weight, layer.weight)


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize("alone", [False, True], ids=["model", "layer"])
def test_a_compiled_model_is_materialized(alone: bool) -> None:
    model: nn.Module = pair()
    compress_(model, CONFIG)
    if alone:
        model[1] = torch.compile(model[1], backend="eager")  # type: ignore[index, operator]
    else:
        model = torch.compile(model, backend="eager")  # type: ignore[assignment]
    x = torch.randn(2, 8)
    with torch.no_grad():
        expected = model(x)
        dense = materialize(model)
        assert not any(isinstance(m, adntn.nn.GeneratedLayer) for m in dense.modules())
        torch.testing.assert_close(dense(x), expected)
        for parameter in dense.parameters():
            parameter.zero_()
        assert not dense(x).any()  # it runs its own layers
        assert torch.equal(model(x), expected)


# --- cached -----------------------------------------------------------------------------------------------------------


class Watched:
    """A compressed model, and how often its generators made something."""

    def __init__(self) -> None:
        self.model = Net().eval()
        compress_(self.model, CONFIG, overrides={"head.0": CONFIG.replace(latent_order=2)}, execution="dense")
        self.x = torch.randn(IMAGES)
        self.made = 0
        for activation in self.model.head[0].activation.values():
            activation.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.made += 1

    def __call__(self) -> Tensor:
        result: Tensor = self.model(self.x.to(self.model.head[0].bias.dtype))
        return result


@pytest.fixture
def watched() -> Watched:
    watched = Watched()
    assert len(watched.model.head[0].activation) == 2
    watched()
    assert watched.made == 2
    watched.made = 0
    return watched


def test_cached_outputs_are_equal_and_made_once(watched: Watched) -> None:
    expected = watched().detach()
    watched.made = 0
    with cached(watched.model):
        for _ in range(3):
            y = watched()
            assert torch.equal(y, expected)
            assert not y.requires_grad
    assert watched.made == 2
    assert watched().requires_grad
    assert watched.made == 4


def step(model: nn.Module) -> None:
    with torch.enable_grad():
        model(torch.ones(IMAGES)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def write_data(model: nn.Module) -> None:
    for parameter in model.head[0].parameters():  # type: ignore[index, union-attr]
        parameter.data.mul_(1.5)


def load_a_state_dict(model: nn.Module) -> None:
    model.load_state_dict({name: 1.5 * tensor for name, tensor in model.state_dict().items()})


def load_a_file(model: nn.Module, folder: Path) -> None:
    torch.manual_seed(11)
    adntn.load(model, adntn.save(Watched().model, folder / "model.safetensors"))


@pytest.mark.parametrize("change", [step, write_data, load_a_state_dict, load_a_file], ids=lambda f: f.__name__)
def test_nothing_cached_is_stale(watched: Watched, change: Callable[..., None], tmp_path: Path) -> None:
    with cached(watched.model):
        before = watched()
        change(watched.model, *([tmp_path] if change is load_a_file else []))
        after = watched()
    assert not torch.allclose(after, before)
    assert torch.equal(after, watched())


def test_a_new_dtype_is_seen_inside_the_block(watched: Watched) -> None:
    with cached(watched.model):
        watched()
        watched.model.double()
        assert watched().dtype == torch.float64
        assert torch.equal(watched(), copy.deepcopy(watched.model)(watched.x.double()))


def test_with_gradients_on_again_the_model_is_live(watched: Watched) -> None:
    with cached(watched.model):
        watched()
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            watched().sum().backward()
        assert all(p.grad is not None for p in watched.model.parameters())
    assert torch.is_grad_enabled()


def test_nested_blocks_keep_until_the_last_one_ends(watched: Watched) -> None:
    with cached(watched.model):
        with cached(watched.model.head):
            watched()
        watched()
        assert watched.made == 2
    assert not cache._KEPT
    with torch.no_grad():
        watched()
    assert watched.made == 4


def test_an_error_ends_the_block_too(watched: Watched) -> None:
    def fail() -> None:
        with cached(watched.model):
            watched()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert not cache._KEPT
    assert torch.is_grad_enabled()


def test_bf16_autocast_inside_loses_no_precision(watched: Watched) -> None:
    with torch.no_grad():
        expected = watched()
    watched.made = 0
    with cached(watched.model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = watched()
            assert watched.model.head[0].weight.dtype == torch.float32
        assert watched.made == 2
        assert torch.equal(watched(), expected)
    assert watched.made == 2
    torch.testing.assert_close(low.float(), expected, rtol=0.05, atol=0.05)


def test_no_copy_pickle_or_state_dict_holds_what_is_cached() -> None:
    model = Watched().model
    for module in model.modules():
        module._forward_hooks.clear()
    expected = (set(model.state_dict()), len(pickle.dumps(model)))
    with cached(model):
        model(torch.randn(IMAGES))
        assert (set(model.state_dict()), len(pickle.dumps(model))) == expected
        twin = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        assert buffer.tell() < 40_000
        assert len(cache._KEPT) == len(LAYERS)
    assert not cache._KEPT
    assert twin(torch.randn(IMAGES)).requires_grad


@pytest.mark.usefixtures("no_graphs")
def test_a_compiled_model_is_cached(watched: Watched) -> None:
    compiled = torch.compile(watched.model, backend="eager")
    expected = watched()
    with cached(compiled):
        torch.testing.assert_close(compiled(watched.x), expected)
