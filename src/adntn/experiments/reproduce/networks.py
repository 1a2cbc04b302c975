"""A reference network whose convolutions are generated, all but the first: where rows of whole networks start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from adntn.experiments.controls import chosen_weights
from adntn.experiments.models import DEFAULT_TARGETS, Builder, ImageShape, model_builder
from adntn.experiments.reproduce.rows import Row
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.rivals import narrow_dense
from adntn.experiments.seeded import SeededConv2d
from adntn.experiments.variants import Variant
from adntn.targets import select
from adntn.topology import GeneratorConfig

__all__ = ["TEACHER", "Whole", "teacher_of"]

#: The dense network that others learn from, where it is trained for longer or shorter than they are.
TEACHER = "teacher"


def teacher_of(dense: Row, settings: Settings) -> Row:
    """Return the row that others learn from: the dense one, or one that is trained for epochs of its own."""
    if settings.teacher_epochs is None:
        return dense
    how = replace(dense.optimization, epochs=settings.teacher_epochs)
    return replace(dense, variant=TEACHER, optimization=how, about={**dense.about, "rival": TEACHER})


@dataclass(frozen=True, eq=False)
class Whole:
    """A reference network at a share of its width, and the weights of it that are generated.

    Attributes:
        name: of the network.
        width: share of its channels.
        image_shape: channels, height, width of the images.
        num_classes: outputs.
    """

    name: str
    width: float
    image_shape: ImageShape
    num_classes: int

    @cached_property
    def build(self) -> Builder:
        """Makes the dense network, and narrower ones."""
        full = model_builder(self.name, self.image_shape, self.num_classes)
        return Builder(lambda width=1.0: full.narrower(width * self.width), takes_width=True)

    @cached_property
    def weights(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the weights that are generated, by layer."""
        with torch.device("meta"):
            model = self.build()
        chosen = chosen_weights(model, select(model, DEFAULT_TARGETS[self.name]))
        return {name: tuple(weight.shape) for name, weight in chosen.items()}

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that are generated."""
        return tuple(self.weights)

    @cached_property
    def dense(self) -> int:
        """Numbers of the dense network."""
        with torch.device("meta"):
            return sum(p.numel() for p in self.build().parameters())

    @property
    def beside(self) -> int:
        """Numbers that stay as they are: the first convolution, norms, biases, the head."""
        return self.dense - sum(map(math.prod, self.weights.values()))

    def narrow(self, numbers: int, seed: int) -> nn.Module:
        """Build the widest of the narrower dense networks that stores at most so many numbers, untrained."""
        torch.manual_seed(seed)
        return narrow_dense(self.build.narrower, numbers)

    def seeded(self, configs: Mapping[str, GeneratorConfig], seeding: str, seed: int) -> nn.Module:
        """Build the network with something random mixed into every generated weight, untrained.

        Args:
            configs: of the generators, by layer.
            seeding: what, see :class:`~adntn.experiments.seeded.SeededConv2d`.
            seed: of everything.
        """
        model = Variant("", "dense").make(self.build, list(configs), seed)
        for name, config in configs.items():
            dense = model.get_submodule(name)
            assert isinstance(dense, nn.Conv2d)
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, SeededConv2d.made_of(dense, config, seeding))
        return model
