"""``adntn.nn.ConvTranspose1d``, ``2d`` and ``3d``: torch's in every respect but where the weight comes from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from adntn import GeneratorConfig
from adntn.errors import ConfigError, ShapeError
from adntn.nn import GENERATED, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, GeneratedLayer

CONFIG = GeneratorConfig(topology="mera", order="blocked")
KINDS: dict[int, tuple[type[GeneratedLayer], type[nn.Module]]] = {
    1: (ConvTranspose1d, nn.ConvTranspose1d),
    2: (ConvTranspose2d, nn.ConvTranspose2d),
    3: (ConvTranspose3d, nn.ConvTranspose3d),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "strided and padded": {"kernel_size": 4, "stride": 2, "padding": 1},
    "output_padding": {"kernel_size": 3, "stride": 3, "padding": 1, "output_padding": 2},
    "dilated, no bias": {"kernel_size": 2, "dilation": 2, "bias": False},
    "grouped": {"kernel_size": 3, "groups": 4},
}
DESCRIPTION = (*nn.ConvTranspose2d.__constants__, "transposed", "_reversed_padding_repeated_twice")
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
every_kind = pytest.mark.parametrize("dims", KINDS)
both_ways = pytest.mark.parametrize("execution", ["dense", "factored"])


def make(dims: int, *args: Any, **options: Any) -> Any:
    return KINDS[dims][0](*args, **options)


def make_torchs(dims: int, *args: Any, **options: Any) -> Any:
    return KINDS[dims][1](*args, **options)


@every_option
@every_kind
def test_it_describes_itself_as_torchs_does(dims: int, options: dict[str, Any]) -> None:
    layer, torchs = make(dims, 8, 12, **options), make_torchs(dims, 8, 12, **options)
    ours, theirs = KINDS[dims]
    assert isinstance(layer, theirs)
    assert GENERATED[theirs] is ours
    assert layer.weight.shape == torchs.weight.shape == layer.blueprint.shape
    for name in DESCRIPTION:
        assert getattr(layer, name) == getattr(torchs, name), name
    assert repr(layer).startswith(repr(torchs).removesuffix(")"))


def test_its_arguments_stand_where_torchs_do() -> None:
    given = (8, 12, 3, 3, 1, 2, 4, False, 2, "zeros")
    layer, torchs = ConvTranspose2d(*given, CONFIG, dtype=torch.float64), nn.ConvTranspose2d(*given)
    assert layer.extra_repr() == torchs.extra_repr()
    assert layer.config == CONFIG
    assert layer.weight.dtype == torch.float64


@every_option
@every_kind
def test_there_and_back_again(dims: int, options: dict[str, Any]) -> None:
    torchs = make_torchs(dims, 8, 12, dtype=torch.float64, **options).eval()
    layer = KINDS[dims][0].from_dense(torchs, CONFIG)
    dense = layer.to_dense()
    assert layer.bias is torchs.bias
    assert type(dense) is type(torchs)
    assert not dense.training
    assert set(vars(dense)) == set(vars(torchs))
    assert repr(dense) == repr(torchs)
    assert torch.equal(dense.get_parameter("weight"), layer.weight)
    x = torch.randn(2, 8, *(3, 4, 2)[:dims], dtype=torch.float64)
    torch.testing.assert_close(dense(x), layer(x), rtol=1e-12, atol=1e-12)


@every_kind
def test_bias_and_weight_start_as_torchs_do(dims: int) -> None:
    # The fan-in that torch takes for these layers is out_channels / groups * kernel.
    layer = make(dims, 640, 320, 2, groups=2, config=CONFIG)
    torchs = make_torchs(dims, 640, 320, 2, groups=2)
    assert float(layer.bias.detach().abs().max()) == pytest.approx(float(torchs.bias.detach().abs().max()), rel=5e-2)
    assert float(layer.weight.detach().std()) == pytest.approx(float(torchs.weight.detach().std()), rel=2e-2)


@both_ways
@every_kind
def test_output_size_is_torchs(dims: int, execution: str) -> None:
    options: dict[str, Any] = {"kernel_size": 3, "stride": 3, "padding": 1, "dtype": torch.float64}
    layer = make(dims, 8, 12, config=CONFIG, execution=execution, **options)
    dense = layer.to_dense()
    x = torch.randn(2, 8, *(3, 4, 2)[:dims], dtype=torch.float64)
    least = [3 * (n - 1) + 1 for n in x.shape[2:]]
    for extra in (0, 1, 2):
        size = [n + extra for n in least]
        for output_size in (size, [2, 12, *size]):
            y = layer(x, output_size)
            assert list(y.shape) == [2, 12, *size]
            torch.testing.assert_close(y, dense(x, output_size), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer(x[0], size), dense(x[0], size), rtol=1e-12, atol=1e-12)
    for wrong in ([n + 3 for n in least], [n - 1 for n in least], [*least, 1, 1, 1]):
        with pytest.raises(ValueError, match=r"output.size") as theirs:
            dense(x, wrong)
        with pytest.raises(ValueError, match=r"output.size") as ours:
            layer(x, wrong)
        assert str(ours.value) == str(theirs.value)


def test_generator_groups_are_of_the_input_channels() -> None:
    layer = ConvTranspose2d(12, 8, 3, config=GeneratorConfig(groups=3))
    assert layer.factors()[0].shape[:2] == (3, 4)  # type: ignore[index]
    with pytest.raises(ShapeError, match="groups=5 does not divide the 12 rows"):
        ConvTranspose2d(12, 10, 3, config=GeneratorConfig(groups=5))


@pytest.mark.parametrize(
    "wrong",
    [{"groups": 5}, {"padding_mode": "reflect"}],
    ids=str,
)
def test_what_torch_refuses_is_refused(wrong: dict[str, Any]) -> None:
    for kind in (nn.ConvTranspose2d, ConvTranspose2d):
        with pytest.raises(ValueError, match=r"\w"):
            kind(8, 12, 3, **wrong)


def test_a_word_as_padding_is_refused() -> None:
    with pytest.raises(ConfigError, match="padding='same' is not possible for a transposed convolution; give whole"):
        ConvTranspose2d(8, 8, 3, padding="same")  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [(0, 8), (8, 0)], ids=str)
def test_a_layer_without_channels_is_refused(channels: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match=f"from {channels[0]} to {channels[1]} channels"):
        ConvTranspose2d(*channels, 3)


@both_ways
def test_calls_that_torch_refuses_are_refused_in_the_same_words(execution: str) -> None:
    layer = ConvTranspose2d(8, 12, 3, execution=execution)
    with pytest.raises(RuntimeError, match="channels"):
        layer(torch.randn(2, 9, 4, 4))
    layer = ConvTranspose2d(8, 12, 3, stride=2, output_padding=2, execution=execution)
    with pytest.raises(RuntimeError, match="output padding must be smaller than either stride or dilation"):
        layer(torch.randn(2, 8, 4, 4))


def test_from_dense_takes_a_layer_on_the_meta_device() -> None:
    layer = ConvTranspose3d.from_dense(nn.ConvTranspose3d(8, 12, 2, device="meta"))
    assert all(p.is_meta for p in layer.parameters())
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.randn(2, 8, 3, 3, 3)).isfinite().all()
