"""Losses on what a model gives: logits, and outputs of named modules, beside labels or a teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.errors import ShapeError
from adntn.losses.shapes import same_shape
from adntn.options import check_number

__all__ = ["attention_transfer", "calibration", "cross_entropy", "distillation", "feature_matching"]

# What is smaller counts as zero: there is no division by nothing where an output is zero throughout.
_TINY = 1e-12


def cross_entropy(
    logits: Tensor,  # shape: (batch, classes)
    labels: Tensor,  # shape: (batch,), whole numbers
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the cross-entropy, ``-(1/B) sum_b sum_c y_bc log softmax(z_b)_c`` in nats (Eq. 29).

    With label smoothing, ``y_bc = (1 - s) [c is the label] + s / classes``. It is torch's own
    :func:`torch.nn.functional.cross_entropy`, which has more options.

    Args:
        logits: of the model.
        labels: the class of each row.
        label_smoothing: s, at least 0 and below 1.

    Raises:
        ShapeError: there is not one label a row of logits.
        ConfigError: ``label_smoothing`` is out of range.
    """
    check_number("label_smoothing", label_smoothing, least=0, below=1)
    _check_labels(logits, labels)
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def distillation(
    logits: Tensor,  # shape: (*batch, classes)
    teacher: Tensor,  # shape: (*batch, classes), logits
    *,
    temperature: float = 1.0,
    delta: float = 1e-8,
) -> Tensor:
    """Return the Kullback-Leibler divergence from a teacher, ``sum p_T log((p_T + delta) / (p + delta))`` (Eq. 34).

    The mean over the batch, times ``temperature^2``, so that gradients keep their size (Hinton et al. 2015). No
    gradient goes to the teacher.

    Args:
        logits: of the compressed model.
        teacher: logits of the dense one.
        temperature: by which both are divided before the softmax.
        delta: keeps the logarithm finite.

    Raises:
        ShapeError: the shapes differ.
        ConfigError: ``temperature`` or ``delta`` is not positive.
    """
    same_shape(logits, teacher)
    check_number("temperature", temperature, above=0)
    check_number("delta", delta, above=0)
    # A small delta would vanish beside a probability in half precision.
    work = torch.promote_types(logits.dtype, torch.float32)
    student = (logits.to(work) / temperature).softmax(-1)
    wanted = (teacher.detach().to(work) / temperature).softmax(-1)
    divergence = (wanted * ((wanted + delta).log() - (student + delta).log())).sum(-1)
    return divergence.mean() * temperature**2


def feature_matching(features: Tensor, teacher: Tensor, *, normalize: bool = False) -> Tensor:
    """Return the mean squared difference of an output and the teacher's, ``mean (f - f_T)^2``.

    The hint of Romero et al. (2015, FitNets, arXiv:1412.6550), as a mean and without their regressor: nothing is
    trained that the model would not keep, so both have to be of one shape. No gradient goes to the teacher.

    Args:
        features: of the compressed model, of any shape.
        teacher: of the same shape.
        normalize: whether to divide by ``mean f_T^2``: outputs of any scale then count alike, and one of zeros costs 1.

    Raises:
        ShapeError: the shapes differ.
    """
    if features.shape != teacher.shape:
        raise ShapeError(
            f"features of shape {tuple(features.shape)} and a teacher's of shape {tuple(teacher.shape)} cannot be "
            "matched number by number; name outputs that are equally wide in both models, or use attention_transfer, "
            "for which only the places of a map have to be as many."
        )
    features, teacher = _at_least_float32(features), _at_least_float32(teacher.detach())
    distance = (features - teacher).square().mean()
    return distance / teacher.square().mean().clamp_min(_TINY**2) if normalize else distance


def attention_transfer(
    features: Tensor,  # shape: (batch, channels, *space)
    teacher: Tensor,  # shape: (batch, any channels, *space)
    *,
    power: float = 2.0,
) -> Tensor:
    """Return how far a model looks elsewhere than its teacher, ``(1/B) sum_b ||q_b - q_Tb||_2^2``, between 0 and 2.

    ``q = Q / ||Q||_2`` with the map of energies ``Q = sum_c |f_c|^p``, one number for each place (Zagoruyko & Komodakis
    2017, arXiv:1612.03928, Eq. 2, with the square of the norm as in their code, and no factor beta / 2). No gradient
    goes to the teacher.

    Args:
        features: of the compressed model, in 1, 2, 3 ... dimensions of space.
        teacher: with as many places; channels may be more or fewer.
        power: p, at least 1.

    Raises:
        ShapeError: batch or places differ, or there is no dimension of space.
        ConfigError: ``power`` is below 1.
    """
    check_number("power", power, least=1)
    if features.ndim < 3 or features.ndim != teacher.ndim or _places(features) != _places(teacher):
        raise ShapeError(
            f"attention maps need outputs (batch, channels, *space) of equal batch and space; these have the shapes "
            f"{tuple(features.shape)} and {tuple(teacher.shape)}."
        )
    ours, theirs = (_attention(f, power) for f in (features, teacher.detach()))
    return (ours - theirs).square().sum(1).mean()


def _places(features: Tensor) -> tuple[int, ...]:
    return (features.shape[0], *features.shape[2:])


def _attention(features: Tensor, power: float) -> Tensor:  # shape: (batch, channels, *space) -> (batch, places)
    return F.normalize(_at_least_float32(features).abs().pow(power).sum(1).flatten(1), eps=_TINY)


def calibration(
    logits: Tensor,  # shape: (batch, classes)
    labels: Tensor,  # shape: (batch,), whole numbers
    *,
    width: float = 0.4,
) -> Tensor:
    """Return how far confidences are from the rate of being right, in a batch: the squared MMCE.

    ``(1/B^2) sum_ij (a_i - r_i) (a_j - r_j) exp(-|r_i - r_j| / width)``, with the confidence ``r = max_c softmax(z)_c``
    and ``a`` 1 where that class is the label, else 0: the maximum mean calibration error of Kumar, Sarawagi & Jain
    (ICML 2018), squared, so that its gradient is finite at zero too. It is at least 0. ``a`` has no gradient:
    confidences move, decisions do not, so it goes beside a cross-entropy.

    Args:
        logits: of the model.
        labels: the class of each row.
        width: of the kernel, in units of confidence.

    Raises:
        ShapeError: there is not one label a row of logits.
        ConfigError: ``width`` is not positive.
    """
    check_number("width", width, above=0)
    _check_labels(logits, labels)
    confidence, choice = _at_least_float32(logits).softmax(1).max(1)
    gap = (choice == labels).to(confidence.dtype) - confidence
    kernel = (-(confidence.unsqueeze(0) - confidence.unsqueeze(1)).abs() / width).exp()
    return (gap.unsqueeze(0) * gap.unsqueeze(1) * kernel).mean()


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)} do not go together; give "
            "logits (batch, classes) and one label a row."
        )


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
