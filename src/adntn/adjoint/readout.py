"""The adjoint of the readout: from the weight, or from a factor A, C or B, to cores and hidden state."""

from __future__ import annotations

import torch
from torch import Tensor

from adntn.adjoint.plans import (
    Parts,
    apply_adjoint,
    apply_at_adjoint,
    in_digit_order_adjoint,
    readout_adjoint,
)
from adntn.contraction import Contraction, Cores
from adntn.tensorize import KERNEL

__all__ = ["ReadoutAdjoint"]


class ReadoutAdjoint:
    """Takes the adjoint of what a network makes of a hidden state back to the state and the cores of its last level.

    Args:
        network: of a tree or a brick wall.
        cores: those of its last level that are met, see :meth:`Contraction.cores`.
    """

    def __init__(self, network: Contraction, cores: Cores) -> None:
        self.network, self.cores = network, cores
        self.tensorization = network.blueprint.tensorization
        self.terms = network.blueprint.config.terms

    def weight(self, hidden: Tensor, upstream: Tensor) -> tuple[Parts, Tensor]:
        """Return the gradients of cores and the adjoint of the hidden state, given that of the weight."""
        axes = self.tensorization.axes
        made = upstream.reshape(-1, *axes)
        if self.terms > 1:  # every term of a sum meets the same adjoint
            made = made.repeat_interleave(self.terms, dim=0)
        made = in_digit_order_adjoint(made, self.tensorization, range(len(axes)), first=1)
        return readout_adjoint(self.network.readout_plan, self.cores, hidden, made)

    def centre(self, hidden: Tensor, upstream: Tensor) -> tuple[Parts, Tensor]:
        """Return the same, given the adjoint of C."""
        assert self.network.split is not None
        outer, inner = self.network.split.ranks
        blocks = upstream.reshape(len(upstream), self.terms, outer, self.terms, inner, -1)
        own = blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1).flatten(0, 1)  # shape: (trees, r, r', kernel)
        if len(self.tensorization.axes) > KERNEL:
            own = in_digit_order_adjoint(own, self.tensorization, [KERNEL], first=3)
        else:
            own = own.squeeze(3)
        plan = self.network.split.centre
        parts, adjoint = apply_adjoint(plan, self.cores, hidden.unsqueeze(1), own.unsqueeze(1))
        return parts, adjoint.squeeze(1)

    def side(self, axis: int, upstream: Tensor) -> Parts:
        """Return the gradients of cores, given the adjoint of A or B."""
        assert self.network.split is not None
        plan = self.network.split.side(axis)
        rows = upstream.unflatten(2, (self.terms, -1)).transpose(1, 2).flatten(0, 1).mT  # shape: (trees, r, axis)
        rows = in_digit_order_adjoint(rows, self.tensorization, [axis], first=2)
        identity = torch.eye(plan.size_in, dtype=rows.dtype, device=rows.device)
        parts, _ = apply_adjoint(plan, self.cores, identity.expand(len(rows), -1, -1), rows)
        return parts

    def rows(self, index: Tensor, upstream: Tensor) -> Parts:
        """Return the gradients of cores, given the adjoint of the rows of A at an index, shape ``(*index, r)``."""
        assert self.network.split is not None
        plan = self.network.split.outer
        group, row = self.network.place_of_rows(index)
        own = upstream.reshape(len(row), self.terms, plan.size_in).transpose(0, 1).flatten(0, 1)
        place = group * self.terms + torch.arange(self.terms, device=row.device).unsqueeze(1)
        like = upstream.new_empty(self.network.blueprint.config.trees)
        return apply_at_adjoint(plan, self.cores, place.flatten(), row.repeat(self.terms), like, own)
