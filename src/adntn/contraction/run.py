"""Running the plans: from parameters to hidden state, factors or weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adntn.contraction.plan import Axes, Plan, Segment, Stage, plan_level, plan_readout, plan_split
from adntn.levels import Level
from adntn.tensorize import IN, KERNEL, OUT, Tensorization
from adntn.topology import Blueprint

__all__ = ["Activate", "Contraction", "Cores", "Factors", "apply", "kron"]

Cores = Mapping[str, Tensor]
Activate = Callable[[int, Tensor], Tensor]
Factors = tuple[Tensor, Tensor, Tensor]


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
        product = kron(product, factor)
    return product


def _kron_stack(stack: Tensor) -> Tensor:  # shape: (groups, n, a, b) -> (groups, a**n, b**n)
    """Return the Kronecker product of a stack, by batched pairs."""
    rest: Tensor | None = None
    while stack.shape[1] > 1:
        if stack.shape[1] % 2:
            last = stack[:, -1]
            rest = last if rest is None else kron(last, rest)
            stack = stack[:, :-1]
        stack = kron(stack[:, 0::2], stack[:, 1::2])
    whole = stack[:, 0]
    return whole if rest is None else kron(whole, rest)


def kron(x: Tensor, y: Tensor) -> Tensor:  # shapes: (*batch, a, b), (*batch, c, d) -> (*batch, a*c, b*d)
    """Return the Kronecker product of two batches of matrices."""
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Contraction:
        return type(self)(self.blueprint)  # plans are cached

    @property
    def ranks(self) -> tuple[int, int] | None:
        """The sizes r and r' of the factors, or None where the order has no split."""
        if self.split is None:
            return None
        outer, inner = self.split.ranks
        return self.blueprint.config.terms * outer, self.blueprint.config.terms * inner

    def cores(self, parameters: Cores, level: Level) -> Cores:
        """Return the level's stacks, each ``(trees, count, rows, columns)``, gates on disentanglers applied."""
        trees = self.blueprint.config.trees
        cores = {stack.name: parameters[stack.name].unflatten(0, (trees, -1)) for stack in level.stacks}
        for stack in level.stacks:
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
        level = self.blueprint.levels[number - 1]
        return apply(self.hidden_plans[number - 1], self.cores(parameters, level), state.unsqueeze(1)).squeeze(1)

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
        tensorization = self.blueprint.tensorization
        cores = self.cores(parameters, self.blueprint.levels[-1])
        made = apply(self.readout_plan, cores, hidden.unsqueeze(1)).squeeze(1)
        return in_digit_order(made, tensorization, range(len(tensorization.axes)), first_dim=1)

    def weight(self, parameters: Cores, hidden: Tensor) -> Tensor:
        """Return the weight, shape ``(out, in, *kernel)``, of a hidden state."""
        made = self.readout(parameters, hidden)
        if self.blueprint.config.terms > 1:
            made = made.unflatten(0, (-1, self.blueprint.config.terms)).sum(1)
        return made.reshape(self.blueprint.shape)

    def factors(self, parameters: Cores, hidden: Tensor) -> Factors | None:
        """Return A, C, B with W = A C B^T in every group, exactly; None where the order has no split.

        Returns:
            A of shape ``(groups, out / groups, r)``, C of shape ``(groups, r, r', *kernel)``, B of shape ``(groups,
            in, r')``. The factors of a sum of trees stand side by side, C block by block on its diagonal.
        """
        if self.split is None:
            return None
        cores = self.cores(parameters, self.blueprint.levels[-1])
        outer, inner = self._side(cores, OUT, hidden), self._side(cores, IN, hidden)
        return self._side_by_side(outer), self._centre(cores, hidden), self._side_by_side(inner)

    def factors_at(self, parameters: Cores, hidden: Tensor, index: Tensor) -> Factors | None:
        """Return the factors as :meth:`factors`, but of A only the rows at an index, shape ``(*index, r)``."""
        if self.split is None:
            return None
        cores = self.cores(parameters, self.blueprint.levels[-1])
        size = self.blueprint.shape[0] // self.blueprint.config.groups
        place = torch.arange(self.blueprint.shape[0], device=hidden.device).unsqueeze(1)
        # A lookup of its own, so that an index out of range is refused as torch refuses it.
        row = F.embedding(index, place).flatten()
        group, row = row.div(size, rounding_mode="floor"), row % size
        permutation = self.blueprint.tensorization.digit_permutation(OUT)
        if permutation is not None:
            row = torch.tensor(permutation, device=hidden.device)[row]
        terms = self.blueprint.config.terms
        outer = torch.cat([apply_at(self.split.outer, cores, group * terms + t, row) for t in range(terms)], dim=1)
        inner = self._side_by_side(self._side(cores, IN, hidden))
        return outer.reshape(*index.shape, outer.shape[-1]), self._centre(cores, hidden), inner

    def _side(self, cores: Cores, axis: int, hidden: Tensor) -> Tensor:  # shape: (trees, axis, r)
        assert self.split is not None
        plan = self.split.outer if axis == OUT else self.split.inner
        identity = torch.eye(plan.size_in, dtype=hidden.dtype, device=hidden.device)
        rows = apply(plan, cores, identity.expand(hidden.shape[0], -1, -1))
        return in_digit_order(rows, self.blueprint.tensorization, [axis], first_dim=2).mT

    def _side_by_side(self, side: Tensor) -> Tensor:  # shape: (trees, axis, r) -> (groups, axis, terms * r)
        terms = self.blueprint.config.terms
        return side if terms == 1 else side.unflatten(0, (-1, terms)).transpose(1, 2).flatten(2, 3)

    def _centre(self, cores: Cores, hidden: Tensor) -> Tensor:  # shape: (groups, terms * r, terms * r', *kernel)
        assert self.split is not None
        tensorization, terms = self.blueprint.tensorization, self.blueprint.config.terms
        centre = apply(self.split.centre, cores, hidden.unsqueeze(1)).squeeze(1)
        if len(tensorization.axes) > KERNEL:
            centre = in_digit_order(centre, tensorization, [KERNEL], first_dim=3)
        centre = centre.reshape(*centre.shape[:3], *self.blueprint.shape[2:])
        if terms == 1:
            return centre
        centre = centre.unflatten(0, (-1, terms))
        diagonal = torch.eye(terms, dtype=centre.dtype, device=centre.device)
        blocks: Tensor = diagonal.view(1, terms, 1, terms, 1, *(1,) * (centre.ndim - 4)) * centre.unsqueeze(3)
        return blocks.flatten(3, 4).flatten(1, 2)

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
