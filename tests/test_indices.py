"""Which entries a user's index means, as torch's own indexing has it, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adntn import AdntnError, EntryIndexError, ShapeError
from adntn.indices import entries_of_rows, entry_index, ravel, row_index

W = torch.arange(3 * 5 * 2).view(3, 5, 2)


def taken(index: Any) -> Tensor:
    return W[entry_index(index, W.shape).unbind(-1)]


def test_columns_and_tensors_mean_what_torchs_indexing_does() -> None:
    columns = torch.stack([torch.randint(-size, size, (4, 2)) for size in W.shape], -1)
    expected = W[columns.unbind(-1)]
    assert torch.equal(taken(columns), expected)
    assert torch.equal(taken(columns.unbind(-1)), expected)
    assert torch.equal(taken(columns.int()), expected)
    assert entry_index(columns, W.shape).min() >= 0
    assert torch.equal(taken(torch.tensor([2, -1, 0])), W[2, -1, 0])


def test_tensors_and_numbers_broadcast() -> None:
    rows, columns = torch.tensor([[0], [-1]]), torch.tensor([3, 1, -5])
    assert torch.equal(taken((rows, columns, 1)), W[rows, columns, 1])
    assert torch.equal(taken([0, -1, torch.tensor(1)]), W[0, -1, 1])


def test_nothing_asked_for_is_nothing() -> None:
    assert entry_index(torch.zeros(0, 3, dtype=torch.int64), W.shape).shape == (0, 3)
    assert row_index(torch.zeros(2, 0, dtype=torch.int64), 3).shape == (2, 0)
    assert entries_of_rows(torch.zeros(0, dtype=torch.int64), (3, 5, 2)).shape == (0, 3)


def test_rows_are_all_their_entries() -> None:
    index = torch.tensor([2, 0, 2])
    assert torch.equal(taken(entries_of_rows(index, tuple(W.shape))).view(3, 5, 2), W[index])
    assert torch.equal(row_index(-1, 3), torch.tensor(2))


def test_ravel_is_row_major() -> None:
    index = torch.stack([torch.randint(size, (20,)) for size in W.shape], -1)
    assert torch.equal(ravel(index.unbind(-1), W.shape), W[index.unbind(-1)])


@pytest.mark.parametrize(
    "index, error, said",
    [
        (torch.tensor([[0, 5, 0]]), EntryIndexError, "index 5 is out of range for axis 1 of the weight, of size 5"),
        (torch.tensor([[0, 0, -3]]), EntryIndexError, "index -3 is out of range for axis 2"),
        ((torch.tensor([0, 3]), 0, 0), EntryIndexError, "index 3 is out of range for axis 0"),
        (torch.tensor([[0.0, 1.0, 0.0]]), EntryIndexError, "torch.float32"),
        (torch.ones(1, 3, dtype=torch.bool), EntryIndexError, "torch.bool"),
        ((0, 1.5, 0), EntryIndexError, "torch.float32"),
        (torch.tensor([[0, 1]]), ShapeError, r"shape \(1, 2\) .* \(3, 5, 2\); its last dimension needs 3"),
        (torch.tensor(1), ShapeError, r"shape \(\)"),
        ((torch.tensor([0]), torch.tensor([1])), ShapeError, "2 tensors .* 3 of them"),
        ((torch.zeros(2).long(), torch.zeros(3).long(), 0), ShapeError, r"\[\(2,\), \(3,\), \(\)\], do not broadcast"),
    ],
)
def test_what_names_no_entry_is_refused_with_what_was_given(index: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        entry_index(index, (3, 5, 2))
    assert isinstance(caught.value, AdntnError)
    assert isinstance(caught.value, IndexError) == (error is EntryIndexError)
