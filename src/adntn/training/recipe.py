"""A recipe: from a dense model to a small one, stage by stage. As Python objects, as JSON, and as TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from adntn.errors import ConfigError, check_choice
from adntn.options import Options, check_flag, check_number, check_whole
from adntn.training.optimization import Optimization
from adntn.training.stages import STAGES
from adntn.training.stages.base import Stage

__all__ = ["CONTROLS", "Controls", "Recipe", "Teacher"]

#: Networks of the same size, given the same time, that a run can be compared with.
CONTROLS = ("from-scratch", "low-rank", "narrow-dense")

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Teacher(Options):
    """Where the dense model's weights come from.

    Attributes:
        file: a safetensors file with the dense model's ``state_dict``; empty means that it is trained first.
        as_built: whether the weights that the model is built with are meant.
        optimization: how it is trained, where it is.

    Raises:
        ConfigError: both a file and ``as_built`` are given.
    """

    file: str = ""
    as_built: bool = False
    optimization: Optimization = field(default_factory=Optimization)

    what = "a teacher"

    def __post_init__(self) -> None:
        check_flag("as_built", self.as_built)
        if not isinstance(self.file, str):
            raise ConfigError(f"file={self.file!r} is not a path.")
        if self.file and self.as_built:
            raise ConfigError(f"file={self.file!r} and as_built=true are two sources of one teacher; give one.")

    @property
    def is_trained_here(self) -> bool:
        return not self.file and not self.as_built


@dataclass(frozen=True, kw_only=True)
class Controls(Options):
    """What stands beside the outcome: networks of about the same number of parameters, trained for the same time.

    Attributes:
        kinds: some of ``"from-scratch"``, the final network drawn anew; ``"low-rank"``, the same layers by two thin
            matrices; ``"narrow-dense"``, the dense model with fewer channels, where its builder takes ``width``.
        seeds: each is trained with as many seeds.
        optimization: how they are trained, epochs left out: those follow from the time.

    Raises:
        ConfigError: a kind is unknown, or there is no seed.
    """

    kinds: tuple[str, ...] = CONTROLS
    seeds: int = 1
    optimization: Optimization = field(default_factory=Optimization)

    what = "a recipe's controls"

    def __post_init__(self) -> None:
        for kind in self.kinds:
            check_choice("control", kind, CONTROLS)
        check_whole("seeds", self.seeds, 1)


@dataclass(frozen=True, kw_only=True)
class Recipe(Options):
    """What to run.

    Attributes:
        model: a reference model's name, or ``path/to/file.py:function``.
        data: a data set's name, or a folder.
        seed: of everything that is drawn.
        device: ``"cpu"`` or ``"cuda"``.
        threads: of torch; None means torch's own choice.
        train_limit: training images at most, a stratified sample.
        test_limit: test images at most, likewise.
        validation: which share of the training images is held out, to choose by; from 1 on, how many.
        teacher: where the dense weights come from; None means that there is no teacher.
        stages: in their order.
        controls: what stands beside; None means nothing.

    Raises:
        ConfigError: an option is impossible.

    Example:
        >>> recipe = Recipe(model="small-cnn", data="digits", teacher=Teacher(), stages=(Select(targets=("conv3",)),))
    """

    model: str = "small-cnn"
    data: str = "digits"
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    train_limit: int | None = None
    test_limit: int | None = None
    validation: float = 0.1
    teacher: Teacher | None = None
    stages: tuple[Stage, ...] = ()
    controls: Controls | None = None

    what = "a recipe"

    def __post_init__(self) -> None:
        for name in ("model", "data"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ConfigError(f"{name}={getattr(self, name)!r} is not a name.")
        check_choice("device", self.device, ("cpu", "cuda"))
        check_whole("seed", self.seed, 0)
        check_number("validation", self.validation, above=0)
        if self.validation >= 1:
            check_whole("validation", self.validation, 1)
        for name in ("train_limit", "test_limit", "threads"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        for stage in self.stages:
            if not isinstance(stage, Stage):
                raise ConfigError(f"a stage is one of {', '.join(STAGES)}, not {stage!r}.")

    def to_dict(self) -> dict[str, Any]:
        plain = super().to_dict()
        del plain["stages"]
        stages = [{"kind": stage.kind, **stage.to_dict()} for stage in self.stages]
        return {"version": _VERSION, **plain, "stage": stages}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a recipe from :meth:`to_dict`'s values, or from a TOML file's.

        Raises:
            ConfigError: an option is unknown or impossible; the nearest known one is named.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"a recipe is a table of options, not {values!r}.")
        rest = dict(values)
        version = rest.pop("version", _VERSION)
        if version != _VERSION:
            raise ConfigError(f"this recipe has version {version!r}, and this adntn knows {_VERSION}; upgrade adntn.")
        tables = rest.pop("stage", rest.pop("stages", []))
        if not isinstance(tables, (list, tuple)):
            raise ConfigError(f"stage={tables!r} is not a list; write each stage as a table under [[stage]].")
        rest["stages"] = tuple(_stage(number, table) for number, table in enumerate(tables, 1))
        return super().from_dict(rest)

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read a recipe from a file.

        Raises:
            ConfigError: it cannot be read, is not TOML, or has an unknown or impossible option.
        """
        try:
            with path.open("rb") as file:
                values = tomllib.load(file)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}.") from None
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def _stage(number: int, table: object) -> Stage:
    if isinstance(table, Stage):
        return table
    if not isinstance(table, Mapping) or "kind" not in table:
        raise ConfigError(f"stage {number} is {table!r}; it needs a kind, one of {', '.join(STAGES)}.")
    options = {name: value for name, value in table.items() if name != "kind"}
    try:
        return STAGES[check_choice("kind", table["kind"], STAGES)].from_dict(options)
    except ConfigError as error:
        raise ConfigError(f"stage {number}, {table['kind']}: {error}") from None
