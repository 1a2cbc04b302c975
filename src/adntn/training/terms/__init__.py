"""The terms of a training run's objective: their options, and how each is worked out in a step."""

from __future__ import annotations

from adntn.training.terms.base import Bound, Step, Term
from adntn.training.terms.generators import ActivationScale, GateSparsity, Hardware, Isometry, Quantization
from adntn.training.terms.outputs import AttentionTransfer, Calibration, CrossEntropy, Distillation, FeatureMatching
from adntn.training.terms.weights import L1, Frobenius, Huber, SampledFrobenius

__all__ = [
    "L1",
    "ActivationScale",
    "AttentionTransfer",
    "Bound",
    "Calibration",
    "CrossEntropy",
    "Distillation",
    "FeatureMatching",
    "Frobenius",
    "GateSparsity",
    "Hardware",
    "Huber",
    "Isometry",
    "Quantization",
    "SampledFrobenius",
    "Step",
    "Term",
]
