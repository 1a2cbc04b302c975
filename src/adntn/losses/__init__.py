"""Losses of the paper's Section 5 and Eq. 19, by what they look at. Each returns a scalar with a gradient.

- :mod:`.weights`: a generated weight beside a target, Eqs. 28, 32 and 33
- :mod:`.outputs`: logits and named outputs beside labels or a teacher's, Eqs. 29 and 34
- :mod:`.cores`: root, cores and gates alone, Eq. 19 and the penalties that Eq. 35 leaves open
- :mod:`.costs`: the time that the planner predicts
- :class:`WeightedSum`: all of these in one training step, Eqs. 31 and 35

:class:`adntn.training.objective.Objective` puts them together for a model and its teacher, from a table of options.
"""

from __future__ import annotations

from adntn.losses.cores import activation_scale, gate_sparsity, isometry, quantization_penalty
from adntn.losses.costs import predicted_seconds, predicted_time
from adntn.losses.outputs import attention_transfer, calibration, cross_entropy, distillation, feature_matching
from adntn.losses.weighted import WeightedSum
from adntn.losses.weights import frobenius, huber, l1, sampled_frobenius

__all__ = [
    "WeightedSum",
    "activation_scale",
    "attention_transfer",
    "calibration",
    "cross_entropy",
    "distillation",
    "feature_matching",
    "frobenius",
    "gate_sparsity",
    "huber",
    "isometry",
    "l1",
    "predicted_seconds",
    "predicted_time",
    "quantization_penalty",
    "sampled_frobenius",
]
