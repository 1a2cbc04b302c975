"""Running the plans: from parameters to hidden state, factors or weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.contraction.forest import Forest
from adntn.contraction.kronecker import plan_kronecker
from adntn.contraction.plan import plan_level, plan_readout, plan_split, plan_walk
from adntn.contraction.readout import apply, finished, run, summed, unfinished, write
from adntn.contraction.segments import Cores, act_at, cropped, digits, segment_matrices, segment_matrix, table
from adntn.contraction.sides import Side
from adntn.contraction.steps import Plan, Walk
from adntn.levels import Level
from adntn.tensorize import IN, KERNEL, OUT, Tensorization
from adntn.topology import Blueprint

__all__ = ["Activate", "Contraction", "Factors", "apply", "apply_at", "in_digit_order"]

Activate = Callable[[int, Tensor], Tensor]
Factors = tuple[Tensor, Tensor, Tensor]


def apply_at(
    plan: Plan,
    cores: Cores,
    group: Tensor,  # shape: (n,), whose cores
    index: Tensor,  # shape: (n,), on the axis, in tree order
    like: Tensor,  # its first dimension is the groups
) -> Tensor:  # shape: (n, plan.size_in)
    """Return what each input of a plan with one axis gives at an index; nothing is made for any other index."""
    state = like.new_ones(len(index), 1, 1)  # shape: (n, inputs met so far, held)
    for segment, digit in digits(plan, group, index):
        matrix = segment_matrix(segment, cores, segment.released, like)
        state = act_at(state, F.embedding(digit, table(segment, matrix, like)), segment)
    return state.squeeze(2)


def in_digit_order(state: Tensor, tensorization: Tensorization, axes: Sequence[int], first_dim: int) -> Tensor:
    """Put indices right where an explicit order has an axis' digits out of order; crop those axes.

    Args:
        state: its dimensions from ``first_dim`` on are the given axes, in tree order.
        tensorization: says which digit stands where.
        axes: of the weight.
        first_dim: the dimension of the first of them.
    """
    for dim, axis in enumerate(axes, start=first_dim):
        permutation = tensorization.digit_permutation(axis)
        if permutation is not None:
            index = torch.tensor(permutation[: tensorization.axes[axis]], device=state.device)
            state = state.index_select(dim, index)
    return state


class Contraction:
    """All plans of one blueprint, and the arithmetic from parameters to hidden state, factors or weight.

    Parameters are passed as a mapping by name, with the shapes of :attr:`Blueprint.parameter_shapes`.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        self.blueprint = blueprint
        *hidden, last = blueprint.levels
        self.hidden_plans = tuple(plan_level(level) for level in hidden)
        self.readout_plan = plan_readout(last, blueprint.tensorization)
        self.walk = Walk(plan_walk(last, blueprint.tensorization))
        self.split = plan_split(last, blueprint.tensorization)
        self.sides = self._sides()
        self.kronecker = plan_kronecker(last, blueprint.tensorization) if self.split is None else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Contraction:
        return type(self)(self.blueprint)  # plans are cached

    def __reduce__(self) -> tuple[type[Contraction], tuple[Blueprint]]:
        return type(self), (self.blueprint,)

    @property
    def ranks(self) -> tuple[int, int] | None:
        """The sizes r and r' of the factors, or None where the order has no split."""
        if self.split is None:
            return None
        outer, inner = self.split.ranks
        return self.blueprint.config.terms * outer, self.blueprint.config.terms * inner

    def _sides(self) -> tuple[Side, Side] | tuple[Forest, Forest] | None:
        """Return A and B as they are applied in stages; None with digits out of order."""
        config, digits = self.blueprint.config, self.blueprint.tensorization.digit_permutation
        if self.split is None or digits(OUT) is not None or digits(IN) is not None:
            return None
        plans = self.split.staged_outer, self.split.staged_inner
        outer, inner = (Side(plan) if plan.segments else None for plan in plans)  # an axis of size 1 has none
        if outer is None or inner is None:
            return None
        if config.trees == 1:
            return outer, inner
        return Forest(outer, config.groups, config.terms), Forest(inner, 1, config.trees)

    def staged(self, parameters: Cores, hidden: Tensor) -> tuple[Tensor, ...]:
        """Return the matrices of A's stages, C of shape ``(trees * r, r', *kernel)``, and those of B's stages."""
        assert self.sides is not None
        cores = self.cores(parameters, self.blueprint.levels[-1])
        outer, inner = (side.matrices(cores, hidden) for side in self.sides)
        return (*outer, self.centres(cores, hidden).flatten(0, 1), *inner)

    def kronecker_matrices(self, parameters: Cores, hidden: Tensor, *, merged: bool) -> tuple[Tensor, ...]:
        """Return the matrices of the sum of Kronecker products; see :meth:`KroneckerPlan.matrices`."""
        assert self.kronecker is not None
        cores = self.cores(parameters, self.blueprint.levels[-1])
        return self.kronecker.matrices(cores, hidden, self.blueprint.config.groups, merged=merged)

    def cores(self, parameters: Cores, level: Level) -> Cores:
        """Return the level's stacks, each ``(trees, count, rows, columns)``, gates on disentanglers applied.

        A stack whose parameter is not given is left out.
        """
        trees = self.blueprint.config.trees
        given = [stack for stack in level.stacks if stack.name in parameters]
        cores = {stack.name: parameters[stack.name].reshape(trees, stack.count, *stack.shape) for stack in given}
        for stack in given:
            gate = parameters.get(f"gate.{stack.name}")
            if gate is not None:
                core = cores[stack.name]
                identity = torch.eye(stack.shape[0], dtype=core.dtype, device=core.device)
                cores[stack.name] = identity + gate.reshape(trees, -1, 1, 1) * (core - identity)
        return cores

    def start(self, parameters: Cores) -> Tensor:
        """Return the state before the first level, shape ``(trees, entries)``: the root, or a brick wall's product."""
        if "root" in parameters:
            return parameters["root"]
        like = next(iter(parameters.values()))
        entries = self.blueprint.levels[0].entries_in
        return like.new_full((self.blueprint.config.trees, entries), entries**-0.5)

    def pre_activation(self, parameters: Cores, number: int, state: Tensor) -> Tensor:
        """Return Z of hidden level ``number`` (Eqs. 49, 59-60), shape ``(trees, entries)``, from the state before."""
        cores = self.cores(parameters, self.blueprint.levels[number - 1])
        for plan in self.hidden_plans[number - 1]:
            state = run(plan, cores, state)
        return state if state.ndim == 2 else state.reshape(len(state), -1)

    def hidden(self, parameters: Cores, activate: Activate) -> Tensor:
        """Return the state before the readout, shape ``(trees, bond_dim**H)``.

        Args:
            parameters: by name.
            activate: from a level's number and its pre-activation to its state (Eqs. 50, 62).
        """
        state = self.start(parameters)
        for number in range(1, len(self.hidden_plans) + 1):
            state = activate(number, self.pre_activation(parameters, number, state))
        gate = parameters.get("gate.term")
        return state if gate is None else gate * state

    def readout(self, parameters: Cores, hidden: Tensor) -> Tensor:
        """Return what each tree makes of its hidden state, shape ``(trees, *axes)`` (Eqs. 49, 54-56)."""
        cores = self.cores(parameters, self.blueprint.levels[-1])
        return self._in_axes(*unfinished(self.readout_plan, cores, hidden))

    def weight(self, parameters: Cores, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the weight, shape ``(out, in, *kernel)``, of a hidden state.

        Args:
            parameters: by name.
            hidden: shape ``(trees, bond_dim**H)``.
            out: memory of the weight's shape in which to make it; no gradient can be recorded then.
        """
        blueprint = self.blueprint
        cores = self.cores(parameters, blueprint.levels[-1])
        rows, matrix = summed(*unfinished(self.readout_plan, cores, hidden), blueprint.config.terms)
        if out is None:
            return self._in_axes(rows, matrix).reshape(blueprint.shape)
        tensorization = blueprint.tensorization
        plain = all(tensorization.digit_permutation(axis) is None for axis in range(len(tensorization.axes)))
        if plain and (tensorization.splits_axes or out.is_contiguous()):
            place = out.unflatten(0, (blueprint.config.groups, -1))
            write(self.readout_plan, rows, matrix, place if tensorization.splits_axes else place.flatten(1))
        else:
            out.copy_(self._in_axes(rows, matrix).reshape(blueprint.shape))
        return out

    def _in_axes(self, rows: Tensor, matrix: Tensor | None) -> Tensor:
        tensorization = self.blueprint.tensorization
        made = cropped(finished(rows, matrix), self.readout_plan.crop, 1)
        return in_digit_order(made, tensorization, range(len(tensorization.axes)), first_dim=1)

    def factors(self, parameters: Cores, hidden: Tensor) -> Factors | None:
        """Return A, C, B with W = A C B^T in every group, exactly; None where the order has no split.

        Returns:
            A of shape ``(groups, out / groups, r)``, C of shape ``(groups, r, r', *kernel)``, B of shape ``(groups,
            in, r')``. The factors of a sum of trees stand side by side, C block by block on its diagonal.
        """
        if self.split is None:
            return None
        return self.side(parameters, OUT), self.centre(parameters, hidden), self.side(parameters, IN)

    def factors_at(self, parameters: Cores, hidden: Tensor, index: Tensor) -> Factors | None:
        """Return the factors as :meth:`factors`, but of A only the rows at an index, shape ``(*index, r)``."""
        if self.split is None:
            return None
        return self.rows(parameters, index), self.centre(parameters, hidden), self.side(parameters, IN)

    def rows(self, parameters: Cores, index: Tensor) -> Tensor:
        """Return the rows of A at an index, shape ``(*index, r)``."""
        assert self.split is not None
        cores = self.cores(parameters, self.blueprint.levels[-1])
        group, row = self.place_of_rows(index)
        terms = self.blueprint.config.terms
        like = next(iter(parameters.values())).new_empty(self.blueprint.config.trees)
        rows = [apply_at(self.split.outer, cores, group * terms + term, row, like) for term in range(terms)]
        outer = torch.cat(rows, dim=1)
        return outer.reshape(*index.shape, outer.shape[1])

    def place_of_rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the group of each row at an index, and its place in tree order; both of one dimension."""
        size = self.blueprint.shape[0] // self.blueprint.config.groups
        place = torch.arange(self.blueprint.shape[0], device=index.device).unsqueeze(1)
        # A lookup of its own, so that an index out of range is refused as torch refuses it.
        row = F.embedding(index, place).flatten()
        group, row = row.div(size, rounding_mode="floor"), row % size
        permutation = self.blueprint.tensorization.digit_permutation(OUT)
        if permutation is not None:
            row = torch.tensor(permutation, device=index.device)[row]
        return group, row

    def side(self, parameters: Cores, axis: int) -> Tensor:
        """Return A or B, that of the axis; shape ``(groups, axis, r)``."""
        assert self.split is not None
        cores = self.cores(parameters, self.blueprint.levels[-1])
        plan = self.split.staged_outer if axis == OUT else self.split.staged_inner
        trees, like = self.blueprint.config.trees, next(iter(parameters.values()))
        mixed = len(plan.segments) == 1 and len(plan.segments[0].stages) > 1
        if mixed and 2 * plan.size_in <= plan.size_out[0]:  # gates are merged into one matrix, not met one by one
            (rows,) = segment_matrices(plan, cores, like.new_empty(trees, 0))
            assert rows is not None
            assert plan.crop is not None
            rows = rows.expand(trees, -1, -1)[..., : plan.crop[0]]
        else:
            plan = self.split.side(axis)
            identity = torch.eye(plan.size_in, dtype=like.dtype, device=like.device)
            rows = apply(plan, cores, identity.expand(trees, -1, -1))
        side = in_digit_order(rows, self.blueprint.tensorization, [axis], first_dim=2).mT
        terms = self.blueprint.config.terms
        return side if terms == 1 else side.unflatten(0, (-1, terms)).transpose(1, 2).flatten(2, 3)

    def centre(self, parameters: Cores, hidden: Tensor) -> Tensor:
        """Return C, shape ``(groups, r, r', *kernel)``, of a hidden state."""
        terms = self.blueprint.config.terms
        centre = self.centres(self.cores(parameters, self.blueprint.levels[-1]), hidden)
        if terms == 1:
            return centre
        centre = centre.unflatten(0, (-1, terms))
        diagonal = torch.eye(terms, dtype=centre.dtype, device=centre.device)
        blocks: Tensor = diagonal.view(1, terms, 1, terms, 1, *(1,) * (centre.ndim - 4)) * centre.unsqueeze(3)
        return blocks.flatten(3, 4).flatten(1, 2)

    def centres(self, cores: Cores, hidden: Tensor) -> Tensor:
        """Return the C of each tree, shape ``(trees, r, r', *kernel)``; the cores are the last level's."""
        assert self.split is not None
        tensorization = self.blueprint.tensorization
        centre = apply(self.split.centre, cores, hidden.unsqueeze(1)).squeeze(1)
        if len(tensorization.axes) > KERNEL:
            centre = in_digit_order(centre, tensorization, [KERNEL], first_dim=3)
        return centre.reshape(*centre.shape[:3], *self.blueprint.shape[2:])

    def rank_bound(self) -> int:
        """Return the greatest rank of the weight as the matrix (out, in * kernel); see :meth:`Generator.rank_bound`."""
        out, *others = self.blueprint.shape
        columns = math.prod(others)
        if self.split is None:
            return min(out, columns)
        groups, terms = self.blueprint.config.groups, self.blueprint.config.terms
        outer, inner = self.split.ranks
        kernel = math.prod(others[1:])
        return min(out, columns, groups * min(terms * outer, out // groups), groups * terms * inner * kernel)
