"""Block-wise fits on Ray. ``make test-ray`` installs it and sets ADNTN_REQUIRE_RAY, with which nothing is skipped."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from block_models import compressed, same, state, teacher, values
from torch import nn

from adntn.training.stages.blocks import Blocks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None and "ADNTN_REQUIRE_RAY" not in os.environ,
        reason="Ray is not installed; `make test-ray` installs it",
    ),
]

SHORT: dict[str, Any] = {"steps": 12, "batch_size": 16, "calibration": 24, "polish": 0, "recalibrate_norms": False}
LAYERS = ["first.2", "second.1", "head"]  # one more than workers


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def dense() -> nn.Module:
    return teacher()


def fitted(dense: nn.Module, folder: Path, **options: Any) -> tuple[dict[str, Any], Any]:
    folder.mkdir()
    model = compressed(dense, LAYERS)
    outcome = Blocks(**SHORT, **options).run(state(model, dense, folder))
    return outcome, values(model)


@pytest.mark.parametrize("objective", ["weight", "outputs", "task"])
def test_two_workers_come_to_the_same_bits(objective: str, cluster: Any, dense: nn.Module, tmp_path: Path) -> None:
    _, alone = fitted(dense, tmp_path / "alone", objective=objective, workers=1)
    outcome, together = fitted(dense, tmp_path / "ray", objective=objective, engine="ray", workers=2)
    assert (outcome["engine"], outcome["workers"]) == ("ray", 2)
    assert same(alone, together)
    assert cluster.is_initialized()  # it was not this stage that started it


def test_workers_are_as_many_as_the_cluster_has(cluster: Any, dense: nn.Module, tmp_path: Path) -> None:
    outcome, _ = fitted(dense, tmp_path / "ray", objective="weight", engine="ray")
    assert outcome["workers"] == 2


def test_a_cluster_is_started_and_ended_where_there_is_none(dense: nn.Module, tmp_path: Path) -> None:
    import ray

    ray.shutdown()
    outcome, _ = fitted(dense, tmp_path / "ray", objective="weight", engine="ray", workers=2)
    assert outcome["workers"] == 2
    assert not ray.is_initialized()
