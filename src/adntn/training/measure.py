"""What a model comes to: accuracy on the parts of a data set, and its size in numbers and bytes."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adntn.checkpoint import save
from adntn.describe import describe
from adntn.training.data import Part, TrainingData
from adntn.training.distributed import one_process
from adntn.training.looking import look

__all__ = ["Measures", "accuracy_and_loss", "measure"]


@dataclass(frozen=True)
class Measures:
    """A model's accuracy and size.

    Attributes:
        validation_accuracy: share of the validation images, in 0 ... 1.
        test_accuracy: share of the test images.
        test_loss: cross-entropy on the test images, in nats.
        numbers: parameters of the whole model; what is shared counts once.
        generated: parameters of its generators.
        file_bytes: of its file, as :func:`adntn.save` writes it, header and buffers of norms among them.
    """

    validation_accuracy: float
    test_accuracy: float
    test_loss: float
    numbers: int
    generated: int
    file_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def accuracy_and_loss(model: nn.Module, part: Part, data: TrainingData, device: str = "cpu") -> tuple[float, float]:
    """Return the share of images whose label a model finds, and its mean cross-entropy in nats.

    The model is left where it is and in the mode that it was in.
    """
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.to(device)
    with one_process():
        found = look(model, data, part, device=device)
    model.to(home)
    return found


def measure(model: nn.Module, data: TrainingData, *, file: Path | None = None, device: str = "cpu") -> Measures:
    """Measure a model.

    Args:
        model: takes normalised images and returns logits.
        data: to measure on.
        file: that the model was saved to; None means that it is saved to a temporary one for its size.
        device: to run on.
    """
    validation, _ = accuracy_and_loss(model, data.validation, data, device)
    test, loss = accuracy_and_loss(model, data.test, data, device)
    report = describe(model)
    if file is not None:
        size = file.stat().st_size
    else:
        with tempfile.TemporaryDirectory() as folder:
            size = save(model, Path(folder) / "model.safetensors").stat().st_size
    return Measures(validation, test, loss, report.model_after, report.generated, size)
