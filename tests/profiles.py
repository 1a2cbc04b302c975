"""Machines that do not exist, and what they choose."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from adntn.execution.machine import Profile, Rates, shipped


def constant(value: Any, number: float) -> Any:
    return tuple(constant(each, number) for each in value) if isinstance(value, tuple) else number


def machine(*, call: float, rate: float, bandwidth: float) -> Profile:
    """One on which every call takes as long, and all arithmetic is as fast."""
    rates = Rates(**{f.name: constant(getattr(shipped().float32, f.name), rate) for f in fields(Rates)})
    calls = ("view", "move", "product", "item", "convolution", "convolutions", "making", "making_training")
    moved = {name: constant(getattr(shipped(), name), bandwidth) for name in ("read", "write")}
    return replace(shipped(), **dict.fromkeys(calls, call), autograd=3.0, float32=rates, bfloat16=rates, **moved)


#: Only the arithmetic counts.
FREE_CALLS = machine(call=1e-18, rate=1e9, bandwidth=1e30)
#: Only the calls count.
DEAR_CALLS = machine(call=1.0, rate=1e18, bandwidth=1e30)
