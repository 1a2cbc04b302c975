"""The readout as a sum of Kronecker products, against the whole weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conformance_cases import PLAIN, assert_equal, scramble
from torch import Tensor

from adntn import Generator, GeneratorConfig

#: Shapes and options, and whether the kernel is apart from the trailing digits.
SUMS: dict[str, tuple[tuple[int, ...], dict[str, Any], bool]] = {
    "two digits": ((9, 9), {"radix": 3}, False),
    "padded": ((10, 17), {"radix": 5}, False),
    "many digits": ((33, 20), {}, False),
    "more of out": ((40, 9), {"radix": 3}, False),
    "an odd number of modes": ((16, 4), {"radix": 4}, False),
    "3x3": ((9, 8, 3, 3), {"radix": 3, "kernel_radix": 3}, True),
    "3x3, padded": ((9, 9, 3, 3), {"radix": 3}, True),
    "kernel beside a channel's digit": ((9, 9, 3), {"radix": 3, "kernel_radix": 3}, False),
    "3 digits of the kernel, one beside a channel's": ((8, 5, 5, 5), {"kernel_radix": 3}, False),
    "1x1": ((9, 7, 1, 1), {"radix": 3}, False),
    "conv3d": ((4, 6, 3, 1, 3), {"radix": 3, "kernel_radix": 3}, True),
}


def generator(shape: tuple[int, ...], **options: Any) -> Generator:
    config = GeneratorConfig(**{**PLAIN, "order": "paired", "bond_dim": 1, "latent_order": 1, **options})
    made: Generator = scramble(Generator(shape, config, dtype=torch.float64))
    return made


def summed(gen: Generator, *, merged: bool) -> Tensor:
    """The weight, put together as the sum says it."""
    plan, groups = gen.kronecker, gen.config.groups
    assert plan is not None
    first, last, *kernel = gen.kronecker_matrices(merged=merged)
    (o, i), (p, j) = plan.high, plan.low
    if plan.leads:
        left = first.unflatten(1, (o, -1)).transpose(1, 2)
        right = last.reshape(groups, p, -1, j, *last.shape[3:]).transpose(1, 2)
    else:
        left = last.unflatten(2, (i, -1)).permute(0, 3, 1, 2)
        right = first.reshape(groups, -1, p, j, *first.shape[3:])
    if right.ndim == 4:
        right = right.unsqueeze(-1)
    if kernel:
        right = right * kernel[0][:, :, None, None]
    whole = torch.einsum("gtoi,gtpjk->gopijk", left, right).reshape(groups, o * p, i * j, -1)
    return whole[:, : gen.shape[0] // groups, : gen.shape[1]].reshape(gen.shape)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("trees", [{}, {"terms": 3, "gate": True}, {"groups": 2, "terms": 2}], ids=str)
@pytest.mark.parametrize("name", SUMS)
def test_the_sum_is_the_weight(name: str, trees: dict[str, Any], merged: bool) -> None:
    shape, options, apart = SUMS[name]
    groups = trees.get("groups", 1)
    gen = generator((groups * shape[0], *shape[1:]), **options, **trees)
    assert gen.kronecker is not None
    assert (gen.kronecker.kernel is not None) is apart
    assert len(gen.kronecker_matrices(merged=merged)) == (3 if apart and not merged else 2)
    assert_equal(summed(gen, merged=merged), gen())


@pytest.mark.parametrize(
    "shape, options",
    [
        ((9, 9), {"radix": 3, "bond_dim": 2}),  # a sum of many products
        ((64, 64), {"topology": "mera"}),  # gates between the digits
        ((64, 64), {"topology": "brickwall", "bond_dim": None}),
        ((64, 64), {"order": "blocked"}),  # which has factors
        ((9, 9), {"radix": 9}),  # one digit a side
        ((50, 64), {"order": "flat"}),  # a ravel
        ((64, 64), {"order": (5, 11, 4, 10, 3, 9, 2, 8, 1, 7, 0, 6)}),  # digits out of order
        ((64, 64), {"topology": "lowrank"}),
    ],
    ids=str,
)
def test_what_is_no_sum(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    assert generator(shape, **options).kronecker is None


@pytest.mark.parametrize(
    "shape, radix, high, low, leads",
    [
        ((1024, 1024), 32, (32, 32), (32, 32), True),
        ((1024, 1024), 2, (32, 32), (32, 32), True),  # in the middle of the digits
        ((1024, 1024), 4, (16, 16), (64, 64), True),
        ((1000, 4096), 64, (16, 64), (64, 64), True),  # fewer numbers between the products
        ((4096, 1000), 64, (64, 16), (64, 64), False),
        ((60, 3), 8, (8, 1), (8, 3), False),
    ],
)
def test_where_it_is_cut(
    shape: tuple[int, int], radix: int, high: tuple[int, int], low: tuple[int, int], leads: bool
) -> None:
    config = GeneratorConfig(order="paired", bond_dim=1, radix=radix)
    plan = Generator(shape, config, device="meta").kronecker
    assert plan is not None
    assert (plan.high, plan.low, plan.leads) == (high, low, leads)
