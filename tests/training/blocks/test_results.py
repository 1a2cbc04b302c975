from __future__ import annotations

from pathlib import Path

import pytest
import torch
from block_models import compressed, teacher

from adntn.errors import CheckpointError
from adntn.training.blocks import BlockFit, Done, find_blocks, fingerprint, keep, kept, put

TENSORS = {"root": torch.arange(3.0), "half": torch.ones(2, 2, dtype=torch.bfloat16)}


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    done = Done.of("a.b", TENSORS, 1.0, 0.5, 7, 3.0)
    assert kept(tmp_path, "a.b", "mark") is None
    keep(tmp_path, done, "mark")
    assert kept(tmp_path, "a.b", "mark") == done
    assert kept(tmp_path, "a.b", "another") is None
    assert [each.name for each in tmp_path.iterdir()] == ["a.b.safetensors"]


@pytest.mark.parametrize("one, other", [("a/b", "a_b"), ("Block", "block"), ("x" * 300, "x" * 299), ("é", "è")])
def test_names_that_look_alike_have_files_of_their_own(one: str, other: str, tmp_path: Path) -> None:
    for number, name in enumerate((one, other)):
        keep(tmp_path, Done.of(name, TENSORS, 1.0, 0.0, number), "mark")
    files = {each.name.lower() for each in tmp_path.iterdir()}
    assert len(files) == 2
    assert [kept(tmp_path, name, "mark").steps for name in (one, other)] == [0, 1]  # type: ignore[union-attr]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write"):
        keep(tmp_path / "no", Done.of("a", TENSORS, 1.0, 0.0, 1), "mark")


def test_a_fingerprint_is_of_start_options_and_seed() -> None:
    how = BlockFit(objective="outputs")
    (block,) = find_blocks(compressed(teacher(), ["head"]), how, ["head"], [])
    mark = fingerprint(block, how, 0)
    assert mark == fingerprint(block, BlockFit(), 0)
    assert mark != fingerprint(block, BlockFit(steps=1), 0)
    assert mark != fingerprint(block, how, 1)
    put(block, how, Done.of("head", {n: p + 1 for n, p in block.parameters(how).items()}, 1.0, 0.0, 1))
    assert mark != fingerprint(block, how, 0)
