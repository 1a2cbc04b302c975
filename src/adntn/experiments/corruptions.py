"""Images made worse in ways that have a name and a severity (Hendrycks & Dietterich, arXiv:1903.12261)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.errors import ConfigError, ShapeError, check_choice
from adntn.training.seeds import derive_seed

__all__ = ["CORRUPTIONS", "STANDARD", "corrupt"]

#: Strength at severities 1 to 5, as that paper's CIFAR-10-C has them: deviation of the noise, deviation of the blur in
#: pixels, and the share of the contrast that is left. They are meant for images of about 32x32.
CORRUPTIONS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "gaussian noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "gaussian blur": (0.4, 0.6, 0.7, 0.8, 1.0),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    }
)

#: What a model is looked at under unless told otherwise.
STANDARD = tuple((name, severity) for name in CORRUPTIONS for severity in (1, 3, 5))


def corrupt(images: Tensor, name: str, severity: int, *, seed: int = 0, first: int = 0) -> Tensor:
    """Return images with a corruption, before they are normalised.

    An image's noise depends on the seed and on its number alone, not on the batch that it comes in.

    Args:
        images: shape ``(n, C, H, W)``, uint8, or float in 0 ... 1.
        name: ``"gaussian noise"``, ``"gaussian blur"`` or ``"contrast"``.
        severity: 1 to 5.
        seed: of the noise.
        first: number of the first image in its data set.

    Returns:
        Float images in 0 ... 1, of the same shape.

    Raises:
        ConfigError: the corruption is not known, or has no such severity.
        ShapeError: these are not images.
    """
    check_choice("corruption", name, CORRUPTIONS)
    if type(severity) is not int or not 1 <= severity <= 5:
        raise ConfigError(f"severity={severity!r} is not possible; give a whole number from 1 to 5.")
    if images.ndim != 4:
        raise ShapeError(f"images of shape (n, C, H, W) are needed, not {tuple(images.shape)}.")
    clean = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    strength = CORRUPTIONS[name][severity - 1]
    if name == "contrast":
        means = clean.mean(dim=(2, 3), keepdim=True)
        worse = (clean - means) * strength + means
    elif name == "gaussian blur":
        worse = _blur(clean, strength)
    else:
        worse = clean + strength * _noise(clean, derive_seed(seed, "corrupt", name, severity), first)
    return worse.clamp(0, 1)


def _noise(images: Tensor, seed: int, first: int) -> Tensor:  # shape: (n, C, H, W) -> the same
    random = torch.Generator()
    drawn = [
        torch.randn(images.shape[1:], generator=random.manual_seed(derive_seed(seed, number)))
        for number in range(first, first + len(images))
    ]
    return torch.stack(drawn).to(images.device) if drawn else torch.empty_like(images)


def _blur(images: Tensor, deviation: float) -> Tensor:  # shape: (n, C, H, W) -> the same
    reach = int(4 * deviation + 0.5)
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (steps / deviation) ** 2)
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    across = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
