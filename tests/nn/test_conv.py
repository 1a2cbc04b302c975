"""``adntn.nn.Conv1d``, ``Conv2d`` and ``Conv3d``: torch's in every respect but where the weight comes from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adntn import GeneratorConfig
from adntn.errors import ShapeError
from adntn.nn import GENERATED, Conv1d, Conv2d, Conv3d, GeneratedLayer

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "strided and padded": {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2)},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "same": {"kernel_size": (3, 5), "padding": "same"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular, same": {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
    "grouped": {"kernel_size": 3, "groups": 4},
    "no bias": {"kernel_size": 1, "bias": False},
}
DESCRIPTION = (*nn.Conv2d.__constants__, "transposed", "_reversed_padding_repeated_twice")
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@every_option
def test_it_describes_itself_as_torchs_does(options: dict[str, Any]) -> None:
    layer, torchs = Conv2d(8, 12, **options), nn.Conv2d(8, 12, **options)
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(layer, GeneratedLayer)
    assert GENERATED[nn.Conv2d] is Conv2d
    assert layer.weight.shape == torchs.weight.shape
    for name in DESCRIPTION:
        assert getattr(layer, name) == getattr(torchs, name), name
    assert torchs.extra_repr() in repr(layer)
    assert f"runs {layer.way}" in repr(layer)


def test_its_arguments_stand_where_torchs_do() -> None:
    layer = Conv2d(8, 12, 3, 2, 1, 2, 4, False, "circular", GeneratorConfig(topology="mera"), dtype=torch.float64)
    torchs = nn.Conv2d(8, 12, 3, 2, 1, 2, 4, False, "circular")
    assert layer.extra_repr().startswith(torchs.extra_repr())
    assert layer.config.topology == "mera"
    assert layer(torch.randn(2, 8, 9, 9, dtype=torch.float64)).shape == torchs(torch.randn(2, 8, 9, 9)).shape


@every_option
@pytest.mark.parametrize("training", [True, False])
def test_from_dense_keeps_everything_but_the_weight(options: dict[str, Any], training: bool) -> None:
    dense = nn.Conv2d(8, 12, dtype=torch.float64, **options).train(training)
    layer = Conv2d.from_dense(dense, GeneratorConfig(topology="mera"))
    assert layer.training is training
    assert layer.bias is dense.bias
    for name in DESCRIPTION:
        assert getattr(layer, name) == getattr(dense, name), name
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        dense.weight.copy_(layer.weight)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-12, atol=1e-12)


@every_option
def test_to_dense_is_a_plain_layer_with_the_weight_as_it_is(options: dict[str, Any]) -> None:
    layer = Conv2d(8, 12, dtype=torch.float64, **options).eval()
    dense, torchs = layer.to_dense(), nn.Conv2d(8, 12, **options)
    assert type(dense) is nn.Conv2d
    assert not dense.training
    assert set(vars(dense)) == set(vars(torchs))
    assert repr(dense) == repr(torchs)
    assert set(dense.state_dict()) == set(torchs.state_dict())
    assert torch.equal(dense.weight, layer.weight)
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(dense(x), layer(x), rtol=1e-12, atol=1e-12)


def test_hooks_are_kept_both_ways() -> None:
    calls: list[str] = []
    dense = nn.Conv2d(8, 12, 3)
    dense.register_forward_hook(lambda *_: calls.append("called"))
    layer = Conv2d.from_dense(dense)
    layer(torch.randn(2, 8, 9, 9))
    layer.to_dense()(torch.randn(2, 8, 9, 9))
    assert len(calls) == 2


def test_the_weight_cannot_be_set() -> None:
    layer = Conv2d(8, 12, 3)
    with pytest.raises(AttributeError, match=r"Conv2d is generated and read-only"):
        layer.weight = nn.Parameter(torch.zeros(12, 8, 3, 3))


def largest(tensor: Tensor | None) -> float:
    assert tensor is not None
    return float(tensor.detach().abs().max())


@every_option
def test_bias_and_weight_start_as_torchs_do(options: dict[str, Any]) -> None:
    options = {**options, "bias": True}
    layer, torchs = Conv2d(80, 1200, **options), nn.Conv2d(80, 1200, **options)
    for again in (False, True):
        if again:
            layer.reset_parameters()
        assert layer.bias is not None
        assert torchs.bias is not None
        assert float(layer.bias.detach().abs().max()) == pytest.approx(
            float(torchs.bias.detach().abs().max()), rel=2e-2
        )
        assert float(layer.weight.detach().std()) == pytest.approx(float(torchs.weight.detach().std()), rel=2e-2)


def test_from_dense_takes_a_layer_on_the_meta_device() -> None:
    layer = Conv2d.from_dense(nn.Conv2d(8, 12, 3, device="meta"))
    assert all(p.is_meta for p in layer.parameters())
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.randn(2, 8, 9, 9)).isfinite().all()


def test_generator_groups_are_of_the_rows_and_not_of_the_convolution() -> None:
    layer = Conv2d(8, 12, 3, config=GeneratorConfig(groups=3))
    assert layer.groups == 1
    assert layer.config.groups == 3
    with pytest.raises(ShapeError, match="groups=5 does not divide the 12 rows"):
        Conv2d(8, 12, 3, config=GeneratorConfig(groups=5))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kernel_size": 3, "groups": 5},
        {"kernel_size": 3, "padding": "some"},
        {"kernel_size": 3, "padding_mode": "mirror"},
        {"kernel_size": 3, "padding": "same", "stride": 2},
    ],
    ids=str,
)
def test_what_torch_refuses_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        nn.Conv2d(8, 12, **wrong)
    with pytest.raises(ValueError, match=r"\w"):
        Conv2d(8, 12, **wrong)


@pytest.mark.parametrize("execution", ["dense", "factored"])
def test_an_input_of_other_channels_is_refused_as_torch_does(execution: str) -> None:
    with pytest.raises(RuntimeError, match="channels"):
        Conv2d(8, 12, 3, execution=execution)(torch.randn(2, 9, 9, 9))


# --- other dimensions ---------------------------------------------------------------------------------------------

KINDS: dict[int, tuple[type[GeneratedLayer], type[nn.Module]]] = {1: (Conv1d, nn.Conv1d), 3: (Conv3d, nn.Conv3d)}
SAME_EVERYWHERE: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "strided, padded, dilated": {"kernel_size": 2, "stride": 2, "padding": 1, "dilation": 2},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "same, grouped": {"kernel_size": 3, "padding": "same", "groups": 4},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "replicate, no bias": {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "bias": False},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
}


@pytest.mark.parametrize("options", SAME_EVERYWHERE.values(), ids=SAME_EVERYWHERE)
@pytest.mark.parametrize("dims", KINDS)
def test_other_dimensions_are_torchs_too(dims: int, options: dict[str, Any]) -> None:
    ours, theirs = KINDS[dims]
    torchs = theirs(8, 12, dtype=torch.float64, **options).eval()
    built, layer = ours(8, 12, **options), ours.from_dense(torchs, execution="factored")
    assert GENERATED[theirs] is ours
    assert isinstance(layer, theirs)
    for name in DESCRIPTION:
        assert getattr(built, name) == getattr(layer, name) == getattr(torchs, name), name
    assert repr(built).startswith(repr(torchs).removesuffix(")"))
    dense = layer.to_dense()
    assert type(dense) is theirs
    assert set(vars(dense)) == set(vars(torchs))
    x = torch.randn(2, 8, *(5, 4, 6)[:dims], dtype=torch.float64)
    for each in (x, x[0]):
        torch.testing.assert_close(layer(each), dense(each), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", KINDS)
def test_bias_and_weight_of_other_dimensions_start_as_torchs_do(dims: int) -> None:
    layer: Any = KINDS[dims][0](320, 640, 2, groups=2)
    torchs: Any = KINDS[dims][1](320, 640, 2, groups=2)
    assert float(layer.bias.detach().abs().max()) == pytest.approx(float(torchs.bias.detach().abs().max()), rel=5e-2)
    assert float(layer.weight.detach().std()) == pytest.approx(float(torchs.weight.detach().std()), rel=2e-2)


@pytest.mark.parametrize("kind", [Conv1d, Conv2d, Conv3d])
@pytest.mark.parametrize("channels", [(0, 8), (8, 0)], ids=str)
def test_a_layer_without_channels_is_refused(kind: type[Conv2d], channels: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match=f"from {channels[0]} to {channels[1]} channels"):
        kind(*channels, 3)
