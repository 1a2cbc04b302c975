"""The products through factors, against the whole weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adntn import GeneratorConfig
from adntn.execution import factored
from adntn.nn import Conv1d, Conv2d, Conv3d, ConvTranspose2d, Embedding, GeneratedLayer, Linear

GROUPS = [1, 2, 3]


def make_factors(groups: int, *kernel: int, out: int = 12, inner: int = 7) -> factored.Factors:
    # r and r' differ, so that a mix-up shows.
    shapes = ((groups, out // groups, 4), (groups, 4, 3, *kernel), (groups, inner, 3))
    a, c, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return a, c, b


def whole(factors: factored.Factors) -> Tensor:
    a, c, b = factors
    return torch.einsum("gor,grs...,gis->goi...", a, c, b).flatten(0, 1)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(5,), (), (2, 3), (0,), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("groups", GROUPS)
def test_linear(groups: int, batch: tuple[int, ...], bias: bool) -> None:
    factors, x = make_factors(groups), torch.randn(*batch, 7, dtype=torch.float64)
    b = torch.randn(12, dtype=torch.float64) if bias else None
    assert_equal(factored.linear(x, factors, b), F.linear(x, whole(factors), b))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "stride, padding, dilation",
    [((1, 1), (0, 0), (1, 1)), ((2, 1), (1, 2), (1, 2)), ((1, 1), "same", (2, 1)), ((1, 1), "valid", (1, 1))],
    ids=str,
)
@pytest.mark.parametrize("groups", GROUPS)
def test_conv(groups: int, stride: Any, padding: Any, dilation: Any, bias: bool) -> None:
    factors = make_factors(groups, 3, 1)
    b = torch.randn(12, dtype=torch.float64) if bias else None
    for batch in ((2,), (), (0,)):
        x = torch.randn(*batch, 7, 8, 6, dtype=torch.float64)
        expected = F.conv2d(x, whole(factors), b, stride, padding, dilation)
        assert_equal(factored.conv(x, factors, b, stride, padding, dilation), expected)


DIMS = [1, 2, 3]


@pytest.mark.parametrize("batch", [(2,), ()], ids=str)
@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("own", [1, 2, 3, 6])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_conv_with_groups_of_its_own(groups: int, own: int, dims: int, batch: tuple[int, ...]) -> None:
    # Neither count need divide the other: of (2, 3) and (3, 2) every block of two rows is of one and one.
    factors = make_factors(groups, *(3, 2, 1)[:dims])
    x = torch.randn(*batch, 7 * own, *(5, 4, 3)[:dims], dtype=torch.float64)
    stride, padding, dilation = ((1, 2, 1)[:dims], (1, 0, 2)[:dims], (2, 1, 1)[:dims])
    b = torch.randn(12, dtype=torch.float64)
    run = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    expected = run(x, whole(factors), b, stride, padding, dilation, own)
    assert_equal(factored.conv(x, factors, b, stride, padding, dilation, own), expected)


@pytest.mark.parametrize("batch", [(2,), (), (0,)], ids=str)
@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("own", [1, 2, 3, 6])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_conv_transpose(groups: int, own: int, dims: int, batch: tuple[int, ...]) -> None:
    factors = make_factors(groups, *(3, 2, 1)[:dims])
    x = torch.randn(*batch, 12, *(4, 3, 2)[:dims], dtype=torch.float64)
    stride, padding, dilation = ((2, 1, 3)[:dims], (1, 0, 0)[:dims], (1, 2, 1)[:dims])
    extra = (1, 0, 2)[:dims]
    b = torch.randn(7 * own, dtype=torch.float64)
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    expected = run(x, whole(factors), b, stride, padding, extra, own, dilation)
    assert_equal(factored.conv_transpose(x, factors, b, stride, padding, extra, own, dilation), expected)


@pytest.mark.parametrize("index", [(5,), (), (2, 3), (0,), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("groups", GROUPS)
def test_embedding(groups: int, index: tuple[int, ...]) -> None:
    factors, where = make_factors(groups), torch.randint(12, index)
    a, *rest = factors
    rows = F.embedding(where, a.flatten(0, 1))
    assert_equal(factored.embedding(rows, where, rest, 12 // groups), F.embedding(where, whole(factors)))


@pytest.mark.parametrize("groups", GROUPS)
def test_gradients_reach_every_factor(groups: int) -> None:
    factors, x = make_factors(groups), torch.randn(5, 7, dtype=torch.float64)
    probe = torch.randn(5, 12, dtype=torch.float64)
    ours = torch.autograd.grad((factored.linear(x, factors, None) * probe).sum(), factors)
    theirs = torch.autograd.grad((F.linear(x, whole(factors)) * probe).sum(), factors)
    for a, b in zip(ours, theirs, strict=True):
        assert_equal(a, b)


class Shapes(TorchDispatchMode):
    """Records the size of the largest array that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))])
        return result


@pytest.mark.parametrize("groups", [1, 2])
def test_the_weight_is_never_made(groups: int) -> None:
    options: dict[str, Any] = {
        "config": GeneratorConfig(groups=groups, order="blocked"),
        "execution": "factored",
        "device": "meta",
    }
    layers: list[tuple[GeneratedLayer, Tensor]] = [
        (Linear(1024, 1024, **options), torch.empty(4, 1024)),
        (Conv1d(512, 512, 9, **options), torch.empty(2, 512, 16)),
        (Conv2d(256, 256, 3, padding=1, **options), torch.empty(2, 256, 4, 4)),
        (Conv3d(128, 128, 3, padding=1, groups=2, **options), torch.empty(1, 128, 3, 3, 3)),
        (ConvTranspose2d(256, 256, 3, **options), torch.empty(2, 256, 4, 4)),
        (Embedding(65536, 64, 0, **options), torch.empty(4, 20, dtype=torch.int64)),
    ]
    for layer, x in layers:
        with Shapes() as seen:
            layer(x.to("meta").requires_grad_(x.is_floating_point())).sum().backward()
        assert 0 < seen.largest <= layer.blueprint.size // 8, type(layer)
