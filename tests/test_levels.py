"""Levels: which core stands where, how stacks are named and counted, and chains."""

from __future__ import annotations

import itertools
import math

import pytest
from conformance_cases import generator_cases
from hypothesis import given
from hypothesis import strategies as st

from adntn.errors import ShapeError
from adntn.levels import Core, Level, Mixer, Stack, brickwall_levels, chain_stacks, schedule, tree_levels

LEVELS = {name: levels for name, case in generator_cases().items() if (levels := case.blueprint().levels)}


def test_a_level_says_whose_children_are_whose() -> None:
    level = Level(1, (2,) * 4, (2,) * 6, expansions=2, carries=2, names=("expand.1", "carry.1"))
    assert [level.children_of(p) for p in range(4)] == [(0, 1), (2, 3), (4,), (5,)]
    assert level.cores == (Core("expand.1", 0), Core("expand.1", 1), Core("carry.1", 0), Core("carry.1", 1))
    assert level.stacks == (Stack("expand.1", "expand", (2, 4), 2), Stack("carry.1", "carry", (2, 2), 2))
    assert (level.parents, level.children, level.entries_in) == (4, 6, 16)


def test_stacks_of_other_sizes_have_them_in_their_names() -> None:
    (level,) = tree_levels("attn", (2, 2, 2, 3, 3, 3), schedule(6, 9), 2, 2, 2)
    assert level.stacks == (
        Stack("expand.1", "expand", (2, 4), 1),
        Stack("expand.1_2x3", "expand", (2, 6), 1),
        Stack("expand.1_3x3", "expand", (2, 9), 1),
        Stack("mix.1.0", "mix", (4, 4), 1),
        Stack("mix.1.0_3x3", "mix", (9, 9), 1),
        Stack("mix.1.1", "mix", (4, 4), 1),
        Stack("mix.1.1_2x3", "mix", (6, 6), 1),
        Stack("mix.1.1_3x3", "mix", (9, 9), 1),
    )
    assert level.gates[1] == (Core("mix.1.1", 0), Core("mix.1.1_2x3", 0), Core("mix.1.1_3x3", 0))
    assert level.scaled == ("expand.1", "expand.1_2x3", "expand.1_3x3")


def test_a_kernel_first_has_pairs_of_the_other_kind() -> None:
    (level,) = tree_levels("ttn", (3, 2, 2, 3), schedule(4, 9), 2, 2, 1)
    assert [stack.name for stack in level.stacks] == ["expand.1_3x2", "expand.1_2x3"]


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_cores_fill_their_stacks_and_sizes_agree(levels: tuple[Level, ...]) -> None:
    assert [level.number for level in levels] == list(range(1, len(levels) + 1))
    for before, after in itertools.pairwise(levels):
        assert before.sizes_out == after.sizes_in
    for level in levels:
        stacks = {stack.name: stack for stack in level.stacks}
        assert len(stacks) == len(level.stacks)
        cores = [core for core in (*level.cores, *itertools.chain(*level.gates)) if core is not None]
        assert sorted((c.stack, c.place) for c in cores) == sorted(
            (s.name, place) for s in level.stacks for place in range(s.count)
        )
        for parent, core in enumerate(level.cores):
            children = math.prod(level.sizes_out[child] for child in level.children_of(parent))
            if core is None:
                assert children == level.sizes_in[parent]
            else:
                assert stacks[core.stack].shape == (level.sizes_in[parent], children)
        for mixer, gates in zip(level.mixers, level.gates, strict=True):
            for k, core in enumerate(gates):
                left = mixer.first + 2 * k
                assert stacks[core.stack].shape == (level.sizes_out[left] * level.sizes_out[left + 1],) * 2
        assert level.scaled
        assert set(level.scaled) <= set(stacks)


# --- brick walls ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns, blocks, firsts",
    [
        (1, 1, [[0]]),
        (2, 1, [[0, 1]]),
        (3, 2, [[0, 1], [1]]),  # an odd last column is a shifted one
        (3, 1, [[0, 1, 1]]),
        (4, 2, [[0, 1], [0, 1]]),
        (4, 1, [[0, 1, 0, 1]]),
        (5, 2, [[0, 1, 0], [1, 1]]),
        (5, 3, [[0, 1], [0, 1], [1]]),
        (7, 3, [[0, 1, 0], [1, 0], [1, 1]]),
    ],
)
def test_columns_alternate_and_are_dealt_out_to_blocks(columns: int, blocks: int, firsts: list[list[int]]) -> None:
    levels = brickwall_levels((2,) * 6, columns, blocks, 2)
    assert levels[0].expansions == 3
    found = [[mixer.first for mixer in level.mixers] for level in levels]
    found[0].insert(0, 0)  # the first column is the expansions
    assert found == firsts
    names = [[mixer.name for mixer in level.mixers] for level in levels]
    assert names[0] == [f"gate.1.{c}" for c in range(2, len(firsts[0]) + 1)]
    assert names[1:] == [[f"gate.{b}.{c + 1}" for c in range(len(f))] for b, f in enumerate(firsts[1:], start=2)]


def test_an_unpaired_mode_comes_in_whole_and_passes_the_first_column() -> None:
    first = brickwall_levels((2, 2, 2, 2, 3), 2, 1, 2)[0]
    assert first.sizes_in == (1, 1, 3)
    assert first.cores == (Core("gate.1.1", 0), Core("gate.1.1", 1), None)
    assert first.mixers == (Mixer(1, 2, "gate.1.2"),)
    assert [stack.name for stack in first.stacks] == ["gate.1.1", "gate.1.2", "gate.1.2_2x3"]


@pytest.mark.parametrize("columns", range(1, 8))
def test_two_modes_leave_no_block_without_a_gate(columns: int) -> None:
    for blocks in range(1, -(-columns // 2) + 1):
        levels = brickwall_levels((2, 2), columns, blocks, 2)
        assert len(levels) == blocks
        assert all(level.stacks for level in levels)


def test_a_single_mode_has_no_pair() -> None:
    with pytest.raises(ShapeError, match="single mode"):
        brickwall_levels((2,), 2, 1, 2)


# --- chains ---------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(2, 5), min_size=1, max_size=9), rank=st.integers(1, 4))
def test_a_chain_has_a_core_a_mode_and_closed_ends(sizes: list[int], rank: int) -> None:
    stacks = chain_stacks(sizes, rank)
    assert [stack.name for stack in stacks] == [f"chain.{k}" for k in range(len(stacks))]
    assert all(one.shape != other.shape for one, other in itertools.pairwise(stacks))
    cores = [stack.shape for stack in stacks for _ in range(stack.count)]
    assert len(cores) == len(sizes)
    left = 1
    for place, ((rows, columns), size) in enumerate(zip(cores, sizes, strict=True)):
        assert rows == left
        left = columns // size
        assert (left * size, left) == (columns, 1 if place == len(sizes) - 1 else rank)
