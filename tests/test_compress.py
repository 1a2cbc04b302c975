"""What compress_ keeps of a layer, and the ways back: materialize and cached."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import CONFIG, IMAGES, LAYERS, Net, pair, tied_pair
from torch import Tensor, nn

import adntn
from adntn import (
    cached,
    compress_,
    materialize,
)
from adntn.execution import cache

pytestmark = pytest.mark.usefixtures("few_objects")


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
