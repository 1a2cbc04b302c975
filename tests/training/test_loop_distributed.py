"""One model that two processes train, as torchrun starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import same, table

from adntn.training.distributed import agree, share, total

SCRIPT = Path(__file__).with_name("spread.py")


def start(folder: Path, what: str, processes: int) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    command = [sys.executable, *(torchrun if processes > 1 else ()), str(SCRIPT), str(folder), what]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=200)


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((folder / "fitted.json").read_text()), torch.load(folder / "final.pt", weights_only=True)


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to_with_or_without_an_interruption(tmp_path: Path) -> None:
    one = start(tmp_path / "one", "whole", 1)
    assert one.returncode == 0, one.stderr
    two = start(tmp_path / "two", "whole", 2)
    assert two.returncode == 0, two.stderr
    (alone, weights), (shared, others) = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-5)
    assert shared["steps"] == alone["steps"]
    assert shared["curve"] == pytest.approx(alone["curve"], abs=1 / 30)
    assert shared["validation_loss"] == pytest.approx(alone["validation_loss"], rel=1e-2)
    assert alone["bytes_per_step"] == 0
    assert shared["bytes_per_step"] == sum(4 * weight.numel() for weight in weights.values())

    # SIGTERM to one of them ends both, after the same step.
    stopped = start(tmp_path / "stopped", "stopped", 2)
    assert stopped.returncode != 0
    said = [(tmp_path / "stopped" / f"error{rank}.txt").read_text() for rank in range(2)]
    assert all("TrainingStopped: training ended after step 8 of 20" in each for each in said)
    resumed = start(tmp_path / "stopped", "whole", 2)
    assert resumed.returncode == 0, resumed.stderr
    assert same(outcome(tmp_path / "stopped")[1], others)
    assert table(tmp_path / "stopped" / "run") == table(tmp_path / "two" / "run")

    # The first of them can train alone while the other waits.
    first = start(tmp_path / "first", "first", 2)
    assert first.returncode == 0, first.stderr
    assert same(outcome(tmp_path / "first")[1], weights)


@pytest.mark.slow
def test_both_processes_hear_of_a_full_disk(tmp_path: Path) -> None:
    full = start(tmp_path / "run", "full", 2)
    assert full.returncode != 0
    said = [(tmp_path / "run" / f"error{rank}.txt").read_text() for rank in range(2)]
    assert "CheckpointError: cannot write" in said[0]
    assert "No space left" in said[0]
    assert "another process could not write" in said[1]


@pytest.mark.slow
def test_a_step_with_parameters_spread_by_fsdp2_is_the_same_step(tmp_path: Path) -> None:
    for processes in (1, 2):
        ended = start(tmp_path / str(processes), "sharded", processes)
        assert ended.returncode == 0, ended.stderr
    one, two = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("1", "2"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-5)


def test_with_one_process_nothing_is_exchanged() -> None:
    assert share() == (0, 1)
    assert agree([True, False], torch.device("cpu")) == [True, False]
    assert total(torch.tensor([2.0])).tolist() == [2.0]
