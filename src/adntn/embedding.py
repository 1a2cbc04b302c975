"""Where a generator's numbers lie in a larger one that makes the same weight (paper, Eq. 12).

Every core of the smaller generator goes into the leading block of one of the larger one. What is around it is chosen
so that the weight stays as it is *and* what is new can learn. All zeros would be a dead point: the gradient of a new
number is a product with another new one.

- bond: old parents get new children of small random numbers, new parents are zero. Whatever the new children make of
  the state, behind an activation too, the next level multiplies it by zero; its new parents have a gradient at once.
  Disentanglers become the direct sum with an identity, so that nothing of the new children gets into the old ones.
- disentanglers, columns of a brick wall: the identity. Gates that open and close: open.
- terms: a tree drawn anew, with one core of its readout at zero. With more of them at zero none would have a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from adntn.levels import Level
from adntn.topology import BASELINES, TREES, Blueprint

__all__ = ["Embedding", "embed"]

_Sizes = tuple[int, ...]

#: What may differ: nothing of it changes the states, or only so that the old ones stay in the leading block.
_FREE = {
    **{tree: {"topology", "bond_dim", "boundary_layers", "terms", "gate", "initialization"} for tree in TREES},
    "brickwall": {"columns", "blocks", "terms", "gate", "initialization"},
    "tt": {"bond_dim", "initialization"},
    "lowrank": {"bond_dim", "initialization"},
}
#: What counts through the modes and the schedule that come of it.
_DERIVED = {"radix", "order", "groups", "kernel_radix", "latent_order"}


@dataclass(frozen=True)
class _Patch:
    """One core in the leading block of another.

    Attributes:
        new: parameter of the larger generator.
        new_place: of the core in each tree.
        old: parameter of the smaller one.
        old_place: of the core in each tree.
        rows: sizes of the modes that the core's rows stand for, in the old one and in the new one.
        columns: the same of its columns.
        random: whether new columns are small random numbers; else what is there stays.
    """

    new: str
    new_place: int
    old: str
    old_place: int
    rows: tuple[_Sizes, _Sizes]
    columns: tuple[_Sizes, _Sizes]
    random: bool = False


_ONE: tuple[_Sizes, _Sizes] = ((), ())


@dataclass(frozen=True)
class Embedding:
    """How one generator lies in another, from :func:`embed`.

    Attributes:
        old: the smaller one.
        new: the larger one.
        patches: one for each core and gate of the smaller one.
        doubt: why the weight may still change, or nothing.
    """

    old: Blueprint
    new: Blueprint
    patches: tuple[_Patch, ...]
    doubt: str = ""

    def sources(self, name: str) -> tuple[str, ...]:
        """Return which old parameters a new one has numbers of."""
        return tuple(dict.fromkeys(patch.old for patch in self.patches if patch.new == name))

    def copy(self, name: str, old: Mapping[str, Tensor], new: Tensor) -> Tensor:
        """Write old numbers into a new parameter, or what belongs to it, as an optimiser's averages.

        Args:
            name: of the new parameter.
            old: tensors of the old parameters' shapes, by name.
            new: of the new parameter's shape, contiguous.

        Returns:
            ``new``, written to.
        """
        for patch in self.patches:
            if patch.new == name:
                self._block(patch, new)[...] = self._core(patch, old[patch.old])
        return new

    def leading(self, name: str, new: Mapping[str, Tensor]) -> Tensor:
        """Return an old parameter as it lies in the new ones: the inverse of :meth:`copy`.

        Args:
            name: of the old parameter.
            new: the new ones by name, contiguous, on the CPU.
        """
        patches = [patch for patch in self.patches if patch.old == name]
        if not patches:  # what an activation learns for all trees
            return new[name].clone()
        made = torch.zeros(self.old.parameter_shapes[name], dtype=new[patches[0].new].dtype)
        for patch in patches:
            rows, columns = _leading(*patch.rows), _leading(*patch.columns)
            self._core(patch, made)[...] = self._whole(patch, new[patch.new])[..., rows.unsqueeze(1), columns]
        return made

    def values(self, old: Mapping[str, Tensor], fresh: Mapping[str, Tensor], noise: float) -> dict[str, Tensor]:
        """Return the new parameters.

        Args:
            old: the old ones by name.
            fresh: freshly drawn new ones; used for trees that are new, and of activations.
            noise: deviation of new children, in units of the root mean square of their core's old entries.

        Returns:
            float64 tensors by name, on the CPU.
        """
        made: dict[str, Tensor] = {}
        for name, shape in self.new.parameter_shapes.items():
            if name.startswith("activation.") and old[name].shape == shape:
                made[name] = old[name].to("cpu", torch.float64)
                continue
            value = self._start(name, shape)
            if name in fresh:
                value = self._with_new_trees(name, value, fresh[name].to("cpu", torch.float64))
            for patch in self.patches:
                if patch.new == name:
                    core = self._core(patch, old[patch.old].to("cpu", torch.float64))
                    if patch.random and patch.columns[0] != patch.columns[1]:
                        self._add_children(patch, core, value, noise)
                    self._block(patch, value)[...] = core
            made[name] = value
        return made

    def _start(self, name: str, shape: _Sizes) -> Tensor:
        """Return what does nothing: identities, open gates, and zeros for what patches fill."""
        if name.startswith("gate.") and len(shape) == 2:
            return torch.ones(shape, dtype=torch.float64, device="cpu")
        value = torch.zeros(shape, dtype=torch.float64, device="cpu")
        if any(stack.name == name and stack.kind == "mix" for level in self.new.levels for stack in level.stacks):
            value += torch.eye(shape[-1], dtype=torch.float64, device="cpu")
        return value

    def _with_new_trees(self, name: str, value: Tensor, fresh: Tensor) -> Tensor:
        config = self.new.config
        if name.startswith("activation."):
            return fresh.clone().contiguous()
        terms = self.old.config.terms
        trees = value.unflatten(0, (config.groups, config.terms, -1))
        trees[:, terms:] = fresh.unflatten(0, (config.groups, config.terms, -1))[:, terms:]
        if name == self.new.levels[-1].scaled[0]:
            trees[:, terms:, 0] = 0.0
        return value

    def _add_children(self, patch: _Patch, core: Tensor, value: Tensor, noise: float) -> None:
        """Give the old rows of a core new columns."""
        size = core.square().mean(dim=(-2, -1), keepdim=True).sqrt()
        rows = _leading(*patch.rows)
        block = self._whole(patch, value)
        scale = noise * torch.where(size > 0, size, 1.0)
        drawn = torch.randn(*core.shape[:-1], block.shape[-1], dtype=torch.float64, device="cpu")
        block[..., rows, :] = scale * drawn

    def _core(self, patch: _Patch, tensor: Tensor) -> Tensor:  # shape: (groups, terms, rows, columns)
        c = self.old.config
        shape = (c.groups, c.terms, -1, math.prod(patch.rows[0]), math.prod(patch.columns[0]))
        return tensor.reshape(shape)[:, :, patch.old_place]

    def _whole(self, patch: _Patch, tensor: Tensor) -> Tensor:
        c = self.new.config
        shape = (c.groups, c.terms, -1, math.prod(patch.rows[1]), math.prod(patch.columns[1]))
        return tensor.view(shape)[:, : self.old.config.terms, patch.new_place]

    def _block(self, patch: _Patch, tensor: Tensor) -> _Block:
        return _Block(self._whole(patch, tensor), _leading(*patch.rows), _leading(*patch.columns))


@dataclass(frozen=True)
class _Block:
    """Some rows and columns of a matrix, to assign to."""

    whole: Tensor
    rows: Tensor
    columns: Tensor

    def __setitem__(self, key: object, value: Tensor) -> None:
        rows, columns = (index.to(self.whole.device) for index in (self.rows, self.columns))
        self.whole[..., rows.unsqueeze(1), columns] = value.to(self.whole.device, self.whole.dtype)


def _leading(old: _Sizes, new: _Sizes) -> Tensor:
    """Return where the leading block of raveled modes lies in larger ones."""
    index = torch.zeros(1, dtype=torch.int64, device="cpu")
    for small, large in zip(old, new, strict=True):
        index = (index.unsqueeze(1) * large + torch.arange(small, device="cpu")).flatten()
    return index


def embed(old: Blueprint, new: Blueprint) -> Embedding | str:
    """Return how one generator lies in another that then makes the same weight, or why it does not.

    An activation is taken to be a function of single entries.

    Args:
        old: the smaller one.
        new: the larger one.
    """
    a, b = old.config, new.config
    free = _FREE.get(a.topology, {"initialization"}) | _DERIVED
    if b.topology != a.topology and not {a.topology, b.topology} <= set(TREES):
        return f"a {b.topology} cannot take over the cores of a {a.topology}"
    values = {
        field.name: (getattr(a, field.name), getattr(b, field.name))
        for field in fields(a)
        if field.name not in free and getattr(a, field.name) != getattr(b, field.name)
    }
    if values:
        name, (before, after) = next(iter(values.items()))
        return f"{name}={after!r} instead of {before!r} changes what the cores mean"
    if old.tensorization != new.tensorization:
        return "other modes need other cores"
    if a.topology in TREES and old.schedule != new.schedule:
        return f"levels of {new.schedule} modes instead of {old.schedule} need other cores"
    for name in ("chi", "terms", "gate"):
        if getattr(b, name) < getattr(a, name):
            return f"{'bond_dim' if name == 'chi' else name} would shrink"
    doubt = ""
    if a.norm is not None and a.chi != b.chi and a.topology in TREES:
        doubt = f"norm={a.norm!r} sees the whole state, and new entries of it change what it does to the old ones"
    if a.topology in BASELINES:
        return Embedding(old, new, tuple(_baseline_patches(old, new)))
    if len(old.levels) != len(new.levels):
        return f"{len(new.levels)} blocks instead of {len(old.levels)} put activations where none were"
    for name, shape in old.parameter_shapes.items():
        by_tree = (b.trees, *shape[1:]) if shape[:1] == (a.trees,) else shape
        if name.startswith("activation.") and new.parameter_shapes[name] not in (shape, by_tree):
            return f"activation={a.activation!r} has other parameters for {b.trees} trees"
    patches = _state_patches(old, new)
    for before_level, after_level in zip(old.levels, new.levels, strict=True):
        found = _level_patches(before_level, after_level, gate=a.gate)
        if found is None:
            return f"level {after_level.number} has not all of the old layers of gates"
        patches += found
    return Embedding(old, new, tuple(patches), doubt)


def _state_patches(old: Blueprint, new: Blueprint) -> list[_Patch]:
    """Return the patches of what is not a core: root, activations, gates of levels and trees."""
    patches = []
    for name, shape in old.parameter_shapes.items():
        size = math.prod(shape[1:])
        if name == "root":
            modes = old.schedule[0]
            sizes = ((old.config.chi,) * modes, (new.config.chi,) * modes)
            patches.append(_Patch(name, 0, name, 0, _ONE, sizes, random=True))
        elif name.startswith("activation."):
            if shape != new.parameter_shapes[name]:
                patches.append(_Patch(name, 0, name, 0, _ONE, ((size,), (size,))))
        elif name.startswith("gate.level.") or name == "gate.term":
            patches.append(_Patch(name, 0, name, 0, _ONE, ((size,), (size,))))
    return patches


def _level_patches(old: Level, new: Level, *, gate: bool) -> list[_Patch] | None:
    patches = []
    for parent, (before, after) in enumerate(zip(old.cores, new.cores, strict=True)):
        if before is not None and after is not None:
            rows = ((old.sizes_in[parent],), (new.sizes_in[parent],))
            children = old.children_of(parent)
            columns = tuple(old.sizes_out[c] for c in children), tuple(new.sizes_out[c] for c in children)
            patches.append(_Patch(after.stack, after.place, before.stack, before.place, rows, columns, random=True))
    where = _subsequence([mixer.first for mixer in old.mixers], [mixer.first for mixer in new.mixers])
    if where is None:
        return None
    for layer, target in enumerate(where):
        mixer = old.mixers[layer]
        for k, (before, after) in enumerate(zip(old.gates[layer], new.gates[target], strict=True)):
            first = mixer.first + 2 * k
            pair = old.sizes_out[first : first + 2], new.sizes_out[first : first + 2]
            patches.append(_Patch(after.stack, after.place, before.stack, before.place, pair, pair))
            if gate:
                names = (f"gate.{after.stack}", after.place, f"gate.{before.stack}", before.place)
                patches.append(_Patch(*names, rows=_ONE, columns=_ONE))
    return patches


def _subsequence(short: Sequence[int], long: Sequence[int]) -> list[int] | None:
    """Return where the items of one sequence stand in another, in order, or None."""
    places: list[int] = []
    for item in short:
        start = places[-1] + 1 if places else 0
        if item not in long[start:]:
            return None
        places.append(long.index(item, start))
    return places


def _baseline_patches(old: Blueprint, new: Blueprint) -> list[_Patch]:
    a, b = old.config.chi, new.config.chi
    if old.config.topology == "lowrank":
        lengths = {name: (old.parameter_shapes[name][1],) for name in ("left", "right")}
        return [
            _Patch(name, 0, name, 0, (length, length), ((a,), (b,)), random=name == "left")
            for name, length in lengths.items()
        ]
    if old.config.topology != "tt":
        return [_Patch(name, 0, name, 0, (shape[1:], shape[1:]), _ONE) for name, shape in old.parameter_shapes.items()]
    places = [
        [(stack.name, place) for stack in blueprint.chain for place in range(stack.count)] for blueprint in (old, new)
    ]
    patches = []
    modes = old.tensorization.modes
    for number, (before, after) in enumerate(zip(*places, strict=True)):
        rows = ((1,), (1,)) if number == 0 else ((a,), (b,))
        right = ((1,), (1,)) if number == len(modes) - 1 else ((a,), (b,))
        columns = (modes[number].size, *right[0]), (modes[number].size, *right[1])
        patches.append(_Patch(after[0], after[1], before[0], before[1], rows, columns, random=True))
    return patches
