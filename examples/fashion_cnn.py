"""A convolutional network for small grey images, as a user would bring one: four convolutions with batch norm."""

from __future__ import annotations

from torch import nn


def build(image_shape: tuple[int, int, int], num_classes: int, width: float = 1.0) -> nn.Module:
    """Build the network; ``width`` is the share of its channels that a narrower one of the same kind has."""
    a, b, c = (max(1, round(width * channels)) for channels in (32, 64, 128))
    return nn.Sequential(
        *(nn.Conv2d(image_shape[0], a, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU()),
        *(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()),
        *(nn.Conv2d(b, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
        *(nn.Conv2d(c, c, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, num_classes)),
    )
