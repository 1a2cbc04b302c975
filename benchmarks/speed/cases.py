"""What is measured: the grid of layers, whole models, and the making of a weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

__all__ = ["Case", "full_grid", "quick_grid"]

Shape = tuple[int, ...]

DTYPES = ("float32", "bfloat16")
MODES = ("inference", "training")
LINEAR: tuple[Shape, ...] = ((1024, 1024), (1000, 4096), (4096, 4096), (4096, 16384))  # out, in
LINEAR_BATCHES = (1, 32, 128, 1024)
CONV: tuple[Shape, ...] = ((128, 128, 3, 3), (512, 512, 3, 3))
CONV_BATCHES = (1, 32, 128)
SIDES = (2, 4, 8, 16, 32)
MADE: tuple[Shape, ...] = ((4096, 4096),)
MODELS = ("vgg16", "alexnet")
MODEL_BATCHES = {"inference": (1, 32, 128), "training": (128,)}


@dataclass(frozen=True)
class Case:
    """One thing that every variant does with the same input.

    Attributes:
        kind: ``"linear"``, ``"conv"``, ``"weight"`` (making one, without an input) or ``"model"``.
        mode: ``"inference"``, ``"training"`` (one whole step) or ``"making"``.
        dtype: of parameters and input.
        shape: of the weight; of a model's input without the batch.
        batch: inputs; 0 for a weight.
        side: of a convolution's map, in pixels; 0 for others.
        model: its name; empty for a layer.
    """

    kind: str
    mode: str
    dtype: str
    shape: Shape
    batch: int = 0
    side: int = 0
    model: str = ""

    @property
    def work(self) -> str:
        """What is run, whatever the batch."""
        if self.kind == "model":
            return self.model
        size = f"{self.kind} {'x'.join(map(str, self.shape))}"
        return f"{size} map {self.side}" if self.side else size

    @property
    def line(self) -> str:
        """The cases that differ in their batch alone."""
        return f"{self.work}, {self.dtype}, {self.mode}"

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.line}, batch {self.batch}" if self.batch else self.line

    @property
    def input_shape(self) -> Shape:
        """Of the input that all variants are given."""
        if self.kind == "model":
            return (self.batch, *self.shape)
        return (self.batch, self.shape[1], *(self.side,) * (2 * (self.kind == "conv")))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def _layers(
    dtype: str, linear: tuple[Shape, ...], batches: tuple[int, ...], conv: tuple[Shape, ...], sides: tuple[int, ...]
) -> Iterator[Case]:
    # Batches grow: what was far too slow in a small one is left out in a larger one.
    for mode in MODES:
        for shape in linear:
            yield from (Case("linear", mode, dtype, shape, batch) for batch in batches)
        for shape in conv:
            for side in sides:
                yield from (Case("conv", mode, dtype, shape, b, side) for b in CONV_BATCHES if b <= max(batches))


def full_grid() -> list[Case]:
    """Return every case, what the goals are about first."""
    cases: list[Case] = []
    for dtype in DTYPES:
        cases += [Case("weight", "making", dtype, shape) for shape in MADE]
        cases += _layers(dtype, LINEAR, LINEAR_BATCHES, CONV, SIDES)
        cases += [
            Case("model", mode, dtype, (3, 32, 32), batch, model=model)
            for model in MODELS
            for mode in MODES
            for batch in MODEL_BATCHES[mode]
        ]
    return cases


def quick_grid() -> list[Case]:
    """Return a few small cases of every kind: whether it runs, not how fast."""
    cases = list(_layers("float32", ((100, 128),), (1, 32), ((32, 32, 3, 3),), (2, 4)))
    cases += [Case("weight", "making", "float32", (128, 128))]
    cases += [Case("linear", mode, "bfloat16", (100, 128), 32) for mode in MODES]
    return [*cases, Case("model", "inference", "float32", (3, 32, 32), 1, model="alexnet")]
