"""Switching generated weights of a model to quantised root and cores, and off again: ``quantize_``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from adntn.describe import generator_bytes, stored_bytes
from adntn.fit import relative_error
from adntn.generator import GeneratorModule
from adntn.quantization import Quantization, quantized_names
from adntn.targets import by_generator, choose_generated

__all__ = ["QuantizationReport", "QuantizedLayer", "quantize_"]


@dataclass(frozen=True)
class QuantizedLayer:
    """One generated weight.

    Attributes:
        name: in the model; of a bare generator ``""``.
        shape: of the weight.
        numbers: that are stored for it; 0 for a weight that shares another's generator.
        quantized: of them, those that are quantised now.
        bytes_before: that :func:`adntn.save` stored for them.
        bytes_after: that it stores now.
        relative_change: ``||W' - W|| / ||W||`` between the weights before and after; NaN on the meta device.
    """

    name: str
    shape: tuple[int, ...]
    numbers: int
    quantized: int
    bytes_before: int
    bytes_after: int
    relative_change: float


@dataclass(frozen=True)
class QuantizationReport:
    """What :func:`quantize_` did: a row a weight, and the whole model.

    Attributes:
        bits: of a number now; None where it was turned off.
        layers: one for each generated weight that was switched.
        model_bytes_before: of all that the model stores, without the header of a file.
        model_bytes_after: the same now.
    """

    bits: int | None
    layers: tuple[QuantizedLayer, ...]
    model_bytes_before: int
    model_bytes_after: int

    @property
    def bytes_before(self) -> int:
        """Of the generators."""
        return sum(row.bytes_before for row in self.layers)

    @property
    def bytes_after(self) -> int:
        """Of the generators."""
        return sum(row.bytes_after for row in self.layers)

    def __str__(self) -> str:
        what = "float numbers" if self.bits is None else f"{self.bits} bits"
        width = max((len(row.name) for row in self.layers), default=0)
        lines = [
            f"{row.name:<{width}}  {row.quantized:,} of {row.numbers:,} numbers, {row.bytes_before:,} -> "
            f"{row.bytes_after:,} bytes, weight changed by {row.relative_change:.2g}"
            for row in self.layers
        ]
        before, after = self.model_bytes_before, self.model_bytes_after
        return "\n".join([f"{what}: model of {before:,} -> {after:,} bytes", *lines])


@torch.inference_mode(mode=False)
@torch.no_grad()
def quantize_(
    model: nn.Module,
    bits: int | None = 8,
    targets: str | Sequence[str] = ("re:.*",),
    *,
    ignore: str | Sequence[str] = (),
) -> QuantizationReport:
    """Quantise root and cores of generated weights to 8 or 4 bits, in place.

    From then on they are rounded to their grid whenever they are used, ``scale = max |x| / (2**(bits - 1) - 1)`` for
    each tensor and tree (:mod:`adntn.quantization`), and derivatives go straight through the rounding: training goes on
    as before, aware of it. Parameters stay the float numbers that they are, so optimisers and a ``state_dict`` know
    nothing of it; :func:`adntn.save` packs them, and :func:`adntn.load` turns it on again. Gates, the activations'
    numbers, biases and dense layers are not quantised.

    Args:
        model: with generated layers; or a generator.
        bits: 8 or 4; None turns it off.
        targets: names of generated weights, or ``"re:"`` and a pattern that a whole name must match. Weights that share
            a generator are switched with it.
        ignore: the same, to leave out again.

    Returns:
        A report; print it.

    Raises:
        ConfigError: another number of bits.
        CompressionError: a target matches no generated weight, or ignore names one that shares its generator with a
            target.

    Example:
        >>> layer = adntn.nn.Linear(256, 256)
        >>> report = adntn.quantize_(layer, bits=8)
        >>> report.bytes_before, report.bytes_after, layer.quantization.bits
        (512, 144, 8)
    """
    quantization = None if bits is None else Quantization(bits)
    chosen = choose_generated(model, targets, ignore)
    for weight in chosen.values():
        weight.refuse_common_cores("quantised")
    before = stored_bytes(model)
    rows: dict[str, QuantizedLayer] = {}
    for weights in by_generator(chosen):
        rows.update(_switch(weights, quantization))
    return QuantizationReport(bits, tuple(rows[name] for name in chosen), before, stored_bytes(model))


def _switch(weights: Mapping[str, GeneratorModule], quantization: Quantization | None) -> dict[str, QuantizedLayer]:
    """Switch one generator, given the weights that it makes by name."""
    generator = next(iter(weights.values()))
    shapes, size = generator.blueprint.parameter_shapes, generator_bytes(generator)
    old = {name: weight.generate() for name, weight in weights.items()}
    generator._set_quantization(quantization)
    names = () if quantization is None else quantized_names(generator.blueprint)
    rows = {}
    for place, (name, weight) in enumerate(weights.items()):
        change = float("nan") if weight.device.type == "meta" else relative_error(weight.generate(), old.pop(name))
        rows[name] = QuantizedLayer(
            name=name,
            shape=tuple(weight.shape),
            numbers=0 if place else generator.num_parameters,
            quantized=0 if place else sum(math.prod(shapes[each]) for each in names),
            bytes_before=0 if place else size,
            bytes_after=0 if place else generator_bytes(generator),
            relative_change=change,
        )
    return rows
