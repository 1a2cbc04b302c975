"""``adntn.nn.Linear``: a torch linear layer in every respect but where its weight comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adntn import GeneratorConfig
from adntn.errors import ConfigError, ShapeError
from adntn.nn import GENERATED, GeneratedLayer, Linear


def test_it_is_torchs_linear() -> None:
    layer = Linear(20, 30)
    assert isinstance(layer, nn.Linear)
    assert isinstance(layer, GeneratedLayer)
    assert (layer.in_features, layer.out_features) == (20, 30)
    assert layer.weight.shape == (30, 20)
    assert GENERATED[nn.Linear] is Linear


def test_its_arguments_are_torchs() -> None:
    layer = Linear(20, 30, False, device="cpu", dtype=torch.float64)
    assert layer.bias is None
    assert layer.weight.dtype == torch.float64
    assert layer(torch.randn(2, 20, dtype=torch.float64)).shape == (2, 30)


def test_its_text_is_torchs_and_how_it_runs() -> None:
    text = repr(Linear(4096, 4096, config=GeneratorConfig(order="blocked"), device="meta"))
    assert "in_features=4096, out_features=4096, bias=True" in text
    assert "runs factored" in text
    assert "ttn of 216 for 16,777,216, order='blocked'" in text
    assert "\n" not in text


def test_its_parameters_are_the_generators_and_the_bias() -> None:
    layer = Linear(4096, 4096, device="meta")
    assert sum(p.numel() for p in layer.parameters()) == 216 + 4096
    assert "weight" not in dict(layer.named_parameters())


def test_the_bias_starts_as_torchs_does() -> None:
    layer = Linear(100, 5000)
    assert layer.bias is not None
    bias = layer.bias.detach()
    assert float(bias.abs().max()) == pytest.approx(0.1, rel=1e-2)
    assert float(bias.std()) == pytest.approx(0.1 / 3**0.5, rel=5e-2)


# --- the weight is read-only ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [nn.Parameter(torch.zeros(30, 20)), torch.zeros(30, 20), None], ids=["parameter", "tensor", "none"]
)
def test_the_weight_cannot_be_set(value: Any) -> None:
    layer = Linear(20, 30)
    with pytest.raises(AttributeError, match=r"weight of adntn\.nn.*Linear is generated and read-only.*materialize"):
        layer.weight = value
    assert layer.weight.norm() > 0


def test_the_weight_follows_the_generator() -> None:
    layer = Linear(20, 30, dtype=torch.float64)
    before = layer.weight
    layer.weight.square().sum().backward()
    assert layer.root.grad is not None
    with torch.no_grad():
        layer.expand.get_parameter(str(len(layer.schedule) - 1)).mul_(2)
    assert not torch.allclose(layer.weight, before)


# --- from dense and back --------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_from_dense_keeps_bias_mode_and_dtype(dtype: torch.dtype, training: bool, bias: bool) -> None:
    dense = nn.Linear(20, 30, bias=bias, dtype=dtype).train(training)
    layer = Linear.from_dense(dense, GeneratorConfig(topology="mera"))
    assert layer.bias is dense.bias
    assert layer.training is training
    assert layer.training is training
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer.config == GeneratorConfig(topology="mera")
    assert (layer.in_features, layer.out_features) == (20, 30)
    x = torch.randn(2, 20, dtype=dtype)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, dense.bias))


def test_from_dense_takes_a_layer_on_the_meta_device() -> None:
    layer = Linear.from_dense(nn.Linear(20, 30, device="meta"))
    assert all(p.is_meta for p in layer.parameters())
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.randn(2, 20)).isfinite().all()


def test_from_dense_shares_root_and_cores_and_takes_an_execution() -> None:
    first = Linear.from_dense(nn.Linear(64, 64), execution="dense")
    second = Linear.from_dense(nn.Linear(64, 64), share=first, execution="dense")
    assert first.root is second.root
    assert first.execution == "dense"
    assert torch.equal(first.weight, second.weight)


def test_from_dense_refuses_to_share_with_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"\(30, 20\)"):
        Linear.from_dense(nn.Linear(20, 30), share=Linear(30, 20))


def test_from_dense_keeps_a_frozen_bias() -> None:
    dense = nn.Linear(20, 30).requires_grad_(requires_grad=False)
    layer = Linear.from_dense(dense)
    assert layer.bias is not None
    assert not layer.bias.requires_grad


Hook = Callable[..., Any]
HOOKS: dict[str, Callable[[nn.Module, Hook], Any]] = {
    "forward": lambda module, hook: module.register_forward_hook(hook),
    "forward pre": lambda module, hook: module.register_forward_pre_hook(hook),
    "forward with kwargs": lambda module, hook: module.register_forward_hook(hook, with_kwargs=True),
    "forward pre with kwargs": lambda module, hook: module.register_forward_pre_hook(hook, with_kwargs=True),
    "forward always": lambda module, hook: module.register_forward_hook(hook, always_call=True),
    "full backward": lambda module, hook: module.register_full_backward_hook(hook),
    "full backward pre": lambda module, hook: module.register_full_backward_pre_hook(hook),
    "state dict": lambda module, hook: module.register_state_dict_post_hook(hook),
    "state dict pre": lambda module, hook: module.register_state_dict_pre_hook(hook),
    "load state dict pre": lambda module, hook: module.register_load_state_dict_pre_hook(hook),
    "load state dict post": lambda module, hook: module.register_load_state_dict_post_hook(hook),
}


def use(module: nn.Module) -> None:
    module(torch.randn(2, 20, requires_grad=True)).sum().backward()
    module.load_state_dict(module.state_dict())


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
def test_hooks_are_kept_both_ways(register: Callable[[nn.Module, Hook], Any]) -> None:
    calls: list[str] = []
    dense = nn.Linear(20, 30)
    register(dense, lambda *_, **__: calls.append("called"))
    layer = Linear.from_dense(dense)
    use(layer)
    assert len(calls) == 1
    use(layer.to_dense())
    assert len(calls) == 2


def test_a_hook_can_be_removed_by_its_handle() -> None:
    calls: list[str] = []
    dense = nn.Linear(20, 30)
    handle = dense.register_forward_hook(lambda *_: calls.append("called"))
    layer = Linear.from_dense(dense)
    handle.remove()
    layer(torch.randn(2, 20))
    assert calls == []


def test_attributes_of_the_users_own_are_kept() -> None:
    dense = nn.Linear(20, 30)
    dense.note = "mine"  # type: ignore[assignment]
    layer = Linear.from_dense(dense)
    assert layer.note == "mine"
    assert layer.to_dense().note == "mine"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_to_dense_is_a_plain_layer_with_the_weight_as_it_is(dtype: torch.dtype, training: bool, bias: bool) -> None:
    layer = Linear(20, 30, bias, GeneratorConfig(topology="mera"), dtype=dtype).train(training)
    dense = layer.to_dense()
    assert type(dense) is nn.Linear
    assert dense.training is training
    assert isinstance(dense.weight, nn.Parameter)
    assert dense.weight.requires_grad
    assert torch.equal(dense.weight, layer.weight)
    assert set(dense.state_dict()) == ({"weight", "bias"} if bias else {"weight"})
    assert set(vars(dense)) == set(vars(nn.Linear(20, 30, bias)))
    assert repr(dense) == repr(nn.Linear(20, 30, bias))
    x = torch.randn(2, 20, dtype=dtype)
    assert torch.equal(dense(x), F.linear(x, layer.weight, layer.bias))


def test_to_dense_shares_nothing_with_the_layer() -> None:
    layer = Linear(20, 30)
    dense = layer.to_dense()
    with torch.no_grad():
        dense.weight.zero_()
        dense.bias.zero_()
    assert layer.weight.norm() > 0
    assert layer.bias is not None
    assert layer.bias.norm() > 0


def test_there_and_back_again() -> None:
    layer = Linear(20, 30, config=GeneratorConfig(topology="attn"), execution="dense")
    again = Linear.from_dense(layer.to_dense(), layer.config)
    again.load_state_dict(layer.state_dict())
    x = torch.randn(2, 20)
    torch.testing.assert_close(again(x), layer(x))


# --- starting anew --------------------------------------------------------------------------------


def test_reset_parameters_draws_generator_and_bias_anew() -> None:
    layer = Linear(100, 5000)
    root, bias = layer.root.detach().clone(), layer.bias
    assert bias is not None
    with torch.no_grad():
        bias.fill_(7.0)
    layer.reset_parameters()
    assert not torch.equal(layer.root, root)
    assert float(bias.detach().abs().max()) == pytest.approx(0.1, rel=1e-2)


def test_a_seed_decides_the_whole_layer() -> None:
    layers = []
    for _ in range(2):
        torch.manual_seed(5)
        layers.append(Linear(20, 30))
    for first, second in zip(*(layer.parameters() for layer in layers), strict=True):
        assert torch.equal(first, second)


def test_a_model_of_generated_layers_can_be_built_empty() -> None:
    with torch.device("meta"):
        model = nn.Sequential(Linear(20, 30), nn.ReLU(), Linear(30, 10, bias=False))
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    for layer in model:
        if isinstance(layer, Linear):
            layer.reset_parameters()
    assert model(torch.randn(2, 20)).isfinite().all()


def test_a_layer_can_be_told_its_device_inside_another() -> None:
    with torch.device("meta"):
        layer = Linear(20, 30, device="cpu")
    assert {p.device.type for p in layer.parameters()} == {"cpu"}
    assert layer(torch.randn(2, 20)).isfinite().all()


# --- what is refused ------------------------------------------------------------------------------


def test_impossible_layers_are_refused() -> None:
    with pytest.raises(ShapeError, match="groups=7"):
        Linear(20, 30, config=GeneratorConfig(groups=7))
    with pytest.raises(ShapeError, match="zero"):
        Linear(0, 30)
    with pytest.raises(ConfigError, match="sideways"):
        Linear(20, 30, execution="sideways")


@pytest.mark.parametrize("execution", ["dense", "factored"])
def test_an_input_of_another_size_is_refused_as_torch_does(execution: str) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Linear(20, 30, execution=execution)(torch.randn(2, 21))


def test_an_order_with_digits_out_of_order_is_one_graph() -> None:
    layer = Linear(3, 10, config=GeneratorConfig(order=(4, 0, 2, 3, 1, 5)))
    x = torch.randn(4, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
