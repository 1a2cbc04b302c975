"""Large sides of the split are applied in stages: the same function as the weight's, in less arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adntn
from adntn import GeneratorConfig
from adntn.contraction import Contraction, Side
from adntn.errors import ShapeError
from adntn.nn import Conv1d, Conv2d, Conv3d, ConvTranspose2d, Linear, MultiheadAttention

TOPOLOGIES = ("ttn", "attn", "mera", "brickwall")
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def sides(layer: Any) -> tuple[Side, Side]:
    network = layer._network
    assert isinstance(network, Contraction)
    assert network.sides is not None
    return network.sides


def stages(layer: Any) -> tuple[int, int]:
    outer, inner = sides(layer)
    return len(outer.stages), len(inner.stages)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def check(layer: nn.Module, dense: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Outputs and gradients are those of the whole weight."""
    found = []
    for run in (layer, dense):
        given = x.clone().requires_grad_()
        y = run(given)
        assert y.is_contiguous()
        y.backward(draw(*y.shape))
        found.append([y, given.grad, *(p.grad for p in layer.parameters())])
        layer.zero_grad()
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, **EXACT)


LINEAR = [
    (1024, 1024, {}),
    (1000, 2048, {}),
    (2048, 1500, {"latent_order": 3}),
    (384, 1000, {"topology": "attn"}),
    (2187, 2187, {"radix": 3}),
    (1024, 1024, {"bond_dim": 3, "latent_order": 3}),
    (1024, 1024, {"topology": "mera", "gate": True, "norm": "rms"}),
    (1024, 1024, {"topology": "attn", "boundary_layers": 2}),
    (1024, 2048, {"topology": "ttn", "order": "block_paired"}),
    (2048, 1500, {"groups": 2}),
    (1000, 2048, {"groups": 8, "topology": "mera"}),
    (1024, 1024, {"terms": 2}),
    (2000, 1000, {"groups": 2, "terms": 3, "topology": "attn"}),
]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("out, inner, options", LINEAR, ids=str)
def test_a_linear_layer(out: int, inner: int, options: dict[str, Any], bias: bool) -> None:
    config = GeneratorConfig(**options)
    layer = Linear(inner, out, bias, config, execution="factored", dtype=torch.float64)
    assert max(stages(layer)) == 2
    for rows in ((2, 3), (40,), (0,)):
        check(layer, lambda x: F.linear(x, layer.weight, layer.bias), draw(*rows, inner))


@pytest.mark.parametrize("trees", [{}, {"groups": 2}, {"terms": 2}], ids=str)
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
def test_a_convolution(topology: str, transposed: bool, trees: dict[str, int]) -> None:
    kind = ConvTranspose2d if transposed else Conv2d
    config = GeneratorConfig(topology=topology, **trees)
    layer = kind(500, 512, 3, 2, 1, config=config, execution="factored", dtype=torch.float64)
    assert trees or layer._staged_map(draw(3, 500, 5, 6)) is not None
    run = F.conv_transpose2d if transposed else F.conv2d
    check(layer, lambda x: run(x, layer.weight, layer.bias, 2, 1), draw(3, 500, 5, 6))


@pytest.mark.parametrize("dims", [1, 3])
def test_in_other_dimensions(dims: int) -> None:
    kind, run = ((Conv1d, F.conv1d), (Conv3d, F.conv3d))[dims > 1]
    size = (70,) if dims == 1 else (5, 4, 5)
    layer = kind(128, 96, 3, padding="same", dilation=2, config=GeneratorConfig(), execution="factored").double()
    assert layer._staged_map(draw(2, 128, *size)) is not None
    check(layer, lambda x: run(x, layer.weight, layer.bias, padding="same", dilation=2), draw(2, 128, *size))


def test_other_memory_formats_are_left_to_torchs_convolutions() -> None:
    layer = Conv2d(64, 64, 3, execution="factored")
    x = torch.randn(2, 64, 8, 8)
    assert layer._staged_map(x) is not None
    strided = x.to(memory_format=torch.channels_last)
    assert layer._staged_map(strided) is None
    assert layer(strided).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(strided), layer(x), rtol=1e-4, atol=1e-5)


def test_rows_that_fit_the_last_stage_are_cut_there() -> None:
    model = nn.ModuleList(nn.Linear(1024, 512) for _ in range(3)).double()
    adntn.compress_(model, GeneratorConfig(topology="mera"), shared=[("0", "1", "2")])
    for number, layer in enumerate(model):
        assert stages(layer) == (2, 2)
        staged = layer._staged(100)
        assert staged is not None
        assert staged.outer.size == 512
        whole = layer.bare()()
        torch.testing.assert_close(layer.weight, whole[512 * number : 512 * (number + 1)])
        check(layer, lambda x, layer=layer: F.linear(x, layer.weight, layer.bias), draw(3, 1024))


def test_rows_that_do_not_fit_are_made_as_factors() -> None:
    model = nn.ModuleList(nn.Linear(2048, size) for size in (1025, 1023)).double()
    adntn.compress_(model, GeneratorConfig(), shared=[("0", "1")])
    for layer in model:
        assert layer._staged(100) is None
        assert layer.way.name == "factored"
        check(layer, lambda x, layer=layer: F.linear(x, layer.weight, layer.bias), draw(3, 2048))


def test_attention_projects_in_stages() -> None:
    layer = MultiheadAttention(512, 8, batch_first=True, config=GeneratorConfig(), execution="factored").double()
    assert layer.in_proj._staged(30) is not None
    x = draw(2, 15, 512)
    dense = layer.to_dense()
    for given in ((x, x, x), (x, x.flip(0), x.flip(0)), (x, x.flip(0), x.flip(1))):
        torch.testing.assert_close(layer(*given)[0], dense(*given)[0], **EXACT)


def test_what_is_kept_is_small_and_follows_the_parameters() -> None:
    layer = Linear(4096, 4096, config=GeneratorConfig(), execution="factored")
    x = torch.randn(32, 4096)
    with adntn.cached(layer):
        before = layer(x)
        staged = layer._staged(32)
        assert staged is not None
        assert staged is not layer._staged(32)
        assert staged.matrices[0] is layer._staged(32).matrices[0]
        assert sum(matrix.numel() for matrix in staged.matrices) == 4 * 64 * 8 + 64 * 64
        layer.root.data.mul_(-1.0)  # leaves no trace in the version
        layer.get_core("expand.3").data.mul_(1.1)
        after = layer(x)
    torch.testing.assert_close(after, F.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after)


def test_few_rows_run_through_small_kept_factors() -> None:
    layer = Linear(1024, 1024, config=GeneratorConfig(), execution="factored")
    with adntn.cached(layer):
        assert layer._staged(1) is None
        assert layer._staged(8) is not None
        torch.testing.assert_close(layer(torch.ones(1, 1024)), layer(torch.ones(9, 1024))[:1], rtol=1e-4, atol=1e-5)
    assert layer._staged(1) is not None  # made anew, stages are less work than factors


def test_without_stages() -> None:
    for options in ({"order": "paired"}, {"topology": "lowrank"}, {"topology": "tt"}):
        assert Linear(1024, 1024, config=GeneratorConfig(**options)).sides is None
    layer = Linear(1024, 1024)
    layer.backward = "adjoint"
    assert layer.sides is None


def test_work_is_less_than_that_of_the_factors() -> None:
    outer, inner = sides(Linear(4096, 4096, config=GeneratorConfig(topology="ttn"), device="meta"))
    assert outer.stages == ((8, 64, 8, 1), (1, 64, 8, 64))
    assert outer.multiply_adds == inner.multiply_adds == 8 * 64 * 8 + 64 * 8 * 64
    assert outer.states == 8 * 64


def test_an_input_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 1000\) and \(1024, 1024\)"):
        Linear(1024, 1024, execution="factored")(torch.randn(2, 1000))
    with pytest.raises(ShapeError, match="63 channels; expected are 64"):
        Conv2d(64, 64, 3, execution="factored")(torch.randn(2, 63, 8, 8))


@pytest.mark.slow
def test_one_graph_with_any_batch() -> None:
    layer = Linear(1024, 1024, execution="factored")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 7):
        x = torch.randn(rows, 1024)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)


def test_forward_mode_and_vmap() -> None:
    layer = Linear(1024, 1024, execution="factored", dtype=torch.float64)
    x, direction = draw(3, 1024), draw(3, 1024)
    _, moved = torch.func.jvp(layer, (x,), (direction,))
    torch.testing.assert_close(moved, F.linear(direction, layer.weight), **EXACT)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x), **EXACT)
