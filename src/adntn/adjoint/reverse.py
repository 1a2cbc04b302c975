"""A whole generator run backwards: the equations of :mod:`adntn.adjoint.equations` from the weight to the root."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from adntn import activations
from adntn.adjoint.equations import (
    Block,
    block_matrix,
    core_gradient,
    expand_or_mix,
    gate_gradient,
    level_blocks,
    nonlinearity,
    pre_activation_adjoint,
    state_adjoint,
)
from adntn.contraction import Contraction, Cores
from adntn.errors import ConfigError
from adntn.levels import Core, Level
from adntn.topology import Blueprint

__all__ = ["Generating", "Reverse", "full_precision", "weight_adjoint"]

Gradients = dict[str, Tensor]


class Generating(Protocol):
    """What a generator shows of itself."""

    blueprint: Blueprint
    activation: nn.ModuleDict

    def generator_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield its parameters by name."""


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
    with torch.no_grad(), full_precision(upstream.device):
        parameters = dict(generator.generator_parameters())
        reverse = Reverse(Contraction(blueprint), generator.activation)
        return reverse.weight_adjoint(parameters, upstream)


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
    """An activation with other tensors in place of its own parameters."""

    def __init__(self, module: nn.Module, parameters: Cores) -> None:
        self.module = _Calls(module)
        self.parameters = {f"module.{name}": tensor for name, tensor in parameters.items()}

    def _call(self, function: Any, *tensors: Tensor) -> Any:
        return functional_call(self.module, self.parameters, (function, *tensors))

    def __call__(self, z: Tensor) -> Tensor:
        state: Tensor = self._call(activations.run, z)
        return state

    def derivative(self, z: Tensor) -> Tensor:
        slope: Tensor = self._call(activations.derivative, z)
        return slope

    def parameter_gradients(self, z: Tensor, upstream: Tensor) -> Gradients:
        gradients: Gradients = self._call(activations.parameter_gradients, z, upstream)
        return gradients


@dataclass
class _Pass:
    """What a level's way forward leaves for its way back: of every block its matrix and what it was given."""

    cores: Cores
    blocks: list[tuple[Block, Tensor, Tensor]]

    def back(self, upstream: Tensor) -> tuple[dict[Core, Tensor], Tensor]:
        """Return the gradient of each core and the adjoint of the state before the level."""
        gradients: dict[Core, Tensor] = {}
        while self.blocks:  # each state is let go as soon as it has been met
            block, matrix, state = self.blocks.pop()
            gradient = gate_gradient if block.gates else core_gradient
            gradients.update(gradient(block, self.cores, state, upstream))
            upstream = state_adjoint(block, matrix, upstream)
        return gradients, upstream


class Reverse:
    """Forward and adjoint of one generator, as functions of its parameters by name.

    Args:
        network: of a tree or a brick wall.
        modules: the activations, by their level's number.
    """

    def __init__(self, network: Contraction, modules: nn.ModuleDict) -> None:
        self.network = network
        self.modules = modules
        self.config = network.blueprint.config

    def before_readout(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters on which the hidden state depends."""
        names = [stack.name for stack in self.network.blueprint.levels[-1].stacks]
        readout = {*names, *(f"gate.{name}" for name in names)}
        return {name: tensor for name, tensor in parameters.items() if name not in readout}

    def hidden(self, parameters: Cores) -> Tensor:
        """Return the state before the readout, shape ``(trees, bond_dim**H)``."""
        named = _in_working_precision(parameters)
        return self.network.hidden(named, lambda number, z: self._activate(named, number, z))

    def weight(self, parameters: Cores) -> Tensor:
        """Return the weight, shape ``(out, in, *kernel)``."""
        named = _in_working_precision(parameters)
        return self.network.weight(named, self.hidden(named))

    def hidden_adjoint(self, parameters: Cores, upstream: Tensor) -> Gradients:
        """Return the gradients of the parameters before the readout, given the adjoint of :meth:`hidden`."""
        named = _in_working_precision(parameters)
        passes, pre_activations, state = self._forward(named)
        gradients = self._hidden_back(named, passes, pre_activations, state, upstream.to(state.dtype))
        return {name: gradients[name].to(tensor.dtype) for name, tensor in parameters.items()}

    def weight_adjoint(self, parameters: Cores, upstream: Tensor) -> Gradients:
        """Return the gradients of all parameters, given the adjoint of :meth:`weight`."""
        named = _in_working_precision(parameters)
        passes, pre_activations, state = self._forward(named)
        *_, last = self.network.blueprint.levels
        hidden = state * named["gate.term"] if "gate.term" in named else state
        readout, _ = self._expand_and_mix(named, last, hidden, to_the_end=False)

        # Every term of a sum meets the same adjoint; folding puts zeros where the weight was cropped.
        made = self.network.blueprint.tensorization.fold(upstream.to(state.dtype))
        if self.config.terms > 1:
            made = made.repeat_interleave(self.config.terms, dim=0)
        per_core, adjoint = readout.back(made)
        gradients = self._by_name(named, last, per_core)
        gradients |= self._hidden_back(named, passes, pre_activations, state, adjoint)
        return {name: gradients[name].to(tensor.dtype) for name, tensor in parameters.items()}

    def _forward(self, named: Cores) -> tuple[list[_Pass], list[Tensor], Tensor]:
        """Return what the hidden levels leave behind, their pre-activations, and the state before the readout."""
        state = self.network.start(named)
        passes, pre_activations = [], []
        for level in self.network.blueprint.levels[:-1]:
            done, z = self._expand_and_mix(named, level, state)
            state = self._activate(named, level.number, z)
            passes.append(done)
            pre_activations.append(z)
        return passes, pre_activations, state

    def _expand_and_mix(
        self, named: Cores, level: Level, state: Tensor, *, to_the_end: bool = True
    ) -> tuple[_Pass, Tensor]:
        cores = self.network.cores(named, level)
        blocks = level_blocks(level)
        done = _Pass(cores, [])
        for place, block in enumerate(blocks, start=1):
            matrix = block_matrix(block, cores, state)
            done.blocks.append((block, matrix, state))
            if to_the_end or place < len(blocks):
                state = expand_or_mix(block, matrix, state)
        return done, state

    def _hidden_back(
        self, named: Cores, passes: list[_Pass], pre_activations: list[Tensor], state: Tensor, upstream: Tensor
    ) -> Gradients:
        """Take the adjoint of the hidden state back to the root, level by level."""
        gradients: Gradients = {}
        if "gate.term" in named:
            gradients["gate.term"] = (state * upstream).sum(dim=1, keepdim=True)
            upstream = named["gate.term"] * upstream
        while passes:
            level = self.network.blueprint.levels[len(passes) - 1]
            activation, gate = self._nonlinearity(named, level.number)
            z = pre_activations.pop()
            upstream, gated, learned = pre_activation_adjoint(activation, self.config.norm, gate, z, upstream)
            per_core, upstream = passes.pop().back(upstream)
            gradients |= self._by_name(named, level, per_core)
            gradients |= {f"activation.{level.number}.{name}": tensor for name, tensor in learned.items()}
            if gated is not None:
                gradients[f"gate.level.{level.number}"] = gated
        if "root" in named:
            gradients["root"] = upstream
        return gradients

    def _by_name(self, named: Cores, level: Level, per_core: Mapping[Core, Tensor]) -> Gradients:
        """Stack the cores' gradients as their parameters are, and take them through the gates of disentanglers."""
        gradients: Gradients = {}
        for stack in level.stacks:
            cores = [per_core[Core(stack.name, place)] for place in range(stack.count)]
            gradient = torch.stack(cores, dim=1).flatten(0, 1)
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
        return _Bound(self.modules[str(number)], own), named.get(f"gate.level.{number}")

    def _activate(self, named: Cores, number: int, z: Tensor) -> Tensor:
        activation, gate = self._nonlinearity(named, number)
        return nonlinearity(activation, self.config.norm, gate, z)


def _in_working_precision(parameters: Cores) -> dict[str, Tensor]:
    return {name: t.to(torch.promote_types(t.dtype, torch.float32)) for name, t in parameters.items()}
