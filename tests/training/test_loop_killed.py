"""A run on real data that is killed ten times loses nothing: the last word of what the loop promises."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_cases import same, table

SCRIPT = Path(__file__).with_name("killed.py")


def start(folder: Path, epochs: int, number: int, moment: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(folder), str(epochs), str(int(number)), moment]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def moments(count: int, seed: int) -> list[str]:
    """Ends inside steps, inside writes of a checkpoint and before its renaming, and at any other time."""
    chance = random.Random(seed)
    fixed = ["step:4", "write:1:0.5", "write:2:1", "step:13", "write:1:1"]
    while len(fixed) < count:
        kind = chance.choice(["wait", "step", "write"])
        fixed.append(
            {
                "wait": f"wait:{chance.uniform(0, 0.4):.3f}",
                "step": f"step:{chance.randrange(1, 13)}",
                "write": f"write:1:{chance.random():.2f}",
            }[kind]
        )
    chance.shuffle(fixed)
    return fixed


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, ends, epochs", [(signal.SIGKILL, 10, 5), (signal.SIGTERM, 5, 12)], ids=["ten SIGKILL", "five SIGTERM"]
)
def test_ends_lose_nothing(tmp_path: Path, number: signal.Signals, ends: int, epochs: int) -> None:
    whole = start(tmp_path / "whole", epochs, signal.SIGTERM, "none")
    assert whole.returncode == 0, whole.stderr
    ended = 0
    for moment in moments(ends, seed=5):
        result = start(tmp_path / "killed", epochs, number, moment)
        if number == signal.SIGKILL:
            assert result.returncode in (-signal.SIGKILL, 0), result.stderr
        else:
            assert result.returncode == 0 or "stopped: training ended after step" in result.stderr, result.stderr
        ended += result.returncode != 0
    assert ended == ends, "some of the moments never came: the run was over before"
    assert not (tmp_path / "killed" / "final.pt").exists()
    last = start(tmp_path / "killed", epochs, number, "none")
    assert last.returncode == 0, last.stderr
    one, other = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "killed"))
    assert same(one, other)
    assert table(tmp_path / "whole" / "run") == table(tmp_path / "killed" / "run")
