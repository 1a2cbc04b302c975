"""Generated convolutions whose weight is mixed with random numbers that a seed makes again: nothing of them is stored.

They are what ``adntn reproduce levers`` tries beside the generators themselves. They run by their whole weight.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from adntn.errors import check_choice
from adntn.initialize import default_std
from adntn.nn import Conv2d
from adntn.topology import GeneratorConfig

__all__ = ["SEEDED", "SeededConv2d"]

SEEDED = ("signs", "scramble", "base", "blocks")

#: Blocks of a block-diagonal base.
_BLOCKS = 8


class SeededConv2d(Conv2d):
    """A generated convolution with something random about its weight G.

    Attributes:
        seeding: ``"signs"``: G times a sign for each pair of channels; ``"scramble"``: pairs of channels permuted, and
            signs; ``"base"``: a dense random weight plus G; ``"blocks"``: a random weight that is block-diagonal up to
            permutations of the channels, plus G. Random weights have the deviation of a dense layer's start, and where
            one is added all is scaled back to it.
    """

    seeding: str
    _order: Tensor | None
    _factor: Tensor | None
    _base: Tensor | None

    @classmethod
    def made_of(cls, dense: nn.Conv2d, config: GeneratorConfig, seeding: str) -> Self:
        """Build the layer that stands in for a dense one, from torch's global random state.

        Raises:
            ConfigError: the kind of seeding is unknown.
        """
        check_choice("seeding", seeding, SEEDED)
        layer = cls.from_dense(dense, config, execution="dense")
        layer.seeding = seeding
        out, inner = layer.shape[:2]
        order = torch.randperm(out * inner) if seeding == "scramble" else None
        factor = torch.randn(out, inner, 1, 1).sign() if seeding in ("signs", "scramble") else None
        base = None
        if seeding in ("base", "blocks"):
            base = default_std(layer.shape) * torch.randn(layer.shape)
        if base is not None and seeding == "blocks":
            blocks = min(_BLOCKS, out, inner)
            own, other = torch.randperm(out) % blocks, torch.randperm(inner) % blocks
            base = base * math.sqrt(blocks) * (own.unsqueeze(1) == other).view(out, inner, 1, 1)
        for name, value in (("_order", order), ("_factor", factor), ("_base", base)):
            layer.register_buffer(name, value, persistent=False)
        return layer

    def _whole(self) -> Tensor:
        weight = super()._whole()
        if self._order is not None:
            weight = weight.flatten(0, 1)[self._order].view_as(weight)
        if self._factor is not None:
            weight = weight * self._factor
        if self._base is not None:
            weight = (weight + self._base) / math.sqrt(2.0)
        return weight
