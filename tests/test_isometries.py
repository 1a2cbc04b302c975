"""Cores of a start: orthonormal rows, orthogonal slices, and what that makes of a weight."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from adntn import Generator, GeneratorConfig, isometries
from adntn.initialize import stable_rank
from adntn.isometries import conformal, flat, semi_orthogonal


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def assert_orthonormal(core: Tensor) -> None:
    short = core if core.shape[0] <= core.shape[1] else core.mT
    torch.testing.assert_close(short @ short.mT, torch.eye(len(short), dtype=torch.float64))


@pytest.mark.parametrize("a", [1, 2, 3, 4, 5, 9, 20])
@pytest.mark.parametrize("d", [2, 3, 4, 5, 8])
def test_rows_or_columns_are_orthonormal(a: int, d: int) -> None:
    for core in (conformal(a, d), flat(a, d * d), semi_orthogonal((3, a, d * d))[2]):
        assert core.shape == (a, d * d)
        assert core.dtype == torch.float64
        assert_orthonormal(core)


@pytest.mark.parametrize("a, d", [(1, 2), (2, 2), (4, 2), (3, 3), (4, 4), (16, 4), (5, 5), (8, 8), (1, 7)])
def test_each_row_of_a_conformal_core_is_an_orthogonal_matrix(a: int, d: int) -> None:
    for row in conformal(a, d):
        matrix = row.reshape(d, d) * math.sqrt(d)
        torch.testing.assert_close(matrix @ matrix.mT, torch.eye(d, dtype=torch.float64))


@pytest.mark.parametrize("a, d", [(2, 2), (2, 4), (3, 4), (4, 4)])
def test_so_is_every_combination_of_complex_numbers_and_quaternions(a: int, d: int) -> None:
    for _ in range(5):
        matrix = (torch.randn(a, dtype=torch.float64) @ conformal(a, d)).reshape(d, d)
        values = torch.linalg.svdvals(matrix)
        torch.testing.assert_close(values, values[:1].expand(d))


@pytest.mark.parametrize("d", [2, 4])
def test_entries_are_of_one_magnitude_for_two_and_four(d: int) -> None:
    for core in (conformal(d, d), flat(d, d)):
        torch.testing.assert_close(core.abs(), core.abs().max().expand_as(core))


def test_draws_differ_and_a_seed_decides_them() -> None:
    torch.manual_seed(1)
    first, second = conformal(2, 4), conformal(2, 4)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(conformal(2, 4), first)


@pytest.mark.parametrize("shape", [(64, 64), (32, 32, 3, 3), (48, 20)], ids=str)
@pytest.mark.parametrize("topology", ["ttn", "mera"])
def test_a_paired_weight_starts_with_several_times_the_stable_rank(topology: str, shape: tuple[int, ...]) -> None:
    def ranks(initialization: str) -> float:
        total = 0.0
        for seed in range(3):
            torch.manual_seed(seed)
            config = GeneratorConfig(topology=topology, order="paired", initialization=initialization)
            total += stable_rank(Generator(shape, config)().detach())
        return total

    assert ranks("conformal") > 2 * ranks("isometric")


def test_one_kronecker_product_of_conformal_cores_is_orthogonal() -> None:
    config = GeneratorConfig(order="paired", radix=4, bond_dim=1, initialization="conformal")
    weight = Generator((64, 64), config, dtype=torch.float64)().detach()
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(values, values[:1].expand(64))


def test_nothing_is_kept_of_a_draw_that_made_no_numbers() -> None:
    config = GeneratorConfig(order="paired", radix=8, initialization="conformal")
    with FakeTensorMode():
        Generator((64, 64), config)
    with torch.device("meta"):
        Generator((64, 64), config)
    assert bool(Generator((64, 64), config)().isfinite().all())


def test_of_large_matrices_no_more_are_made_than_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    product = isometries._kronecker
    monkeypatch.setattr(isometries, "_kronecker", lambda factors: made.append(product(factors)) or made[-1])
    assert conformal(2, 64).shape == (2, 64**2)
    assert len(made) == 2
