"""What all tests share: one seed each, and property tests that draw the same examples on every machine."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings

from adntn.activations import parameter_shapes, registry
from adntn.contraction import circuit, plan, readout, segments

# By arithmetic alone, or the ways that layers take would depend on the machine. Processes that tests start have it too.
os.environ["ADNTN_MACHINE"] = "none"

settings.register_profile("adntn", deadline=None, derandomize=True, max_examples=60)
settings.register_profile("thorough", deadline=None, max_examples=2000)  # pytest --hypothesis-profile=thorough
settings.load_profile("adntn")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def few_objects() -> Iterator[None]:
    """Keep what stands in memory already out of the search for optimisers, or it takes most of their time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def own_registry() -> Iterator[None]:
    """Forget the activations that the test registers."""
    before = dict(registry._REGISTRY)
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)
    parameter_shapes.cache_clear()


@pytest.fixture
def no_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def plan_with_bounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Let plans be cut into segments of other sizes, and large products into blocks that small ones have too."""

    def clear() -> None:
        for kept in (plan.plan_level, plan.plan_readout, plan.plan_split):
            kept.cache_clear()

    def bound(outputs: int) -> None:
        monkeypatch.setattr(circuit, "MAX_OUTPUTS", outputs)
        monkeypatch.setattr(plan, "_SMALL_STATE", outputs)
        monkeypatch.setattr(segments, "_BLOCK", 4 * outputs)
        monkeypatch.setattr(readout, "_PIECE", 4 * outputs)
        clear()

    yield bound
    clear()
