"""Generated convolutions that are mixed with random numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adntn import GeneratorConfig
from adntn.errors import ConfigError
from adntn.experiments.seeded import SEEDED, SeededConv2d
from adntn.initialize import default_std, stable_rank
from adntn.nn import Conv2d

CONFIG = GeneratorConfig(order="paired")


def made(seeding: str, seed: int = 0, dense: nn.Conv2d | None = None) -> SeededConv2d:
    dense = dense if dense is not None else nn.Conv2d(12, 20, 3, padding=1, bias=False)
    torch.manual_seed(seed)
    return SeededConv2d.made_of(dense, CONFIG, seeding)


def plain() -> Conv2d:
    """The same generator, with nothing mixed in."""
    dense = nn.Conv2d(12, 20, 3, padding=1, bias=False)
    torch.manual_seed(0)
    return Conv2d.from_dense(dense, CONFIG)


@pytest.mark.parametrize("seeding", SEEDED)
def test_it_convolves_with_its_weight_and_trains_the_generator_alone(seeding: str) -> None:
    layer = made(seeding)
    inputs = torch.randn(2, 12, 5, 5)
    torch.testing.assert_close(layer(inputs), nn.functional.conv2d(inputs, layer.weight, padding=1))
    layer(inputs).square().sum().backward()
    parameters = dict(layer.named_parameters())
    assert {name.split(".")[0] for name in parameters} <= {"root", "expand", "carry"}
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters.values())


@pytest.mark.parametrize("seeding", SEEDED)
def test_a_seed_makes_it_again_and_nothing_random_is_stored(seeding: str) -> None:
    layer, again, other = made(seeding), made(seeding), made(seeding, seed=1)
    torch.testing.assert_close(layer.weight, again.weight, rtol=0, atol=0)
    assert not torch.equal(layer.weight, other.weight)
    assert sum(value.numel() for value in layer.state_dict().values()) == layer.num_parameters


@pytest.mark.parametrize("seeding", SEEDED)
def test_the_weight_keeps_the_deviation_of_a_dense_start(seeding: str) -> None:
    weights = torch.stack([made(seeding, seed).weight.detach() for seed in range(8)])
    assert float(weights.std()) == pytest.approx(default_std((20, 12, 3, 3)), rel=0.15)


def test_signs_change_nothing_but_signs_and_alike_over_the_kernel() -> None:
    signed = made("signs").weight.detach()
    ratio = signed / plain().weight.detach()
    torch.testing.assert_close(ratio.abs(), torch.ones_like(ratio))
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    assert 0 < float((ratio > 0).float().mean()) < 1


def test_scrambling_moves_whole_kernels() -> None:
    scrambled = made("scramble").weight.detach().abs().flatten(0, 1).flatten(1)
    rows = plain().weight.detach().abs().flatten(0, 1).flatten(1)
    assert sorted(scrambled.tolist()) == sorted(rows.tolist())
    assert not torch.equal(scrambled, rows)


def test_shuffling_adds_up_the_same_trees_in_orders_of_their_own() -> None:
    config = CONFIG.replace(terms=3, bond_dim=1, radix=4)
    dense = nn.Conv2d(12, 20, 3, padding=1, bias=False)
    torch.manual_seed(0)
    layer = SeededConv2d.made_of(dense, config, "shuffle")
    torch.manual_seed(0)
    unshuffled = Conv2d.from_dense(dense, config)
    trees = layer._trees().detach()
    assert trees.shape == (3, 20, 12, 3, 3)
    torch.testing.assert_close(trees.sum(0), unshuffled.weight.detach())
    rows, columns = layer._rows, layer._columns
    assert rows is not None
    assert columns is not None
    wanted = torch.zeros(20, 12, 3, 3)
    for tree in range(3):
        for out in range(20):
            wanted[out] += trees[tree, rows[tree, out]][columns[tree]]
    torch.testing.assert_close(layer.weight.detach(), wanted)
    assert len({tuple(order) for order in rows.tolist()}) == 3


def test_a_tangent_goes_the_way_that_the_generator_sets_out_on_and_straight_on() -> None:
    straight, bent = made("tangent").double(), plain().double()
    torch.testing.assert_close(straight.weight, bent.weight)
    start = straight.weight.detach().clone()
    torch.manual_seed(3)
    steps = [0.3 * torch.randn_like(p) for _, p in bent.generator_parameters()]

    def gone(layer: Conv2d, share: float) -> torch.Tensor:
        with torch.no_grad():
            for (_, p), step in zip(layer.generator_parameters(), steps, strict=True):
                p.add_(share * step)
            weight = layer.weight.detach().clone()
            for (_, p), step in zip(layer.generator_parameters(), steps, strict=True):
                p.sub_(share * step)
        return (weight - start) / share

    torch.testing.assert_close(gone(straight, 1e-6), gone(bent, 1e-6), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gone(straight, 1e-2), gone(straight, 1.0))
    assert float((gone(bent, 1.0) - gone(straight, 1.0)).norm() / gone(straight, 1.0).norm()) > 0.5


def test_a_base_raises_the_stable_rank_and_blocks_are_zero_outside() -> None:
    base = made("base")
    assert stable_rank(base.weight) > stable_rank(plain().weight)
    blocks = made("blocks", dense=nn.Conv2d(32, 64, 3, bias=False))._base
    assert blocks is not None
    zero = (blocks == 0).flatten(2).all(2)
    assert float(zero.float().mean()) == pytest.approx(7 / 8)
    assert len({tuple(row) for row in zero.tolist()}) == 8


def test_an_unknown_seeding_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"seeding='sings' is not known.*Did you mean 'signs'"):
        made("sings")
