"""Goals from made-up results: met, missed by how much, not measured."""

from __future__ import annotations

from typing import Any

import pytest
from results_makers import made_rows, result, row

from benchmarks.speed.cases import Case, full_grid
from benchmarks.speed.goals import Goal, Part, goals
from benchmarks.speed.reading import dense_wins, over_dense, peer, regrets, spread
from benchmarks.speed.trial import skips_from
from benchmarks.speed.variants import TARGETS


def find(rows: dict[str, Any], words: str) -> Goal:
    (goal,) = (goal for goal in goals(rows) if words in goal.work)
    return goal


def test_without_results_nothing_is_met() -> None:
    assert {goal.met for goal in goals({})} == {"not measured"}


def test_made_up_results_that_reach_every_aim_meet_every_goal() -> None:
    found = {goal.work: goal.met for goal in goals(made_rows())}
    assert set(found.values()) == {"yes, and the aim"}, found
    assert len(found) == 15


def test_a_missed_part_is_named_with_the_factor_that_lacks() -> None:
    rows = made_rows()
    rows["linear 4096x4096, float32, inference, batch 32"]["results"]["ttn auto"]["median"] = 1 / 28  # dense takes 1
    goal = find(rows, "linear 4096², ttn, inference")
    assert [part.measured for part in goal.parts] == pytest.approx([100, 28, 100, 100])
    assert goal.met == "no: batch 32 by a factor of 1.25"


def test_between_least_and_aim_it_is_met_but_not_the_aim() -> None:
    rows = made_rows()
    rows["vgg16, float32, training, batch 128"]["results"]["ttn: convolutions but the first, FC2"]["median"] = 1 / 5
    assert find(rows, "the same, whole training step").met == "yes"


def test_the_worst_of_several_cases_counts_and_is_named() -> None:
    rows = made_rows()
    rows["conv 512x512x3x3 map 8, float32, inference, batch 1"]["results"]["ttn auto"]["median"] = 1 / 4
    rows["conv 512x512x3x3 map 2, float32, inference, batch 1"]["results"]["ttn auto"]["median"] = 1 / 5
    goal = find(rows, "conv 512²×3×3, ttn, inference")
    assert goal.met == "no: (conv 512x512x3x3 map 8, batch 1) by a factor of 2.50"
    # The largest map is not one of those that the goal is about.
    rows = made_rows()
    rows["conv 512x512x3x3 map 32, float32, inference, batch 1"]["results"]["ttn auto"]["median"] = 1 / 4
    assert find(rows, "conv 512²×3×3, ttn, inference").met == "yes, and the aim"


def test_a_case_that_is_not_there_keeps_a_goal_from_being_met() -> None:
    rows = made_rows()
    del rows["conv 512x512x3x3 map 4, float32, training, batch 32"]
    assert find(rows, "conv 512²×3×3, ttn, training").met == "not measured: some cases"
    rows = made_rows()
    del rows["linear 4096x4096, float32, training, batch 128"]
    assert find(rows, "ttn, training step with AdamW").met == "not measured: batch 128"
    assert find(rows, "peak memory").met == "not measured: batch 128"


def test_the_fastest_peer_is_what_is_compared_with() -> None:
    rows = made_rows()
    rows["linear 1024x1024, float32, inference, batch 32"]["results"]["tensorly b"] = result(0.02)
    goal = find(rows, "every layer and batch, inference")
    assert goal.met == "no: linear (linear 1024x1024, batch 32) by a factor of 1.25"
    assert peer(rows["linear 1024x1024, float32, inference, batch 32"], "tensorly") == ("tensorly b", 0.02)


def test_upper_bounds_are_missed_from_above() -> None:
    rows = made_rows()
    rows["weight 4096x4096, float32, making"]["results"]["ttn new"]["median"] = 3.0
    assert find(rows, "making the whole").met == "no: by a factor of 2.00"
    rows["weight 4096x4096, float32, making"]["results"]["ttn into a buffer"] = {"skipped": "no buffer"}
    assert find(rows, "into a given buffer").met == "not measured"


def test_slower_than_dense_counts_beyond_the_spread_only() -> None:
    rows = made_rows()
    results = rows["conv 128x128x3x3 map 2, float32, inference, batch 1"]["results"]
    results["mera auto"] = result(1.2, low=1.04, high=1.3)
    assert find(rows, "inference under `auto`").met == "yes"
    results["mera auto"] = result(1.26, low=1.26, high=1.3)
    (part,) = find(rows, "inference under `auto`").parts
    assert part.measured == pytest.approx(1.26)
    assert "mera auto, conv 128x128x3x3 map 2" in find(rows, "inference under `auto`").met
    assert max(share for *_, share in over_dense(rows, "inference")) == pytest.approx(1.26)


def test_where_dense_trains_faster_the_worst_comes_first() -> None:
    rows = made_rows()
    for batch, seconds in ((1, 2.0), (32, 3.0), (128, 1.01)):
        rows[f"linear 1024x1024, float32, training, batch {batch}"]["results"]["attn auto"] = result(seconds)
    assert [(r["batch"], name, times) for r, name, times in dense_wins(rows)] == [
        (32, "attn auto", 3.0),
        (1, "attn auto", 2.0),
    ]


def test_regret_is_over_the_fastest_way_and_never_below_one() -> None:
    case = Case("linear", "inference", "float32", (4, 4), 1)
    results = {
        "ttn auto": result(2.0),
        "ttn factored": result(1.0),
        "ttn dense": result(4.0),
        "attn auto": result(1.0),
        "attn factored": result(3.0),
        "attn dense": {"skipped": "slow", "first": 0.5},
        "mera auto": result(1.0),
        "mera factored": result(1.5),
        "mera dense": {"skipped": "as dense"},
    }
    found = {topology: value for _, topology, value in regrets({case.key: row(case, results)})}
    assert found == {"ttn": 2.0, "attn": 2.0, "mera": 1.0}


def test_the_spread_is_that_of_the_variant_that_varies_most() -> None:
    results = {"dense": result(2.0, 1.8, 2.2), "ttn auto": result(1.0, 0.9, 1.3), "other": result(1.0, 0.1, 9.0)}
    case = {"results": {**results, "left out": {"skipped": "slow"}}}
    assert spread(case, ("dense", "ttn auto", "left out")) == pytest.approx(0.2)
    assert spread(case, ("left out",)) is None
    assert spread(None, ("dense",)) is None


def test_a_goal_with_an_upper_bound_reads_the_other_way() -> None:
    part = Part("", 1.5, 1.1, 1.3)
    assert Goal("w", (part,), upper=True).met == "yes"
    assert Goal("w", (part,)).met.startswith("no")


def test_the_made_up_results_have_the_grids_keys() -> None:
    keys = {case.key for case in full_grid()}
    assert set(made_rows()) <= keys
    assert any(
        what in name
        for what in TARGETS["vgg16"]
        for name in made_rows()["vgg16, float32, training, batch 128"]["results"]
    )
    assert skips_from(full_grid()[1], made_rows(), limits=None) == {}  # type: ignore[arg-type]
