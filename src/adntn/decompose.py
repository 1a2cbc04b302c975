"""Decomposing a trained weight on a generator's own shape, to start from it: hierarchical SVD, TT-SVD, low rank.

A tree without activations is linear in its root, and a weight is brought into it from the leaves to the root: at every
level each core takes the leading singular vectors of its children against all the rest. What comes out is exact for a
linear tree only; :attr:`adntn.Generator.activation_strength` brings the activation in after that.

The tensor is walked as in :mod:`adntn.adjoint.equations`: a core takes the leading modes and puts what it makes of them
behind the others, so that no array has more dimensions than trees, children and rest.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adntn.adjoint.reverse import full_precision
from adntn.baselines import LowRank, TensorTrain
from adntn.contraction import Contraction
from adntn.errors import ConfigError, ShapeError
from adntn.fit import fit_scale_, or_infinity, relative_error, stable_rank_or_zero, truncate_
from adntn.generator import Generator, GeneratorModule
from adntn.levels import Level
from adntn.options import check_number, check_whole
from adntn.topology import TREES, Blueprint, GeneratorConfig

__all__ = ["WarmStartReport", "obstacle", "warm_start_"]

# Of a gain that is taken back; an even function of small states has none.
_LEAST_GAIN = 1e-3

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class WarmStartReport:
    """How near a warm start came to its target; errors are ``||W - target|| / ||target||``, in Frobenius norms.

    Attributes:
        relative_error: of the generator with its activation in full, each group at the scale that fits best.
        truncation_error: of the linear generator, measured on the weight.
        bound: on that, by the singular values that were left out. Below 1e-7 it is rounding: they come from the roots
            of eigenvalues.
        discarded: what was left out on each level, as a share of the target's square, the leaves first; of a tensor
            train at each bond. Of several terms it is what the last one left.
        stable_rank: of the generated weight, with its activation in full.
        target_stable_rank: of the target.
        seconds: wall time.
    """

    relative_error: float
    truncation_error: float
    bound: float
    discarded: tuple[float, ...]
    stable_rank: float
    target_stable_rank: float
    seconds: float

    def __str__(self) -> str:
        levels = ", ".join(f"{share:.1%}" for share in self.discarded)
        return (
            f"truncation error {self.truncation_error:.4f} (bound {self.bound:.4f}; left out, from the leaves on: "
            f"{levels}), {self.relative_error:.4f} with the activation in full, "
            f"stable rank {self.stable_rank:.1f} of {self.target_stable_rank:.1f}, {self.seconds:.1f} s"
        )


@torch.inference_mode(mode=False)
@torch.no_grad()
def warm_start_(module: GeneratorModule, target: Tensor, *, sweeps: int = 0, scale: float = 0.1) -> WarmStartReport:
    """Start a generator from a trained weight, in place, by decomposing the weight on the generator's own shape.

    A tree gets the hierarchical SVD of the weight's modes, padded with zeros: from the leaves to the root, every
    expansion core becomes a basis of the leading ``bond_dim`` singular vectors of its children, and the root what
    remains. Its
    error is at most sqrt(modes) times that of the best linear tree. Carries and disentanglers become identities, the
    gates of activations close, so that the tree stays linear where it has them, and all other gates open; what
    activations learn is left as it is. Groups are decomposed each on its own, the terms of a sum one after the other,
    each on what the ones before have left. ``"tt"`` gets its TT-SVD and ``"lowrank"`` the truncated SVD.

    All that is exact for a linear tree only. So the states before the activations are made small, where a smooth
    activation is all but linear, and the last level takes the scale that fits best with
    :attr:`~adntn.Generator.activation_strength` as it is now: at 1 the generator can be used at once, at 0 it is the
    linear tree, into which training brings the activation. A root of mean square 1 and expansions that keep that,
    with ``scale`` at the first level, leave steps of one size right for all cores.

    Work is done on a copy in float64; the parameters are written once, at the end, frozen ones too.

    Args:
        module: a generator, or a generated layer. Layers that share root and cores with it change alike.
        target: shape ``(out, in, *kernel)``, of all that the generator makes; any floating-point type.
        sweeps: of higher-order orthogonal iteration at each level, which chooses every core anew with the others as
            they are. Each costs about as much as the decomposition, times the cores of the level.
        scale: root mean square of the states before activations. Larger ones bend the tree more at once.

    Returns:
        A report; print it.

    Raises:
        ShapeError: the target is of another shape than the weight.
        ConfigError: the generator has no linear form to decompose into: a brick wall, a random projection, or a
            ``norm``; an option is out of range; the target is not finite, or something has no values, being on the
            meta device.
        CompressionError: its cores are common to others, see :func:`adntn.share_cores_`.

    Example:
        >>> generator = adntn.Generator((64, 64), adntn.GeneratorConfig(bond_dim=4))
        >>> report = adntn.warm_start_(generator, torch.randn(64, 64))
        >>> report.truncation_error <= report.bound * (1 + 1e-6)
        True
    """
    check_whole("sweeps", sweeps, 0)
    check_number("scale", scale, above=0)
    _refuse(module, target)
    began = time.perf_counter()
    with full_precision(module.device):
        scratch = module.bare_copy().double()
        wanted = target.detach().to(scratch.device, torch.float64)
        scratch.activation_strength = 0.0
        left_out = _decompose(scratch, wanted, sweeps, scale)
        truncation = relative_error(scratch(), wanted)
        full = _at_strength(scratch, wanted, 1.0)
        weight = full()
        strength = module.activation_strength
        chosen = full if strength == 1.0 else _at_strength(scratch, wanted, strength)
        values = dict(chosen.generator_parameters())
        for name, parameter in module.generator_parameters():
            parameter.copy_(values[name])
    size = float(wanted.square().sum())
    shares = tuple(float(energy) / size if size else 0.0 for energy in left_out)
    return WarmStartReport(
        relative_error=or_infinity(relative_error(weight, wanted)),
        truncation_error=truncation,
        bound=math.sqrt(sum(shares)),
        discarded=shares,
        stable_rank=stable_rank_or_zero(weight),
        target_stable_rank=stable_rank_or_zero(wanted),
        seconds=time.perf_counter() - began,
    )


def obstacle(config: GeneratorConfig) -> str | None:
    """Return why a generator of this config has no decomposition to start from, or None where it has."""
    if config.topology not in (*TREES, "tt", "lowrank"):
        return (
            f"topology={config.topology!r} has no decomposition to start from; {', '.join(TREES)}, tt and lowrank have."
        )
    if config.norm is not None and config.topology in TREES:
        return f"norm={config.norm!r} leaves no linear tree to decompose a weight into; norm=None does."
    return None


def _refuse(module: GeneratorModule, target: Tensor) -> None:
    module.refuse_common_cores("decomposed", "adntn.fit_together_ fits all of them")
    config, shape = module.config, module.blueprint.shape
    if tuple(target.shape) != shape:
        raise ShapeError(
            f"a generator of a weight of shape {shape} cannot start from a target of shape {tuple(target.shape)}."
        )
    why = obstacle(config)
    if why is not None:
        raise ConfigError(f"{why} adntn.fit_ fits any generator to a weight.")
    if module.device.type == "meta" or target.is_meta:
        raise ConfigError("a warm start needs values, and the meta device has none: to_empty(), then load them.")
    if not bool(torch.isfinite(target).all()):
        raise ConfigError(f"the target of shape {shape} has NaN or infinite entries.")


def _at_strength(linear: Generator, target: Tensor, strength: float) -> Generator:
    """Return a copy of a linear generator that makes about the same weight with its activation.

    An activation's gain on its states, ``<phi(z), z> / <z, z>``, is taken back by the level behind it.
    """
    made = linear.bare_copy()
    made.activation_strength = strength
    network, values = made._network, dict[str, Tensor](made.generator_parameters())
    if isinstance(network, Contraction) and strength:
        state = network.start(values)
        for level, after in itertools.pairwise(made.blueprint.levels):
            z = network.pre_activation(values, level.number, state)
            state = made._activate(level.number, z)
            gain = ((state * z).sum(1) / z.square().sum(1)).abs()
            gain = torch.where(gain.isfinite() & (gain > _LEAST_GAIN), gain, 1.0)
            _multiply(after, values, 1.0 / gain)
    fit_scale_(made, target)
    return made


def _multiply(level: Level, values: Values, factor: Tensor) -> None:
    """Multiply what a level makes by a factor for each tree, spread over its expansions; carries stay as they are."""
    each = factor ** (1 / level.expansions)
    for stack in level.stacks:
        if stack.kind == "expand":
            cores = values[stack.name].view(len(factor), -1, *stack.shape)
            cores *= each.view(-1, 1, 1, 1)


def _decompose(scratch: Generator, target: Tensor, sweeps: int, scale: float) -> list[Tensor]:
    """Give a linear generator the target's decomposition, and return the energy left out at each step."""
    network = scratch._network
    if isinstance(network, LowRank):
        truncate_(scratch, target)
        return [(scratch() - target).square().sum()]
    blueprint = scratch.blueprint
    values = {name: torch.zeros_like(p) for name, p in scratch.generator_parameters()}
    left_out: list[Tensor] = []
    if isinstance(network, TensorTrain):
        left_out = _train(blueprint, target, values)
        _write(scratch, values)
        return left_out
    for name, value in values.items():
        if name.startswith("mix."):
            value += torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
        elif name.startswith("gate.") and not name.startswith("gate.level."):
            value += 1.0
    for term in range(blueprint.config.terms):
        rest = target
        if term:
            _write(scratch, values)
            rest = target - scratch()
        left_out = _tree(blueprint, rest, values, term, sweeps)
    _spread_scale(blueprint, values, scale)
    _write(scratch, values)
    return left_out


def _write(scratch: Generator, values: Values) -> None:
    for name, parameter in scratch.generator_parameters():
        if not name.startswith("activation."):
            parameter.copy_(values[name])


# --- trees ----------------------------------------------------------------------------------------------------------


def _of_term(blueprint: Blueprint, values: Values, name: str, term: int) -> Tensor:
    """Return the part of a parameter that one term of the sum has, shape ``(groups, count, ...)``, to be written to."""
    config, value = blueprint.config, values[name]
    return value.view(config.groups, config.terms, -1, *value.shape[1:])[:, term]


def _tree(blueprint: Blueprint, weight: Tensor, values: Values, term: int, sweeps: int) -> list[Tensor]:
    state = blueprint.tensorization.fold(weight)
    left_out: list[Tensor] = []
    for level in reversed(blueprint.levels):
        before = state.square().sum()
        found = _level_vectors(level, state)
        for _ in range(sweeps):
            found = _sweep(level, state, found)
        state = _project(state, found)
        left_out.append((before - state.square().sum()).clamp_min(0.0))
        for core, vectors in zip(level.cores, found, strict=True):
            assert core is not None  # every mode of a tree has one
            _of_term(blueprint, values, core.stack, term)[:, core.place] = vectors.mT
    _of_term(blueprint, values, "root", term)[:, 0] = state
    return left_out


def _level_vectors(level: Level, state: Tensor) -> list[Tensor]:
    """Return the vectors of each parent's core, shape ``(groups, children, parent)``, one parent after the other."""
    found: list[Tensor] = []
    for parent, size in enumerate(level.sizes_in):
        children = math.prod(level.sizes_out[child] for child in level.children_of(parent))
        if parent < level.expansions:
            vectors = _leading_vectors(state.view(len(state), children, -1), size)
        else:
            vectors = torch.eye(size, dtype=state.dtype, device=state.device).expand(len(state), -1, -1)
        # The next core sees what this one has left, which costs less than the whole and loses no more.
        state = _project(state, [vectors])
        found.append(vectors)
    return found


def _sweep(level: Level, state: Tensor, found: list[Tensor]) -> list[Tensor]:
    """Choose every core of a level anew, all others in place (higher-order orthogonal iteration)."""
    found = list(found)
    for own in range(level.expansions):
        children, size = found[own].shape[1:]
        if children <= size:
            continue  # nothing to choose
        whole = torch.eye(children, dtype=state.dtype, device=state.device).expand(len(state), -1, -1)
        others = _project(state, [whole if parent == own else each for parent, each in enumerate(found)])
        before = math.prod(level.sizes_in[:own])
        matrix = others.view(len(state), before, children, -1).transpose(1, 2).flatten(2)
        found[own] = _leading_vectors(matrix, size)
    return found


def _project(state: Tensor, found: list[Tensor]) -> Tensor:  # shape: (groups, children...) -> (groups, parents...)
    for vectors in found:
        state = (state.view(len(state), vectors.shape[1], -1).mT @ vectors).flatten(1)
    return state


def _leading_vectors(matrix: Tensor, count: int) -> Tensor:
    """Return a basis of the leading left singular vectors, shape ``(groups, rows, count)``.

    Not the vectors themselves: on these the state is one large entry and many small ones, which an activation bends
    most. A rotation of them, which changes nothing in a linear tree, makes the entries alike. Where more are asked for
    than there are rows, it is a tight frame: its product with its transpose is the identity, and none is zero, so that
    all of them can learn.

    Args:
        matrix: shape ``(groups, rows, columns)``, few rows.
        count: how many.
    """
    vectors: Tensor = torch.linalg.eigh(matrix @ matrix.mT)[1].flip(2)[:, :, :count]
    # A vector's sign is the machine's choice, and not every activation is odd.
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0) @ _frame(vectors.shape[2], count).to(vectors)


def _frame(rows: int, columns: int) -> Tensor:
    """Return orthonormal rows, no more than columns, the first of equal entries: those of a cosine transform."""
    row = torch.arange(rows, dtype=torch.float64, device="cpu").unsqueeze(1)
    column = torch.arange(columns, dtype=torch.float64, device="cpu") + 0.5
    frame = math.sqrt(2.0 / columns) * torch.cos(math.pi * row * column / columns)
    frame[0] /= math.sqrt(2.0)
    return frame


def _spread_scale(blueprint: Blueprint, values: Values, scale: float) -> None:
    """Spread the scale of a linear tree of isometric cores: root 1, hidden states ``scale``, the readout what remains.

    An isometric expansion takes one mode of n entries to n**2 and keeps the norm, so sqrt(n) times it keeps the root
    mean square. Carries stay identities.
    """
    size = values["root"].square().mean(dim=1).sqrt()
    remains = torch.where(size > 0, size, 1.0)
    values["root"].div_(remains.unsqueeze(1))
    for level in blueprint.levels[:-1]:
        gain = blueprint.config.chi ** (0.5 * level.expansions) * (scale if level.number == 1 else 1.0)
        _multiply(level, values, torch.full_like(remains, gain))
        remains = remains / gain
    _multiply(blueprint.levels[-1], values, remains)


# --- tensor trains --------------------------------------------------------------------------------------------------


def _train(blueprint: Blueprint, weight: Tensor, values: Values) -> list[Tensor]:
    """TT-SVD (Oseledets 2011) from the first mode to the last, then all cores to one root mean square."""
    groups, rank = blueprint.config.groups, blueprint.config.chi
    state = blueprint.tensorization.fold(weight)
    sizes = iter(mode.size for mode in blueprint.tensorization.modes)
    places = [(stack, place) for stack in blueprint.chain for place in range(stack.count)]
    cores: list[Tensor] = []
    left_out: list[Tensor] = []
    left = 1
    for _ in places[:-1]:
        before = state.square().sum()
        rows = left * next(sizes)
        vectors = _leading_vectors(state.view(groups, rows, -1), rank)
        state = (vectors.mT @ state.view(groups, rows, -1)).flatten(1)
        left_out.append((before - state.square().sum()).clamp_min(0.0))
        cores.append(vectors.reshape(groups, left, -1))
        left = rank
    cores.append(state.reshape(groups, left, -1))
    sizes_of = torch.stack([core.square().mean(dim=(1, 2)).sqrt() for core in cores])
    alike = sizes_of.log().mean(0).exp()
    factors = torch.where(alike > 0, alike / sizes_of, 1.0)  # of a target of zeros the last core is zero
    for (stack, place), core, factor in zip(places, cores, factors, strict=True):
        values[stack.name].view(groups, stack.count, *stack.shape)[:, place] = core * factor.view(-1, 1, 1)
    return left_out
