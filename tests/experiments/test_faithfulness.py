"""How faithful a model is to its teacher: every number against one worked by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from small_models import CONFIG, Net
from torch import Tensor, nn

import adntn
from adntn import CompressionError, ConfigError, ShapeError
from adntn.errors import NonFiniteError
from adntn.experiments.corruptions import corrupt
from adntn.experiments.faithfulness import faithfulness
from adntn.training.data import Part, TrainingData


class Says(nn.Module):
    """Gives each image, which is its number over 100, the logits that it is told to."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[(100 * x.flatten(1)[:, 0]).round().long().clamp(max=len(self.logits) - 1)]


def numbered(count: int) -> Tensor:  # shape: (count, 1, 1, 1)
    return torch.arange(count).view(-1, 1, 1, 1) / 100


def sure(confidence: list[float], classes: list[int], num_classes: int = 3) -> Says:
    """Log-probabilities with a confidence in a class, the rest shared by the others."""
    rows = []
    for share, chosen in zip(confidence, classes, strict=True):
        row = torch.full((num_classes,), (1 - share) / (num_classes - 1))
        row[chosen] = share
        rows.append(row.log())
    return Says(torch.stack(rows))


#: Two images at confidence 0.9, one right; two at 0.6, both right; one at 0.5, wrong.
CONFIDENCE, GIVEN, RIGHT = [0.9, 0.9, 0.6, 0.6, 0.5], [0, 1, 1, 2, 0], torch.tensor([0, 2, 1, 2, 1])
OWN = {"num_classes": 3, "corruptions": (), "similarity_images": 0}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 512])
def test_the_numbers_are_those_worked_by_hand(batch_size: int) -> None:
    model = sure(CONFIDENCE, GIVEN)
    teacher = sure([0.8] * 5, [0, 2, 1, 2, 2])
    found = faithfulness(model, teacher, numbered(5), RIGHT, batch_size=batch_size, **OWN)  # type: ignore[arg-type]
    assert found.images == 5
    assert found.model.accuracy == pytest.approx(3 / 5)
    # |0.5 - 0.9| of two images, |1 - 0.6| of two, |0 - 0.5| of one.
    assert found.model.calibration_error == pytest.approx((2 * 0.4 + 2 * 0.4 + 0.5) / 5, abs=1e-6)
    # Class 0: 1 of 1; class 1: 1 of 2; class 2: 1 of 2, and the first of equals counts.
    assert (found.model.worst_class, found.model.worst_accuracy) == (1, 0.5)
    assert found.teacher is not None
    assert found.teacher.accuracy == pytest.approx(4 / 5)
    assert found.teacher.calibration_error == pytest.approx(0, abs=1e-6)
    assert (found.teacher.worst_class, found.teacher.worst_accuracy) == (1, 0.5)
    assert found.agreement == pytest.approx(3 / 5)

    def divergence(p: list[float], q: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    by_hand = [
        divergence([0.8, 0.1, 0.1], [0.9, 0.05, 0.05]),
        divergence([0.1, 0.1, 0.8], [0.05, 0.9, 0.05]),
        divergence([0.1, 0.8, 0.1], [0.2, 0.6, 0.2]),
        divergence([0.1, 0.1, 0.8], [0.2, 0.2, 0.6]),
        divergence([0.1, 0.1, 0.8], [0.5, 0.25, 0.25]),
    ]
    assert found.divergence == pytest.approx(sum(by_hand) / 5, abs=1e-6)
    assert found.similarity is None


def test_full_confidence_falls_into_the_last_of_the_fifteen_bins() -> None:
    # Together: accuracy 1/2, confidence about 0.98. A bin of its own for exactly 1 would give 0.5 * 1 + 0.5 * 0.04.
    model = Says(torch.tensor([[200.0, 0, 0], [math.log(0.96), math.log(0.02), math.log(0.02)]]))
    found = faithfulness(model, None, numbered(2), torch.tensor([1, 0]), **OWN)  # type: ignore[arg-type]
    assert found.model.calibration_error == pytest.approx(0.98 - 0.5, abs=1e-6)


def test_a_class_without_images_is_not_the_worst() -> None:
    found = faithfulness(sure([0.9] * 3, [0, 0, 0]), None, numbered(3), torch.tensor([0, 0, 0]), **OWN)  # type: ignore[arg-type]
    assert (found.model.worst_class, found.model.worst_accuracy) == (0, 1.0)


def test_without_a_teacher_only_its_own_columns_are_there() -> None:
    found = faithfulness(sure(CONFIDENCE, GIVEN), None, numbered(5), RIGHT, num_classes=3)
    assert (found.teacher, found.agreement, found.divergence, found.similarity) == (None, None, None, None)
    assert len(found.model.corrupted) == 9
    assert found.similarity_images == 0
    assert "teacher" not in str(found)
    assert "60.0 %" in str(found)


def data() -> TrainingData:
    images = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8)
    part = Part(images, torch.randint(0, 4, (50,)))
    return TrainingData(part, part, part, 4, torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4]))


def pair() -> tuple[nn.Module, nn.Module]:
    teacher, model = Net(), Net()
    model.load_state_dict(teacher.state_dict())
    adntn.compress_(model, CONFIG, ["head.0"])
    return model, teacher


def test_a_model_against_itself_and_against_its_teacher() -> None:
    model, teacher = pair()
    about = data()
    options = {"num_classes": 4, "normalized": about.normalized, "batch_size": 16}
    itself = faithfulness(teacher, teacher, about.test.images, about.test.labels, **options)  # type: ignore[arg-type]
    assert itself.model == itself.teacher
    assert (itself.agreement, itself.divergence) == (1.0, 0.0)
    assert itself.similarity is not None
    assert list(itself.similarity.values()) == pytest.approx([1] * 4, abs=1e-6)
    assert itself.similarity_images == 50
    found = faithfulness(model, teacher, about.test.images, about.test.labels, **options)  # type: ignore[arg-type]
    assert found.teacher == itself.model
    assert found.divergence is not None
    assert found.divergence > 0
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    again = faithfulness(model, teacher, about.test.images, about.test.labels, **options)  # type: ignore[arg-type]
    assert again == found
    one = faithfulness(model, teacher, about.test.images, about.test.labels, **{**options, "batch_size": 50})  # type: ignore[arg-type]
    assert one.model.corrupted == found.model.corrupted
    assert one.agreement == found.agreement


def test_accuracy_under_a_corruption_is_that_of_corrupted_images() -> None:
    _, teacher = pair()
    about = data()
    found = faithfulness(
        teacher,
        None,
        about.test.images,
        about.test.labels,
        num_classes=4,
        normalized=about.normalized,
        batch_size=7,
        corruptions=[("gaussian noise", 5), ("contrast", 3)],
        seed=5,
    )
    assert list(found.model.corrupted) == ["gaussian noise 5", "contrast 3"]
    with torch.no_grad():
        for (name, severity), accuracy in zip(
            [("gaussian noise", 5), ("contrast", 3)], found.model.corrupted.values(), strict=True
        ):
            worse = corrupt(about.test.images, name, severity, seed=5)
            given = teacher.eval()(about.normalized(worse)).argmax(1)
            assert accuracy == pytest.approx((given == about.test.labels).double().mean().item())


def test_modes_gradients_and_hooks_are_as_they_were() -> None:
    model, teacher = pair()
    model.train()
    teacher.eval()
    list(model.modules())[2].eval()
    before = [m.training for m in (*model.modules(), *teacher.modules())]
    state = {name: each.clone() for name, each in model.state_dict().items()}
    about = data()
    faithfulness(model, teacher, about.test.images, about.test.labels, num_classes=4)
    with pytest.raises(CompressionError, match="'body'"):
        faithfulness(model, teacher, about.test.images, about.test.labels, num_classes=4, layers=["body"])
    assert [m.training for m in (*model.modules(), *teacher.modules())] == before
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    assert not any(m._forward_hooks for m in (*model.modules(), *teacher.modules()))
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_gets_inputs_of_its_own(dtype: torch.dtype) -> None:
    model, teacher = pair()
    about = data()
    found = faithfulness(model.to(dtype), teacher, about.test.images, about.test.labels, num_classes=4)
    assert found.similarity is not None
    assert found.similarity["features.0"] == pytest.approx(1, abs=1e-2)
    assert next(model.parameters()).dtype == dtype


def test_what_cannot_be_measured_is_said() -> None:
    model = sure(CONFIDENCE, GIVEN)
    with pytest.raises(ShapeError, match=r"not \(5, 1, 1, 1\) and \(4,\)"):
        faithfulness(model, None, numbered(5), RIGHT[:4], num_classes=3)
    with pytest.raises(ShapeError, match="from 0 to num_classes - 1 = 1"):
        faithfulness(model, None, numbered(5), RIGHT, num_classes=2)
    with pytest.raises(ShapeError, match=r"the model returned \(5, 3\)"):
        faithfulness(model, None, numbered(5), RIGHT, num_classes=4)
    with pytest.raises(ConfigError, match="batch_size=0"):
        faithfulness(model, None, numbered(5), RIGHT, num_classes=3, batch_size=0)
    broken = Says(torch.full((5, 3), float("nan")))
    with pytest.raises(NonFiniteError, match="the teacher's logits"):
        faithfulness(model, broken, numbered(5), RIGHT, num_classes=3)
