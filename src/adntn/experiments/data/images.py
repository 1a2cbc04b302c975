"""What a data set is: images with labels in two splits, and what can be done with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adntn.errors import AdntnError


class DataError(AdntnError, ValueError):
    """A data set is not known, not there, or not what its files claim to be."""


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images and their labels: one of the two parts of a data set.

    Attributes:
        images: (N, C, H, W), ``uint8`` in 0..255 or ``float32`` in 0..1.
        labels: (N,), ``int64``, classes counted from 0.

    Raises:
        DataError: a shape or a dtype is another, or there are not as many labels as images.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            raise DataError(
                f"images must be (N, C, H, W), uint8 or float32; got {tuple(self.images.shape)}, {self.images.dtype}"
            )
        if self.labels.ndim != 1 or self.labels.dtype != torch.int64:
            raise DataError(f"labels must be (N,), int64; got {tuple(self.labels.shape)}, {self.labels.dtype}")
        if len(self.images) != len(self.labels):
            raise DataError(f"{len(self.images)} images but {len(self.labels)} labels")
        if len(self.images) == 0:
            raise DataError("a split needs at least one image; got none")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split(images={tuple(self.images.shape)} {self.images.dtype}, labels={len(self)})"


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for image classification, in memory.

    Attributes:
        name: short name for file names and records: ``"digits"``, ``"fashion-mnist"``, ``"cifar10"``, or a
            folder's own.
        title: name to show in tables and plots. CIFAR-10 whose images were stored as JPEG says so:
            ``"CIFAR-10 (JPEG)"`` is not pixel for pixel the published data set.
        train: images to train on.
        test: images to measure on; never in ``train`` when the source keeps the two apart.
        num_classes: labels are 0 … num_classes − 1.
        mean: per channel, of the training images scaled to 0..1.
        std: per channel, population deviation of the same. A channel that never varies has 1.0, so that
            normalising by it is harmless.
        source: where it was read from, one line for a run's record: the kind of files, the folder's own name
            (not its whole path, which says more about the machine than about the data) and the start of a
            SHA-256 over the decoded images and labels: equal for equal pixels, however they were stored.

    Raises:
        DataError: the two splits differ in image shape, a label is out of range, or ``mean`` and ``std`` do
            not have one positive-deviation entry per channel.
    """

    name: str
    title: str
    train: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        shape, other = tuple(self.train.images.shape[1:]), tuple(self.test.images.shape[1:])
        if shape != other:
            raise DataError(f"{self.name}: training images are {shape} but test images {other}")
        for part, split in (("training", self.train), ("test", self.test)):
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.num_classes:
                raise DataError(
                    f"{self.name}: {part} labels run from {low} to {high}; "
                    f"with {self.num_classes} classes they must lie in 0..{self.num_classes - 1}"
                )
        if not len(self.mean) == len(self.std) == shape[0] or min(self.std) <= 0:
            raise DataError(
                f"{self.name}: mean {self.mean} and std {self.std} must have one entry for each of the "
                f"{shape[0]} channels, std above 0"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    def limit(self, train: int | None = None, test: int | None = None, seed: int = 0) -> ImageData:
        """Return a smaller data set with the classes in the same proportions.

        The choice depends on nothing but the labels, the counts and the seed. Under one seed a smaller limit
        is a subset of a larger one, so a learning curve over sizes adds images and never swaps them.
        ``mean`` and ``std`` stay those of the whole training split: runs of different size see the same
        scaling.

        Args:
            train: training images to keep; ``None``, or as many as there are or more, keeps them all.
            test: the same for the test images.
            seed: 0 or larger.

        Raises:
            DataError: a limit is smaller than the number of classes present (no class may be lost), or the
                seed is negative.
        """
        if seed < 0:
            raise DataError(f"seed={seed} must be 0 or larger")
        kept_train = _subsample("train", self.train, train, [seed, 0])
        kept_test = _subsample("test", self.test, test, [seed, 1])
        if kept_train is self.train and kept_test is self.test:
            return self
        note = f"stratified sub-sample of {len(kept_train)} + {len(kept_test)} images, seed {seed}"
        return replace(self, train=kept_train, test=kept_test, source=f"{self.source}; {note}")


def normalize(images: Tensor, data: ImageData) -> Tensor:
    """Scale images to the zero mean and unit deviation of a data set's training split.

    Args:
        images: (…, C, H, W), ``uint8`` in 0..255 or floating point in 0..1, on any device. Not changed.
        data: the data set whose ``mean`` and ``std`` are used.

    Returns:
        A new ``float32`` tensor of the same shape, on the same device.

    Raises:
        DataError: the number of channels is not the data set's, or the dtype is neither.
    """
    channels = len(data.mean)
    if images.ndim < 3 or images.shape[-3] != channels:
        raise DataError(f"images must be (…, {channels}, H, W) for {data.name}; got {tuple(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(f"images must be uint8 (0..255) or floating point (0..1); got {images.dtype}")
    # Mean and deviation are brought to the images' own scale, so that one buffer of float32 is all it takes.
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    mean = torch.tensor(data.mean, dtype=torch.float64).mul_(scale).to(images.device, torch.float32)
    std = torch.tensor(data.std, dtype=torch.float64).mul_(scale).to(images.device, torch.float32)
    values = images if images.dtype == torch.uint8 else images.to(torch.float32)
    return torch.sub(values, mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


def _subsample(part: str, split: Split, count: int | None, seed: list[int]) -> Split:
    """Keep ``count`` images, classes in proportion, in their old order; the split itself if that is all."""
    if count is None or count >= len(split):
        return split
    labels = split.labels.numpy()
    sizes = np.bincount(labels)
    present = np.count_nonzero(sizes)
    if count < present:
        raise DataError(
            f"{part}={count} is too few for a stratified sub-sample: {present} classes are present, "
            f"and each needs at least one image"
        )
    # RandomState, because its stream is frozen for good; that of numpy's newer generators may change.
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    kept = [
        random.permutation(np.flatnonzero(labels == index))[:places]
        for index, places in enumerate(apportion(sizes, count))
    ]
    chosen = torch.from_numpy(np.sort(np.concatenate(kept)))
    return Split(split.images[chosen], split.labels[chosen])


def apportion(sizes: npt.NDArray[np.intp], total: int) -> npt.NDArray[np.intp]:
    """Share ``total`` places among classes of the given sizes, each non-empty class getting one first.

    Sainte-Laguë's method, no class above its size. Unlike rounding the proportions it is monotone: one place
    more goes to one class and takes from none, which is what makes limits nested.
    """
    classes = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.concatenate([np.arange(size) for size in sizes])
    claim = sizes[classes] / (2.0 * rank + 1.0)
    claim[rank == 0] = np.inf
    order = np.lexsort((classes, -claim))
    return np.bincount(classes[order[:total]], minlength=len(sizes))
