"""Root and cores as parameters of an ``nn.Module``: their names, who shares them, and their initial values."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from adntn import activations
from adntn.adjoint.equations import nonlinearity
from adntn.adjoint.reverse import full_precision
from adntn.baselines import Network, draw_network, network
from adntn.contraction import Contraction
from adntn.errors import CompressionError
from adntn.memory import check_memory
from adntn.options import check_number
from adntn.quantization import Quantization, fake_quantize, quantized_names
from adntn.topology import Blueprint, GeneratorConfig

__all__ = ["CoreModule"]

# The modules that are made of one and the same root and cores.
_USERS: WeakKeyDictionary[Network, WeakSet[CoreModule]] = WeakKeyDictionary()


class _Part(nn.Module):
    """Parameters named by numbers, so that ``state_dict`` reads ``expand.1``, ``carry.2``, ``mix.1.0``."""


class Activations(nn.ModuleDict):
    """The activation of every hidden level, by its number, and how strongly all of them act."""

    strength: float = 1.0


class CoreModule(nn.Module):
    """Root and cores. :class:`adntn.Generator` is one, and so is every generated layer.

    Its parameters are registered under the names of the design: ``root``, ``expand.1``, ``carry.1``, ``mix.1.0``.
    """

    blueprint: Blueprint
    std: float | None
    root: nn.Parameter
    activation: Activations
    _network: Network
    _paths: tuple[tuple[str, tuple[str, ...]], ...]
    _backward: str = "autograd"
    _quantization: Quantization | None = None
    #: Whether other weights, with roots of their own, are made of the same cores: :func:`adntn.share_cores_`.
    has_common_cores: bool = False

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
        self._use(network(self.blueprint))
        shapes = {k: v for k, v in self.blueprint.parameter_shapes.items() if not k.startswith("activation.")}
        self._paths = tuple((name, tuple(name.split("."))) for name in shapes)
        for (_, path), sizes in zip(self._paths, shapes.values(), strict=True):
            self._part(path).register_parameter(path[-1], nn.Parameter(torch.empty(sizes, device=device, dtype=dtype)))
        for name, sizes in self.blueprint.buffer_shapes.items():
            self.register_buffer(name, torch.empty(sizes, device=device, dtype=torch.int64))
        self.activation = Activations(
            {
                str(level.number): activations.make_activation(self.config.activation, self.config.trees).to(
                    device, dtype
                )
                for level in self.blueprint.levels[:-1]
            }
        )
        self.draw_()

    def _part(self, path: tuple[str, ...]) -> nn.Module:
        """Return the module that holds a parameter, made if it is not there yet."""
        here: nn.Module = self
        for name in path[:-1]:
            if name not in here._modules:
                here.add_module(name, _Part())
            here = here.get_submodule(name)
        return here

    def _share(self, other: CoreModule) -> None:
        """Register another module's root and cores as this one's too, as torch does with tied weights."""
        self.blueprint, self.std = other.blueprint, other.std
        self._paths, self._backward = other._paths, other._backward
        self._quantization = other._quantization
        self.__dict__.pop("has_common_cores", None)
        if other.has_common_cores:
            self.has_common_cores = True
        self._use(other._network)
        # In the one order that every process has: a set's order is not.
        names = [*(path[0] for _, path in other._paths), *other.blueprint.buffer_shapes, "activation"]
        for name in dict.fromkeys(names):
            part = getattr(other, name)
            if name in other._buffers:
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def _take_cores(self, other: CoreModule) -> None:
        """Register another module's cores and activations as this one's too; the root stays."""
        for name in dict.fromkeys([*(path[0] for _, path in other._paths), "activation"]):
            if name != "root":
                setattr(self, name, getattr(other, name))
        self.has_common_cores = True

    def refuse_common_cores(self, verb: str, instead: str = "") -> None:
        """Raise where the cores are common to other weights, which would change along.

        Args:
            verb: what cannot be done, as ``"pruned"``.
            instead: what can.

        Raises:
            CompressionError: they are.
        """
        if self.has_common_cores:
            raise CompressionError(
                f"a generator of a weight of shape {self.blueprint.shape} has its cores in common with others "
                f"(share_cores_), so it cannot be {verb} alone{f'; {instead}' if instead else ''}."
            )

    def _use(self, made: Network) -> None:
        if "_network" in self.__dict__:
            self.users().discard(self)
        self._network = made
        self.users().add(self)

    def users(self) -> WeakSet[Any]:
        """Return all modules that are made of the same root and cores, this one too."""
        return _USERS.setdefault(self._network, WeakSet())

    def __setstate__(self, state: dict[str, Any]) -> None:  # after a copy and after unpickling
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.users().add(self)

    def _replace(self, other: CoreModule) -> None:
        """Register another module's root and cores in place of this one's, where a fresh module would have them."""
        mine = {path[0] for _, path in self._paths} | set(self.blueprint.buffer_shapes) | {"activation"}
        registers: tuple[dict[str, Any], ...] = (self._parameters, self._modules)
        kept = [list(registered) for registered in registers]
        for name in mine:
            delattr(self, name)
        backward = self._backward
        CoreModule._share(self, other)
        self._backward = backward if isinstance(self._network, Contraction) else "autograd"
        for names, registered in zip(kept, registers, strict=True):
            _keep_order(registered, names, mine)

    def generator_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield root, cores and the activations' numbers by name: all parameters but a layer's bias."""
        for name, path in self._paths:
            yield name, cast(nn.Parameter, self._tensor(path))
        yield from self.activation.named_parameters(prefix="activation")

    def get_core(self, name: str) -> Tensor:
        """Return one of the generator's parameters, as ``"expand.1"``."""
        return self._tensor(tuple(name.split(".")))

    def used_parameters(self) -> dict[str, Tensor]:
        """Return root, cores and the activations' numbers as all is made of them: on their grid if quantised."""
        learned = (name for name, _ in self.activation.named_parameters(prefix="activation"))
        return {**self._used_cores(), **{name: self.get_core(name) for name in learned}}

    def _used_cores(self) -> dict[str, Tensor]:
        named = {name: self._tensor(path) for name, path in self._paths}
        if self._quantization is not None:
            for name in quantized_names(self.blueprint):
                named[name] = fake_quantize(named[name], self.config.trees, self._quantization)
        return named

    def _tensor(self, path: tuple[str, ...]) -> Tensor:
        # By attribute, not from the modules' dictionaries: torch.func and FSDP put other tensors in place.
        return cast(Tensor, functools.reduce(getattr, path, cast(Any, self)))

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
        return self._network.rank_bound()

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and so of what is made."""
        return self._reference.dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self._reference.device

    @property
    def _reference(self) -> Tensor:
        return self._tensor(self._paths[0][1])

    @property
    def quantization(self) -> Quantization | None:
        """The grid that root and cores are on when they are used, or None; :func:`adntn.quantize_` sets it.

        Those that share root and cores share it. A ``state_dict`` has the float numbers and does not have it;
        :func:`adntn.save` stores it, and the numbers packed.
        """
        return self._quantization

    def _set_quantization(self, quantization: Quantization | None) -> None:
        for user in self.users():
            user._quantization = quantization

    @property
    def activation_strength(self) -> float:
        """How strongly the activations act: t of ``(1 - t) z + t phi(z)``, from 0, a linear tree, to 1, as it is meant.

        It belongs to root and cores, so layers that share them have one. A training run turns it up after a warm start
        (:func:`adntn.warm_start_`). Neither the config nor a ``state_dict`` has it, and :func:`adntn.save` takes
        generators at 1 only. Where there is no activation it does nothing.

        Raises:
            ConfigError: when set to something else than a number of 0 to 1.

        Example:
            >>> generator.activation_strength = 0.5
        """
        return self.activation.strength

    @activation_strength.setter
    def activation_strength(self, value: float) -> None:
        check_number("activation_strength", value, least=0, most=1)
        self.activation.strength = float(value)

    def shares_generator_with(self, other: CoreModule) -> bool:
        """Return whether both are made of the same root and cores."""
        return self._network is other._network

    def _parameters_by_name(self) -> dict[str, Tensor]:
        named = self._used_cores()
        if self.dtype not in (torch.float32, torch.float64):
            work = torch.promote_types(self.dtype, torch.float32)
            named = {name: tensor.to(work) for name, tensor in named.items()}
        named.update({name: getattr(self, name) for name in self.blueprint.buffer_shapes})
        return named

    def _activate(self, number: int, z: Tensor) -> Tensor:
        gate = self.get_core(f"gate.level.{number}") if self.config.gate else None
        module, strength = self.activation[str(number)], self.activation.strength
        activation = functools.partial(activations.run, module, strength=strength)
        return nonlinearity(activation, self.config.norm, gate, z)

    # --- initial values -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw_(self) -> None:
        """Draw root and cores anew from torch's global random state and calibrate them (paper, Section 3.5).

        The calibration is that of the generator as it runs, with its activation strength.
        """
        for activation in self.activation.values():
            activations.reset(activation, self.config.activation, self.config.trees)
        device = self.device
        if device.type == "meta":
            return  # as torch's own layers: call again after to_empty()
        named = dict(self.generator_parameters())
        for name in named:
            if name.startswith("gate.level."):
                named[name].fill_(1.0)  # the calibration below runs through it
        buffers = {name: torch.randint(1 << 62, (1,), device="cpu") for name in self.blueprint.buffer_shapes}
        for name, value in buffers.items():
            getattr(self, name).copy_(value)
        with full_precision(self.device):
            # Drawn on the CPU so that a seed gives the same start on every device.
            activate = lambda number, z: self._activate(number, z.to(device)).to("cpu", torch.float64)  # noqa: E731
            values = draw_network(self._network, activate, buffers, std=self.std)
        for name, value in values.items():
            named[name].copy_(value)


def _keep_order(registered: dict[str, Any], before: list[str], mine: set[str]) -> None:
    """Put what was registered last, root and cores, to where the old ones stood: optimisers count on the order."""
    others = [name for name in before if name not in mine]
    lead = next((place for place, name in enumerate(before) if name in mine), len(others))
    added = [name for name in registered if name not in others]
    for name in [*others[:lead], *added, *others[lead:]]:
        registered[name] = registered.pop(name)
