"""Configs, schedules, levels and parameter counts: everything that is known of a generator before any number is.

Nothing here makes a tensor. The trees and the brick wall are lists of :class:`Level`; what a level does is the same for
all: expand (paper, Eqs. 49, 54, 59), then mix (Eqs. 55-56, 60-61), then activate unless it is the last. The baselines
of :mod:`adntn.baselines` have no levels, only shapes.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from adntn import activations
from adntn.errors import ConfigError, ShapeError, check_choice, nearest
from adntn.levels import Level, Mixer, Stack, brickwall_levels, chain_stacks, schedule, tree_levels
from adntn.norms import NORMS
from adntn.tensorize import ORDERS, Order, Tensorization, tensorize

__all__ = [
    "BASELINES",
    "CONFIG_VERSION",
    "INITIALIZATIONS",
    "NORMS",
    "TOPOLOGIES",
    "TREES",
    "Blueprint",
    "GeneratorConfig",
    "Level",
    "Mixer",
    "schedule",
]

CONFIG_VERSION = 2
TREES = ("ttn", "attn", "mera")
BASELINES = ("tt", "lowrank", "subspace", "frozen")
TOPOLOGIES = (*TREES, "brickwall", *BASELINES)
INITIALIZATIONS = ("paper", "isometric", "conformal")

#: Options that only some topologies have.
OWNERS = {
    "boundary_layers": ("attn",),
    "columns": ("brickwall",),
    "blocks": ("brickwall",),
    "subspace_dim": ("subspace",),
    "gate": (*TREES, "brickwall"),
    "terms": (*TREES, "brickwall"),
}


@dataclass(frozen=True)
class GeneratorConfig:
    """What a generator is made of. Frozen, hashable, versioned, to JSON and back.

    The default start, isometric cores with a sine between the levels, is the one that trained best in the study of
    ``benchmarks/initialization.py``; ``GeneratorConfig.paper()`` is the paper's own, ELU and Gaussian cores.

    Attributes:
        topology: ``"ttn"`` never mixes, ``"attn"`` mixes at the last level, ``"mera"`` at every level (Section 3);
            ``"brickwall"`` is the reference of Table 3 (Qing et al.); ``"tt"``, ``"lowrank"``, ``"subspace"`` and
            ``"frozen"`` are baselines (see :mod:`adntn.baselines`).
        radix: size d of a physical mode.
        bond_dim: size chi of a virtual mode, for ``"tt"`` and ``"lowrank"`` the rank; None means ``radix``.
        latent_order: modes of the root, Q_bot.
        activation: between levels, by name, with options in brackets (see :mod:`adntn.activations`).
        order: how a weight's axes become modes (see :mod:`adntn.tensorize`).
        groups: row blocks, each with a generator of its own (Eqs. 66-67).
        boundary_layers: mixing layers of an ``attn`` at its last level, 1 or 2 (Figure 2).
        initialization: ``"paper"`` (Section 3.5), ``"isometric"`` (Eq. 18 at the start) or ``"conformal"`` (isometric
            too, and such that the weight is well conditioned where the order mixes ``out`` and ``in``).
        norm: None, or what each hidden state is normalised to after the activation (Definition 2): ``"center"`` mean 0,
            ``"rms"`` mean square 1, ``"layer"`` mean 0 and variance 1.
        gate: whether every disentangler, activation and tree of a sum has a trained gate that starts open
            (Definition 2). A closed gate makes the disentangler the identity, the level linear, the tree nothing.
        terms: trees that are added up to one weight.
        kernel_radix: size of the modes of a convolution's kernel; None means ``radix``. 3 leaves a 3x3 kernel unpadded.
        columns: columns of gates of a brick wall.
        blocks: blocks of a brick wall, with an activation between them; None means one for every two columns.
        subspace_dim: trained numbers of a ``"subspace"`` in each group; None means as many as a ttn of this config has.

    Raises:
        ConfigError: an option is unknown or out of range; the message names the nearest known one.
    """

    topology: str = "ttn"
    radix: int = 2
    bond_dim: int | None = None
    latent_order: int = 5
    activation: str = "sine(omega=3)"
    order: Order = "blocked"
    groups: int = 1
    boundary_layers: int = 1
    initialization: str = "isometric"
    norm: str | None = None
    gate: bool = False
    terms: int = 1
    kernel_radix: int | None = None
    columns: int = 2
    blocks: int | None = None
    subspace_dim: int | None = None

    def __post_init__(self) -> None:
        check_choice("topology", self.topology, TOPOLOGIES)
        check_choice("initialization", self.initialization, INITIALIZATIONS)
        _check_int("radix", self.radix, 2)
        _check_int("latent_order", self.latent_order, 1)
        _check_int("groups", self.groups, 1)
        _check_int("terms", self.terms, 1)
        _check_int("columns", self.columns, 1)
        for option, least in (("bond_dim", 1), ("kernel_radix", 2), ("blocks", 1), ("subspace_dim", 1)):
            if getattr(self, option) is not None:
                _check_int(option, getattr(self, option), least)
        if self.norm is not None:
            check_choice("norm", self.norm, NORMS)
        if self.norm in ("center", "layer") and self.chi == 1 and self.topology in TREES:
            raise ConfigError(
                f"norm={self.norm!r} leaves nothing of a state of one entry, which is all that bond_dim=1 has."
            )
        if type(self.gate) is not bool:
            raise ConfigError(f"gate={self.gate!r} is neither True nor False.")
        if self.topology in BASELINES and (self.gate or self.terms > 1):
            given = "gate=True" if self.gate else f"terms={self.terms}"
            raise ConfigError(f"{given} needs a tree or a brick wall; topology={self.topology!r} is a baseline.")
        if self.topology != "brickwall" and (self.columns, self.blocks) != (2, None):
            given = f"columns={self.columns}" if self.columns != 2 else f"blocks={self.blocks}"
            raise ConfigError(f"{given} needs topology='brickwall', not {self.topology!r}.")
        if self.topology == "brickwall" and self.num_blocks > math.ceil(self.columns / 2):
            raise ConfigError(
                f"blocks={self.blocks} with columns={self.columns} is not possible; a block has two columns, "
                f"the last may have one: at most {math.ceil(self.columns / 2)} blocks."
            )
        if self.subspace_dim is not None and self.topology != "subspace":
            raise ConfigError(f"subspace_dim={self.subspace_dim} needs topology='subspace', not {self.topology!r}.")
        if type(self.boundary_layers) is not int or self.boundary_layers not in (1, 2):
            raise ConfigError(f"boundary_layers={self.boundary_layers!r} is not possible; an attn has 1 or 2.")
        if self.boundary_layers == 2 and self.topology != "attn":
            raise ConfigError(f"boundary_layers=2 needs topology='attn', not {self.topology!r}.")
        if isinstance(self.order, str):
            check_choice("order", self.order, ORDERS)
        elif isinstance(self.order, (tuple, list)) and all(type(i) is int for i in self.order):
            object.__setattr__(self, "order", tuple(self.order))
        else:
            raise ConfigError(f"order={self.order!r} is neither one of {', '.join(ORDERS)} nor a tuple of integers.")
        object.__setattr__(self, "activation", activations.canonical(self.activation))

    @classmethod
    def paper(cls, **options: Any) -> GeneratorConfig:
        """Return the config of the paper's experiments (Section 8): ELU, Section 3.5's start, flat order."""
        return cls(**{"activation": "elu", "initialization": "paper", "order": "flat"} | options)

    @classmethod
    def kronecker(cls, shape: Sequence[int], digits: int = 2, **options: Any) -> GeneratorConfig:
        """Return the config of a sum of Kronecker products for a weight: of small matrices, one a digit, and a kernel.

        Rows and columns in pairs, bond 1, and the radix with which the longer side has so many digits: its square root,
        rounded up, if it is two. Neither the rank is bounded, nor is the whole weight made to run it.

        Args:
            shape: of the weight, ``(out, in)`` or ``(out, in, *kernel)``.
            digits: matrices of a product, besides the kernel's.
            options: others of the config, above all ``terms``, the number of products.

        Raises:
            ShapeError: the shape has no rows or no columns.
            ConfigError: fewer than two digits, or an impossible option.

        Example:
            >>> config = adntn.GeneratorConfig.kronecker((256, 256, 3, 3), terms=4)
            >>> config.radix, adntn.Generator((256, 256, 3, 3), config).num_parameters
            (16, 2088)
        """
        if len(shape) < 2 or min(shape) < 1:
            raise ShapeError(f"a weight of shape {tuple(shape)} has no rows and columns; give (out, in, *kernel).")
        _check_int("digits", digits, 2)
        groups = options.get("groups", 1)
        longer = max(-(-shape[0] // groups) if type(groups) is int and groups > 0 else shape[0], shape[1])
        radix = 2
        while radix**digits < longer:
            radix += 1
        kernel = {size for size in shape[2:] if size > 1}
        own = {"order": "paired", "radix": radix, "bond_dim": 1, "initialization": "conformal"}
        return cls(**{**own, "kernel_radix": kernel.pop() if len(kernel) == 1 else None, **options})

    @property
    def chi(self) -> int:
        """Size of a virtual mode, with the default filled in."""
        return self.radix if self.bond_dim is None else self.bond_dim

    @property
    def trees(self) -> int:
        """Generators that run side by side: every group has ``terms`` of them."""
        return self.groups * self.terms

    @property
    def num_blocks(self) -> int:
        """Blocks of a brick wall, with the default filled in."""
        return math.ceil(self.columns / 2) if self.blocks is None else self.blocks

    def replace(self, **changes: Any) -> GeneratorConfig:
        """Return a copy with some options changed."""
        _check_names(changes)
        return replace(self, **changes)

    def with_topology(self, topology: str) -> GeneratorConfig:
        """Return a copy of another topology; options that it does not have go back to their defaults."""
        check_choice("topology", topology, TOPOLOGIES)
        foreign = {name: _DEFAULTS[name] for name, owners in OWNERS.items() if topology not in owners}
        return self.replace(topology=topology, **foreign)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the ``version`` of this layout."""
        return {"version": CONFIG_VERSION, **asdict(self)}

    def to_json(self) -> str:
        """Return one line of JSON that :meth:`from_json` reads back to an equal config."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GeneratorConfig:
        """Build a config from :meth:`to_dict`'s values.

        Raises:
            ConfigError: it was written by a newer version, or has an unknown or impossible option.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"a generator config is a table of options, not {type(values).__name__}.")
        rest = dict(values)
        version = rest.pop("version", CONFIG_VERSION)
        if type(version) is not int or version < 1:
            raise ConfigError(f"config version {version!r} is not a positive whole number.")
        if version > CONFIG_VERSION:
            raise ConfigError(
                f"this config has version {version}, newer than the {CONFIG_VERSION} that this adntn knows; "
                "upgrade adntn."
            )
        _check_names(rest)
        return cls(**rest)

    @classmethod
    def from_json(cls, text: str) -> GeneratorConfig:
        """Build a config from :meth:`to_json`'s text; errors as :meth:`from_dict`."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"this is not the JSON of a generator config: {error}") from None
        return cls.from_dict(values)


def _check_int(option: str, given: object, least: int) -> None:
    if type(given) is not int or given < least:
        raise ConfigError(f"{option}={given!r} is not possible; give a whole number of at least {least}.")


def _check_names(options: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(GeneratorConfig)]
    for name in options:
        if name not in known:
            raise ConfigError(
                f"a generator has no option {name!r}; it has {', '.join(known)}.{nearest(str(name), known)}"
            )


_init = GeneratorConfig.__init__


@functools.wraps(_init)
def _init_of_known_options(self: GeneratorConfig, *args: Any, **options: Any) -> None:
    _check_names(options)  # Python's own error would not name the nearest
    _init(self, *args, **options)


GeneratorConfig.__init__ = _init_of_known_options  # type: ignore[method-assign]

_DEFAULTS = {f.name: f.default for f in fields(GeneratorConfig)}


@dataclass(frozen=True)
class Blueprint:
    """A config applied to a weight's shape: how many modes, which levels, which parameters.

    Attributes:
        shape: of the weight, ``(out, in, *kernel)``.
        config: the generator's config.
    """

    shape: tuple[int, ...]
    config: GeneratorConfig

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        _ = self.tensorization  # raises now for a shape that cannot be generated

    @cached_property
    def tensorization(self) -> Tensorization:
        c = self.config
        return tensorize(
            self.shape,
            radix=c.radix,
            order=c.order,
            groups=c.groups,
            kernel_radix=c.kernel_radix,
            even=c.topology in TREES,
        )

    @cached_property
    def schedule(self) -> tuple[int, ...]:
        """Modes after each level; a brick wall keeps its number, and a baseline has no levels."""
        modes = self.tensorization.num_modes
        if self.config.topology in TREES:
            return schedule(modes, self.config.latent_order)
        return (modes,) * (1 + len(self.levels))

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        c = self.config
        sizes = tuple(mode.size for mode in self.tensorization.modes)
        if c.topology == "brickwall":
            return brickwall_levels(sizes, c.columns, c.num_blocks, c.radix)
        if c.topology in TREES:
            return tree_levels(c.topology, sizes, self.schedule, c.chi, c.radix, c.boundary_layers)
        return ()

    @cached_property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all trained tensors, as a generator's ``state_dict`` has them."""
        c = self.config
        if c.topology in BASELINES:
            return self._baseline_shapes()
        shapes: dict[str, tuple[int, ...]] = {}
        if c.topology in TREES:
            shapes["root"] = (c.trees, c.chi ** self.schedule[0])
        for level in self.levels:
            shapes.update({stack.name: (c.trees * stack.count, *stack.shape) for stack in level.stacks})
        if c.gate:
            shapes.update(self._gate_shapes())
        learned = activations.parameter_shapes(c.activation, c.trees)
        for level in self.levels[:-1]:
            shapes.update({f"activation.{level.number}.{name}": shape for name, shape in learned.items()})
        return shapes

    def _gate_shapes(self) -> dict[str, tuple[int, ...]]:
        c = self.config
        shapes: dict[str, tuple[int, ...]] = {
            f"gate.{stack.name}": (c.trees * stack.count, 1)
            for level in self.levels
            for stack in level.stacks
            if stack.kind == "mix"
        }
        shapes.update({f"gate.level.{level.number}": (c.trees, 1) for level in self.levels[:-1]})
        if c.terms > 1:
            shapes["gate.term"] = (c.trees, 1)
        return shapes

    def _baseline_shapes(self) -> dict[str, tuple[int, ...]]:
        c = self.config
        rows, columns = self.shape[0] // c.groups, math.prod(self.shape[1:])
        shapes: dict[str, tuple[int, ...]] = {}
        if c.topology == "lowrank":
            shapes.update({"left": (c.groups, rows, c.chi), "right": (c.groups, columns, c.chi)})
        elif c.topology == "frozen":
            shapes["scale"] = (c.groups, 1)
        elif c.topology == "subspace":
            shapes["coordinates"] = (c.groups, c.subspace_dim or self._tree_of_a_group().num_parameters)
        else:
            shapes.update({stack.name: (c.groups * stack.count, *stack.shape) for stack in self.chain})
        return shapes

    def _tree_of_a_group(self) -> Blueprint:
        tree = self.config.replace(groups=1, norm=None).with_topology("ttn")
        return Blueprint((self.shape[0] // self.config.groups, *self.shape[1:]), tree)

    @cached_property
    def chain(self) -> tuple[Stack, ...]:
        """The cores of a tensor train (Eq. 7), neighbours of one shape in one stack."""
        sizes = [mode.size for mode in self.tensorization.modes]
        return chain_stacks(sizes, self.config.chi)

    @cached_property
    def buffer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what is kept without being trained, whole numbers: the seed of a random projection."""
        return {"seed": (1,)} if self.config.topology in ("subspace", "frozen") else {}

    @property
    def num_parameters(self) -> int:
        """Trained numbers, the paper's P-bar."""
        return sum(math.prod(shape) for shape in self.parameter_shapes.values())

    @property
    def size(self) -> int:
        """Numbers that the dense weight stores, the paper's P."""
        return self.tensorization.size

    @property
    def hidden_size(self) -> int:
        """Entries of one tree's state before the readout, bond_dim ** H; 0 for a baseline, which has none."""
        return self.levels[-1].entries_in if self.levels else 0

    def peak_entries(self) -> int:
        """Return an estimate, from the shapes alone, of the most numbers that are held at once.

        Every level's state is kept for the backward pass, with its pre-activation and what stands between its products;
        of the readout, the padded tensor, a part of it in the weight's order, and the cropped weight. A hash takes
        several whole numbers for every entry.
        """
        c, t = self.config, self.tensorization
        weight = self.size + self.num_parameters
        if self.buffer_shapes:
            return weight + 4 * self.size
        if c.topology == "lowrank" or (c.topology == "tt" and t.splits_axes and c.order in ("flat", "blocked")):
            return weight + self.size
        if c.topology == "tt":
            return weight + 2 * t.padded_size + self.size  # with the place of each entry
        states = sum(level.entries_in for level in self.levels)
        return weight + c.trees * 7 * states + 3 * c.terms * t.padded_size // 2
