"""The contraction of a generator's levels: plans and how they run.

Plans (:mod:`.plan`) hold no tensors; :mod:`.segments` is how one segment meets a state, :mod:`.run` all of them,
:mod:`.on_demand` all of them at single entries and rows, and :mod:`.sides` those between a cut and an axis, on the
states of a layer that runs.
"""

from __future__ import annotations

from adntn.contraction.forest import Forest
from adntn.contraction.kronecker import KroneckerPlan
from adntn.contraction.on_demand import entries, read_at, rows, rows_from_factors
from adntn.contraction.plan import Readout, Split, plan_level, plan_readout, plan_split
from adntn.contraction.readout import apply
from adntn.contraction.run import Activate, Contraction, Factors, apply_at, in_digit_order
from adntn.contraction.segments import Cores, kron
from adntn.contraction.sides import Side
from adntn.contraction.steps import Axes, Plan, Segment

__all__ = [
    "Activate",
    "Axes",
    "Contraction",
    "Cores",
    "Factors",
    "Forest",
    "KroneckerPlan",
    "Plan",
    "Readout",
    "Segment",
    "Side",
    "Split",
    "apply",
    "apply_at",
    "entries",
    "in_digit_order",
    "kron",
    "plan_level",
    "plan_readout",
    "plan_split",
    "read_at",
    "rows",
    "rows_from_factors",
]
