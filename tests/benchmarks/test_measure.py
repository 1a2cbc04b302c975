"""Seconds and bytes against calls whose cost is known."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from benchmarks.speed import machine
from benchmarks.speed.measure import LEAST_ROUNDS, MOST_ROUNDS, Clock, Step, in_turns, peak_bytes, stored_bytes, timing

MB = 1_000_000


def test_peak_counts_what_is_held_at_a_time_without_what_is_returned() -> None:
    def work() -> tuple[Tensor]:
        a = torch.zeros(MB, dtype=torch.uint8)
        b = torch.zeros(2 * MB, dtype=torch.uint8)
        del a
        c = torch.zeros(3 * MB, dtype=torch.uint8)  # the peak: b and c
        del b, c
        return (torch.ones(4 * MB, dtype=torch.uint8),)

    peak, seconds = peak_bytes(work)
    assert peak == pytest.approx(5 * MB, abs=10_000)
    assert 0 < seconds < 10


def test_what_is_returned_is_left_out_even_at_the_address_of_something_before() -> None:
    def work() -> tuple[Tensor, ...]:
        first = torch.ones(MB, dtype=torch.uint8)
        del first  # its address is free for the next of its size
        return (torch.ones(MB, dtype=torch.uint8),)

    assert peak_bytes(work)[0] == pytest.approx(MB, abs=10_000)


def test_turns_are_taken_by_all_variants_and_warm_ones_are_called_once_more() -> None:
    calls: list[str] = []
    clocks = {name: Clock(lambda name=name: calls.append(name)) for name in "ab"}  # type: ignore[misc]
    timings = in_turns(clocks, {"a": 1e-3, "b": 1.0}, budget=0.0)
    # Two calls in each turn of the quick one, after one that is not timed; three rounds although there is no time.
    rounds = ["".join(calls[start : start + 4]) for start in range(0, len(calls), 4)]
    assert len(rounds) == LEAST_ROUNDS
    assert set(rounds) <= {"aaab", "baaa"}
    assert [(t.rounds, t.calls) for t in timings.values()] == [(3, 2), (3, 1)]


def test_every_round_has_an_order_of_its_own() -> None:
    calls: list[str] = []
    clocks = {name: Clock(lambda name=name: calls.append(name)) for name in "abcd"}  # type: ignore[misc]
    in_turns(clocks, dict.fromkeys("abcd", 1.0), budget=40.0)
    rounds = ["".join(calls[start : start + 4]) for start in range(0, len(calls), 4)]
    assert {"".join(sorted(each)) for each in rounds} == {"abcd"}
    assert len(set(rounds)) > 3


def test_rounds_fill_the_budget_but_there_is_a_most() -> None:
    def rounds(budget: float) -> int:
        return in_turns({"a": Clock(lambda: None)}, {"a": 0.1}, budget)["a"].rounds

    assert rounds(1.05) == 10
    assert rounds(1e9) == MOST_ROUNDS


def test_a_timing_has_median_and_quartiles() -> None:
    result = timing([5.0, 1.0, 3.0, 2.0, 4.0], 7)
    assert (result.low, result.median, result.high, result.rounds, result.calls) == (2.0, 3.0, 4.0, 5, 7)


def test_a_step_is_torchs_own() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    x, upstream = torch.randn(2, 5, requires_grad=True), torch.randn(2, 3)
    step = Step(layer, x, upstream)
    # The state that was made beforehand is of one step on zeros, which moves nothing but by weight decay.
    copy = nn.Linear(5, 3)
    copy.load_state_dict(layer.state_dict())
    other = torch.optim.AdamW(copy.parameters(), lr=1e-5)
    for parameter in copy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    other.step()
    copy.load_state_dict(layer.state_dict())
    other.zero_grad()
    copy(x.detach()).backward(upstream)
    other.step()
    y, x_grad = step()
    assert y.shape == (2, 3)
    torch.testing.assert_close(x_grad, upstream @ step_weight_before(layer, copy))
    for mine, theirs in zip(layer.parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    numbers = sum(p.numel() for p in layer.parameters())
    assert stored_bytes(step.state()) == 4 * (2 * numbers + 2)  # two moments, and a count a parameter


def step_weight_before(layer: nn.Linear, copy: nn.Linear) -> Tensor:
    # AdamW's step at this rate is too small to tell the weights before and after apart.
    return (layer.weight + copy.weight).detach() / 2


def test_memory_that_is_shared_is_counted_once() -> None:
    a = torch.zeros(10)
    assert stored_bytes([a, a[:5], torch.zeros(3)]) == 52


def test_the_machine_is_described_and_compared() -> None:
    here = machine.describe(3)
    assert here["threads"] == 3
    assert here["torch"] == torch.__version__
    assert machine.same_machine(here, {**here, "date": "another"}) is None
    assert machine.same_machine(here, {**here, "threads": 2}) == "threads: 3 and 2"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="addresses are bounded on Linux")
def test_too_large_an_allocation_fails_with_an_error_that_can_be_caught() -> None:
    code = (
        "import torch\nfrom benchmarks.speed.machine import limit_memory\nlimit_memory(1)\n"
        "torch.empty(10**8, dtype=torch.uint8)\n"
        "try:\n    torch.empty(3 * 2**30, dtype=torch.uint8)\nexcept RuntimeError as error:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
