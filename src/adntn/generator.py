"""The generator: an ``nn.Module`` whose root and cores make a weight."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adntn.adjoint import function as adjoint_function
from adntn.adjoint.reverse import Made, Reverse, full_precision
from adntn.contraction import (
    Contraction,
    Factors,
    Forest,
    KroneckerPlan,
    Side,
    entries,
    rows,
    rows_from_factors,
)
from adntn.cores import CoreModule
from adntn.errors import ConfigError, check_choice
from adntn.indices import Index, entry_index, row_index
from adntn.memory import can_write, check_out
from adntn.topology import GeneratorConfig

__all__ = ["Backward", "Generator", "GeneratorModule"]

Backward = Literal["autograd", "adjoint"]


class GeneratorModule(CoreModule):
    """Root and cores, and what is made of them. :class:`Generator` is one, and so is every generated layer."""

    def bare(self) -> Generator:
        """Return a generator that shares root and cores: a layer's bias, hooks and rows are left behind."""
        bare = Generator.__new__(Generator)
        nn.Module.__init__(bare)
        GeneratorModule._share(bare, self)
        return bare.train(self.training)

    def bare_copy(self) -> Generator:
        """Return a generator of its own with the same root and cores; see :meth:`bare`."""
        return copy.deepcopy(self.bare())

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

    def kronecker_matrices(self, *, merged: bool) -> tuple[Tensor, ...]:
        """Return the matrices of the sum of Kronecker products; see :class:`adntn.contraction.KroneckerPlan`."""
        assert isinstance(self._network, Contraction)
        with full_precision(self.device):
            parameters, hidden = self._parameters_by_name(), self._hidden(self._network)
            made = self._network.kronecker_matrices(parameters, hidden, merged=merged)
        return tuple(tensor.to(self.dtype) for tensor in made)

    @property
    def kronecker(self) -> KroneckerPlan | None:
        """The weight as a sum of Kronecker products, where it has no factors and is one."""
        return self._sum()

    def _sum(self) -> KroneckerPlan | None:  # no property, since torch.compile takes one by super() for something else
        return self._network.kronecker if isinstance(self._network, Contraction) else None

    @property
    def ranks(self) -> tuple[int, int] | None:
        """The sizes r and r' of the factors, or None where the order has no split."""
        return self._network.ranks

    @property
    def split_obstacle(self) -> str | None:
        """Why there are neither factors nor a sum of Kronecker products to run through; None where there are."""
        if self._network.ranks is not None or self.kronecker is not None:
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

    def _takes_adjoint(self) -> bool:
        return self._backward == "adjoint" and adjoint_function.is_possible()

    def _run_adjoint(self, network: Contraction, made: Made, index: Tensor | None = None) -> Tensor:
        reverse = Reverse(network, self.activation, self.activation.strength)
        return adjoint_function.run(reverse, made, self.used_parameters(), index)


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
