"""Initial values, their calibration, and how healthy a start they are (paper, Section 3.5).

Taken literally, the paper's draws give a 4096 x 4096 weight a deviation of anything from 1e-4 to 0.5. So its
calibration step is always made: every level's pre-activation gets variance 1, and the readout the deviation that the
dense layer would have started with. Deviation alone is not health: :func:`diagnose` reports stable rank, spread of
row norms and the gradient that reaches the root as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adntn import activations
from adntn.contraction import Activate, Contraction
from adntn.isometries import conformal, flat, semi_orthogonal
from adntn.levels import Level, Stack
from adntn.tensorize import IN, OUT
from adntn.topology import TREES, Blueprint

__all__ = ["calibration", "default_std", "draw", "initial_values", "rescale", "spread", "stable_rank"]

ROOT_STD = 0.05  # s0 of Eq. 16
MIXING_NOISE = 1e-2  # tau of Eq. 17


def default_std(shape: tuple[int, ...]) -> float:
    """Return the deviation with which torch starts a linear or convolutional weight, 1 / sqrt(3 * fan_in)."""
    return 1.0 / math.sqrt(3.0 * math.prod(shape[1:]))


def draw(blueprint: Blueprint) -> dict[str, Tensor]:
    """Draw root and cores before calibration, in float64 on the CPU, from torch's global random state.

    With ``initialization="paper"``: root by Eq. 16, cores before an activation by Eq. 14, readout cores by Eq. 15,
    disentanglers by Eq. 17. With ``"isometric"``: a root of deviation 1, every expansion and carry core
    semi-orthogonal and every disentangler orthogonal (Eq. 18), Haar-distributed or, for a disentangler, as near the
    identity as in Eq. 17. With ``"conformal"`` the same, but expansion and carry cores such that the weight is
    well conditioned (:mod:`adntn.isometries`). The gates of a brick wall are its cores, and are drawn like expansions.
    Gates that open and close start open. With the activation ``siren``, hidden expansion and carry cores follow its own
    rule in all (:func:`adntn.activations.hidden_bound`).
    """
    config = blueprint.config
    orthogonal = config.initialization != "paper"
    shapes = blueprint.parameter_shapes
    values: dict[str, Tensor] = {}
    if "root" in shapes:
        # Optimisers with a step of fixed size, as Adam, would overrun a root of 0.05 in a few steps.
        values["root"] = (1.0 if orthogonal else ROOT_STD) * _normal(shapes["root"])
    for level in blueprint.levels:
        last = level.number == len(blueprint.levels)
        gain = 1.0 if last else activations.gain(config.activation)
        own = None if last else _own_bound(blueprint, level)
        for stack in level.stacks:
            shape = shapes[stack.name]
            if stack.kind == "mix" and config.topology != "brickwall":
                values[stack.name] = _near_identity(shape, gain, orthogonal=orthogonal)
            elif own is not None:
                values[stack.name] = _uniform(shape, own)
            elif config.initialization == "conformal" and stack.kind in ("expand", "carry"):
                values[stack.name] = _conformal(blueprint, level, stack)
            elif orthogonal:
                values[stack.name] = semi_orthogonal(shape)
            elif last:
                values[stack.name] = _uniform(shape, math.sqrt(6.0 / (shape[1] + shape[2])))
            else:
                values[stack.name] = gain / math.sqrt(shape[1]) * _normal(shape)
    values.update({name: _ones(shape) for name, shape in shapes.items() if _opens(name, shape)})
    return values


def _opens(name: str, shape: tuple[int, ...]) -> bool:
    # A brick wall's two-site gates are named gate too, and have three dimensions.
    return name.startswith("gate.") and len(shape) == 2


def _ones(shape: tuple[int, ...]) -> Tensor:
    return torch.ones(shape, dtype=torch.float64, device="cpu")


def _own_bound(blueprint: Blueprint, level: Level) -> float | None:
    """Return the bound of a hidden level's cores where the activation has a start of its own, as SIREN has."""
    if blueprint.config.topology not in TREES:
        return None
    first = level.number == 1
    return activations.hidden_bound(blueprint.config.activation, level.sizes_in[0], level.parents, first=first)


def _uniform(shape: tuple[int, ...], bound: float) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device="cpu").uniform_(-bound, bound)


def _normal(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, device="cpu")


def _conformal(blueprint: Blueprint, level: Level, stack: Stack) -> Tensor:
    """Draw a stack's cores: those of an ``out`` and an ``in`` conformal, the readout's others flat."""
    below = _axes_below(blueprint, level.number)
    cores = []
    for _ in range(blueprint.config.trees):
        for parent, core in enumerate(level.cores):
            if core is None or core.stack != stack.name:
                continue
            children = level.children_of(parent)
            sizes = {level.sizes_out[child] for child in children}
            if {below[child] for child in children} == {frozenset({OUT}), frozenset({IN})} and len(sizes) == 1:
                cores.append(conformal(stack.shape[0], sizes.pop()))
            elif level.number == len(blueprint.levels):
                cores.append(flat(*stack.shape))
            else:  # flat cores above each other would add up to states of many zeros
                cores.append(semi_orthogonal((1, *stack.shape))[0])
    return torch.stack(cores)


def _axes_below(blueprint: Blueprint, level: int) -> list[frozenset[int]]:
    """Return, for each mode that a level makes, of which axes its indices decide; a raveled weight has no axes."""
    t = blueprint.tensorization
    sides = [frozenset({mode.axis} if t.splits_axes else ()) for mode in t.modes]
    for each in reversed(blueprint.levels[level:]):
        sides = [
            frozenset().union(*(sides[child] for child in each.children_of(parent))) for parent in range(each.parents)
        ]
    return sides


def _near_identity(shape: tuple[int, ...], gain: float, *, orthogonal: bool) -> Tensor:
    noise = MIXING_NOISE * gain / math.sqrt(shape[-1]) * _normal(shape)
    if orthogonal:
        rotation: Tensor = torch.linalg.matrix_exp((noise - noise.mT) / math.sqrt(2.0))
        return rotation
    return torch.eye(shape[-1], dtype=torch.float64, device="cpu") + noise


def initial_values(contraction: Contraction, activate: Activate, *, std: float | None = None) -> dict[str, Tensor]:
    """Draw and calibrate a generator's parameters.

    Every level's pre-activation is brought to variance 1 in every tree, unless the activation is ``siren``, and the
    kept entries of the weight to deviation ``std``; the trees of a sum contribute alike. The scale is spread evenly
    over a level's expansion and carry cores, never put on a tree's disentanglers; a block of a brick wall carries it in
    its first column.

    Args:
        contraction: of the generator.
        activate: from a level's number and its pre-activation, float64, to its state.
        std: the weight's deviation; None means :func:`default_std` of its shape.

    Returns:
        float64 tensors by name, on the CPU.
    """
    blueprint = contraction.blueprint
    config = blueprint.config
    values = draw(blueprint)
    state = contraction.start(values)
    for level in blueprint.levels[:-1]:
        z = contraction.pre_activation(values, level.number, state)
        if _own_bound(blueprint, level) is None:
            scale = spread(z).rsqrt()
            rescale(values, level, scale)
            z = z * scale.unsqueeze(1)
        state = activate(level.number, z)
        # A ReLU that sees negative entries only: the same level with its sign turned is alive. There is no branch on
        # values, so that models can be built under FakeTensorMode.
        sign = torch.where((state == 0).all(dim=1), -1.0, 1.0)
        first = values[level.scaled[0]].unflatten(0, (config.trees, -1))
        first[:, 0] *= sign.view(-1, 1, 1)
        state = activate(level.number, z * sign.unsqueeze(1))
    made = contraction.readout(values, state).flatten(1)
    each = spread(made).rsqrt()
    # As a product, so that of the largest arrays there is no copy more than needed.
    weight = (each.view(config.groups, 1, -1) @ made.unflatten(0, (config.groups, -1))).squeeze(1)
    scale = calibration(weight, default_std(blueprint.shape) if std is None else std)
    rescale(values, blueprint.levels[-1], each * scale.repeat_interleave(config.terms))
    return values


def calibration(weight: Tensor, std: float) -> Tensor:  # shape: (groups, entries) -> (groups,)
    """Return the factor of each group with which they deviate alike and all together by ``std``."""
    mean, variance = _moments(weight)
    scale = _spread(mean, variance).rsqrt()
    # One more factor for all groups together, since their means differ.
    means, variances = mean * scale, variance * scale.square()
    total = variances.mean() + means.var(correction=0)
    return scale * _spread(means.mean().view(1), total.view(1)).rsqrt() * std


def spread(rows: Tensor) -> Tensor:  # shape: (trees, entries) -> (trees,)
    """Return of each row what calibration brings to 1: its variance, or of a constant its mean square; of zeros, 1."""
    return _spread(*_moments(rows))


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:  # shape: (groups, entries) -> (groups,) twice
    variance, mean = torch.var_mean(rows, dim=1, correction=0)
    return mean, variance


def _spread(mean: Tensor, variance: Tensor) -> Tensor:
    """Return what to bring to 1: the variance, of a constant the mean square, and 1 for zeros."""
    square = variance + mean.square()
    spread = torch.where(variance > 1e-12 * square, variance, square)
    return torch.where(spread > 0, spread, torch.ones_like(spread))


def rescale(values: dict[str, Tensor], level: Level, scale: Tensor) -> None:
    """Multiply what a level makes by a factor for each tree, spread evenly over the cores that carry its scale.

    Args:
        values: parameters by name; those of the level are replaced.
        level: of the generator.
        scale: shape ``(trees,)``.
    """
    each = scale ** (1.0 / sum(stack.count for stack in level.stacks if stack.name in level.scaled))
    for name in level.scaled:
        stack = values[name].unflatten(0, (len(scale), -1))
        values[name] = (stack * each.view(-1, 1, 1, 1)).flatten(0, 1)


def stable_rank(weight: Tensor) -> float:
    """Return ``||W||_F^2 / ||W||_2^2`` of a weight seen as the matrix (out, in * kernel).

    Between 1 and the rank. A Gaussian n x n matrix has about n / 4.
    """
    matrix = weight.detach().flatten(1).float()
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.mT
    if matrix.shape[0] <= 1024:
        largest = torch.linalg.eigvalsh(matrix @ matrix.mT)[-1]
    else:
        # Only the largest singular value is wanted; a full decomposition of a 4096 x 4096 matrix takes half a minute.
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(0)
            largest = torch.svd_lowrank(matrix, q=8, niter=12)[1][0].square()
    return float(matrix.square().sum() / largest)
