"""Weights become modes and come back: exactly, for any shape, radix, order and number of groups."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adntn.errors import ConfigError, ShapeError
from adntn.tensorize import ORDERS, Tensorization, num_digits, tensorize

# --- properties -----------------------------------------------------------------------------------


@st.composite
def tensorizations(draw: st.DrawFn) -> Tensorization:
    """A weight of at most a few thousand entries, cut in any way."""
    groups = draw(st.integers(1, 4))
    shape = [groups * draw(st.integers(1, 9)), draw(st.integers(1, 20))]
    shape += draw(st.lists(st.integers(1, 4), max_size=3))
    radix = draw(st.integers(2, 5))
    order: Any = draw(st.sampled_from([*ORDERS, "shuffled"]))
    kernel = draw(st.sampled_from([None, 2, 3, 5])) if order != "flat" else None
    if order == "shuffled":
        count = tensorize(tuple(shape), radix=radix, groups=groups, kernel_radix=kernel).num_modes
        order = tuple(draw(st.permutations(range(count))))
    return tensorize(tuple(shape), radix=radix, order=order, groups=groups, kernel_radix=kernel)


def weight_of(t: Tensorization) -> torch.Tensor:
    """A weight in which no two entries are equal and none is zero."""
    return torch.arange(1, t.size + 1).reshape(t.shape)


@given(t=tensorizations())
def test_unfold_undoes_fold(t: Tensorization) -> None:
    weight = weight_of(t)
    assert torch.equal(t.unfold(t.fold(weight)), weight)


@given(t=tensorizations())
def test_fold_undoes_unfold_on_the_kept_entries(t: Tensorization) -> None:
    tensor = torch.arange(1, t.groups * math.prod(t.padded_axes) + 1).reshape(t.groups, -1)
    again = t.fold(t.unfold(tensor))
    kept = again != 0
    assert int(kept.sum()) == t.size
    assert torch.equal(again[kept], tensor[kept])


@given(t=tensorizations())
def test_modes_are_the_digits_of_the_axes(t: Tensorization) -> None:
    tree = t.modes[1:] if t.num_modes % 2 else t.modes
    assert len(tree) == t.num_modes
    assert len(t.modes) % 2 == 0
    assert math.prod(t.axes) * t.groups == t.size
    for axis, size in enumerate(t.axes):
        digits = sorted((mode.stride, mode.size) for mode in tree if mode.axis == axis)
        if digits:
            radix = digits[0][1]
            assert digits == [(radix**p, radix) for p in range(len(digits))]
            # A digit more than needed only where a single number still needs a mode to stand on.
            assert len(digits) == num_digits(size, radix) or (t.size == t.groups and len(digits) == 1)
        else:
            assert size == 1


@given(t=tensorizations())
def test_an_odd_number_of_modes_keeps_index_0_of_an_extra_leading_one(t: Tensorization) -> None:
    if t.num_modes % 2:
        assert int(t.positions().max()) < math.prod(mode.size for mode in t.modes[1:])


@given(t=tensorizations())
def test_every_digit_is_worth_its_modes_place(t: Tensorization) -> None:
    # The definition, entry by entry: read the index in digits, put every digit where its mode stands.
    positions = t.positions()
    assert tuple(positions.shape) == t.axes
    indices = list(itertools.product(*(range(n) for n in t.axes)))
    for index in indices[:: 1 + len(indices) // 200]:
        place = 0
        for mode in t.modes:
            place = place * mode.size + index[mode.axis] // mode.stride % mode.size
        assert int(positions[index]) == place


@given(t=tensorizations(), axis=st.integers(0, 2))
def test_a_digit_permutation_reads_an_axis_in_tree_order(t: Tensorization, axis: int) -> None:
    if axis >= len(t.axes):
        return
    digits = [mode for mode in t.modes if mode.axis == axis]
    permutation = t.digit_permutation(axis)
    for index in range(t.padded_axes[axis]):
        place = 0
        for mode in digits:
            place = place * mode.size + index // mode.stride % mode.size
        assert place == (index if permutation is None else permutation[index])


@given(size=st.integers(1, 10**30), radix=st.integers(2, 1000))
def test_digits_are_counted_exactly(size: int, radix: int) -> None:
    digits = num_digits(size, radix)
    assert radix**digits >= size
    assert digits == 0 or radix ** (digits - 1) < size


# --- the orders, by hand --------------------------------------------------------------------------


def spell(t: Tensorization) -> str:
    """The modes as a text: ``o1`` is the most significant digit of ``out``; ``-`` is the extra mode."""
    counts = [sum(mode.axis == axis for mode in t.modes) for axis in range(3)]
    words = []
    for place, mode in enumerate(t.modes):
        extra = t.num_modes % 2
        digits = counts[mode.axis] - (extra and mode.axis == t.modes[0].axis)
        number = digits - round(math.log(mode.stride, mode.size))
        words.append("-" if extra and place == 0 else f"{'oik'[mode.axis]}{number}")
    return " ".join(words)


@pytest.mark.parametrize(
    "order, shape, expected",
    [
        ("blocked", (8, 4), "- o1 o2 o3 i1 i2"),
        ("blocked", (5, 4), "- o1 o2 o3 i1 i2"),
        ("blocked", (4, 4, 3, 3), "o1 o2 i1 i2 k1 k2 k3 k4"),
        ("flat", (8, 4), "- o1 o2 o3 i1 i2"),
        ("flat", (3, 4, 2, 2), "o1 o2 i1 i2 k1 k2"),
        ("paired", (8, 8), "o1 i1 o2 i2 o3 i3"),
        ("paired", (4, 16), "o1 i1 o2 i2 i3 i4"),
        ("paired", (16, 4), "o1 i1 o2 i2 o3 o4"),
        ("paired", (8, 4), "- o1 i1 o2 i2 o3"),
        ("paired", (4, 4, 3, 3), "o1 i1 o2 i2 k1 k2 k3 k4"),
        ("block_paired", (16, 16), "o1 o2 i1 i2 o3 o4 i3 i4"),
        ("block_paired", (4, 64), "o1 o2 i1 i2 i3 i4 i5 i6"),
        # Two odd axes share the one core that belongs to neither.
        ("block_paired", (8, 8), "o1 o2 i1 i2 o3 i3"),
        ("block_paired", (8, 4, 2), "o1 o2 i1 i2 o3 k1"),
        # An odd total: the core of the extra mode has one place, for an axis with an odd number of digits.
        ("block_paired", (8, 16), "- o1 o2 o3 i1 i2 i3 i4"),
        ("block_paired", (16, 8), "- i1 o1 o2 i2 i3 o3 o4"),
        ("block_paired", (4, 4, 2), "- k1 o1 o2 i1 i2"),
        ("block_paired", (8, 8, 2), "- o1 o2 o3 i1 i2 i3 k1"),
        ("block_paired", (16, 16, 3, 3), "o1 o2 i1 i2 o3 o4 i3 i4 k1 k2 k3 k4"),
        ((0, 1, 2, 3), (4, 4), "o1 o2 i1 i2"),
        ((3, 1, 2, 0), (4, 4), "i2 o2 i1 o1"),
        ((4, 3, 2, 1, 0), (4, 3, 2), "- k1 i2 i1 o2 o1"),
        ((3, 0, 4, 1, 2), (8, 4), "- i1 o1 i2 o2 o3"),
    ],
)
def test_where_the_modes_stand(order: Any, shape: tuple[int, ...], expected: str) -> None:
    assert spell(tensorize(shape, order=order)) == expected


def test_a_ravel_that_does_not_line_up_has_one_axis() -> None:
    t = tensorize((3, 5), order="flat")
    assert t.axes == (15,)
    assert not t.splits_axes
    assert t.positions().tolist() == list(range(15))


def test_a_weight_by_hand() -> None:
    # Entry (o, i) of a 4 x 4 weight in paired order stands at the digits o1 i1 o2 i2.
    weight = torch.arange(16).reshape(4, 4)
    tensor = tensorize((4, 4), order="paired").fold(weight)
    assert tensor.reshape(2, 2, 2, 2)[1, 0, 0, 1] == weight[0b10, 0b01]
    assert tensor.tolist() == [[0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]]


def test_padding_stands_at_the_end_of_each_axis() -> None:
    tensor = tensorize((3, 2), order="blocked").fold(torch.ones(3, 2))
    assert tensor.reshape(2, 4, 2)[0].tolist() == [[1, 1], [1, 1], [1, 1], [0, 0]]
    assert tensor.reshape(2, 4, 2)[1].count_nonzero() == 0


def test_groups_are_blocks_of_rows() -> None:
    weight = torch.arange(8).reshape(4, 2)
    t = tensorize((4, 2), groups=2)
    assert t.axes == (2, 2)
    assert t.fold(weight).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    "order, shape, num_modes",
    [
        ("blocked", (512, 512, 3, 3), 22),
        ("flat", (512, 512, 3, 3), 22),
        ("blocked", (384, 256, 3, 3), 21),
        ("flat", (384, 256, 3, 3), 20),
        ("blocked", (4096, 4096), 24),
        ("flat", (4096, 4096), 24),
        ("paired", (512, 512, 3, 3), 22),
        ("blocked", (192, 64, 5, 5), 19),
        ("flat", (192, 64, 5, 5), 19),
        ("blocked", (1, 1), 1),
        ("blocked", (1, 2), 1),
    ],
)
def test_how_many_modes(order: str, shape: tuple[int, ...], num_modes: int) -> None:
    assert tensorize(shape, order=order).num_modes == num_modes


def test_4096_squared_is_flat_in_blocked_order() -> None:
    assert tensorize((4096, 4096), order="blocked") == tensorize((4096, 4096), order="flat")


@pytest.mark.parametrize("order", ORDERS)
def test_a_radix_of_three_fits_a_kernel_of_nine(order: str) -> None:
    t = tensorize((9, 27, 3, 3), radix=3, order=order)
    assert t.num_modes == 7
    assert t.padded_size == t.size


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4, 4, 0), (4, -1), (4,), ()], ids=str)
def test_a_shape_without_entries_or_axes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as caught:
        tensorize(shape)
    assert str(shape) in str(caught.value)
    assert "(out, in" in str(caught.value)


def test_groups_that_do_not_divide_the_rows_are_refused_with_those_that_do() -> None:
    with pytest.raises(ShapeError, match=r"groups=4 does not divide the 6 rows.*\[1, 2, 3, 6\]"):
        tensorize((6, 4), groups=4)


def test_an_unknown_order_is_met_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"order='block_pair'.*Did you mean 'block_paired'\?"):
        tensorize((4, 4), order="block_pair")


@pytest.mark.parametrize("order", [(), (0, 1, 2), (0, 1, 2, 2), (0, 1, 2, 4), (-1, 0, 1, 2), (0, 1, 2, 3, 4)], ids=str)
def test_an_order_that_is_no_permutation_is_refused_with_the_count(order: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"the 4 modes.*\(4, 4\).*0 \.\.\. 3"):
        tensorize((4, 4), order=order)


@pytest.mark.parametrize("shape", [(4, 8), (8, 4), (32,)], ids=str)
def test_fold_refuses_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\(4, 4\)"):
        tensorize((4, 4)).fold(torch.zeros(shape))
