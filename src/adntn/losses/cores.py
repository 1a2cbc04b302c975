"""Penalties on root, cores and gates alone (paper, Eq. 19, and what Section 5 names beside it)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from adntn.adjoint.reverse import full_precision
from adntn.contraction import Contraction
from adntn.errors import ConfigError
from adntn.generator import GeneratorModule
from adntn.initialize import spread
from adntn.options import check_number, check_whole
from adntn.quantization import quantized_names

__all__ = [
    "activation_scale",
    "gate_sparsity",
    "has_cores",
    "has_gates",
    "has_levels",
    "isometry",
    "quantization_penalty",
]


def has_cores(generator: GeneratorModule) -> bool:
    """Return whether there are cores that could be isometries: a tree or a brick wall, not a baseline."""
    return isinstance(generator._network, Contraction)


def has_gates(generator: GeneratorModule) -> bool:
    """Return whether there are trained gates: ``gate=True``, and something that they stand before."""
    return bool(_gate_names(generator))


def has_levels(generator: GeneratorModule) -> bool:
    """Return whether there are hidden levels, which have an activation."""
    return isinstance(generator._network, Contraction) and len(generator._network.hidden_plans) > 0


def isometry(generator: GeneratorModule, *, expansions: float = 1.0, disentanglers: float = 1.0) -> Tensor:
    """Return how far a generator's cores are from isometries (Eq. 19).

    ``expansions`` times the sum of ``||V V^T - 1||_F^2`` over expansion and carry cores, with V the matrix (parent,
    children), or ``||V^T V - 1||_F^2`` where there are fewer children than parents; and ``disentanglers`` times the
    sum of ``||U U^T - 1||_F^2``, with U the matrix (new pair, old pair).

    Args:
        generator: a tree or a brick wall, or a layer with one.
        expansions: the paper's lambda_V.
        disentanglers: the paper's lambda_U.

    Raises:
        ConfigError: the generator is a baseline, or a factor is negative.
    """
    check_number("expansions", expansions, least=0)
    check_number("disentanglers", disentanglers, least=0)
    if not has_cores(generator):
        raise ConfigError(f"topology={generator.config.topology!r} has no cores that could be isometries; a tree has.")
    total = _zero(generator)
    with full_precision(generator.device):
        for level in generator.blueprint.levels:
            for stack in level.stacks:
                cores = generator.get_core(stack.name).to(total.dtype)  # shape: (cores, rows, columns)
                cores = cores if cores.shape[1] <= cores.shape[2] else cores.mT
                identity = torch.eye(cores.shape[1], dtype=total.dtype, device=total.device)
                factor = disentanglers if stack.kind == "mix" else expansions
                total = total + factor * (cores @ cores.mT - identity).square().sum()
    return total


def gate_sparsity(generator: GeneratorModule, *, smooth: float = 0.0) -> Tensor:
    """Return the sum of the gates' absolute values, ``sum |g|`` (the L_sp of Eq. 35).

    A gate (Definition 2) of 0 makes its disentangler the identity, its level linear, or its tree nothing, so that these
    can be pruned; open ones stand at 1. The subgradient at zero is zero.

    Args:
        generator: with ``gate=True``, or a layer with one.
        smooth: epsilon of the smooth surrogate ``sum (sqrt(g^2 + epsilon^2) - epsilon)``, in units of the gates, which
            does not push past zero and back at every step; 0 means the absolute value itself.

    Raises:
        ConfigError: there are no gates, or ``smooth`` is negative.
    """
    check_number("smooth", smooth, least=0)
    names = _gate_names(generator)
    if not names:
        raise ConfigError(
            f"a generator of topology={generator.config.topology!r} and gate={generator.config.gate} has no gates; "
            "GeneratorConfig(gate=True) gives some to a tree or a brick wall that has hidden levels, disentanglers or "
            "terms."
        )
    total = _zero(generator)
    for name in names:
        gate = generator.get_core(name).to(total.dtype)
        total = total + ((gate.square() + smooth**2).sqrt() - smooth if smooth else gate.abs()).sum()
    return total


def activation_scale(generator: GeneratorModule, *, target: float = 1.0) -> Tensor:
    """Return how far hidden levels are from their scale, ``sum_l mean_trees (log(std(Z_l) / target))^2``.

    The paper names activation-scale control (Section 5, Algorithm 3) without an equation. Of the start it says that
    ``Var[Z_l]`` should be close to one (Section 3.5), and this holds it there. Z_l are the pre-activations of the
    levels before the readout; the deviation is over the entries of each tree's state, and of a constant state its
    absolute value. Twice the deviation costs as much as half of it, 0.48; a state of zeros costs nothing.

    Args:
        generator: with hidden levels, or a layer with one.
        target: the deviation wanted.

    Raises:
        ConfigError: there is no hidden level, or ``target`` is not positive.
    """
    check_number("target", target, above=0)
    if not has_levels(generator):
        raise ConfigError(
            f"a generator of topology={generator.config.topology!r} with the schedule {generator.schedule} has no "
            "level before its readout, so there is no activation whose scale could be held."
        )
    total = _zero(generator)
    with full_precision(generator.device):
        for z in _pre_activations(generator):
            total = total + (0.5 * (spread(z) / target**2).log()).square().mean()
    return total


def quantization_penalty(generator: GeneratorModule, *, bits: int = 8) -> Tensor:
    """Return how far root and cores are from what few bits can store, ``mean (x/s - round(x/s))^2`` (L_q of Eq. 35).

    The paper asks for a penalty and leaves it open. Here it is about the grid of :func:`adntn.quantize_`: every stored
    tensor, the root and each stack of cores, has a symmetric one in each tree, of step ``s = max|x| / (2^(bits-1) -
    1)``. The mean is over all n numbers, in units of the squared step: 0 on the grid, 1/4 at most, and 1/12 for numbers
    anywhere. Steps and nearest points are taken as constants, so that the gradient, ``2 (x/s - round(x/s)) / (s n)``,
    draws each number to its nearest point. Gates, an activation's own numbers and the one of a frozen weight are not
    among them.

    Args:
        generator: of any topology, or a layer with one.
        bits: of a stored number, at least 2.

    Raises:
        ConfigError: ``bits`` is not a whole number of at least 2.
    """
    check_whole("bits", bits, 2)
    total, count = _zero(generator), 0
    for name in quantized_names(generator.blueprint):
        numbers = generator.get_core(name).to(total.dtype).reshape(generator.config.trees, -1)
        fixed = numbers.detach()
        largest = fixed.abs().amax(dim=1, keepdim=True)
        step = (largest / (2 ** (bits - 1) - 1)).clamp_min(torch.finfo(total.dtype).tiny)
        total = total + (numbers / step - (fixed / step).round()).square().sum()
        count += numbers.numel()
    return total / max(count, 1)


def _zero(generator: GeneratorModule) -> Tensor:
    dtype = torch.promote_types(generator.dtype, torch.float32)
    return torch.zeros((), device=generator.device, dtype=dtype)


def _gate_names(generator: GeneratorModule) -> tuple[str, ...]:
    # By the blueprint: a brick wall's cores are called gates too.
    return tuple(generator.blueprint._gate_shapes()) if generator.config.gate else ()


def _pre_activations(generator: GeneratorModule) -> Iterator[Tensor]:  # shapes: (trees, entries)
    network, parameters = generator._network, generator._parameters_by_name()
    assert isinstance(network, Contraction)
    state = network.start(parameters)
    for number in range(1, len(network.hidden_plans) + 1):
        z = network.pre_activation(parameters, number, state)
        yield z
        state = generator._activate(number, z)
