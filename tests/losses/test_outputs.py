"""Losses on logits and features against values worked by hand, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adntn import ConfigError, ShapeError
from adntn.losses import attention_transfer, calibration, cross_entropy, distillation, feature_matching

LOG3 = math.log(3.0)


def test_cross_entropy_with_smoothed_labels_is_that_worked_by_hand() -> None:
    logits = torch.tensor([[LOG3, 0.0], [0.0, LOG3]], dtype=torch.float64)  # probabilities 3/4, 1/4 and 1/4, 3/4
    labels = torch.tensor([0, 0])
    assert float(cross_entropy(logits, labels)) == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    smooth = (0.9 * math.log(4 / 3) + 0.1 * math.log(4) + 0.9 * math.log(4) + 0.1 * math.log(4 / 3)) / 2
    assert float(cross_entropy(logits, labels, label_smoothing=0.2)) == pytest.approx(smooth)


def test_distillation_is_the_divergence_worked_by_hand() -> None:
    teacher = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)  # probabilities 3/4, 1/4
    logits = torch.tensor([[0.0, 0.0]], dtype=torch.float64)  # 1/2, 1/2
    delta = 0.25
    expected = 0.75 * math.log(1.0 / 0.75) + 0.25 * math.log(0.5 / 0.75)
    assert float(distillation(logits, teacher, delta=delta)) == pytest.approx(expected, rel=1e-12)
    assert float(distillation(teacher, teacher, delta=delta)) == 0.0


def test_distillation_with_a_small_delta_is_torchs_divergence() -> None:
    logits, teacher = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    expected = F.kl_div(
        (logits / 2).log_softmax(-1), (teacher / 2).log_softmax(-1), log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(distillation(logits, teacher, temperature=2.0, delta=1e-14), 4 * expected)


def test_distillation_teaches_only_the_student_and_stays_finite() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = distillation(logits, teacher)
    loss.backward()
    assert loss.isfinite()
    assert teacher.grad is None
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_distillation_in_half_precision_is_worked_out_in_full() -> None:
    logits, teacher = torch.randn(5, 7).bfloat16(), torch.randn(5, 7).bfloat16()
    assert torch.equal(distillation(logits, teacher), distillation(logits.float(), teacher.float()))


def test_feature_matching_is_the_mean_square_worked_by_hand() -> None:
    features, teacher = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[1.0, 0.0], [4.0, 2.0]])
    assert float(feature_matching(features, teacher)) == (0 + 4 + 1 + 9) / 4
    assert float(feature_matching(features, teacher, normalize=True)) == pytest.approx(14 / (1 + 16 + 4))
    assert float(feature_matching(100 * features, 100 * teacher, normalize=True)) == pytest.approx(14 / 21)
    assert float(feature_matching(0 * teacher, teacher, normalize=True)) == pytest.approx(1.0)
    assert float(feature_matching(0 * teacher, 0 * teacher, normalize=True)) == 0.0


def test_attention_transfer_is_the_distance_of_energy_maps_worked_by_hand() -> None:
    # Energies 9 + 16 = 25 at the first place and 0 at the second: the map (1, 0).
    features = torch.tensor([[[3.0, 0.0], [4.0, 0.0]]])
    teacher = torch.tensor([[[1.0, 1.0]]])  # one channel only: energies 1, 1, so (1, 1) / sqrt(2)
    expected = (1 - 0.5**0.5) ** 2 + 0.5
    assert float(attention_transfer(features, teacher)) == pytest.approx(expected)
    assert float(attention_transfer(1e-5 * features, 1e5 * teacher)) == pytest.approx(expected)
    # Absolute values 7 and 1 + 1 against 3 and 4: (7, 2) / sqrt(53) and (3, 4) / 5.
    one, other = torch.tensor([[[3.0, 1.0], [-4.0, 1.0]]]), torch.tensor([[[-3.0, 4.0]]])
    expected = (7 / 53**0.5 - 0.6) ** 2 + (2 / 53**0.5 - 0.8) ** 2
    assert float(attention_transfer(one, other, power=1.0)) == pytest.approx(expected)
    apart = torch.tensor([[[0.0, 1.0]]])
    assert float(attention_transfer(features, apart)) == 2.0
    both = torch.cat([torch.tensor([[[1.0, 0.0]]]), apart])
    assert float(attention_transfer(both, torch.cat([apart, apart]).repeat(1, 3, 1))) == (2 + 0) / 2


@pytest.mark.parametrize("space", [(7,), (3, 5), (2, 3, 4)])
def test_maps_of_any_dimension_match_themselves_and_teach_only_the_student(space: tuple[int, ...]) -> None:
    features = torch.randn(2, 3, *space, requires_grad=True)
    teacher = torch.randn(2, 5, *space, requires_grad=True)
    assert float(attention_transfer(features, features).detach()) == 0.0
    attention_transfer(features, teacher).backward()
    assert teacher.grad is None
    assert features.grad is not None
    assert features.grad.abs().max() > 0
    zeros = torch.zeros(2, 3, *space, requires_grad=True)
    attention_transfer(zeros, teacher).backward()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()


def test_calibration_is_the_kernels_mean_worked_by_hand() -> None:
    # Confidences 3/4, right, and 1/2, wrong (of equal ones the first is chosen): gaps 1/4 and -1/2.
    logits = torch.tensor([[LOG3, 0.0], [0.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    across = math.exp(-0.25 / 0.4)
    expected = (0.25**2 + 0.5**2 - 2 * 0.25 * 0.5 * across) / 4
    assert float(calibration(logits, labels)) == pytest.approx(expected, rel=1e-12)
    wide = (0.25**2 + 0.5**2 - 2 * 0.25 * 0.5 * math.exp(-0.25 / 2)) / 4
    assert float(calibration(logits, labels, width=2.0)) == pytest.approx(wide, rel=1e-12)


def test_calibration_makes_an_overconfident_model_less_confident() -> None:
    logits = torch.tensor([[4.0, 0.0]] * 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1])  # right three times of four
    for _ in range(400):
        (gradient,) = torch.autograd.grad(calibration(logits, labels), logits)
        logits = (logits - 20 * gradient).detach().requires_grad_()
    torch.testing.assert_close(
        logits.detach().softmax(1)[:, 0].mean(), torch.tensor(0.75, dtype=torch.float64), atol=0.02, rtol=0
    )


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross_entropy": lambda z: cross_entropy(z, torch.arange(4)),
    "distillation": lambda z: distillation(z, torch.ones(4, 5).double() * torch.arange(5)),
    "feature_matching": lambda z: feature_matching(z, torch.ones(4, 5).double(), normalize=True),
    "attention_transfer": lambda z: attention_transfer(z.view(1, 4, 5), torch.arange(5).double().expand(1, 1, 5)),
    "calibration": lambda z: calibration(z, torch.arange(4)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    assert torch.autograd.gradcheck(LOSSES[name], torch.randn(4, 5, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("name", ["feature_matching", "attention_transfer", "calibration"])
def test_half_precision_is_worked_out_in_full(name: str) -> None:
    z = torch.randn(4, 5).bfloat16()
    assert torch.equal(LOSSES[name](z), LOSSES[name](z.float()))


def test_mistakes_are_refused_with_what_was_given() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 2\) and \(2, 3\)"):
        distillation(torch.zeros(2, 2), torch.zeros(2, 3))
    for name in ("temperature", "delta"):
        with pytest.raises(ConfigError, match=name):
            distillation(torch.zeros(2, 2), torch.zeros(2, 2), **{name: 0.0})
    for loss in (cross_entropy, calibration):
        with pytest.raises(ShapeError, match=r"logits of shape \(2, 3\) and labels of shape \(3,\)"):
            loss(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"label_smoothing=1\.0"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), label_smoothing=1.0)
    with pytest.raises(ConfigError, match="width=0"):
        calibration(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), width=0)
    with pytest.raises(ShapeError, match=r"\(2, 8, 4\) and a teacher's of shape \(2, 16, 4\) .* attention_transfer"):
        feature_matching(torch.zeros(2, 8, 4), torch.zeros(2, 16, 4))
    for shapes in (((2, 8, 4), (2, 8, 5)), ((2, 8), (2, 8)), ((2, 8, 4), (3, 8, 4)), ((2, 8, 4), (2, 8, 4, 1))):
        with pytest.raises(ShapeError, match=r"equal batch and space"):
            attention_transfer(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
    with pytest.raises(ConfigError, match=r"power=0\.5"):
        attention_transfer(torch.zeros(2, 8, 4), torch.zeros(2, 8, 4), power=0.5)
