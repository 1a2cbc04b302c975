"""Configs, schedules, levels and parameter counts: everything that is known of a generator before any number is.

Nothing here makes a tensor. A topology is a list of :class:`Level`; what a level does is the same for all:
expand (paper, Eqs. 49, 54, 59), then mix (Eqs. 55-56, 60-61), then activate unless it is the last.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from adntn import activations
from adntn.errors import ConfigError, check_choice, nearest
from adntn.tensorize import ORDERS, Order, Tensorization, tensorize

__all__ = [
    "CONFIG_VERSION",
    "INITIALIZATIONS",
    "NORMS",
    "TOPOLOGIES",
    "Blueprint",
    "GeneratorConfig",
    "Level",
    "Mixer",
    "schedule",
]

CONFIG_VERSION = 1
TOPOLOGIES = ("ttn", "attn", "mera")
INITIALIZATIONS = ("paper", "isometric")
NORMS = ("center",)


@dataclass(frozen=True)
class GeneratorConfig:
    """What a generator is made of. Frozen, hashable, versioned, to JSON and back.

    The default start, isometric cores with a sine between the levels, is the one that trained best in the study of
    ``benchmarks/initialization.py``; ``GeneratorConfig.paper()`` is the paper's own, ELU and Gaussian cores.

    Attributes:
        topology: ``"ttn"`` never mixes, ``"attn"`` mixes at the last level, ``"mera"`` at every level (Section 3).
        radix: size d of a physical mode.
        bond_dim: size chi of a virtual mode; None means ``radix``.
        latent_order: modes of the root, Q_bot.
        activation: between levels, by name, with options in brackets (see :mod:`adntn.activations`).
        order: how a weight's axes become modes (see :mod:`adntn.tensorize`).
        groups: row blocks, each with a generator of its own (Eqs. 66-67).
        boundary_layers: mixing layers of an ``attn`` at its last level, 1 or 2 (Figure 2).
        initialization: ``"paper"`` (Section 3.5) or ``"isometric"`` (Eq. 18 at the start).
        norm: None, or ``"center"``: each hidden state minus its mean, after the activation.
        gate: reserved for gated cores (Definition 2); only False is known to this version.

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

    def __post_init__(self) -> None:
        check_choice("topology", self.topology, TOPOLOGIES)
        check_choice("initialization", self.initialization, INITIALIZATIONS)
        _check_int("radix", self.radix, 2)
        _check_int("latent_order", self.latent_order, 1)
        _check_int("groups", self.groups, 1)
        if self.bond_dim is not None:
            _check_int("bond_dim", self.bond_dim, 1)
        if self.norm is not None:
            check_choice("norm", self.norm, NORMS)
        if self.norm == "center" and self.chi == 1:
            raise ConfigError("norm='center' leaves nothing of a state of one entry, which is all that bond_dim=1 has.")
        if self.gate is not False:
            raise ConfigError(f"gate={self.gate!r} is not known to this version; only False is.")
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

    @property
    def chi(self) -> int:
        """Size of a virtual mode, with the default filled in."""
        return self.radix if self.bond_dim is None else self.bond_dim

    def replace(self, **changes: Any) -> GeneratorConfig:
        """Return a copy with some options changed."""
        _check_names(changes)
        return replace(self, **changes)

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


def schedule(num_modes: int, latent_order: int) -> tuple[int, ...]:
    """Return the number of modes after each level, ``(N_0, ..., N_L)``; N_L = 2 * ceil(num_modes / 2).

    Every level doubles, but for one *bridge* level where that would overshoot. The paper gives counts and no
    rule; this rule reproduces all nine tree counts of its Table 3.
    """
    hidden = max(1, (num_modes + 1) // 2)
    modes = [min(latent_order, hidden)]
    while modes[-1] < hidden:
        modes.append(min(2 * modes[-1], hidden))
    return (*modes, 2 * hidden)


@dataclass(frozen=True)
class Mixer:
    """One layer of disentanglers: gate k acts on the neighbours ``first + 2k`` and ``first + 2k + 1``."""

    first: int
    gates: int


@dataclass(frozen=True)
class Level:
    """One level: its first parents have two children each, the others (``carries``) one.

    Attributes:
        number: counted from 1.
        parents: modes of the state that comes in.
        children: modes of the state that goes out.
        size_in: size of a mode that comes in.
        size_out: size of a mode that goes out.
        mixers: layers of disentanglers, in the order in which they act.
    """

    number: int
    parents: int
    children: int
    size_in: int
    size_out: int
    mixers: tuple[Mixer, ...] = ()

    @property
    def expansions(self) -> int:
        return self.children - self.parents

    @property
    def carries(self) -> int:
        return 2 * self.parents - self.children

    def core_shapes(self, groups: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the level's parameters, group-major and at most three-dimensional."""
        pair = self.size_out**2
        shapes: dict[str, tuple[int, ...]] = {f"expand.{self.number}": (groups * self.expansions, self.size_in, pair)}
        if self.carries:
            shapes[f"carry.{self.number}"] = (groups * self.carries, self.size_in, self.size_out)
        for j, mixer in enumerate(self.mixers):
            if mixer.gates:
                shapes[f"mix.{self.number}.{j}"] = (groups * mixer.gates, pair, pair)
        return shapes


def _mixers(config: GeneratorConfig, children: int, *, last: bool) -> tuple[Mixer, ...]:
    inner = Mixer(first=1, gates=(children - 1) // 2)
    if config.topology == "mera":
        return (inner,)
    if config.topology == "attn" and last:
        return (inner, Mixer(first=0, gates=children // 2))[: config.boundary_layers]
    return ()


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
        return tensorize(self.shape, radix=c.radix, order=c.order, groups=c.groups)

    @cached_property
    def schedule(self) -> tuple[int, ...]:
        return schedule(self.tensorization.num_modes, self.config.latent_order)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        c, modes = self.config, self.schedule
        last = len(modes) - 1
        return tuple(
            Level(
                number=n,
                parents=modes[n - 1],
                children=modes[n],
                size_in=c.chi,
                size_out=c.radix if n == last else c.chi,
                mixers=_mixers(c, modes[n], last=n == last),
            )
            for n in range(1, last + 1)
        )

    @cached_property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all trained tensors, as a generator's ``state_dict`` has them."""
        c = self.config
        shapes: dict[str, tuple[int, ...]] = {"root": (c.groups, c.chi ** self.schedule[0])}
        for level in self.levels:
            shapes.update(level.core_shapes(c.groups))
        learned = activations.parameter_shapes(c.activation, c.groups)
        for level in self.levels[:-1]:
            shapes.update({f"activation.{level.number}.{name}": shape for name, shape in learned.items()})
        return shapes

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
        """Entries of one group's hidden state, bond_dim ** H."""
        return int(self.config.chi ** self.schedule[-2])

    def peak_entries(self) -> int:
        """Return an estimate, from the schedule alone, of the most numbers that are held at once.

        Every level's state is kept for the backward pass, with its pre-activation; of the readout, the padded
        tensor and the cropped weight.
        """
        states = sum(int(self.config.chi**modes) for modes in self.schedule[:-1])
        return self.config.groups * 2 * states + self.tensorization.padded_size + self.size + self.num_parameters
