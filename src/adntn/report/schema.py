"""What the report of a training run is made from: plain values, as they stand in ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from adntn.errors import ConfigError
from adntn.options import Options

__all__ = ["ControlRow", "RunReport", "StageRow"]

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StageRow(Options):
    """The model after a stage.

    Attributes:
        kind: of the stage, or what else the row is called.
        numbers: parameters of the whole model.
        file_bytes: of the model's file, as :func:`adntn.save` writes it, or packed once it is quantised.
        validation: accuracy on the validation images, 0 ... 1.
        test: accuracy on the test images; None if nobody looked.
        generated: of ``numbers``, those that generated layers store.
        seconds: that the stage took.
        note: a few words.
        curve: validation accuracies while the stage ran, each with the seconds since it began: ``[[3.1, 0.87], ...]``.
    """

    kind: str
    numbers: int
    file_bytes: int
    validation: float
    test: float | None = None
    generated: int | None = None
    seconds: float = 0.0
    note: str = ""
    curve: tuple[tuple[float, float], ...] = ()

    what = "a stage of a report"

    def __post_init__(self) -> None:
        _check(self, whole=("numbers", "file_bytes", "generated"), shares=("validation", "test"))
        object.__setattr__(self, "curve", tuple((float(at), float(value)) for at, value in self.curve))


@dataclass(frozen=True, kw_only=True)
class ControlRow(Options):
    """A network that the run's result stands beside.

    Attributes:
        name: as ``"from scratch"``, ``"low rank"``, ``"narrow dense"``.
        numbers: parameters of the whole model.
        file_bytes: of its file.
        test: accuracies on the test images, one a seed.
        seconds: of training, mean over the seeds.
        epochs: of training.
        note: a few words.
    """

    name: str
    numbers: int
    file_bytes: int
    test: tuple[float, ...]
    seconds: float | None = None
    epochs: float | None = None
    note: str = ""

    what = "a control of a report"

    def __post_init__(self) -> None:
        given = self.test if isinstance(self.test, (tuple, list)) else (self.test,)
        object.__setattr__(self, "test", tuple(given))
        _check(self, whole=("numbers", "file_bytes"), shares=())
        if not self.test or not all(_is_share(value) for value in self.test):
            raise ConfigError(f"{self.what}: test={self.test!r} is not possible; give accuracies from 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class RunReport(Options):
    """A finished run.

    :meth:`from_dict` takes plain values, with tables for the rows::

        {
            "title": "Fashion-MNIST in 5,000 numbers",
            "data": "fashion-mnist",
            "model": "small-cnn",
            "seed": 0,
            "dense": {"kind": "dense", "numbers": 80098, "file_bytes": 323760, "validation": 0.91, "test": 0.905},
            "stages": [{"kind": "select", "numbers": 2018, "generated": 256, "file_bytes": 12720,
                        "validation": 0.1, "test": 0.1, "seconds": 0.2, "note": "", "curve": []}],
            "controls": [{"name": "from scratch", "numbers": 2018, "file_bytes": 12720,
                          "test": [0.88, 0.87, 0.88], "seconds": 240.0, "epochs": 12}],
            "faithfulness": {...},
            "details": {"grow": [{"layer": "conv2", "bond": "2 to 3", "numbers": 52, "gain": 0.004}]},
            "environment": {"torch": "2.13.0"},
            "recipe": "data = 'fashion-mnist' ...",
            "files": {"cores.safetensors": "root and cores, for adntn.load"}
        }

    Attributes:
        title: of the report.
        data: what it was trained on.
        model: which network.
        stages: after each stage, in their order; the last one is the run's result.
        dense: the dense network that the run began with.
        controls: networks to compare with.
        faithfulness: :meth:`adntn.experiments.faithfulness.Faithfulness.to_dict` of the result.
        classes: names of the classes.
        details: tables of what stages did, by their kinds (``"warm-start"``, ``"blocks"``, ``"grow"``, ``"prune"``,
            ``"quantize"``, ..., or with their places, ``"5 grow"``): rows of plain values, a column a key, written as
            :func:`adntn.report.training.details_table` says.
        environment: where it ran.
        seed: of the run.
        recipe: as TOML or as JSON.
        files: what the run's folder holds, with a few words each.
        version: of this schema.
    """

    title: str
    data: str
    model: str
    stages: tuple[StageRow, ...]
    dense: StageRow | None = None
    controls: tuple[ControlRow, ...] = ()
    faithfulness: Mapping[str, Any] | None = None
    classes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    recipe: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    version: int = _VERSION

    what = "a report"

    def __post_init__(self) -> None:
        if self.version != _VERSION:
            raise ConfigError(f"this report has version {self.version!r}, not {_VERSION}; upgrade adntn.")
        if not self.stages:
            raise ConfigError("a report needs at least one stage.")
        for kind, rows in self.details.items():
            if not isinstance(rows, (list, tuple)) or not all(isinstance(row, Mapping) for row in rows):
                raise ConfigError(f"{self.what}: the details of {kind!r} are {rows!r}; give a list of tables.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values, see above.

        Raises:
            ConfigError: something is unknown, missing or impossible.
        """
        given = dict(values) if isinstance(values, Mapping) else values
        try:
            if isinstance(given, dict):
                if isinstance(given.get("dense"), Mapping):
                    given["dense"] = StageRow.from_dict(given["dense"])
                given["stages"] = tuple(map(StageRow.from_dict, given.get("stages", ())))
                given["controls"] = tuple(map(ControlRow.from_dict, given.get("controls", ())))
            return super().from_dict(given)
        except TypeError as error:
            raise ConfigError(f"{cls.what} lacks something: {error}.") from None

    @property
    def result(self) -> StageRow:
        """The model as the run left it."""
        return self.stages[-1]


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _check(row: StageRow | ControlRow, whole: tuple[str, ...], shares: tuple[str, ...]) -> None:
    for name in whole:
        value = getattr(row, name)
        if value is not None and (type(value) is not int or value < 0):
            raise ConfigError(f"{row.what}: {name}={value!r} is not possible; give a whole number of at least 0.")
    for name in shares:
        value = getattr(row, name)
        if value is not None and not _is_share(value):
            raise ConfigError(f"{row.what}: {name}={value!r} is not possible; give an accuracy from 0 to 1.")
