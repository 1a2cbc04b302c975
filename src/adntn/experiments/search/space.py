"""What a search may turn: its knobs, and how they go into a recipe."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from adntn.errors import ConfigError, nearest
from adntn.topology import OWNERS, GeneratorConfig
from adntn.training.optimization import Optimization

__all__ = ["DEFAULT_SPACE", "Knob", "Settings", "Space", "with_settings"]

#: What is searched where a recipe does not say.
DEFAULT_SPACE: Mapping[str, Any] = {
    "topology": ["ttn", "attn", "mera"],
    "order": ["blocked", "block_paired", "paired"],
    "radix": [2, 4],
    "bond_dim": [2, 3, 4, 6],
    "latent_order": [2, 3, 4, 5, 6],
    "groups": [1, 2, 4, 8],
    "terms": [1, 2, 4],
    "activation": ["sine(omega=3)", "elu", "tanh"],
    "initialization": ["isometric", "paper"],
    "lr": [3e-3, 1e-1],
    "core_lr": [3e-3, 1e-1],
}

_CONFIG = tuple(f.name for f in fields(GeneratorConfig))
_OPTIMIZATION = tuple(f.name for f in fields(Optimization))
# Of what a list of two is a range; of all else a list is a choice.
_RANGES = ("lr", "core_lr", "weight_decay", "momentum", "warmup", "clip", "label_smoothing")
_LOGARITHMIC = ("lr", "core_lr", "weight_decay", "clip")

#: A value for each knob.
Settings = dict[str, Any]


class Suggests(Protocol):
    """What a knob asks for its value: a trial of Optuna's."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...


@dataclass(frozen=True)
class Knob:
    """One option of a generator's config or of the optimisation, and which values it may have.

    Attributes:
        name: of the option.
        choices: it is one of these; empty for a range.
        low: the least value of a range.
        high: the greatest.
        log: whether the range is drawn from on a logarithmic scale.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False

    @classmethod
    def read(cls, name: str, given: Any) -> Knob:
        """Build a knob from what stands in a recipe.

        Args:
            name: of the option; ``-`` stands for ``_``.
            given: a list of choices; of a rate or another plain number ``[low, high]``; of any number also a table with
                ``low``, ``high`` and, if wanted, ``log``.

        Raises:
            ConfigError: the option is not known, or a value is not possible.
        """
        plain = name.replace("-", "_")
        known = [*_CONFIG, *_OPTIMIZATION]
        if plain not in known:
            raise ConfigError(
                f"a search has no knob {name!r}; it has the options of a generator, {', '.join(_CONFIG)}, and of the "
                f"optimization, {', '.join(_OPTIMIZATION)}.{nearest(plain, known)}"
            )
        if isinstance(given, (list, tuple)) and given and not (plain in _RANGES and len(given) == 2):
            knob = cls(plain, choices=tuple(given))
        else:
            pair = dict(zip(("low", "high"), given, strict=True)) if isinstance(given, (list, tuple)) and given else {}
            ends = given if isinstance(given, Mapping) else pair
            knob = cls(plain, **cls._range(plain, ends, given))
        for value in knob.choices or (knob.low, knob.high):
            _check(plain, value)
        return knob

    @staticmethod
    def _range(name: str, ends: Mapping[str, Any], given: Any) -> dict[str, Any]:
        low, high, log = ends.get("low"), ends.get("high"), ends.get("log", name in _LOGARITHMIC)
        numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in (low, high))
        foreign = set(ends) - {"low", "high", "log"}
        if foreign or not numbers or not low < high or not isinstance(log, bool) or (log and low <= 0):  # type: ignore[operator]
            raise ConfigError(
                f"space: {name}={given!r} is not possible; give a list of choices, or {{low = ..., high = ..., "
                "log = true}, low below high, and above 0 on a logarithmic scale."
            )
        return {"low": low, "high": high, "log": log}

    def suggest(self, trial: Suggests) -> Any:
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int) and self.name not in _RANGES:
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        return trial.suggest_float(self.name, float(self.low), float(self.high), log=self.log)

    def has(self, value: Any) -> bool:
        """Return whether the knob may have this value."""
        if self.choices:
            return value in self.choices
        return isinstance(value, (int, float)) and self.low <= value <= self.high


@dataclass(frozen=True)
class Space:
    """All knobs of a search.

    Attributes:
        knobs: each once.
    """

    knobs: tuple[Knob, ...]

    @classmethod
    def read(cls, given: Mapping[str, Any] | None) -> Space:
        """Build a space from a recipe's table; None means :data:`DEFAULT_SPACE`.

        Raises:
            ConfigError: a knob is not known or not possible, or there is none.
        """
        given = DEFAULT_SPACE if given is None else given
        if not isinstance(given, Mapping) or not given:
            raise ConfigError(f"space={given!r} is not a table of knobs; leave it away for the usual one.")
        return cls(tuple(Knob.read(name, values) for name, values in given.items()))

    def suggest(self, trial: Suggests) -> Settings:
        return {knob.name: knob.suggest(trial) for knob in self.knobs}

    def with_groups_of(self, recipe: Mapping[str, Any] | None) -> Space:
        """Return the space with a recipe's number of groups among its choices, if groups are one of its knobs."""
        count = None if recipe is None else config_of(recipe).groups
        return Space(
            tuple(
                replace(knob, choices=(*knob.choices, count))
                if knob.name == "groups" and knob.choices and count is not None and not knob.has(count)
                else knob
                for knob in self.knobs
            )
        )

    def settings_of(self, recipe: Mapping[str, Any]) -> Settings | None:
        """Return the knobs' values in a recipe, or None where one is not among those that its knob may have."""
        config, rates = config_of(recipe), optimization_of(recipe)
        found: Settings = {}
        for knob in self.knobs:
            value = getattr(config if knob.name in _CONFIG else rates, knob.name)
            if value is None:  # the option's own default stands for another one's value
                value = {"bond_dim": config.chi, "core_lr": rates.lr}.get(knob.name)
            if not knob.has(value):
                return None
            found[knob.name] = value
        return found


def _check(name: str, value: Any) -> None:
    """Raise unless an option alone may have a value; what depends on others is found out trial by trial."""
    if name in _OPTIMIZATION:
        Optimization(**{name: value})
    elif name != "blocks":
        owner = OWNERS.get(name, ("ttn",))[0]
        GeneratorConfig(topology=owner).replace(**{name: value})


def config_of(recipe: Mapping[str, Any]) -> GeneratorConfig:
    """Return the config in a recipe's select stage."""
    return GeneratorConfig.from_dict(stage(recipe, "select").get("config", {}))


def optimization_of(recipe: Mapping[str, Any]) -> Optimization:
    """Return the optimisation in a recipe's last fine-tune stage."""
    return Optimization.from_dict(stage(recipe, "fine-tune").get("optimization", {}))


def stage(recipe: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return a recipe's last stage of a kind.

    Raises:
        ConfigError: it has none.
    """
    stages = recipe.get("stage", ())
    found = [each for each in stages if isinstance(each, dict) and each.get("kind") == kind]
    if not found:
        raise ConfigError(
            f"a search puts its knobs into the stages 'select' and 'fine-tune'; this recipe has no {kind!r}."
        )
    return found[-1]


def with_settings(recipe: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return a copy of a recipe with the knobs put into its select and fine-tune stages.

    Options that the chosen topology does not have are left out.

    Raises:
        ConfigError: the values do not go together.
    """
    made = copy.deepcopy(dict(recipe))
    old = config_of(made)
    base = old.with_topology(settings.get("topology", old.topology))
    mine = {name: value for name, value in settings.items() if name in _CONFIG}
    foreign = [name for name in mine if base.topology not in OWNERS.get(name, (base.topology,))]
    config = base.replace(**{name: value for name, value in mine.items() if name not in foreign})
    kept = {name: value for name, value in config.to_dict().items() if value is not None and name != "version"}
    stage(made, "select")["config"] = {n: list(v) if isinstance(v, tuple) else v for n, v in kept.items()}
    rates = {name: value for name, value in settings.items() if name in _OPTIMIZATION}
    if rates:
        stage(made, "fine-tune").setdefault("optimization", {}).update(rates)
        optimization_of(made)
    return made
