"""Training and measuring one configuration of a search."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adntn.baselines import network
from adntn.checkpoint import load, save, writing
from adntn.compress import compress_
from adntn.errors import AdntnError, ConfigError
from adntn.experiments.data import ImageData, load_data
from adntn.experiments.faithfulness import faithfulness
from adntn.experiments.models import DEFAULT_TARGETS, model_builder
from adntn.experiments.parts import hold_out
from adntn.experiments.runs import environment
from adntn.experiments.search.energy import measured_energy
from adntn.experiments.search.points import Measured
from adntn.experiments.search.space import config_of, optimization_of, stage
from adntn.experiments.search.study import Report
from adntn.experiments.timing import time_forward
from adntn.memory import check_memory
from adntn.targets import choose_places, find_places
from adntn.topology import Blueprint, GeneratorConfig
from adntn.training.data import TrainingData
from adntn.training.looking import look
from adntn.training.loop import Fitted, fit
from adntn.training.optimization import Optimization
from adntn.training.seeds import derive_seed

__all__ = ["TrainingEvaluator"]

_STAGES = {"select": {"kind", "targets", "config"}, "fine-tune": {"kind", "optimization"}}
_RUN = "; ".join(f"{kind} with {', '.join(sorted(known - {'kind'}))}" for kind, known in _STAGES.items())


@dataclass(frozen=True)
class _Sizes:
    """What is needed of a model to count its parameters under any config.

    Attributes:
        rest: parameters that stay as they are.
        shapes: of the weights that are generated, by name.
    """

    rest: int
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: nn.Module, targets: tuple[str, ...]) -> _Sizes:
        places = choose_places(find_places(model), targets, "targets", must_work=True)
        # Layers that share a weight share a generator.
        weights = {id(w): (place.name, w) for place in places for w in place.weights.values()}
        dense = sum(weight.numel() for _, weight in weights.values())
        shapes = {f"{name} {number}": tuple(w.shape) for number, (name, w) in enumerate(weights.values())}
        return cls(sum(p.numel() for p in model.parameters()) - dense, shapes)

    def count(self, config: GeneratorConfig) -> int:
        total = self.rest
        for name, shape in self.shapes.items():
            try:
                blueprint = Blueprint(shape, config)
                network(blueprint)
                check_memory(blueprint, torch.device("cpu"))
            except AdntnError as error:
                raise ConfigError(f"{name.partition(' ')[0]}: {error}") from None
            total += blueprint.num_parameters
        return total


class TrainingEvaluator:
    """Trains configurations on a recipe's model and data.

    The dense teacher is trained once, into ``teacher.safetensors`` of the search folder; every configuration begins as
    a copy of it whose chosen layers are generated.

    Args:
        recipe: that all configurations share, but for their knobs.
        folder: of the search.
        energy: whether to measure it.
        threads: of torch; None means the recipe's, or torch's own choice.
        download: whether the data may be fetched over the network.

    Raises:
        ConfigError: the recipe has a stage, or an option of one, that is not run here.
    """

    def __init__(
        self, recipe: Mapping[str, Any], folder: Path, *, energy: bool, threads: int | None, download: bool = False
    ) -> None:
        self.recipe, self.folder, self.energy, self.download = dict(recipe), folder, energy, download
        for each in recipe.get("stage", ()):
            foreign = set(each) - _STAGES.get(each.get("kind"), set())
            if foreign:
                raise ConfigError(
                    f"a search does not run {', '.join(sorted(foreign - {'kind'})) or 'stages'} of kind "
                    f"{each.get('kind')!r}; it runs {_RUN}."
                )
        self.threads = recipe.get("threads", threads)
        self.device = recipe.get("device", "cpu")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what each process reads for itself."""
        kept = ("recipe", "folder", "energy", "download", "threads", "device")
        return {name: value for name, value in vars(self).items() if name in kept}

    # --- what is read once -------------------------------------------------------------------------------------------

    @cached_property
    def _images(self) -> ImageData:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        data = load_data(self.recipe.get("data", "digits"), download=self.download)
        return data.limit(self.recipe.get("train_limit"), self.recipe.get("test_limit"))

    @cached_property
    def _data(self) -> TrainingData:
        return hold_out(self._images, self.recipe.get("validation", 0.1), derive_seed(0, "validation"))

    @cached_property
    def _build(self) -> Callable[[], nn.Module]:
        return model_builder(self.recipe.get("model", "small-cnn"), self._images.image_shape, self._images.num_classes)

    @cached_property
    def _targets(self) -> tuple[str, ...]:
        usual = DEFAULT_TARGETS.get(self.recipe.get("model", "small-cnn"), ("re:.*",))
        return tuple(stage(self.recipe, "select").get("targets", usual))

    @cached_property
    def _sizes(self) -> _Sizes:
        with torch.device("meta"):
            return _Sizes.of(self._build(), self._targets)

    @cached_property
    def _teacher(self) -> nn.Module:
        return load(self._build(), self._teacher_file).eval()

    @property
    def _teacher_file(self) -> Path:
        return Path(self.recipe.get("teacher", {}).get("file", self.folder / "teacher.safetensors"))

    # --- Evaluator ---------------------------------------------------------------------------------------------------

    def prepare(self) -> Measured:
        """Train the dense teacher, unless it is there, and measure it."""
        written = self.folder / "teacher.json"
        if written.is_file() and self._teacher_file.is_file():
            return Measured.from_dict(json.loads(written.read_text()))
        seed = int(self.recipe.get("seed", 0))
        teacher = self._started(seed, self._build)
        with measured_energy(self.energy) as energy:
            if self._teacher_file.is_file():
                teacher = self._teacher
                fitted = None
            else:
                how = Optimization.from_dict(self.recipe.get("teacher", {}).get("optimization", {}))
                fitted = self._fit(teacher, how, seed, lambda epoch, epochs, accuracy: None)
                save(teacher, self._teacher_file)
        note = energy.note if fitted else "absent: the teacher was there already"
        measured = self._measure(teacher, self._teacher_file, fitted, energy.watt_hours if fitted else None, note)
        for path, content in (
            (self.folder / "environment.json", environment(self._images)),
            (written, measured.to_dict()),
        ):
            with writing(path) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n")
        return measured

    def parameters(self, recipe: Mapping[str, Any]) -> int:
        return self._sizes.count(config_of(recipe))

    def evaluate(self, recipe: Mapping[str, Any], seed: int, file: Path, report: Report) -> Measured:
        teacher = self._teacher  # before the seed is set, since it is built where it is first asked for

        def made() -> nn.Module:
            model = copy.deepcopy(teacher).to("cpu").train()
            compress_(model, config_of(recipe), self._targets)
            return model

        model = self._started(seed, made)
        with measured_energy(self.energy) as energy:
            fitted = self._fit(model, optimization_of(recipe), seed, report)
        save(model, file)
        return self._measure(model, file, fitted, energy.watt_hours, energy.note)

    def latency(self, file: Path) -> tuple[float, float]:
        model = load(self._build(), file).to(self.device).eval()
        images = self._data.normalized(self._data.test.images[:128].to(self.device))
        timings = time_forward({"dense": self._teacher.to(self.device), "point": model}, images)
        return timings[1].milliseconds, timings[1].dense_ratio

    # --- parts -------------------------------------------------------------------------------------------------------

    def _started(self, seed: int, make: Callable[[], nn.Module]) -> nn.Module:
        self._images  # noqa: B018 - sets the threads
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "start"))
            return make()

    def _fit(self, model: nn.Module, how: Optimization, seed: int, report: Report) -> Fitted:
        def log(step: int, row: Mapping[str, float]) -> None:
            report(int(row["epoch"]), how.epochs, row["validation_accuracy"])

        return fit(model, self._data, how, seed=derive_seed(seed, "batches"), device=self.device, log=log)

    def _measure(
        self, model: nn.Module, file: Path, fitted: Fitted | None, watt_hours: float | None, note: str
    ) -> Measured:
        data = self._data
        model.to(self.device)
        test = faithfulness(
            model,
            self._teacher.to(self.device),
            data.test.images,
            data.test.labels,
            num_classes=data.num_classes,
            normalized=data.normalized,
            corruptions=(),
            similarity_images=0,
            device=self.device,
        )
        assert test.agreement is not None
        return Measured(
            parameters=sum(p.numel() for p in model.parameters()),
            file_bytes=file.stat().st_size,
            validation_accuracy=look(model, data, data.validation, device=self.device)[0],
            test_accuracy=test.model.accuracy,
            agreement=test.agreement,
            calibration_error=test.model.calibration_error,
            train_seconds=fitted.seconds if fitted else 0.0,
            energy_wh=watt_hours,
            energy_note=note,
            curve=fitted.curve if fitted else (),
        )
