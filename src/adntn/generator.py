"""The generator: an ``nn.Module`` whose root and cores make a weight."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adntn.activations import PReLU, make_activation
from adntn.contraction import Contraction
from adntn.errors import GeneratorTooLargeError
from adntn.initialize import initial_values
from adntn.topology import Blueprint, GeneratorConfig, Level

__all__ = ["Generator", "GeneratorModule"]


class _Cores(nn.Module):
    """Parameters named by numbers, so that ``state_dict`` reads ``expand.1``, ``carry.2``."""

    def tensors(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._parameters.items():
            if parameter is not None:
                yield f"{prefix}.{name}", parameter


class GeneratorModule(nn.Module):
    """Root and cores, and what is made of them. :class:`Generator` is one, and so is every generated layer.

    Its parameters are registered under the names of the design: ``root``, ``expand.1``, ``carry.1``, ``mix.1.0``.
    """

    blueprint: Blueprint
    std: float | None
    root: nn.Parameter
    expand: _Cores
    carry: _Cores
    mix: nn.ModuleDict
    activation: nn.ModuleDict

    def _grow(
        self,
        shape: tuple[int, ...],
        config: GeneratorConfig | None,
        std: float | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Register root and cores, with initial values. Comes after ``nn.Module.__init__``."""
        self.blueprint = Blueprint(tuple(shape), config if config is not None else GeneratorConfig())
        self.std = std
        device = torch.device(device) if device is not None else torch.get_default_device()
        dtype = dtype if dtype is not None else torch.get_default_dtype()
        check_memory(self.blueprint, device)
        self._contraction = Contraction(self.blueprint)
        shapes = self.blueprint.parameter_shapes
        self.root = nn.Parameter(torch.empty(shapes["root"], device=device, dtype=dtype))
        self.expand, self.carry, self.mix = _Cores(), _Cores(), nn.ModuleDict()
        for level in self.blueprint.levels:
            self._register_cores(level, device, dtype)
        self.activation = nn.ModuleDict(
            {
                str(level.number): make_activation(self.config.activation, self.config.groups).to(device, dtype)
                for level in self.blueprint.levels[:-1]
            }
        )
        self.draw_()

    def _share(self, other: GeneratorModule) -> None:
        """Register another module's root and cores as this one's too, as torch does with tied weights."""
        self.blueprint, self.std, self._contraction = other.blueprint, other.std, other._contraction
        self.root, self.expand, self.carry = other.root, other.expand, other.carry
        self.mix, self.activation = other.mix, other.activation

    def generator_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield root, cores and the activations' numbers by name: all parameters but a layer's bias."""
        yield "root", self.root
        for part in ("expand", "carry", "mix", "activation"):
            yield from getattr(self, part).named_parameters(prefix=part)

    def _register_cores(self, level: Level, device: torch.device, dtype: torch.dtype) -> None:
        for name, shape in level.core_shapes(self.config.groups).items():
            parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            kind, number, *layer = name.split(".")
            if kind == "mix":
                if number not in self.mix:
                    self.mix[number] = _Cores()
                self.mix[number].register_parameter(layer[0], parameter)
            else:
                getattr(self, kind).register_parameter(number, parameter)

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def config(self) -> GeneratorConfig:
        """The config that it was built from."""
        return self.blueprint.config

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.blueprint.shape

    @property
    def schedule(self) -> tuple[int, ...]:
        """Modes after each level, ``(N_0, ..., N_L)``."""
        return self.blueprint.schedule

    @property
    def num_modes(self) -> int:
        """Modes of the generated tensor, Q."""
        return self.blueprint.tensorization.num_modes

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return self.blueprint.num_parameters

    def rank_bound(self) -> int:
        """Return the greatest rank that the weight, seen as the matrix (out, in * kernel), can have.

        With an order that splits, the rank cannot exceed the cut although the generator is nonlinear; with one that
        does not (``"paired"``), only the matrix' own sides bound it.
        """
        return self._contraction.rank_bound()

    # --- what it makes ------------------------------------------------------------------------------------------

    def generate(self) -> Tensor:
        """Return the weight, shape ``(out, in, *kernel)``."""
        with self._full_precision():
            parameters = self._parameters_by_name()
            weight = self._contraction.weight(parameters, self._contraction.hidden(parameters, self._activate))
        return weight.to(self.root.dtype)

    def hidden(self) -> Tensor:
        """Return the state before the readout, shape ``(groups, bond_dim**H)`` (paper, W^(L-1))."""
        with self._full_precision():
            hidden = self._contraction.hidden(self._parameters_by_name(), self._activate)
        return hidden.to(self.root.dtype)

    def factors(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return A, C, B with ``W = A C B^T`` in every group, exactly, or None where the order has no split.

        Returns:
            A of shape ``(groups, out / groups, r)``, C of shape ``(groups, r, r', *kernel)``, B of shape ``(groups,
            in, r')``.
        """
        with self._full_precision():
            parameters = self._parameters_by_name()
            factors = self._contraction.factors(parameters, self._contraction.hidden(parameters, self._activate))
        if factors is None:
            return None
        a, c, b = (factor.to(self.root.dtype) for factor in factors)
        return a, c, b

    def factors_at(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the factors, but of A only the rows at an index into ``out``; no other row is made.

        Args:
            index: whole numbers of any shape.

        Returns:
            Rows of A, shape ``(*index, r)``; C and B as :meth:`factors`. All in the precision in which they are made,
            float32 at least.
        """
        with self._full_precision():
            parameters = self._parameters_by_name()
            return self._contraction.factors_at(parameters, self._contraction.hidden(parameters, self._activate), index)

    @property
    def ranks(self) -> tuple[int, int] | None:
        """The sizes r and r' of the factors, or None where the order has no split."""
        split = self._contraction.split
        return None if split is None else split.ranks

    def _parameters_by_name(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {"root": self.root}
        named.update(self.expand.tensors("expand"))
        named.update(self.carry.tensors("carry"))
        for number, layers in self.mix.items():
            assert isinstance(layers, _Cores)
            named.update(layers.tensors(f"mix.{number}"))
        work = torch.promote_types(self.root.dtype, torch.float32)
        return {name: tensor.to(work) for name, tensor in named.items()}

    def _activate(self, number: int, z: Tensor) -> Tensor:
        state: Tensor = self.activation[str(number)](z)
        return state - state.mean(dim=1, keepdim=True) if self.config.norm == "center" else state

    def _full_precision(self) -> contextlib.AbstractContextManager[Any]:
        kind = self.root.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            return torch.autocast(kind, enabled=False)
        return contextlib.nullcontext()

    # --- initial values -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw_(self) -> None:
        """Draw root and cores anew from torch's global random state and calibrate them (paper, Section 3.5)."""
        for activation in self.activation.values():
            if isinstance(activation, PReLU):
                activation.reset_parameters()
        if self.root.is_meta:
            return  # as torch's own layers: call again after to_empty()
        with self._full_precision():
            device = self.root.device
            # Drawn on the CPU so that a seed gives the same start on every device.
            activate = lambda number, z: self._activate(number, z.to(device)).to("cpu", torch.float64)  # noqa: E731
            values = initial_values(self._contraction, activate, std=self.std)
        named = dict(self.generator_parameters())
        for name, value in values.items():
            named[name].copy_(value)


class Generator(GeneratorModule):
    """Generates a weight from a root tensor and small cores.

    Calling it makes the whole weight. All arithmetic is done in float32 (float64 for float64 parameters), under
    autocast too, and the outcome is cast last.

    Args:
        shape: of the weight, ``(out, in)`` or ``(out, in, *kernel)``.
        config: what to build; None means the default config.
        std: deviation of the weight at the start; None means the deviation that torch gives a linear or
            convolutional weight of this shape, ``1 / sqrt(3 * fan_in)``.
        device: of the parameters.
        dtype: of the parameters and of the weight.

    Raises:
        ShapeError: the shape cannot be generated, or ``groups`` does not divide its rows.
        ConfigError: an explicit order does not fit the shape.
        GeneratorTooLargeError: states and weight would not fit into memory.

    Example:
        >>> gen = adntn.Generator((4096, 4096), adntn.GeneratorConfig(topology="ttn"))
        >>> gen.schedule, gen.num_parameters, gen.rank_bound()
        ((5, 10, 12, 24), 216, 64)
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        config: GeneratorConfig | None = None,
        *,
        std: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._grow(tuple(shape), config, std, device, dtype)

    def forward(self) -> Tensor:
        """Return the weight, shape ``(out, in, *kernel)``."""
        return self.generate()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as :meth:`draw_`."""
        self.draw_()

    def __repr__(self) -> str:
        c = self.config
        return (
            f"Generator({self.shape}, {c.topology}, order={c.order!r}, activation={c.activation!r}, "
            f"modes={self.schedule}, parameters={self.num_parameters})"
        )


def check_memory(blueprint: Blueprint, device: torch.device) -> None:
    """Refuse a generator whose arrays cannot fit, before any is allocated.

    Raises:
        GeneratorTooLargeError: the estimate from the schedule exceeds the free memory.
    """
    free = _free_memory(device)
    # Calibration works in float64 on the CPU; on another device only the float32 pass counts.
    needed = blueprint.peak_entries() * (8 if device.type == "cpu" else 4)
    if free is None or needed <= free:
        return
    c, modes = blueprint.config, blueprint.schedule[-2]
    raise GeneratorTooLargeError(
        f"a {c.topology} for a weight of shape {blueprint.shape} with bond_dim={c.chi} has a hidden state of "
        f"{c.chi}**{modes} = {blueprint.hidden_size:,} entries in each of {c.groups} group(s) and needs about "
        f"{_gib(needed)}; {_gib(free)} are free. A smaller bond_dim, or bond_dim "
        f"and radix raised together (radix={c.chi} has fewer modes), or groups of a small bond_dim need less."
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count < 2**80 else f"{count >> 30:,} GiB"


def _free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a device, or None where that cannot be asked."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        with Path("/proc/meminfo").open() as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
