"""The weights that generators are fitted to: random, trained, and with a structure that is known."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from adntn.checkpoint import load
from adntn.errors import ConfigError
from adntn.experiments.models import vgg16
from adntn.generator import Generator
from adntn.topology import GeneratorConfig

__all__ = ["TARGETS", "TRAINED", "Kind", "Target", "make_target", "measured_rank", "spectrum"]

# A singular value below this share of the largest is taken for rounding, in float64.
_TOLERANCE = 1e-12
_RANK = 4  # of the target that is exactly of low rank
_WAVES = 8  # half-waves along each side of the smooth target, at most
_MODEL = Path("vgg16") / "dense-seed0.safetensors"


@dataclass(frozen=True)
class Kind:
    """What a target is.

    Attributes:
        says: it in a few words.
        make: from the networks' width, and the folder of trained models if it needs one, to the weight.
        layer: of the trained VGG-16 that it is taken from; None for a made one.
    """

    says: str
    make: Callable[[float, Path | None], Tensor]
    layer: str | None = None


@dataclass(frozen=True, eq=False)
class Target:
    """A weight to fit to.

    Attributes:
        name: of its kind.
        weight: float64, of mean square 1.
        spectrum: its singular values as the matrix (out, in * kernel), the largest first.
    """

    name: str
    weight: Tensor
    spectrum: Tensor

    def facts(self) -> dict[str, Any]:
        """Return what is known of it, in plain values.

        ``svd_errors`` has the relative errors of the best weights of rank 0, 1, ... (Eckart and Young), which no weight
        of such a rank can beat. ``digest`` is there for trained weights, which come from outside.
        """
        energy = self.spectrum.square()
        left = energy.flip(0).cumsum(0).flip(0) / energy.sum()
        values = self.weight.float().contiguous().numpy().tobytes()
        return {
            "target": self.name,
            "says": TARGETS[self.name].says,
            "shape": list(self.weight.shape),
            "digest": hashlib.sha256(values).hexdigest()[:16] if self.name in TRAINED else None,
            "rank": measured_rank(self.spectrum),
            "stable_rank": float(energy.sum() / energy[0]),
            "svd_errors": [float(f"{value:.6g}") for value in [*left.sqrt().tolist(), 0.0]],
        }


def spectrum(weight: Tensor) -> Tensor:
    """Return the singular values of a weight as the matrix (out, in * kernel), the largest first; float64."""
    values: Tensor = torch.linalg.svdvals(weight.detach().double().flatten(1))
    return values


def measured_rank(values: Tensor) -> int:
    """Return how many singular values are more than rounding."""
    return int((values > _TOLERANCE * values[0]).sum())


def make_target(name: str, width: float, seed: int, models: Path | None = None) -> Target:
    """Make a target; random ones are drawn from the seed. torch's global random state is left as it was.

    Args:
        name: of its kind, one of :data:`TARGETS`.
        width: share of VGG-16's channels, and of a matrix' side of 1024.
        seed: of what is random.
        models: where trained networks are kept: a folder of ``adntn reproduce table3``, its ``models``, or the file.

    Raises:
        ConfigError: the target is a trained weight, and there is no trained network.
        CheckpointError: the network is of another width, or its file is damaged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's only; torch.manual_seed would reset the GPU's too
        weight = TARGETS[name].make(width, models).detach().to("cpu", torch.float64)
    weight = weight / weight.square().mean().sqrt()
    return Target(name, weight, spectrum(weight))


def _channels(width: float) -> int:
    return max(4, round(512 * width))


def _side(width: float) -> int:
    return max(4, round(1024 * width))


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, device="cpu")


def _gaussian_conv(width: float, models: Path | None) -> Tensor:
    return _normal(_channels(width), _channels(width), 3, 3)


def _gaussian_matrix(width: float, models: Path | None) -> Tensor:
    return _normal(_side(width), _side(width))


def _low_rank(width: float, models: Path | None) -> Tensor:
    side = _side(width)
    return _normal(side, _RANK) @ _normal(_RANK, side)


def _circulant(width: float, models: Path | None) -> Tensor:
    places = torch.arange(_side(width))
    return _normal(len(places))[(places.unsqueeze(1) - places) % len(places)]


def _smooth(width: float, models: Path | None) -> Tensor:
    side = _side(width)
    waves = torch.arange(_WAVES + 1, dtype=torch.float64)
    rows = torch.outer((torch.arange(side, dtype=torch.float64) + 0.5) * math.pi / side, waves).cos()
    sizes = _normal(_WAVES + 1, _WAVES + 1) / (1.0 + waves.square().unsqueeze(1) + waves.square())
    return rows @ sizes @ rows.mT


def _kronecker(width: float, models: Path | None) -> Tensor:
    side = _side(width)
    outer = math.gcd(side, 2 ** (side.bit_length() // 2))
    made: Tensor = torch.kron(_normal(outer, outer), _normal(side // outer, side // outer))
    return made


def _orthogonal(width: float, models: Path | None) -> Tensor:
    made: Tensor = torch.linalg.qr(_gaussian_matrix(width, models))[0]
    return made


def _tree(width: float, models: Path | None) -> Tensor:
    side = _side(width)
    config = GeneratorConfig(topology="mera", order="paired")
    return Generator((side, side), config, device="cpu", dtype=torch.float64).generate()


def _trained(layer: str, width: float, models: Path | None) -> Tensor:
    weight = _trained_network(width, _model_file(models)).get_parameter(f"{layer}.weight")
    side = _side(width)
    return weight if weight.ndim > 2 else weight[:side, :side]


def _model_file(models: Path | None) -> Path:
    if models is None:
        raise ConfigError(
            "trained weights are targets, but no trained network is given: name a folder of adntn reproduce table3."
        )
    for file in (models, models / _MODEL, models / "models" / _MODEL):
        if file.is_file():
            return file
    raise ConfigError(f"{models} has no trained dense VGG-16: there is no models/{_MODEL.as_posix()} in it.")


@functools.lru_cache(maxsize=1)
def _trained_network(width: float, file: Path) -> nn.Module:
    hidden = max(1, round(4096 * width))
    return load(vgg16((3, 32, 32), 10, width, (hidden, hidden)), file)


#: What can be fitted to, by name. Matrices have sides of 1024 times the width, the convolutions 512 times it.
TARGETS: Mapping[str, Kind] = MappingProxyType(
    {
        "gaussian-conv": Kind("Gaussian numbers, the shape of VGG-16's 512x512x3x3 times the width", _gaussian_conv),
        "gaussian": Kind("Gaussian numbers, a matrix", _gaussian_matrix),
        "trained-conv": Kind(
            "VGG-16's first 512x512 convolution, trained", functools.partial(_trained, "features.27"), "features.27"
        ),
        "trained-fc": Kind(
            "the first quarter of rows and columns of VGG-16's FC2, trained",
            functools.partial(_trained, "classifier.3"),
            "classifier.3",
        ),
        "lowrank": Kind(f"a product of two Gaussian factors of rank {_RANK}", _low_rank),
        "circulant": Kind("Gaussian numbers, each row the one above, shifted by one", _circulant),
        "smooth": Kind(f"cosines of up to {_WAVES} half-waves along each side, the short ones small", _smooth),
        "kronecker": Kind("the Kronecker product of two Gaussian matrices", _kronecker),
        "orthogonal": Kind("an orthogonal matrix, drawn uniformly", _orthogonal),
        "tree": Kind("a freshly drawn mera's, paired, bond 2", _tree),
    }
)

#: Those that are taken from a trained network.
TRAINED = tuple(name for name, kind in TARGETS.items() if kind.layer is not None)
