"""The variants of a case, as functions that build a module of the case's own shape."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

import adntn
from adntn.experiments.models import alexnet, vgg16
from benchmarks.speed import peers
from benchmarks.speed.cases import Case, Shape
from benchmarks.speed.reading import CHANNELS_LAST

__all__ = ["LEFT_OUT", "TARGETS", "TOPOLOGIES", "Variant", "variants_of"]

TOPOLOGIES = ("ttn", "attn", "mera")
WAYS = ("auto", "factored", "dense")

#: What is generated in a whole model. The first sets are the paper's layers.
TARGETS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "vgg16": {
        "FC2": ("classifier.3",),
        "five convolutions": tuple(f"features.{place}" for place in (27, 30, 34, 37, 40)),
        "convolutions but the first, FC2": (r"re:features\.(?!0$)\d+", "classifier.3"),
        "all layers": ("re:.*",),
    },
    "alexnet": {"two convolutions": ("features.3", "features.10"), "all layers": ("re:.*",)},
}

_WITH_FORMATS = ("convolutions but the first, FC2", "all layers")
_WITH_MERA = ("convolutions but the first, FC2", "two convolutions")

#: What the grid does not have, and why. Part of the results.
LEFT_OUT = {
    "bfloat16 layers": "dense, ttn each way, attn and mera by auto, low rank; the others are measured in float32 only",
    "whole models": "generated layers by ttn, one set of them in float32 by mera too, each by auto; no peers",
    "tensorly-torch, convolutions": "its TT stands where linear layers have block TT, which it has for matrices only",
    "tensorly-torch, inference": "it has no cache: its reconstructed layers make the weight at every call, as does the "
    "einsum loop",
}


@dataclass(frozen=True)
class Variant:
    """One way to do what a case is about.

    Attributes:
        name: in the results.
        family: ``"dense"``, ``"adntn"``, ``"low rank"``, ``"tensorly"``, ``"einsum"`` or ``"paired"``.
        build: returns a fresh module.
        whole: whether it hands a whole weight to torch's kernel, and so cannot be faster than dense.
        missing: why it cannot be built, or None.
        essential: whether it is measured at any cost: what the goals, and the regret of a ttn, are about.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    whole: bool = False
    missing: str | None = None

    @property
    def essential(self) -> bool:
        return self.family in ("dense", "adntn", "low rank") and self.name not in ("attn dense", "mera dense")


def variants_of(case: Case) -> Iterator[Variant]:
    """Yield the variants of a layer or a model, dense first."""
    yield from _model_variants(case) if case.kind == "model" else _layer_variants(case)


def _layer_variants(case: Case) -> Iterator[Variant]:
    shape, everything = case.shape, case.dtype == "float32"
    yield Variant("dense", "dense", partial(_dense, shape))
    for topology in TOPOLOGIES:
        for way in WAYS if everything or topology == "ttn" else WAYS[:1]:
            build = partial(_generated, shape, adntn.GeneratorConfig(topology=topology), way)
            yield Variant(f"{topology} {way}", "adntn", build, whole=way == "dense")
    yield Variant("low rank", "low rank", partial(_low_rank, shape))
    if not everything:
        return
    paired = adntn.GeneratorConfig(topology="ttn", order="paired")
    yield Variant("ttn paired", "paired", partial(_generated, shape, paired, "dense"), whole=True)
    yield Variant("einsum loop", "einsum", partial(_copy_of, peers.EinsumLoop, shape), whole=True)
    for name, (factorization, rank) in peers.TENSORLY.items():
        for implementation in ("factorized", "reconstructed"):
            build = partial(peers.tensorly_layer, shape, factorization, rank, implementation)
            whole = implementation == "reconstructed"
            name_of = f"tensorly {name} {implementation}"
            yield Variant(name_of, "tensorly", build, whole, missing=peers.tensorly_missing())


@lru_cache(maxsize=64)
def _made(make: Callable[..., nn.Module], *arguments: Hashable) -> nn.Module:
    return make(*arguments)


def _copy_of(make: Callable[..., nn.Module], *arguments: Hashable) -> nn.Module:
    # Calibration makes the whole weight; hundreds of times that would take longer than the measurements.
    return copy.deepcopy(_made(make, *arguments))


def _dense(shape: Shape) -> nn.Module:
    return nn.Linear(shape[1], shape[0]) if len(shape) == 2 else peers.convolution(shape)


def _generated(shape: Shape, config: adntn.GeneratorConfig, way: str) -> nn.Module:
    layer = _copy_of(_layer, shape, config)
    setattr(layer, "execution", way)  # noqa: B010  # a module, as far as its type says
    return layer


def _layer(shape: Shape, config: adntn.GeneratorConfig) -> nn.Module:
    if len(shape) == 2:
        return adntn.nn.Linear(shape[1], shape[0], config=config)
    return adntn.nn.Conv2d(shape[1], shape[0], shape[2:], padding=shape[2] // 2, config=config)


def _low_rank(shape: Shape) -> nn.Module:
    ranks = adntn.Generator(shape, adntn.GeneratorConfig(topology="ttn"), device="meta").ranks
    assert ranks is not None
    return peers.low_rank_pair(shape, ranks)


def _model_variants(case: Case) -> Iterator[Variant]:
    yield Variant("dense", "dense", partial(_model, case.model))
    yield Variant(f"dense{CHANNELS_LAST}", "dense", partial(_channels_last, partial(_model, case.model)))
    for topology in ("ttn", "mera"):
        for name in TARGETS[case.model]:
            if topology == "mera" and (name not in _WITH_MERA or case.dtype != "float32"):
                continue
            build = partial(_copy_of, _compressed, case.model, topology, name)
            yield Variant(f"{topology}: {name}", "adntn", build)
            if topology == "ttn" and name in _WITH_FORMATS:
                yield Variant(f"{topology}: {name}{CHANNELS_LAST}", "adntn", partial(_channels_last, build))


class _ChannelsLast(nn.Module):
    """A model in torch's other memory format; what it costs to bring the images there is part of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x.contiguous(memory_format=torch.channels_last))
        return y


def _channels_last(build: Callable[[], nn.Module]) -> nn.Module:
    return _ChannelsLast(build())


def _model(name: str) -> nn.Module:
    if name == "alexnet":
        return alexnet((3, 32, 32), 10)
    return vgg16((3, 32, 32), 10, head=(4096, 4096))


def _compressed(name: str, topology: str, what: str) -> nn.Module:
    model = _model(name)
    adntn.compress_(model, adntn.GeneratorConfig(topology=topology), TARGETS[name][what])
    return model
