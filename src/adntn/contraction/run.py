"""Running the plans: from parameters to hidden state, factors or weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.contraction.plan import Axes, Plan, Segment, Stage, plan_level, plan_readout, plan_split
from adntn.tensorize import IN, KERNEL, OUT, Tensorization
from adntn.topology import Blueprint, Level

__all__ = ["Contraction", "apply"]

Cores = Mapping[str, Tensor]


def apply(plan: Plan, cores: Cores, state: Tensor) -> Tensor:
    """Run a plan on a batch of states.

    Args:
        plan: from :func:`plan_level`, :func:`plan_readout` or :func:`plan_split`.
        cores: the level's stacks by parameter name, each of shape ``(groups, cores, size_in, size_out)``; a gate's
            rows are the new pair of indices, its columns the old.
        state: shape ``(groups, batch, plan.size_in)``.

    Returns:
        Shape ``(groups, batch, *axes)``, each axis cropped as the plan says.
    """
    groups, batch = state.shape[:2]
    done: Axes = (1,) * len(plan.size_out)
    left = batch * plan.size_in
    for number, segment in enumerate(plan.segments, start=1):
        left //= segment.size_in
        wanted = segment.released
        if plan.crop is not None and number == len(plan.segments):
            # Indices of the leading digits that lie wholly in the padding are never made.
            wanted = tuple(min(new, -(-crop // old)) for new, crop, old in zip(wanted, plan.crop, done, strict=True))
        matrix = _matrix(segment, cores, wanted, state)
        right = math.prod(done)
        if matrix is not None:
            if right == 1:
                state = state.reshape(groups, left, segment.size_in) @ matrix
            else:
                state = matrix.mT.unsqueeze(1) @ state.reshape(groups, left, segment.size_in, right)
        left *= segment.held
        state, done = _gather_axes(state, (groups, left), wanted, done)
    # Held wires are counted in ``left`` until they are released, so that only the batch is left here.
    state = state.reshape(groups, batch, *done)
    if plan.crop is not None:
        for axis, size in enumerate(plan.crop):
            state = state.narrow(2 + axis, 0, size) if done[axis] != size else state
    return state


def apply_at(
    plan: Plan,
    cores: Cores,
    group: Tensor,  # shape: (n,), whose cores
    index: Tensor,  # shape: (n,), on the axis, in tree order
) -> Tensor:  # shape: (n, plan.size_in)
    """Return what each input of a plan with one axis gives at an index; nothing is made for any other index."""
    like = next(iter(cores.values()))
    state = like.new_ones(len(index), 1, 1)  # shape: (n, inputs met so far, held)
    for segment in plan.segments:
        (size,), held = segment.released, state.shape[2]
        matrix = _matrix(segment, cores, segment.released, like)
        if matrix is None:
            matrix = torch.eye(segment.size_in, dtype=like.dtype, device=like.device)
        table = matrix.expand(len(like), -1, -1).unflatten(2, (segment.held, size)).permute(0, 3, 1, 2)
        digit = group * size + index % size
        rows = F.embedding(digit, table.reshape(len(like) * size, -1))
        state = (state.unsqueeze(1) @ rows.unflatten(1, (segment.size_in // held, held, segment.held))).flatten(1, 2)
        index = index.div(size, rounding_mode="floor")
    return state.squeeze(2)


def _gather_axes(state: Tensor, lead: tuple[int, int], new: Axes, old: Axes) -> tuple[Tensor, Axes]:
    """Bring a segment's finished outputs, ``(*new, *old)``, to one index an axis."""
    done = tuple(n * o for n, o in zip(new, old, strict=True))
    sizes = [(n, o) for n, o in zip(new, old, strict=True) if n * o > 1]
    order = [(part, axis) for part in (0, 1) for axis in range(len(sizes)) if sizes[axis][part] > 1]
    target = sorted(order, key=lambda item: (item[1], item[0]))
    if order == target:
        return state, done
    shaped = state.reshape(*lead, *(sizes[axis][part] for part, axis in order))
    moved = shaped.permute(0, 1, *(2 + order.index(item) for item in target))
    return moved.reshape(*lead, math.prod(done)), done


def _matrix(segment: Segment, cores: Cores, wanted: Axes, like: Tensor) -> Tensor | None:
    """Return a segment's matrix, shape ``(groups, size_in, held * wanted)``; None for the identity."""
    matrix: Tensor | None = None
    for stage in segment.stages:
        product = _kron_pieces(stage, cores, like)
        matrix = product if matrix is None else matrix @ product
    size_out = segment.held * math.prod(segment.released)
    if matrix is None:
        if segment.columns is None and wanted == segment.released:
            return None
        matrix = torch.eye(size_out, dtype=like.dtype, device=like.device).expand(like.shape[0], -1, -1)
    if segment.columns is not None:
        matrix = matrix.index_select(2, torch.tensor(segment.columns, device=like.device))
    if wanted != segment.released:
        shaped = matrix.reshape(*matrix.shape[:2], segment.held, *segment.released)
        for axis, size in enumerate(wanted):
            shaped = shaped.narrow(3 + axis, 0, size)
        matrix = shaped.reshape(*matrix.shape[:2], -1)
    return matrix


def _kron_pieces(stage: Stage, cores: Cores, like: Tensor) -> Tensor:
    factors: list[Tensor] = []
    for piece in stage:
        if piece.kind == "pass":
            factors.append(torch.eye(piece.size, dtype=like.dtype, device=like.device).unsqueeze(0))
        else:
            stack = cores[piece.name][:, piece.start : piece.start + piece.count]
            factors.append(_kron_stack(stack.mT if piece.kind == "mix" else stack))
    product = factors[0]
    for factor in factors[1:]:
        product = _kron(product, factor)
    return product


def _kron_stack(stack: Tensor) -> Tensor:  # shape: (groups, n, a, b) -> (groups, a**n, b**n)
    """Return the Kronecker product of a stack, by batched pairs."""
    rest: Tensor | None = None
    while stack.shape[1] > 1:
        if stack.shape[1] % 2:
            last = stack[:, -1]
            rest = last if rest is None else _kron(last, rest)
            stack = stack[:, :-1]
        stack = _kron(stack[:, 0::2], stack[:, 1::2])
    whole = stack[:, 0]
    return whole if rest is None else _kron(whole, rest)


def _kron(x: Tensor, y: Tensor) -> Tensor:  # shapes: (*batch, a, b), (*batch, c, d) -> (*batch, a*c, b*d)
    product = x[..., :, None, :, None] * y[..., None, :, None, :]
    return product.reshape(*product.shape[:-4], x.shape[-2] * y.shape[-2], x.shape[-1] * y.shape[-1])


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
        self.split = plan_split(last, blueprint.tensorization)

    def _cores(self, parameters: Cores, level: Level) -> Cores:
        groups = self.blueprint.config.groups
        return {
            name: parameters[name].unflatten(0, (groups, -1))
            for name in level.core_shapes(groups)
            if name in parameters
        }

    def pre_activation(self, parameters: Cores, number: int, state: Tensor) -> Tensor:
        """Return Z of hidden level ``number`` (Eqs. 49, 59-60), shape ``(groups, entries)``, from the state before."""
        level = self.blueprint.levels[number - 1]
        return apply(self.hidden_plans[number - 1], self._cores(parameters, level), state.unsqueeze(1)).squeeze(1)

    def hidden(self, parameters: Cores, activate: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return the state before the readout, shape ``(groups, bond_dim**H)``.

        Args:
            parameters: by name.
            activate: from a level's number and its pre-activation to its state (Eqs. 50, 62).
        """
        state = parameters["root"]
        for number in range(1, len(self.hidden_plans) + 1):
            state = activate(number, self.pre_activation(parameters, number, state))
        return state

    def weight(self, parameters: Cores, hidden: Tensor) -> Tensor:
        """Return the weight, shape ``(out, in, *kernel)``, of a hidden state (Eqs. 49, 54-56)."""
        tensorization = self.blueprint.tensorization
        cores = self._cores(parameters, self.blueprint.levels[-1])
        weight = apply(self.readout_plan, cores, hidden.unsqueeze(1)).squeeze(1)
        weight = in_digit_order(weight, tensorization, range(len(tensorization.axes)), first_dim=1)
        return weight.reshape(self.blueprint.shape)

    def factors(self, parameters: Cores, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return A, C, B with W = A C B^T in every group, exactly; None where the order has no split.

        Returns:
            A of shape ``(groups, out / groups, r)``, C of shape ``(groups, r, r', *kernel)``, B of shape ``(groups,
            in, r')``.
        """
        if self.split is None:
            return None
        cores = self._cores(parameters, self.blueprint.levels[-1])
        outer, inner = self._side(cores, OUT, hidden), self._side(cores, IN, hidden)
        return outer, self._centre(cores, hidden), inner

    def factors_at(self, parameters: Cores, hidden: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the factors as :meth:`factors`, but of A only the rows at an index, shape ``(*index, r)``."""
        if self.split is None:
            return None
        cores = self._cores(parameters, self.blueprint.levels[-1])
        size = self.blueprint.shape[0] // self.blueprint.config.groups
        place = torch.arange(self.blueprint.shape[0], device=hidden.device).unsqueeze(1)
        # A lookup of its own, so that an index out of range is refused as torch refuses it.
        row = F.embedding(index, place).flatten()
        group, row = row.div(size, rounding_mode="floor"), row % size
        permutation = self.blueprint.tensorization.digit_permutation(OUT)
        if permutation is not None:
            row = torch.tensor(permutation, device=hidden.device)[row]
        outer = apply_at(self.split.outer, cores, group, row)
        return outer.reshape(*index.shape, outer.shape[-1]), self._centre(cores, hidden), self._side(cores, IN, hidden)

    def _side(self, cores: Cores, axis: int, hidden: Tensor) -> Tensor:
        assert self.split is not None
        plan = self.split.outer if axis == OUT else self.split.inner
        identity = torch.eye(plan.size_in, dtype=hidden.dtype, device=hidden.device)
        rows = apply(plan, cores, identity.expand(hidden.shape[0], -1, -1))
        return in_digit_order(rows, self.blueprint.tensorization, [axis], first_dim=2).mT

    def _centre(self, cores: Cores, hidden: Tensor) -> Tensor:
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
        groups = self.blueprint.config.groups
        outer, inner = self.split.ranks
        kernel = math.prod(others[1:])
        return min(out, columns, groups * min(outer, out // groups), groups * inner * kernel)
