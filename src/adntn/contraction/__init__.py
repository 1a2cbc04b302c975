"""The contraction of a generator's levels: plans (:mod:`.plan`, no tensors) and how they run (:mod:`.run`)."""

from __future__ import annotations

from adntn.contraction.plan import Plan, Segment, Split, plan_level, plan_readout, plan_split
from adntn.contraction.run import Activate, Contraction, Cores, Factors, apply, kron

__all__ = [
    "Activate",
    "Contraction",
    "Cores",
    "Factors",
    "Plan",
    "Segment",
    "Split",
    "apply",
    "kron",
    "plan_level",
    "plan_readout",
    "plan_split",
]
