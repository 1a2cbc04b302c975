"""How faithful a small model is to the one it was made from: how often it is right, where, and how surely."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix
from torchmetrics.regression import KLDivergence

from adntn.errors import NonFiniteError, ShapeError
from adntn.experiments.corruptions import STANDARD, corrupt
from adntn.experiments.similarity import feature_similarity
from adntn.options import check_whole
from adntn.training.modes import evaluating, in_its_dtype
from adntn.training.seeds import derive_seed

__all__ = ["Faithfulness", "Scores", "faithfulness"]

_BINS = 15


@dataclass(frozen=True)
class Scores:
    """How one model does on some labelled images.

    Attributes:
        accuracy: share of the images whose most probable class is right, 0 ... 1.
        calibration_error: expected, over 15 bins of equal width: the mean over the images of the distance between a
            bin's mean confidence and its accuracy, 0 ... 1 (Guo et al., arXiv:1706.04599).
        worst_class: the class with the lowest accuracy among those that there are images of; the first of equals.
        worst_accuracy: of that class.
        corrupted: accuracy under corruptions by their names, as ``"gaussian noise 3"``, severity last.
    """

    accuracy: float
    calibration_error: float
    worst_class: int
    worst_accuracy: float
    corrupted: Mapping[str, float]


@dataclass(frozen=True)
class Faithfulness:
    """How faithful a model is to its teacher.

    Attributes:
        images: how many it was measured on.
        model: its own scores.
        teacher: the teacher's; None, as all that follows, where there is no teacher.
        agreement: share of the images to which both give the same class, right or wrong.
        divergence: mean over the images of KL(teacher || model), in nats.
        similarity: linear CKA of both models' features a layer, None for a layer whose features do not vary.
        similarity_images: how many images that was measured on.
    """

    images: int
    model: Scores
    teacher: Scores | None = None
    agreement: float | None = None
    divergence: float | None = None
    similarity: Mapping[str, float | None] | None = None
    similarity_images: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        own = [f"{self.images:,} images", f"accuracy {_percent(self.model, self.teacher, 'accuracy')}"]
        own.append(f"worst class {_percent(self.model, self.teacher, 'worst_accuracy')}")
        own.append(f"calibration error {_percent(self.model, self.teacher, 'calibration_error')}")
        if self.agreement is not None and self.divergence is not None:
            own.append(f"agreement {100 * self.agreement:.1f} %, KL {self.divergence:.3g} nats")
        return "; ".join(own)


def _percent(model: Scores, teacher: Scores | None, name: str) -> str:
    text = f"{100 * getattr(model, name):.1f} %"
    return text if teacher is None else f"{text} (teacher {100 * getattr(teacher, name):.1f} %)"


def faithfulness(
    model: nn.Module,
    teacher: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    normalized: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 512,
    layers: Sequence[str] | None = None,
    corruptions: Sequence[tuple[str, int]] = STANDARD,
    similarity_images: int = 2048,
    seed: int = 0,
    device: str = "cpu",
) -> Faithfulness:
    """Compare a model with its teacher on labelled images.

    Both are looked at in evaluation mode, without gradients, batch by batch; afterwards every module is in the mode in
    which it was.

    Args:
        model: takes images ``(n, C, H, W)`` and returns logits ``(n, num_classes)``. It stays where it is; it gets
            inputs of its parameters' dtype.
        teacher: likewise; None leaves all out that compares.
        images: shape ``(N, C, H, W)``, uint8, or float in 0 ... 1.
        labels: shape ``(N,)``, whole numbers below ``num_classes``.
        num_classes: outputs of the models.
        normalized: brings images to what the models take, as :meth:`adntn.training.data.TrainingData.normalized`; None
            means that they take images in 0 ... 1.
        batch_size: images at a time. Nothing but the similarity's noise depends on it.
        layers: to compare the features of; None means the layers with weights that both models have and call.
        corruptions: names and severities, see :func:`adntn.experiments.corruptions.corrupt`.
        similarity_images: how many images, drawn by the seed, layers are compared on; 0 leaves that out.
        seed: of the noise, and of that draw.
        device: where the models are.

    Raises:
        ConfigError: an option is not possible.
        ShapeError: images, labels or logits do not have the shapes above.
        NonFiniteError: a model's logits are NaN or infinite.
        CompressionError: a layer to compare is not in both models, or gives no features.

    Example:
        >>> test = data.test
        >>> found = faithfulness(
        ...     model, teacher, test.images, test.labels, num_classes=data.num_classes, normalized=data.normalized
        ... )
        >>> print(found)
    """
    for name, value, least in (
        ("num_classes", num_classes, 2),
        ("batch_size", batch_size, 1),
        ("similarity_images", similarity_images, 0),
    ):
        check_whole(name, value, least)
    _check(images, labels, num_classes)
    networks = {"model": model} if teacher is None else {"model": model, "teacher": teacher}

    def inputs_of(batch: Tensor) -> Tensor:
        on_device = batch.to(device)
        if normalized is not None:
            return normalized(on_device)
        return on_device.float() / 255 if on_device.dtype == torch.uint8 else on_device.float()

    def looks(name: str = "", severity: int = 0) -> Iterator[tuple[list[Tensor], Tensor]]:
        for index in torch.arange(len(labels)).split(batch_size):
            batch = corrupt(images[index], name, severity, seed=seed, first=int(index[0])) if name else images[index]
            inputs = inputs_of(batch)
            yield [_logits(n, inputs, num_classes, who) for who, n in networks.items()], labels[index].to(device)

    with contextlib.ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(evaluating(network))
        clean = _Clean(num_classes, len(networks), device)
        for logits, right in looks():
            clean.update(logits, right)
        corrupted = {f"{name} {severity}": _accuracies(looks(name, severity)) for name, severity in corruptions}
        similarity, used = None, 0
        if teacher is not None and similarity_images:
            random = torch.Generator().manual_seed(derive_seed(seed, "similarity"))
            chosen = torch.randperm(len(labels), generator=random)[:similarity_images]
            batches = (inputs_of(images[index]) for index in chosen.split(batch_size))
            similarity, used = feature_similarity(model, teacher, batches, layers), len(chosen)
    own, *others = (clean.scores(n, {name: each[n] for name, each in corrupted.items()}) for n in range(len(networks)))
    if not others:
        return Faithfulness(len(labels), own)
    return Faithfulness(len(labels), own, others[0], *clean.comparison(), similarity, used)


def _check(images: Tensor, labels: Tensor, num_classes: int) -> None:
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
        raise ShapeError(
            "images of shape (N, C, H, W) and labels of shape (N,), at least one, are needed, "
            f"not {tuple(images.shape)} and {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.min() < 0 or labels.max() >= num_classes:
        raise ShapeError(
            f"labels are whole numbers from 0 to num_classes - 1 = {num_classes - 1}; these are {labels.dtype} from "
            f"{labels.min().item()} to {labels.max().item()}."
        )


def _logits(network: nn.Module, inputs: Tensor, num_classes: int, who: str) -> Tensor:  # shape: (n, classes), float32
    logits: Tensor = network(in_its_dtype(network, inputs))
    if logits.shape != (len(inputs), num_classes):
        raise ShapeError(
            f"the {who} returned {tuple(logits.shape)} for {len(inputs)} images; logits of shape "
            f"({len(inputs)}, {num_classes}) are needed."
        )
    if not logits.isfinite().all():
        raise NonFiniteError(f"the {who}'s logits are NaN or infinite.")
    return logits.float()


def _accuracies(looks: Iterator[tuple[list[Tensor], Tensor]]) -> list[float]:
    """Return the accuracy of each network."""
    hits, seen = torch.zeros(0), 0
    for logits, right in looks:
        now = torch.stack([(each.argmax(1) == right).sum() for each in logits])
        hits = now if not seen else hits + now
        seen += len(right)
    return (hits.double() / seen).tolist()


class _Clean:
    """What is measured on the images as they are."""

    def __init__(self, num_classes: int, networks: int, device: str) -> None:
        self.confusions = [MulticlassConfusionMatrix(num_classes).to(device) for _ in range(networks)]
        self.calibrations = [MulticlassCalibrationError(num_classes, n_bins=_BINS).to(device) for _ in range(networks)]
        self.between = MulticlassConfusionMatrix(num_classes).to(device)
        self.divergence = KLDivergence(log_prob=True).set_dtype(torch.float64).to(device)

    def update(self, logits: list[Tensor], right: Tensor) -> None:
        for each, confusion, calibration in zip(logits, self.confusions, self.calibrations, strict=True):
            confusion.update(each.argmax(1), right)
            # Torchmetrics has a bin of its own for a confidence of exactly 1; it belongs into the last of the fifteen.
            calibration.update(each.softmax(1).clamp(max=1 - torch.finfo(each.dtype).eps), right)
        if len(logits) == 2:
            own, teachers = logits
            self.between.update(own.argmax(1), teachers.argmax(1))
            self.divergence.update(teachers.double().log_softmax(1), own.double().log_softmax(1))

    def scores(self, network: int, corrupted: dict[str, float]) -> Scores:
        confusion = self.confusions[network].compute().double()  # shape: (right class, given class)
        present = confusion.sum(1)
        # A class without images is not the worst one.
        of_class = torch.where(present > 0, confusion.diagonal() / present.clamp_min(1), 2.0)
        return Scores(
            accuracy=float(confusion.trace() / confusion.sum()),
            calibration_error=float(self.calibrations[network].compute()),
            worst_class=int(of_class.argmin()),
            worst_accuracy=float(of_class.min()),
            corrupted=corrupted,
        )

    def comparison(self) -> tuple[float, float]:
        """Return agreement and divergence."""
        between = self.between.compute().double()
        return float(between.trace() / between.sum()), float(self.divergence.compute())
