"""Small models and configs that the tests of compress_ share."""

from __future__ import annotations

from torch import Tensor, nn

import adntn
from adntn import GeneratorConfig

CONFIG = GeneratorConfig(topology="ttn", order="blocked", activation="elu", initialization="paper")
OTHER = CONFIG.replace(topology="mera")
THIRD = CONFIG.replace(order="paired")


class Net(nn.Module):
    """Two convolutions with a norm between them, and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        )
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.features(x).flatten(1))
        return result


IMAGES = (2, 3, 4, 4)
LAYERS = ["features.0", "features.3", "head.0", "head.2"]


def pair(size: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, size), nn.Linear(size, size))


def tied_pair() -> nn.Sequential:
    model = pair()
    model[1].weight = model[0].weight
    return model


def names(report: adntn.CompressionReport) -> list[str]:
    return [row.name for row in report.layers]
