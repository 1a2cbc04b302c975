"""The rows of the paper's Table 3: its counts at its sizes, and the controls beside them."""

from __future__ import annotations

import pytest

from adntn.experiments.reproduce.counts import count_numbers
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.reproduce.table3 import GROUPS, PAPER, table3_rows

ROWS = {row.name: row for row in table3_rows(Settings(), (3, 32, 32), 10)}


@pytest.mark.parametrize("group, topology", PAPER, ids=str)
def test_the_papers_rows_store_what_the_paper_says(group: str, topology: str) -> None:
    counts, published = count_numbers(ROWS[f"{group}/{topology}"]), PAPER[group, topology]
    assert counts.layer_stored == counts.layer_trained == published.stored
    if group != "alexnet-conv":  # there the paper counts the padded sizes
        assert counts.layer_dense == published.dense


def test_each_group_has_the_same_rows_and_each_network_its_dense_one() -> None:
    variants = {group: [row.variant for row in ROWS.values() if row.group == group] for group in GROUPS}
    (first, *others) = variants.values()
    assert all(other == first for other in others)
    assert {"ttn", "attn", "mera", "brickwall", "deleted", "frozen-dense", "frozen-tree", "frozen-scale"} < set(first)
    assert {"lowrank", "tt", "subspace", "ttn-linear"} < set(first)
    assert len(ROWS) == 2 + 3 * len(first)
    for row in ROWS.values():
        assert f"{row.network}/dense" in ROWS
        assert row.network == (GROUPS[row.group].network if row.group in GROUPS else row.group)


@pytest.mark.slow
def test_the_baselines_have_about_as_many_numbers_as_the_tree() -> None:
    for group in GROUPS:
        tree, subspace, train = (
            count_numbers(ROWS[f"{group}/{variant}"]).layer_stored for variant in ("ttn", "subspace", "tt")
        )
        assert subspace == tree
        assert 0.7 * tree < train <= tree
