"""Baselines: what only they promise. That they equal a plain reference is in the conformance suite."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from conformance_cases import BASELINES
from torch import Tensor, nn

import adntn
from adntn import Generator, GeneratorConfig
from adntn.baselines import _mix

HASHED = ("subspace", "frozen")
hashed = pytest.mark.parametrize("topology", HASHED)


def build(shape: tuple[int, ...], seed: int = 0, **options: Any) -> Generator:
    torch.manual_seed(seed)
    return Generator(shape, GeneratorConfig(**options), dtype=torch.float64)


def chi_square(counts: Tensor) -> float:
    """How far counts are from even, in deviations of what chance alone does."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return float(((counts - expected).square() / expected).sum() - freedom) / math.sqrt(2 * freedom)


# --- tensor train ---------------------------------------------------------------------------------


def test_a_chain_runs_through_factors_as_thin_as_its_bond() -> None:
    gen = build((96, 70, 3, 3), topology="tt", bond_dim=5, order="blocked")
    a, c, b = gen.factors() or ()
    assert (a.shape, c.shape, b.shape) == ((1, 96, 5), (1, 5, 25, 3, 3), (1, 70, 25))
    assert gen.ranks == (5, 25)
    assert torch.linalg.matrix_rank(gen().flatten(1)) == gen.rank_bound() == 5


@pytest.mark.parametrize("order", ["paired", "block_paired", (1, 0, *range(2, 14))], ids=str)
def test_a_chain_whose_axes_do_not_stand_in_order_has_no_factors(order: Any) -> None:
    gen = build((100, 70), topology="tt", order=order)
    assert gen.factors() is None
    assert gen.ranks is None
    assert gen.rank_bound() == 70


def test_a_bond_of_one_is_a_product_of_digits() -> None:
    weight = build((8, 8), topology="tt", bond_dim=1)().detach()
    assert torch.linalg.matrix_rank(weight) == 1
    assert torch.linalg.matrix_rank(weight[:, :1].reshape(2, 4)) == 1


# --- low rank -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 3, 3)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_low_rank_is_of_that_rank_in_every_group(shape: tuple[int, ...], groups: int) -> None:
    gen = build(shape, topology="lowrank", bond_dim=3, groups=groups)
    weight = gen().detach().flatten(1)
    assert gen.num_parameters == 3 * (40 + groups * weight.shape[1])
    assert gen.rank_bound() == 3 * groups == torch.linalg.matrix_rank(weight)
    assert {int(torch.linalg.matrix_rank(block)) for block in weight.chunk(groups)} == {3}


# --- hashes ---------------------------------------------------------------------------------------


def test_the_hash_of_a_word_is_that_of_the_c_code_and_no_two_are_alike() -> None:
    words = torch.arange(1 << 16) << 16
    assert len(_mix(words).unique()) == 1 << 16
    x = 0xDEADBEEF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    assert int(_mix(torch.tensor([0xDEADBEEF]))) == x ^ (x >> 16)


def places_and_signs(shape: tuple[int, ...], dim: int, seed: int) -> tuple[Tensor, Tensor]:
    gen = build(shape, seed, topology="subspace", subspace_dim=dim)
    with torch.no_grad():
        gen.coordinates.copy_(torch.arange(1, dim + 1))
    made = gen().detach().flatten()
    return made.abs().long() - 1, made.sign()


@pytest.mark.parametrize("dim", [7, 64, 216])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_coordinates_are_spread_evenly_and_signs_balanced(dim: int, seed: int) -> None:
    place, sign = places_and_signs((256, 256), dim, seed)
    assert abs(chi_square(place.bincount(minlength=dim).double())) < 4
    assert abs(float(sign.sum())) < 4 * 256
    # Within a coordinate as well, and in every row and column: no pattern that a layer could see.
    assert abs(chi_square((2 * place + (sign > 0)).bincount(minlength=2 * dim).double())) < 4
    grid = sign.view(256, 256)
    assert grid.sum(0).abs().max() < 5 * 16
    assert grid.sum(1).abs().max() < 5 * 16


@hashed
@pytest.mark.parametrize("step", [1, 2, 256, 257, 4096])
def test_entries_do_not_know_of_each_other(topology: str, step: int) -> None:
    gen = build((256, 256), topology=topology, **({"subspace_dim": 1000} if topology == "subspace" else {}))
    flat = gen().detach().flatten()
    flat = (flat - flat.mean()) / flat.std()
    correlation = (flat[:-step] * flat[step:]).mean()
    # With a thousand coordinates, one pair in a thousand is of the same.
    assert abs(float(correlation)) < 4.5 / 256


@pytest.mark.parametrize("seed", [0, 1])
def test_frozen_entries_are_uniform(seed: int) -> None:
    gen = build((256, 256), seed, topology="frozen")
    bound = math.sqrt(3) * float(gen.scale.detach())
    unit = gen().detach().flatten() / bound
    assert unit.abs().max() <= 1
    assert abs(chi_square(torch.histc(unit, 64, -1, 1))) < 4
    # Up to the largest of 65536.
    assert unit.max() > 0.999
    assert unit.min() < -0.999


@hashed
def test_two_seeds_have_nothing_in_common(topology: str) -> None:
    one, other = (build((128, 128), seed, topology=topology)().detach().flatten() for seed in (0, 1))
    correlation = torch.corrcoef(torch.stack([one, other]))[0, 1]
    assert abs(float(correlation)) < 4.5 / 128


@hashed
def test_a_hashed_weight_has_full_rank(topology: str) -> None:
    gen = build((64, 48), topology=topology)
    assert torch.linalg.matrix_rank(gen()) == gen.rank_bound() == 48


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", BASELINES)
def test_nothing_is_kept_but_what_is_counted_and_the_seed(topology: str) -> None:
    gen = Generator((500, 300), GeneratorConfig(topology=topology))
    gen().sum().backward()
    kept = {name: t.numel() for name, t in gen.state_dict().items()}
    assert kept.pop("seed", 1) == 1
    assert sum(kept.values()) == gen.num_parameters == sum(p.numel() for p in gen.parameters())
    held = [value for value in vars(gen._network).values() if isinstance(value, Tensor)]
    assert held == []
    assert len(list(gen.buffers())) == (topology in HASHED)


@hashed
@pytest.mark.parametrize(
    "move",
    [
        lambda gen: gen.to(torch.bfloat16),
        lambda gen: gen.half(),
        lambda gen: gen.double(),
        lambda gen: gen.to("cpu"),
        copy.deepcopy,
        lambda gen: nn.Sequential(gen).to(memory_format=torch.channels_last)[0],
    ],
    ids=["bfloat16", "half", "double", "cpu", "deepcopy", "channels_last"],
)
def test_the_seed_survives(topology: str, move: Any) -> None:
    gen = Generator((17, 33), GeneratorConfig(topology=topology))
    seed, before = gen.seed.clone(), gen().detach().double()
    moved = move(gen)
    assert moved.seed.dtype == torch.int64
    assert torch.equal(moved.seed, seed)
    torch.testing.assert_close(moved().detach().double(), before, rtol=1e-2, atol=1e-3)


@hashed
def test_layers_of_a_model_have_seeds_of_their_own_and_a_file_brings_them_back(topology: str, tmp_path: Any) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))

    made = model()
    adntn.compress_(made, GeneratorConfig(topology=topology), targets=["0", "1"])
    first, second = made[0].weight.detach(), made[1].weight.detach()
    assert not torch.equal(made[0].seed, made[1].seed)
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])) < 0.2
    loaded = adntn.load(model(), adntn.save(made, tmp_path / "model.safetensors"))
    assert torch.equal(loaded[0].weight, first)
    assert torch.equal(loaded[1].weight, second)
    # The same seed, the same model: the seeds come from torch's random state as all else does.
    torch.manual_seed(4)
    one = Generator((8, 8), GeneratorConfig(topology=topology))
    torch.manual_seed(4)
    assert torch.equal(one.seed, Generator((8, 8), GeneratorConfig(topology=topology)).seed)


@hashed
def test_drawing_anew_draws_another_seed(topology: str) -> None:
    gen = Generator((8, 8), GeneratorConfig(topology=topology))
    before = gen.seed.clone()
    gen.reset_parameters()
    assert not torch.equal(gen.seed, before)


@hashed
def test_why_a_layer_runs_dense_is_said_of_the_topology(topology: str) -> None:
    layer = adntn.nn.Linear(64, 64, config=GeneratorConfig(topology=topology))
    assert f"topology='{topology}' has no split" in layer.way.reason
    with pytest.raises(adntn.errors.ConfigError, match=f"topology='{topology}'"):
        layer.execution = "factored"


@hashed
def test_the_report_counts_the_seeds_bytes(topology: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    (row,) = adntn.compress_(model, GeneratorConfig(topology=topology), targets=["0"]).layers
    stored = sum(t.numel() * t.element_size() for name, t in model[0].state_dict().items() if name != "bias")
    assert row.generated_bytes == stored
