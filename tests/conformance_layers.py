"""The table of layers that the conformance suite walks, the inputs that they meet, and what torch makes of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conformance_cases import PLAIN, Options, put_on_grid, scramble
from torch import Tensor, nn

from adntn import Generator, GeneratorConfig, quantize_
from adntn.nn import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Embedding,
    Linear,
)


@dataclass(frozen=True)
class LayerCase:
    """One layer of the suite.

    Attributes:
        make: builds it; takes ``execution``, ``device`` and ``dtype``.
        input: shape of an input, batch first.
        way: how it runs when nothing is asked.
        splits: whether it can run factored at all.
        rows: of the table, if the input is indices into one.
        bits: that root and cores are quantised to, if they are.
    """

    make: Callable[..., nn.Module]
    input: tuple[int, ...]
    way: str = "factored"
    splits: bool = True
    rows: int | None = None
    bits: int | None = None

    def build(self, execution: str = "auto", dtype: torch.dtype = torch.float64) -> Any:
        torch.manual_seed(0)
        layer = scramble(self.make(execution=execution, dtype=dtype))
        if self.bits is not None:
            quantize_(layer, self.bits)
            put_on_grid(layer)
        return layer

    def make_input(self, dtype: torch.dtype = torch.float64, batch: int | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        shape = self.input if batch is None else (batch, *self.input[1:])
        if self.rows is not None:
            return torch.randint(self.rows, shape, generator=generator)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


#: One number between the levels; then the weight is a sum of Kronecker products.
KRONECKER: Options = {"order": "paired", "bond_dim": 1}


def _linear(in_features: int, out_features: int, *, bias: bool = True, **options: Any) -> Callable[..., nn.Module]:
    return partial(Linear, in_features, out_features, bias, GeneratorConfig(**{**PLAIN, **options}))


def _rows(start: int, stop: int, whole: int, in_features: int, **options: Any) -> Callable[..., nn.Module]:
    """Return what builds a linear layer of some rows of what a generator makes."""

    def make(execution: str = "auto", device: Any = None, dtype: torch.dtype | None = None) -> nn.Module:
        generator = Generator((whole, in_features), GeneratorConfig(**{**PLAIN, **options}), device=device, dtype=dtype)
        dense = nn.Linear(in_features, stop - start, device=device, dtype=dtype)
        return Linear.from_dense(dense, share=generator, rows=(start, stop), execution=execution)

    return make


def _conv(
    channels_in: int,
    channels_out: int,
    kernel: int | tuple[int, ...] = 3,
    *,
    kind: type[nn.Module] = Conv2d,
    config: Options | None = None,
    **options: Any,
) -> Callable[..., nn.Module]:
    generator_config = GeneratorConfig(**{**PLAIN, **(config or {})})
    return partial(kind, channels_in, channels_out, kernel, config=generator_config, **options)


_conv1d, _conv3d = partial(_conv, kind=Conv1d), partial(_conv, kind=Conv3d)
_transpose1d, _transpose2d, _transpose3d = (
    partial(_conv, kind=kind) for kind in (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
)


def _table(rows: int, size: int, padding_idx: int | None = None, way: str = "factored", **options: Any) -> LayerCase:
    config = GeneratorConfig(**{**PLAIN, **options})
    make = partial(Embedding, rows, size, padding_idx, config=config)
    return LayerCase(make, (3, 5), way, splits=config.order in ("blocked", "block_paired"), rows=rows)


LAYERS: dict[str, LayerCase] = {
    "linear": LayerCase(_linear(32, 64), (3, 32)),
    "linear, no bias": LayerCase(_linear(64, 32, bias=False), (3, 64)),
    "linear, attn": LayerCase(_linear(64, 64, topology="attn"), (3, 64)),
    "linear, attn of two layers": LayerCase(_linear(128, 128, topology="attn", boundary_layers=2), (3, 128)),
    "linear, mera, padded": LayerCase(_linear(100, 77, topology="mera"), (3, 100)),
    "linear, odd modes": LayerCase(_linear(128, 64, topology="mera"), (3, 128)),
    "linear, flat in powers of two": LayerCase(_linear(64, 50, order="flat"), (3, 64)),
    "linear, flat and padded": LayerCase(_linear(50, 64, order="flat"), (3, 50), way="dense", splits=False),
    "linear, paired": LayerCase(_linear(64, 64, order="paired"), (3, 64), way="dense", splits=False),
    "linear, block_paired": LayerCase(_linear(64, 64, order="block_paired"), (3, 64)),
    "linear, block_paired mera": LayerCase(
        _linear(64, 64, order="block_paired", topology="mera"), (3, 64), way="dense", splits=False
    ),
    "linear, 3 groups": LayerCase(_linear(128, 192, groups=3, topology="attn"), (3, 128)),
    "linear, 3 groups, no bias": LayerCase(_linear(128, 192, bias=False, groups=3), (3, 128)),
    "linear, radix 3, isometric": LayerCase(
        _linear(81, 70, radix=3, activation="sine(omega=3)", initialization="isometric"), (3, 81)
    ),
    "linear, radix 4, bond 2": LayerCase(_linear(64, 60, radix=4, bond_dim=2, topology="attn"), (3, 64)),
    "linear, prelu, centred": LayerCase(_linear(64, 64, activation="prelu", norm="center", latent_order=2), (3, 64)),
    "linear, rows of a shared generator": LayerCase(_rows(77, 141, 192, 64, topology="mera"), (3, 64), way="dense"),
    "linear, two of three groups": LayerCase(_rows(64, 192, 192, 128, groups=3, topology="attn"), (3, 128)),
    "linear, rows across groups": LayerCase(_rows(40, 128, 192, 64, groups=3), (3, 64), way="dense", splits=False),
    "linear, Kronecker": LayerCase(_linear(81, 70, **KRONECKER, radix=9, terms=2), (3, 81)),
    "linear, Kronecker of many digits, 2 groups, no bias": LayerCase(
        _linear(50, 128, bias=False, **KRONECKER, groups=2, initialization="conformal"), (3, 50)
    ),
    "linear, Kronecker, trailing digits first": LayerCase(
        _linear(256, 40, **KRONECKER, radix=16, activation="prelu", latent_order=1), (3, 256)
    ),
    "linear, Kronecker, 2 terms, gate": LayerCase(
        _linear(64, 96, **KRONECKER, radix=10, terms=2, gate=True, latent_order=1), (3, 64)
    ),
    "linear, Kronecker, rows": LayerCase(_rows(13, 77, 100, 64, **KRONECKER, radix=10), (3, 64)),
    "linear, Kronecker, two of three groups": LayerCase(
        _rows(64, 192, 192, 64, groups=3, **KRONECKER, radix=8), (3, 64)
    ),
    "linear, rational, 2 groups": LayerCase(
        _linear(64, 64, activation="rational", groups=2, latent_order=2, initialization="isometric"), (3, 64)
    ),
    "linear, gate, two terms, layer norm": LayerCase(
        _linear(64, 64, topology="mera", gate=True, terms=2, norm="layer", activation="sine"), (3, 64), way="dense"
    ),
    "linear, brickwall": LayerCase(_linear(100, 77, topology="brickwall", columns=3, gate=True), (3, 100), way="dense"),
    "linear, tt": LayerCase(_linear(50, 64, topology="tt", bond_dim=3), (3, 50)),
    "linear, tt, paired, 2 groups": LayerCase(
        _linear(50, 64, topology="tt", order="paired", groups=2), (3, 50), way="dense", splits=False
    ),
    "linear, lowrank, 2 groups": LayerCase(_linear(50, 64, topology="lowrank", groups=2), (3, 50)),
    "linear, subspace": LayerCase(_linear(50, 64, topology="subspace"), (3, 50), way="dense", splits=False),
    "linear, frozen, 2 groups": LayerCase(
        _linear(50, 64, topology="frozen", groups=2), (3, 50), way="dense", splits=False
    ),
    "linear, 8 bits, mera, 2 groups": LayerCase(_linear(128, 128, topology="mera", groups=2), (3, 128), bits=8),
    "linear, 4 bits, lowrank": LayerCase(_linear(50, 64, topology="lowrank"), (3, 50), bits=4),
    "linear, too small to factor": LayerCase(_linear(8, 8), (3, 8), way="dense"),
    "conv": LayerCase(_conv(32, 32), (2, 32, 5, 6)),
    "conv, no bias, mera": LayerCase(_conv(32, 40, bias=False, config={"topology": "mera"}), (2, 32, 5, 6)),
    "conv, Kronecker": LayerCase(
        _conv(25, 36, padding=1, config={**KRONECKER, "radix": 6, "kernel_radix": 3, "terms": 2}),
        (2, 25, 5, 6),
        way="dense",
    ),
    "conv, Kronecker, stride, dilation, padded": LayerCase(
        _conv(60, 50, stride=(2, 1), padding="valid", dilation=(1, 2), config={**KRONECKER, "radix": 8}),
        (2, 60, 5, 7),
    ),
    "conv, Kronecker, circular, trailing digits first": LayerCase(
        _conv(81, 20, padding=1, padding_mode="circular", bias=False, config={**KRONECKER, "radix": 9}), (2, 81, 4, 4)
    ),
    "conv, Kronecker, 2 groups of the generator": LayerCase(
        _conv(49, 40, padding="same", config={**KRONECKER, "radix": 7, "groups": 2, "kernel_radix": 3}), (2, 49, 4, 4)
    ),
    "conv, Kronecker, 1x1": LayerCase(
        _conv(64, 64, 1, stride=2, padding=1, config={**KRONECKER, "radix": 8, "terms": 2}), (2, 64, 4, 3)
    ),
    "conv1d, Kronecker with the kernel": LayerCase(
        _conv1d(49, 40, padding=1, config={**KRONECKER, "radix": 7, "kernel_radix": 3}), (2, 49, 6)
    ),
    "conv3d, Kronecker": LayerCase(
        _conv3d(16, 16, (3, 1, 3), padding=(1, 0, 1), config={**KRONECKER, "radix": 4, "kernel_radix": 3}),
        (2, 16, 3, 2, 3),
        way="dense",
    ),
    "conv, 1x1": LayerCase(_conv(64, 64, 1), (2, 64, 3, 2)),
    "conv, uneven kernel and stride": LayerCase(_conv(32, 32, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 32, 6, 5)),
    "conv, dilated": LayerCase(_conv(32, 32, padding=2, dilation=2), (2, 32, 6, 5)),
    "conv, same": LayerCase(_conv(32, 32, (3, 5), padding="same"), (2, 32, 5, 6)),
    "conv, valid": LayerCase(_conv(32, 32, padding="valid"), (2, 32, 5, 6)),
    "conv, reflect": LayerCase(_conv(32, 32, padding=(1, 2), padding_mode="reflect"), (2, 32, 5, 6)),
    "conv, circular, same, dilated": LayerCase(
        _conv(32, 32, padding="same", padding_mode="circular", dilation=(1, 2)), (2, 32, 5, 6)
    ),
    "conv, replicate, stride": LayerCase(_conv(32, 32, padding=1, padding_mode="replicate", stride=2), (2, 32, 5, 6)),
    "conv, generator of 2 groups": LayerCase(
        _conv(32, 64, padding=1, config={"groups": 2, "topology": "attn"}), (2, 32, 4, 5)
    ),
    "conv, 4 groups": LayerCase(_conv(64, 64, groups=4, padding=1), (2, 64, 4, 5)),
    "conv, 2 groups, generator of 4": LayerCase(
        _conv(64, 128, groups=2, config={"groups": 4, "topology": "attn"}), (2, 64, 4, 5)
    ),
    "conv, 4 groups, generator of 2": LayerCase(_conv(64, 128, groups=4, config={"groups": 2}), (2, 64, 4, 5)),
    "conv, 2 groups, generator of 3": LayerCase(
        _conv(8, 12, 2, groups=2, config={"groups": 3}), (2, 8, 4, 5), way="dense"
    ),
    "conv, depthwise": LayerCase(_conv(32, 32, groups=32), (2, 32, 4, 5), way="dense"),
    "conv, paired": LayerCase(_conv(32, 32, config={"order": "paired"}), (2, 32, 4, 5), way="dense", splits=False),
    "conv, block_paired": LayerCase(_conv(32, 32, config={"order": "block_paired"}), (2, 32, 4, 5)),
    "conv, kernel radix 3, two terms": LayerCase(
        _conv(32, 40, padding=1, config={"topology": "attn", "kernel_radix": 3, "terms": 2}), (2, 32, 4, 5), way="dense"
    ),
    "conv, brickwall": LayerCase(_conv(32, 32, config={"topology": "brickwall", "kernel_radix": 3}), (2, 32, 4, 5)),
    "conv, tt": LayerCase(_conv(32, 32, stride=2, config={"topology": "tt", "kernel_radix": 3}), (2, 32, 5, 5)),
    "conv, lowrank": LayerCase(_conv(32, 32, config={"topology": "lowrank"}), (2, 32, 4, 5)),
    "conv, subspace, 4 groups": LayerCase(
        _conv(32, 32, groups=4, config={"topology": "subspace", "subspace_dim": 9, "groups": 2}),
        (2, 32, 4, 5),
        way="dense",
        splits=False,
    ),
    "conv, flat and padded": LayerCase(
        _conv(32, 32, config={"order": "flat"}), (2, 32, 4, 5), way="dense", splits=False
    ),
    "conv, 8 bits": LayerCase(_conv(32, 32), (2, 32, 4, 5), bits=8),
    "conv1d": LayerCase(_conv1d(32, 40, 5, stride=2, padding=2), (2, 32, 9)),
    "conv1d, padded 17 to 33, dilated": LayerCase(
        _conv1d(17, 33, 3, dilation=3, config={"topology": "mera"}), (2, 17, 9), way="dense"
    ),
    "conv1d, reflect, no bias": LayerCase(
        _conv1d(32, 32, padding="same", padding_mode="reflect", bias=False), (2, 32, 9)
    ),
    "conv1d, circular, generator of 2 groups": LayerCase(
        _conv1d(32, 64, padding=1, padding_mode="circular", config={"groups": 2, "topology": "attn"}), (2, 32, 9)
    ),
    "conv1d, 2 groups": LayerCase(_conv1d(64, 64, 5, groups=2, padding="same"), (2, 64, 6)),
    "conv1d, paired": LayerCase(_conv1d(32, 32, config={"order": "paired"}), (2, 32, 5), way="dense", splits=False),
    "conv3d": LayerCase(
        _conv3d(32, 32, (3, 1, 2), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 1, 2)), (2, 32, 3, 4, 3)
    ),
    "conv3d, padded 17 to 33, radix 3": LayerCase(
        _conv3d(17, 33, 3, padding="same", bias=False, config={"radix": 3, "latent_order": 2}), (2, 17, 3, 2, 3)
    ),
    "conv3d, replicate, 2 groups": LayerCase(
        _conv3d(32, 32, 2, padding=1, padding_mode="replicate", groups=2), (2, 32, 2, 3, 2)
    ),
    "conv3d, flat": LayerCase(_conv3d(17, 8, 2, config={"order": "flat"}), (2, 17, 2, 3, 2), way="dense", splits=False),
    "transposed": LayerCase(_transpose2d(32, 40), (2, 32, 4, 3)),
    "transposed, output_padding, mera": LayerCase(
        _transpose2d(32, 64, (3, 2), stride=(2, 3), padding=1, output_padding=(1, 2), config={"topology": "mera"}),
        (2, 32, 3, 4),
    ),
    "transposed, padded 17 to 33, dilated": LayerCase(_transpose2d(17, 33, dilation=(2, 1), bias=False), (2, 17, 4, 3)),
    "transposed, 4 groups": LayerCase(_transpose2d(64, 128, groups=4, stride=2), (2, 64, 3, 2)),
    "transposed, generator of 2 groups": LayerCase(
        _transpose2d(64, 32, config={"groups": 2, "topology": "attn"}), (2, 64, 3, 2)
    ),
    "transposed, 2 groups, generator of 4": LayerCase(
        _transpose2d(64, 64, groups=2, config={"groups": 4}), (2, 64, 3, 2)
    ),
    "transposed, 4 groups, generator of 2": LayerCase(
        _transpose2d(64, 64, groups=4, config={"groups": 2}), (2, 64, 3, 2)
    ),
    "transposed, paired": LayerCase(
        _transpose2d(32, 32, config={"order": "paired"}), (2, 32, 3, 2), way="dense", splits=False
    ),
    "transposed, block_paired, radix 3": LayerCase(
        _transpose2d(27, 30, config={"order": "block_paired", "radix": 3, "latent_order": 2}), (2, 27, 3, 2)
    ),
    "transposed, depthwise": LayerCase(_transpose2d(16, 16, groups=16), (2, 16, 3, 2), way="dense"),
    "transposed 1d": LayerCase(_transpose1d(32, 40, 4, stride=2, padding=1), (2, 32, 5)),
    "transposed 3d": LayerCase(
        _transpose3d(32, 32, 2, stride=(2, 1, 1), output_padding=(1, 0, 0), bias=False), (2, 32, 2, 2, 3)
    ),
    "embedding": _table(100, 32),
    "embedding, padding": _table(33, 17, 0, topology="mera"),
    "embedding, radix 3": _table(70, 30, -1, radix=3, latent_order=2),
    "embedding, 2 groups, padding": _table(34, 20, 30, groups=2, topology="attn"),
    "embedding, mera": _table(500, 128, 499, topology="mera"),
    "embedding, 4 groups": _table(512, 100, groups=4),
    "embedding, block_paired": _table(64, 64, order="block_paired"),
    "embedding, paired, padding": _table(64, 20, 3, "dense", order="paired"),
    "embedding, 8 bits, padding": replace(_table(500, 128, 499, topology="mera"), bits=8),
    "embedding, flat": _table(50, 17, way="dense", order="flat"),
}


def ways_of(case: LayerCase) -> tuple[str, ...]:
    return ("dense", "factored") if case.splits else ("dense",)


#: Every layer in every way that it can run.
LAYER_WAYS = [(name, way) for name, case in LAYERS.items() for way in ways_of(case)]

every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
every_layer_and_way = pytest.mark.parametrize(
    "layer, way", [(LAYERS[name], way) for name, way in LAYER_WAYS], ids=[f"{n}-{w}" for n, w in LAYER_WAYS]
)


def some_layers(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("layer", [LAYERS[n] for n in names], ids=names)


one_of_each = some_layers(
    "linear, 3 groups",
    "linear, Kronecker, 2 terms, gate",
    "conv, Kronecker",
    "conv, 4 groups, generator of 2",
    "conv1d, reflect, no bias",
    "conv3d",
    "transposed, output_padding, mera",
    "transposed 1d",
    "transposed 3d",
    "embedding, mera",
)

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def torchs_own(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """What torch's layer does with a weight."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    if isinstance(layer, nn.Embedding):
        return F.embedding(x, weight, layer.padding_idx)
    stride, padding, dilation, dims = layer.stride, layer.padding, layer.dilation, len(layer.kernel_size)
    if layer.transposed:
        extra = layer.output_padding
        return CONV_TRANSPOSE[dims](x, weight, layer.bias, stride, padding, extra, layer.groups, dilation)
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    return CONV[dims](x, weight, layer.bias, stride, padding, dilation, layer.groups)
