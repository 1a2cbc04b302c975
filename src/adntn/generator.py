"""The generator: an ``nn.Module`` whose root and cores make a weight."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any, Literal, cast, get_args
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adntn import activations
from adntn.adjoint import function as adjoint_function
from adntn.adjoint.equations import nonlinearity
from adntn.adjoint.reverse import Made, Reverse, full_precision
from adntn.baselines import Network, draw_network, network
from adntn.contraction import Contraction, Factors, Forest, Side, entries, rows, rows_from_factors
from adntn.errors import ConfigError, check_choice
from adntn.indices import Index, entry_index, row_index
from adntn.memory import can_write, check_memory, check_out
from adntn.topology import Blueprint, GeneratorConfig

__all__ = ["Backward", "Generator", "GeneratorModule"]

Backward = Literal["autograd", "adjoint"]


# The modules that are made of one and the same root and cores.
_USERS: WeakKeyDictionary[Network, WeakSet[GeneratorModule]] = WeakKeyDictionary()


class _Part(nn.Module):
    """Parameters named by numbers, so that ``state_dict`` reads ``expand.1``, ``carry.2``, ``mix.1.0``."""


class GeneratorModule(nn.Module):
    """Root and cores, and what is made of them. :class:`Generator` is one, and so is every generated layer.

    Its parameters are registered under the names of the design: ``root``, ``expand.1``, ``carry.1``, ``mix.1.0``.
    """

    blueprint: Blueprint
    std: float | None
    root: nn.Parameter
    activation: nn.ModuleDict
    _network: Network
    _paths: tuple[tuple[str, tuple[str, ...]], ...]
    _backward: str = "autograd"

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
        self.activation = nn.ModuleDict(
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

    def _share(self, other: GeneratorModule) -> None:
        """Register another module's root and cores as this one's too, as torch does with tied weights."""
        self.blueprint, self.std = other.blueprint, other.std
        self._paths, self._backward = other._paths, other._backward
        self._use(other._network)
        # In the one order that every process has: a set's order is not.
        names = [*(path[0] for _, path in other._paths), *other.blueprint.buffer_shapes, "activation"]
        for name in dict.fromkeys(names):
            part = getattr(other, name)
            if name in other._buffers:
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def _use(self, made: Network) -> None:
        if "_network" in self.__dict__:
            self.users().discard(self)
        self._network = made
        self.users().add(self)

    def users(self) -> WeakSet[GeneratorModule]:
        """Return all modules that are made of the same root and cores, this one too."""
        return _USERS.setdefault(self._network, WeakSet())

    def __setstate__(self, state: dict[str, Any]) -> None:  # after a copy and after unpickling
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.users().add(self)

    def _replace(self, other: GeneratorModule) -> None:
        """Register another module's root and cores in place of this one's, where a fresh module would have them."""
        mine = {path[0] for _, path in self._paths} | set(self.blueprint.buffer_shapes) | {"activation"}
        registers: tuple[dict[str, Any], ...] = (self._parameters, self._modules)
        kept = [list(registered) for registered in registers]
        for name in mine:
            delattr(self, name)
        backward = self._backward
        GeneratorModule._share(self, other)
        self._backward = backward if isinstance(self._network, Contraction) else "autograd"
        for names, registered in zip(kept, registers, strict=True):
            _keep_order(registered, names, mine)

    def bare(self) -> Generator:
        """Return a generator that shares root and cores: a layer's bias, hooks and rows are left behind."""
        bare = Generator.__new__(Generator)
        nn.Module.__init__(bare)
        GeneratorModule._share(bare, self)
        return bare.train(self.training)

    def bare_copy(self) -> Generator:
        """Return a generator of its own with the same root and cores; see :meth:`bare`."""
        return copy.deepcopy(self.bare())

    def generator_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield root, cores and the activations' numbers by name: all parameters but a layer's bias."""
        for name, path in self._paths:
            yield name, cast(nn.Parameter, self._tensor(path))
        yield from self.activation.named_parameters(prefix="activation")

    def get_core(self, name: str) -> Tensor:
        """Return one of the generator's parameters, as ``"expand.1"``."""
        return self._tensor(tuple(name.split(".")))

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

    def shares_generator_with(self, other: GeneratorModule) -> bool:
        """Return whether both are made of the same root and cores."""
        return self._network is other._network

    # --- what it makes ------------------------------------------------------------------------------------------

    @property
    def backward(self) -> str:
        """How gradients are made: ``"autograd"``, or ``"adjoint"`` by the paper's equations (:mod:`adntn.adjoint`).

        The latter keeps only the parameters for the backward pass and computes the states anew there, which costs some
        time (``docs/adjoint.md`` has the numbers). It is how the module runs, not what it is: neither the config nor a
        ``state_dict`` has it. Forward-mode derivatives and ``torch.compile`` take the ordinary path either way.

        Raises:
            ConfigError: when set to something else, or to ``"adjoint"`` on a baseline, which has no levels.
        """
        return self._backward

    @backward.setter
    def backward(self, value: str) -> None:
        check_choice("backward", value, get_args(Backward))
        if value == "adjoint" and not isinstance(self._network, Contraction):
            raise ConfigError(
                f"backward='adjoint' needs levels; topology={self.config.topology!r} has none. Trees and the brick "
                "wall have."
            )
        self._backward = value

    def generate(self, out: Tensor | None = None) -> Tensor:
        """Return the weight, shape ``(out, in, *kernel)``.

        Args:
            out: memory to make it in, of the weight's shape, dtype and device, contiguous or not; beside it little is
                needed, an eighth of the weight for a 4096 x 4096 ttn. As with torch's own ``out=`` no derivative can be
                taken.

        Returns:
            ``out`` if it is given.

        Raises:
            ShapeError: ``out`` has another shape.
            ConfigError: it has another dtype or device, its entries share memory, or a derivative is being taken.

        Example:
            >>> buffer = torch.empty(4096, 4096)
            >>> with torch.no_grad():
            ...     gen.generate(out=buffer)  # again and again, as the parameters change
        """
        network, tensors = self._network, [*self._all_tensors()]
        if out is not None:
            check_out(out, self.blueprint.shape, tensors)
        memory = None
        if can_write(tensors):
            memory = out
            if memory is None:
                memory = torch.empty(self.blueprint.shape, dtype=self.dtype, device=self.device)
        with full_precision(self.device):
            if not isinstance(network, Contraction):
                weight = network.weight(self._parameters_by_name())
            elif memory is None and self._takes_adjoint():
                weight = self._run_adjoint(network, "weight")
            else:
                parameters = self._parameters_by_name()
                weight = network.weight(parameters, network.hidden(parameters, self._activate), memory)
        if out is None or weight is out:
            return weight.to(self.dtype)
        return out.copy_(weight)

    def _all_tensors(self) -> Iterator[Tensor]:
        for _, path in self._paths:
            yield self._tensor(path)
        yield from self.activation.parameters()

    def hidden(self) -> Tensor:
        """Return the state before the readout, shape ``(groups * terms, bond_dim**H)`` (paper, W^(L-1)).

        Raises:
            ConfigError: the generator is a baseline, which has no states.
        """
        if not isinstance(self._network, Contraction):
            raise ConfigError(f"topology={self.config.topology!r} has no hidden state; trees and the brick wall have.")
        with full_precision(self.device):
            return self._hidden(self._network).to(self.dtype)

    def _hidden(self, network: Contraction) -> Tensor:
        if self._takes_adjoint() and network.hidden_plans:  # without hidden levels there is nothing to compute anew
            return self._run_adjoint(network, "hidden")
        return network.hidden(self._parameters_by_name(), self._activate)

    def factors(self) -> Factors | None:
        """Return A, C, B with ``W = A C B^T`` in every group, exactly, or None where the order has no split.

        Returns:
            A of shape ``(groups, out / groups, r)``, C of shape ``(groups, r, r', *kernel)``, B of shape ``(groups,
            in, r')``.
        """
        with full_precision(self.device):
            if isinstance(self._network, Contraction):
                factors = self._tree_factors(self._network)
            else:
                factors = self._network.factors(self._parameters_by_name())
        if factors is None:
            return None
        a, c, b = (factor.to(self.dtype) for factor in factors)
        return a, c, b

    def factors_at(self, index: Tensor) -> Factors | None:
        """Return the factors, but of A only the rows at an index into ``out``; a tree makes no other row.

        Args:
            index: whole numbers of any shape.

        Returns:
            Rows of A, shape ``(*index, r)``; C and B as :meth:`factors`. All in the precision in which they are made,
            float32 at least.
        """
        with full_precision(self.device):
            if isinstance(self._network, Contraction):
                return self._tree_factors(self._network, index)
            factors = self._network.factors(self._parameters_by_name())
            return factors and (F.embedding(index, factors[0].flatten(0, 1)), *factors[1:])

    def entries(self, index: Index) -> Tensor:
        """Return entries of the weight; nothing of its size is made (paper, Eq. 32).

        The hidden state is made once. Then an entry takes about ``bond_dim ** ceil(H / 2)`` multiply-adds, fewer where
        many are asked for at once, and more where they are few.

        Args:
            index: whole numbers of shape ``(*n, dims)``, one column an axis of the weight; or, as torch indexes by
                several tensors, a tuple of one tensor or number an axis, which broadcast to ``(*n)``. Numbers below
                zero count from the end.

        Returns:
            Shape ``(*n)``, in the parameters' dtype.

        Raises:
            ShapeError: there is not one column or tensor an axis, or they do not broadcast.
            EntryIndexError: the numbers are not whole, or one is out of range. (Under ``torch.compile`` and on a GPU,
                where to look at numbers would be dear, the latter is torch's own error.)

        Example:
            >>> gen = adntn.Generator((4096, 4096))
            >>> gen.entries((torch.arange(3), -1)).shape  # as gen()[torch.arange(3), -1]
            torch.Size([3])
        """
        return self._entries(entry_index(index, self.shape).to(self.device))

    def rows_at(self, index: Tensor | int) -> Tensor:
        """Return rows of the weight, made without the rest of it.

        Args:
            index: whole numbers of any shape ``(*n)``; below zero they count from the end.

        Returns:
            Shape ``(*n, in, *kernel)``, in the parameters' dtype.

        Raises:
            EntryIndexError: as :meth:`entries`.

        Example:
            >>> gen = adntn.Generator((4096, 1024), adntn.GeneratorConfig(order="paired"))
            >>> gen.rows_at(torch.tensor([0, -1])).shape
            torch.Size([2, 1024])
        """
        return self._rows_at(row_index(index, self.shape[0]).to(self.device))

    def _entries(self, index: Tensor) -> Tensor:  # shape: (*n, dims) -> (*n)
        if not index.numel():  # of no entries there are no shapes to be told
            return self._entries(index.new_zeros(1, index.shape[-1]))[:0].reshape(index.shape[:-1])
        flat, network, parameters = index.reshape(-1, index.shape[-1]), self._network, self._parameters_by_name()
        with full_precision(self.device):
            if isinstance(network, Contraction):
                made = entries(network, parameters, self._hidden(network), flat)
            else:
                made = network.entries(parameters, flat)
        return made.reshape(index.shape[:-1]).to(self.dtype)

    def _rows_at(self, index: Tensor) -> Tensor:  # shape: (*n) -> (*n, in, *kernel)
        if not index.numel():
            return self._rows_at(index.new_zeros(1))[:0].reshape(*index.shape, *self.blueprint.shape[1:])
        flat, network, parameters = index.flatten(), self._network, self._parameters_by_name()
        with full_precision(self.device):
            if not isinstance(network, Contraction):
                made = network.rows(parameters, flat)
            elif (factors := self._tree_factors(network, flat)) is not None:
                group = flat.div(self.blueprint.shape[0] // self.config.groups, rounding_mode="floor")
                made = rows_from_factors(factors[0], group, *factors[1:])
            else:
                made = rows(network, parameters, self._hidden(network), flat)
        return made.reshape(*index.shape, *self.blueprint.shape[1:]).to(self.dtype)

    def _tree_factors(self, network: Contraction, index: Tensor | None = None) -> Factors | None:
        if self._takes_adjoint() and network.split is not None:
            a = self._run_adjoint(network, "outer", index)
            return a, self._run_adjoint(network, "centre"), self._run_adjoint(network, "inner")
        parameters = self._parameters_by_name()
        hidden = network.hidden(parameters, self._activate)
        return network.factors(parameters, hidden) if index is None else network.factors_at(parameters, hidden, index)

    def staged(self) -> tuple[Tensor, ...]:
        """Return the matrices of A's stages, C, and the matrices of B's stages; see :mod:`adntn.contraction.sides`."""
        assert isinstance(self._network, Contraction)
        with full_precision(self.device):
            parameters = self._parameters_by_name()
            made = self._network.staged(parameters, self._network.hidden(parameters, self._activate))
        return tuple(tensor.to(self.dtype) for tensor in made)

    @property
    def sides(self) -> tuple[Side, Side] | tuple[Forest, Forest] | None:
        """A and B as they are applied in stages; None where they are applied whole."""
        is_tree = isinstance(self._network, Contraction) and self._backward != "adjoint"
        return cast(Contraction, self._network).sides if is_tree else None

    @property
    def ranks(self) -> tuple[int, int] | None:
        """The sizes r and r' of the factors, or None where the order has no split."""
        return self._network.ranks

    @property
    def split_obstacle(self) -> str | None:
        """Why there are no factors, or None where there are."""
        if self._network.ranks is not None:
            return None
        c = self.config
        if c.topology in ("subspace", "frozen"):
            return f"topology={c.topology!r} has no split into factors"
        mixed = f"topology={c.topology!r} with " if c.order == "block_paired" else ""  # which splits for others
        return f"{mixed}order={c.order!r} has no split into factors"

    @property
    def factored_groups(self) -> int:
        """How many groups the factors have."""
        return self.config.groups

    def _parameters_by_name(self) -> dict[str, Tensor]:
        named = {name: self._tensor(path) for name, path in self._paths}
        if self.dtype not in (torch.float32, torch.float64):
            work = torch.promote_types(self.dtype, torch.float32)
            named = {name: tensor.to(work) for name, tensor in named.items()}
        named.update({name: getattr(self, name) for name in self.blueprint.buffer_shapes})
        return named

    def _takes_adjoint(self) -> bool:
        return self._backward == "adjoint" and adjoint_function.is_possible()

    def _run_adjoint(self, network: Contraction, made: Made, index: Tensor | None = None) -> Tensor:
        parameters = {name: self.get_core(name) for name, _ in self.generator_parameters()}
        return adjoint_function.run(Reverse(network, self.activation), made, parameters, index)

    def _activate(self, number: int, z: Tensor) -> Tensor:
        gate = self.get_core(f"gate.level.{number}") if self.config.gate else None
        activation = functools.partial(activations.run, self.activation[str(number)])
        return nonlinearity(activation, self.config.norm, gate, z)

    # --- initial values -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw_(self) -> None:
        """Draw root and cores anew from torch's global random state and calibrate them (paper, Section 3.5)."""
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
        backward: how gradients are made, ``"autograd"`` or ``"adjoint"``; see :attr:`backward`.

    Raises:
        ShapeError: the shape cannot be generated, or ``groups`` does not divide its rows.
        ConfigError: an explicit order does not fit the shape, or a baseline is to run backwards by the adjoint.
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
        backward: Backward = "autograd",
    ) -> None:
        super().__init__()
        self._grow(tuple(shape), config, std, device, dtype)
        self.backward = backward

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


def _keep_order(registered: dict[str, Any], before: list[str], mine: set[str]) -> None:
    """Put what was registered last, root and cores, to where the old ones stood: optimisers count on the order."""
    others = [name for name in before if name not in mine]
    lead = next((place for place, name in enumerate(before) if name in mine), len(others))
    added = [name for name in registered if name not in others]
    for name in [*others[:lead], *added, *others[lead:]]:
        registered[name] = registered.pop(name)
