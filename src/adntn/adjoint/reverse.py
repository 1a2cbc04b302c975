"""A whole generator run backwards: the equations of :mod:`adntn.adjoint.equations` from the weight to the root."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from adntn import activations
from adntn.adjoint.equations import nonlinearity, pre_activation_adjoint
from adntn.adjoint.plans import Parts, level_adjoint, stacked
from adntn.adjoint.readout import ReadoutAdjoint
from adntn.contraction import Contraction, Cores
from adntn.errors import ConfigError, ShapeError
from adntn.levels import Level
from adntn.tensorize import IN, OUT
from adntn.topology import Blueprint

__all__ = ["Generating", "Made", "Reverse", "full_precision", "weight_adjoint"]

Gradients = dict[str, Tensor]
#: The state before the readout, the weight, or one of its factors A, C and B.
Made = Literal["hidden", "weight", "outer", "centre", "inner"]
_SIDES = {"outer": OUT, "inner": IN}


class Generating(Protocol):
    """What a generator shows of itself."""

    blueprint: Blueprint
    activation: nn.ModuleDict

    @property
    def activation_strength(self) -> float:
        """With which its activations act."""

    def used_parameters(self) -> dict[str, Tensor]:
        """Return its parameters by name, as it uses them."""


def weight_adjoint(generator: Generating, upstream: Tensor) -> dict[str, Tensor]:
    """Return the gradients of all of a generator's parameters, by the paper's equations and without autograd.

    The states are computed anew, then the weight's adjoint is taken back level by level: Eqs. 51 and 63 through the
    activations, 52, 57, 64 and 65 through expansions and disentanglers, with 53 and 58 for the cores on the way.

    Args:
        generator: a :class:`~adntn.Generator` or a generated layer, of a tree or a brick wall.
        upstream: the derivative of the loss by the weight, of the weight's shape.

    Returns:
        By the names of ``generator_parameters()``: root, cores, gates and the activations' numbers, each of its
        parameter's shape and dtype.

    Raises:
        ConfigError: the generator is a baseline, which has no levels.
        ShapeError: ``upstream`` is not of the weight's shape.

    Example:
        >>> gen = adntn.Generator((64, 64), dtype=torch.float64)
        >>> gen().square().sum().backward()
        >>> gradients = adntn.adjoint.weight_adjoint(gen, 2 * gen())
        >>> torch.allclose(gradients["root"], gen.root.grad)
        True
    """
    blueprint = generator.blueprint
    if not blueprint.levels:
        raise ConfigError(f"topology={blueprint.config.topology!r} is a baseline without levels: it has no adjoint.")
    if tuple(upstream.shape) != blueprint.shape:
        given = tuple(upstream.shape)
        raise ShapeError(f"the adjoint of a weight has its shape, {blueprint.shape}; got one of shape {given}.")
    with torch.no_grad(), full_precision(upstream.device):
        parameters = generator.used_parameters()
        reverse = Reverse(Contraction(blueprint), generator.activation, generator.activation_strength)
        return reverse.adjoint("weight", parameters, upstream)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which autocast leaves a generator's arithmetic alone."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


class _Calls(nn.Module):
    """Lets :func:`torch.func.functional_call` reach more of a module than its forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Any, *tensors: Tensor) -> Any:
        return function(self.module, *tensors)


class _Bound:
    """An activation, as strong as it acts, with other tensors in place of its own parameters."""

    def __init__(self, module: nn.Module, parameters: Cores, strength: float) -> None:
        self.module, self.strength = _Calls(module), strength
        self.parameters = {f"module.{name}": tensor for name, tensor in parameters.items()}

    def _call(self, function: Any, *tensors: Tensor) -> Any:
        called = functools.partial(function, strength=self.strength)
        return functional_call(self.module, self.parameters, (called, *tensors))

    def __call__(self, z: Tensor) -> Tensor:
        state: Tensor = self._call(activations.run, z)
        return state

    def derivative(self, z: Tensor) -> Tensor:
        slope: Tensor = self._call(activations.derivative, z)
        return slope

    def parameter_gradients(self, z: Tensor, upstream: Tensor) -> Gradients:
        gradients: Gradients = self._call(activations.parameter_gradients, z, upstream)
        return gradients


class Reverse:
    """Forward and adjoint of one generator, as functions of its parameters by name.

    Each of what can be made, see :data:`Made`, is a function of its own of the parameters that it depends on.

    Args:
        network: of a tree or a brick wall.
        modules: the activations, by their level's number.
        strength: with which they act, see :func:`adntn.activations.run`.
    """

    def __init__(self, network: Contraction, modules: nn.ModuleDict, strength: float = 1.0) -> None:
        self.network = network
        self.modules = modules
        self.strength = strength
        self.config = network.blueprint.config

    def depends_on(self, made: Made, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of the parameters on which something depends."""
        readout = {stack.name for stack in self.network.blueprint.levels[-1].stacks}
        met: AbstractSet[str] = readout if made == "weight" else frozenset()
        if made not in ("hidden", "weight"):
            assert self.network.split is not None
            met = getattr(self.network.split, made).stacks
        met, readout = _with_gates(met), _with_gates(readout)
        return tuple(name for name in names if name in met or (name not in readout and made not in _SIDES))

    def make(self, made: Made, parameters: Cores, index: Tensor | None = None) -> Tensor:
        """Return what is to be made, in float32 at least.

        Args:
            made: what.
            parameters: by name, at least those that it depends on.
            index: of rows of A, if of ``"outer"`` these are wanted.
        """
        named = _in_working_precision(parameters)
        if made in _SIDES:
            return self.network.side(named, _SIDES[made]) if index is None else self.network.rows(named, index)
        hidden = self.network.hidden(named, lambda number, z: self._activate(named, number, z))
        if made == "hidden":
            return hidden
        return self.network.weight(named, hidden) if made == "weight" else self.network.centre(named, hidden)

    def adjoint(self, made: Made, parameters: Cores, upstream: Tensor, index: Tensor | None = None) -> Gradients:
        """Return the gradients of the parameters, given the adjoint of what :meth:`make` makes of these arguments."""
        named = _in_working_precision(parameters)
        upstream = upstream.to(next(iter(named.values())).dtype)
        last = self.network.blueprint.levels[-1]
        readout = ReadoutAdjoint(self.network, self.network.cores(named, last))
        if made in _SIDES:
            parts = readout.side(_SIDES[made], upstream) if index is None else readout.rows(index, upstream)
            gradients = self._by_name(named, last, parts)
        else:
            states, pre_activations, hidden = self._forward(named)
            parts = []
            if made != "hidden":
                parts, upstream = (readout.weight if made == "weight" else readout.centre)(hidden, upstream)
            gradients = self._by_name(named, last, parts)
            gradients |= self._hidden_back(named, states, pre_activations, upstream)
        return {name: gradients[name].to(tensor.dtype) for name, tensor in parameters.items()}

    def _forward(self, named: Cores) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return the states of the hidden levels, from the first to the last, their pre-activations, the readout's."""
        states, pre_activations = [self.network.start(named)], []
        for level in self.network.blueprint.levels[:-1]:
            pre_activations.append(self.network.pre_activation(named, level.number, states[-1]))
            states.append(self._activate(named, level.number, pre_activations[-1]))
        gate = named.get("gate.term")
        return states, pre_activations, states[-1] if gate is None else gate * states[-1]

    def _hidden_back(
        self, named: Cores, states: list[Tensor], pre_activations: list[Tensor], upstream: Tensor
    ) -> Gradients:
        """Take the adjoint of the hidden state back to the root, level by level."""
        gradients: Gradients = {}
        state = states.pop()
        if "gate.term" in named:
            gradients["gate.term"] = (state * upstream).sum(dim=1, keepdim=True)
            upstream = named["gate.term"] * upstream
        for level in reversed(self.network.blueprint.levels[:-1]):
            activation, gate = self._nonlinearity(named, level.number)
            z, state = pre_activations.pop(), states.pop()
            upstream, gated, learned = pre_activation_adjoint(activation, self.config.norm, gate, z, upstream)
            plans = self.network.hidden_plans[level.number - 1]
            parts, upstream = level_adjoint(plans, self.network.cores(named, level), state, upstream)
            gradients |= self._by_name(named, level, parts)
            gradients |= {f"activation.{level.number}.{name}": tensor for name, tensor in learned.items()}
            if gated is not None:
                gradients[f"gate.level.{level.number}"] = gated
        if "root" in named:
            gradients["root"] = upstream
        return gradients

    def _by_name(self, named: Cores, level: Level, parts: Parts) -> Gradients:
        """Stack the cores' gradients as their parameters are, and take them through the gates of disentanglers."""
        gradients: Gradients = {}
        for stack in level.stacks:
            gradient = stacked(parts, stack, self.config.trees)
            if gradient is None:
                continue
            name = f"gate.{stack.name}"
            if name in named:
                # What acts is 1 + gate (U - 1).
                change = named[stack.name] - torch.eye(stack.shape[0], dtype=gradient.dtype, device=gradient.device)
                gradients[name] = (gradient * change).sum(dim=(1, 2)).unsqueeze(1)
                gradient = named[name].unsqueeze(2) * gradient
            gradients[stack.name] = gradient
        return gradients

    def _nonlinearity(self, named: Cores, number: int) -> tuple[_Bound, Tensor | None]:
        prefix = f"activation.{number}."
        own = {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}
        return _Bound(self.modules[str(number)], own, self.strength), named.get(f"gate.level.{number}")

    def _activate(self, named: Cores, number: int, z: Tensor) -> Tensor:
        activation, gate = self._nonlinearity(named, number)
        return nonlinearity(activation, self.config.norm, gate, z)


def _in_working_precision(parameters: Cores) -> dict[str, Tensor]:
    return {name: t.to(torch.promote_types(t.dtype, torch.float32)) for name, t in parameters.items()}


def _with_gates(stacks: AbstractSet[str]) -> set[str]:
    return {*stacks, *(f"gate.{name}" for name in stacks)}
