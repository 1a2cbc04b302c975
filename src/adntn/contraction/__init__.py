"""The contraction of a generator's levels: plans and how they run.

Plans (:mod:`.plan`) hold no tensors; :mod:`.segments` is how one segment meets a state, :mod:`.run` all of them.
"""

from __future__ import annotations

from adntn.contraction.plan import Plan, Readout, Segment, Split, plan_level, plan_readout, plan_split
from adntn.contraction.readout import apply
from adntn.contraction.run import Activate, Contraction, Factors, apply_at, in_digit_order
from adntn.contraction.segments import Cores, kron

__all__ = [
    "Activate",
    "Contraction",
    "Cores",
    "Factors",
    "Plan",
    "Readout",
    "Segment",
    "Split",
    "apply",
    "apply_at",
    "in_digit_order",
    "kron",
    "plan_level",
    "plan_readout",
    "plan_split",
]
