"""Cut ranks: the bound against every bipartition of a tiny network by brute force, and measured ranks against both."""

from __future__ import annotations

import doctest
import itertools
import math
from typing import Any

import pytest
import torch
from conformance_cases import TOPOLOGIES

import adntn
from adntn import Generator, GeneratorConfig, cut_bound, cut_ranks
from adntn.errors import ConfigError
from adntn.topology import Blueprint

ORDERS = ("flat", "blocked", "paired", "block_paired")
SHAPES = [(16, 16), (5, 11), (6, 3, 3, 3)]
LINEAR: dict[str, dict[str, Any]] = {
    **{name: {**options, "latent_order": 2} for name, options in TOPOLOGIES.items()},
    "ttn, bond 3": {"bond_dim": 3, "latent_order": 1},
    "ttn, gates, two terms": {"topology": "mera", "gate": True, "terms": 2, "latent_order": 1},
    "ttn, radix 4": {"radix": 4, "bond_dim": 2, "latent_order": 1},
    "wall": {"topology": "brickwall", "columns": 4, "blocks": 2},
    "tt": {"topology": "tt", "bond_dim": 2},
    "lowrank": {"topology": "lowrank", "bond_dim": 3},
    "subspace": {"topology": "subspace"},
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", LINEAR)
def test_no_measured_rank_exceeds_its_bounds(name: str, order: str) -> None:
    for shape, activation in zip(SHAPES, ("identity", "sine(omega=3)", "elu"), strict=True):
        for given in {activation, "identity"}:
            config = GeneratorConfig(**LINEAR[name], order=order, activation=given)
            for row in cut_ranks(config, shape, seeds=range(2)):
                assert 1 <= row.rank <= row.bound, row
                assert row.linear_bound <= row.bound <= min(row.rows, row.columns), row
                assert 1 - 1e-9 <= row.stable_rank <= row.rank + 1e-9
                if given == "identity":
                    assert row.rank <= row.linear_bound, row


def test_every_bipartition_of_a_linear_tree_obeys_eq_20_and_most_reach_it() -> None:
    config = GeneratorConfig(topology="ttn", activation="identity", latent_order=2)
    cuts = [cut for size in range(1, 5) for cut in itertools.combinations(range(8), size)]
    rows = cut_ranks(config, (16, 16), cuts=cuts, seeds=[0])
    assert all(row.rank <= row.linear_bound for row in rows)
    assert sum(row.rank == row.linear_bound for row in rows) > 0.9 * len(rows)


def test_the_bound_is_the_least_over_all_ways_to_part_the_cores() -> None:
    # A ttn of two levels: root of 2 legs, then 2 cores, then 4, each with two modes; all sides of them are tried.
    config = GeneratorConfig(topology="ttn", activation="identity", latent_order=2, bond_dim=3)
    assert Blueprint((16, 16), config).schedule == (2, 4, 8)
    edges = [("root", "a0"), ("root", "a1"), *((f"a{k // 2}", f"b{k}") for k in range(4))]
    nodes = ["root", "a0", "a1", "b0", "b1", "b2", "b3"]
    for cut in itertools.chain.from_iterable(itertools.combinations(range(8), size) for size in range(1, 8)):
        best = math.inf
        for sides in itertools.product((False, True), repeat=len(nodes)):
            side = dict(zip(nodes, sides, strict=True))
            severed = 3 ** sum(side[one] != side[other] for one, other in edges)
            severed *= 2 ** sum(side[f"b{mode // 2}"] != (mode in cut) for mode in range(8))
            best = min(best, severed)
        assert cut_bound(config, (16, 16), cut, linear=True) == min(best, 2 ** min(len(cut), 8 - len(cut))), cut


def test_a_tensor_train_of_rank_2_has_rank_2_in_every_cut() -> None:
    rows = cut_ranks(GeneratorConfig(topology="tt", bond_dim=2, order="flat"), (16, 32))
    assert len(rows) == 8
    assert all(row.rank == row.linear_bound == row.bound == 2 for row in rows)


def test_the_minimal_cut_of_out_and_in_is_the_rank_bound() -> None:
    for topology in TOPOLOGIES.values():
        for order in ("blocked", "paired"):
            for terms in (1, 2):
                config = GeneratorConfig(**topology, order=order, latent_order=2, terms=terms)
                t = Blueprint((32, 32), config).tensorization
                out = [place for place, mode in enumerate(t.modes[-t.num_modes :]) if mode.axis == 0]
                bound = Generator((32, 32), config, device="meta").rank_bound()
                assert cut_bound(config, (32, 32), out, linear=False) == bound
    assert cut_bound(GeneratorConfig(), (4096, 4096), range(12), linear=False) == 64


def test_an_activation_lifts_the_bounds_above_it_and_none_of_the_readout() -> None:
    linear, bent = (
        cut_ranks(GeneratorConfig(order="blocked", latent_order=3, activation=a), (64, 64))[0]
        for a in ("identity", "sine(omega=3)")
    )
    assert linear.name == bent.name == "out | in"
    assert linear.rank == linear.linear_bound == 4
    assert bent.rank == bent.bound == 8
    paired = cut_ranks(GeneratorConfig(order="paired", latent_order=3), (64, 64))
    middle = next(row for row in paired if row.name == "6 | 6")
    assert middle.linear_bound < middle.rank <= middle.bound


def test_ranks_are_those_of_the_weight() -> None:
    config = GeneratorConfig(order="blocked", groups=2)
    (row,) = cut_ranks(config, (32, 16, 3, 3), cuts=[range(4)], seeds=[7])
    torch.manual_seed(7)
    weight = Generator((32, 16, 16), config, dtype=torch.float64)().detach()[:16].flatten(1)
    assert (row.rows, row.columns) == weight.shape
    spectrum = torch.linalg.svdvals(weight)
    assert row.rank == int((spectrum > 1e-12 * spectrum[0]).sum())
    assert row.stable_rank == pytest.approx(float((spectrum / spectrum[0]).square().sum()))
    assert row.to_dict()["rank"] == row.rank
    assert cut_ranks(config, (32, 16, 3, 3), cuts=[range(4)], seeds=[7], tolerance=0.99)[0].rank < row.rank


def test_a_cut_of_the_middle_takes_its_modes_from_anywhere() -> None:
    config = GeneratorConfig(order="blocked", latent_order=2)
    (row,) = cut_ranks(config, (8, 8), cuts=[(0, 3, 5)], seeds=[0])
    torch.manual_seed(0)
    tensor = Generator((8, 8), config, dtype=torch.float64)().detach().view(2, 2, 2, 2, 2, 2)
    assert row.rank == int(torch.linalg.matrix_rank(tensor.permute(0, 3, 5, 1, 2, 4).reshape(8, 8)))
    assert row.name == "3 | 3"


def test_measuring_leaves_the_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = cut_ranks(GeneratorConfig(), (8, 8))
    assert torch.equal(torch.rand(2), expected)
    assert cut_ranks(GeneratorConfig(), (8, 8)) == first


@pytest.mark.parametrize("cut", [(0, 0), (6,), (-1,), (0.5,)], ids=str)
def test_what_is_no_cut_is_refused(cut: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match=r"not a choice of the modes 0 \.\.\. 5"):
        cut_bound(GeneratorConfig(), (8, 8), cut, linear=True)
    with pytest.raises(ConfigError, match="not a choice"):
        cut_ranks(GeneratorConfig(), (8, 8), cuts=[cut])
    with pytest.raises(ConfigError, match="seeds is empty"):
        cut_ranks(GeneratorConfig(), (8, 8), seeds=[])


def test_the_docstrings_tell_the_truth() -> None:
    for function in (cut_bound, cut_ranks):
        names = {**vars(adntn), "adntn": adntn}
        (example,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__, globs=names)
        assert doctest.DocTestRunner().run(example).failed == 0
