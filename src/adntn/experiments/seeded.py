"""Generated convolutions whose weight is mixed with random numbers that a seed makes again: nothing of them is stored.

They are what ``adntn reproduce levers`` tries beside the generators themselves. They run by their whole weight.
"""

from __future__ import annotations

import math
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from adntn.errors import check_choice
from adntn.generator import Generator
from adntn.initialize import default_std
from adntn.nn import Conv2d
from adntn.topology import GeneratorConfig

__all__ = ["SEEDED", "SeededConv2d"]

SEEDED = ("signs", "scramble", "shuffle", "base", "blocks", "tangent")

#: Blocks of a block-diagonal base.
_BLOCKS = 8


class SeededConv2d(Conv2d):
    """A generated convolution with something random about its weight G.

    Attributes:
        seeding: ``"signs"``: G times a sign for each pair of channels; ``"scramble"``: pairs of channels permuted, and
            signs; ``"shuffle"``: each tree of a sum has rows and columns in an order of its own; ``"base"``: a dense
            random weight plus G; ``"blocks"``: a random weight that is block-diagonal up to
            permutations of the channels, plus G. Random weights have the deviation of a dense layer's start, and where
            one is added all is scaled back to it. ``"tangent"``: G to first order in how far its numbers have come from
            their random start, so that it moves in the directions that it has there, and in no others.
    """

    seeding: str
    _order: Tensor | None
    _factor: Tensor | None
    _base: Tensor | None
    _rows: Tensor | None
    _columns: Tensor | None
    _start: Tensor | None
    _apart: tuple[Generator, ...]  # to be given the layer's numbers; in a tuple it is no part of the layer

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
        rows = columns = None
        layer._apart = ()
        if seeding == "shuffle":
            apart = config.replace(groups=config.terms, terms=1)
            layer._apart = (Generator((config.terms * out, inner, *layer.kernel_size), apart, device="meta"),)
            rows = torch.stack([torch.randperm(out) for _ in range(config.terms)])
            columns = torch.stack([torch.randperm(inner) for _ in range(config.terms)])
        start = None
        if seeding == "tangent":
            layer._apart = (Generator(layer.shape, config, device="meta"),)
            start = torch.cat([p.detach().flatten() for _, p in layer.generator_parameters()])
        kept = {"_order": order, "_factor": factor, "_base": base, "_rows": rows, "_columns": columns, "_start": start}
        for name, value in kept.items():
            layer.register_buffer(name, value, persistent=False)
        return layer

    def _whole(self) -> Tensor:
        if self._start is not None:
            return self._along_the_start(self._start)
        if self._rows is not None and self._columns is not None:
            trees = zip(self._trees(), self._rows, self._columns, strict=True)
            return torch.stack([tree[rows][:, columns] for tree, rows, columns in trees]).sum(0)
        weight = super()._whole()
        if self._order is not None:
            weight = weight.flatten(0, 1)[self._order].view_as(weight)
        if self._factor is not None:
            weight = weight * self._factor
        if self._base is not None:
            weight = (weight + self._base) / math.sqrt(2.0)
        return weight

    def _along_the_start(self, flat: Tensor) -> Tensor:
        names, now = zip(*self.generator_parameters(), strict=True)
        start = tuple(part.view_as(p) for part, p in zip(flat.split([p.numel() for p in now]), now, strict=True))

        def make(*numbers: Tensor) -> Tensor:
            made: Tensor = functional_call(self._apart[0], dict(zip(names, numbers, strict=True)), ())
            return made

        moved = tuple(p - p0 for p, p0 in zip(now, start, strict=True))
        there, along = cast("tuple[Tensor, Tensor]", jvp(make, start, moved))
        return there + along

    def _trees(self) -> Tensor:  # shape: (terms, out, in, *kernel)
        """Return what the trees of the sum make, each on its own: their numbers, taken for those of as many groups."""
        made = functional_call(self._apart[0], dict(self.generator_parameters()), ())
        trees: Tensor = made.unflatten(0, (-1, self.shape[0]))
        return trees
