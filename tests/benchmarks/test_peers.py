"""Each peer computes the function that it stands for."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adntn
from benchmarks.speed import peers
from benchmarks.speed.cases import Case
from benchmarks.speed.measure import peak_bytes
from benchmarks.speed.variants import variants_of

SHAPES = [(12, 20), (16, 16), (12, 20, 3, 3), (8, 16, 5, 5)]

needs_tensorly = pytest.mark.skipif(peers.tensorly_missing() is not None, reason=str(peers.tensorly_missing()))


def input_for(shape: tuple[int, ...]) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, shape[1], *(6,) * (len(shape) - 2), dtype=torch.float64)


def apply(weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)


@pytest.mark.parametrize("shape", [*SHAPES, (9, 5), (4, 4, 1, 1)], ids=str)
def test_the_einsum_loop_makes_the_librarys_weight(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    loop = peers.EinsumLoop(shape).double()
    torch.testing.assert_close(peers.einsum_weight(loop.gen), loop.gen(), rtol=0, atol=1e-12)
    x = input_for(shape)
    torch.testing.assert_close(loop(x), apply(loop.gen(), x, loop.bias), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_low_rank_pair_is_a_layer_of_the_ttns_rank(shape: tuple[int, ...]) -> None:
    ranks = adntn.Generator(shape, adntn.GeneratorConfig(topology="ttn")).ranks
    assert ranks is not None
    (pair,) = (v.build() for v in variants_of(Case("any", "inference", "float32", shape)) if v.name == "low rank")
    assert isinstance(pair, nn.Sequential)
    pair.double()
    matrices = [layer.weight for layer in pair]
    if len(shape) == 2:
        assert matrices[0].shape[0] == min(ranks)
        weight = matrices[1] @ matrices[0]
    else:
        assert (matrices[1].shape[0], matrices[1].shape[1]) == ranks
        outer, centre, inner = matrices[2].flatten(1), matrices[1], matrices[0].flatten(1)
        weight = torch.einsum("or,rskl,si->oikl", outer, centre, inner)
    assert tuple(weight.shape) == shape
    x = input_for(shape)
    torch.testing.assert_close(pair(x), apply(weight, x, pair[-1].bias))


@needs_tensorly
@pytest.mark.parametrize("implementation", ["factorized", "reconstructed"])
@pytest.mark.parametrize("name", peers.TENSORLY)
@pytest.mark.parametrize("shape", [(16, 81), (16, 12, 3, 3)], ids=str)
def test_tensorlys_layer_is_that_of_its_weight(shape: tuple[int, ...], name: str, implementation: str) -> None:
    torch.manual_seed(0)
    factorization, rank = peers.TENSORLY[name]
    layer = peers.tensorly_layer(shape, factorization, rank, implementation).double()
    factors = layer.weight
    if len(shape) == 2:
        weight = factors.to_matrix()
    else:
        weight = factors.to_tensor()
        weight = weight.movedim(-1, 0) if factorization == "blocktt" else weight
    assert tuple(weight.shape) == shape
    x = input_for(shape)
    y = layer(x)
    torch.testing.assert_close(y, apply(weight, x, layer.bias))
    assert y.abs().mean() > 1e-4


@needs_tensorly
@pytest.mark.parametrize("shape", [(256, 256), (64, 64, 3, 3)], ids=str)
def test_only_the_reconstructed_layer_makes_the_weight(shape: tuple[int, ...]) -> None:
    x, peaks = input_for(shape).float(), []
    with torch.no_grad():
        for implementation in ("factorized", "reconstructed"):
            layer = peers.tensorly_layer(shape, "cp", 2, implementation)
            peaks.append(peak_bytes(lambda layer=layer: (layer(x),))[0])  # type: ignore[misc]
    factorized, reconstructed = peaks
    assert factorized < 4 * math.prod(shape) <= reconstructed


@pytest.mark.parametrize(
    "size, factors",
    [(4096, (8, 8, 8, 8)), (1024, (4, 4, 8, 8)), (16384, (8, 8, 16, 16)), (1000, (5, 5, 5, 8)), (7, (1, 1, 1, 7))],
)
def test_sizes_are_balanced_products(size: int, factors: tuple[int, ...]) -> None:
    assert peers.balanced(size) == factors


def test_what_is_missing_of_tensorly_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "NEEDED", ("torch", "no_such_package_anywhere"))
    assert peers.tensorly_missing() == "not installed: no_such_package_anywhere"
