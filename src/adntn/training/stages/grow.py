"""The stage that grows generators where training has stalled, until a budget is spent or growth no longer pays."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from adntn.checkpoint import load, save
from adntn.describe import generated_weights
from adntn.errors import CheckpointError, CompressionError, ConfigError, TrainingStopped, check_choice
from adntn.generator import Generator
from adntn.options import check_number, check_whole
from adntn.savefile import writing
from adntn.topology import GeneratorConfig
from adntn.training.objective import Losses
from adntn.training.optimization import Optimization
from adntn.training.saliency import CHANGES, EXACT, grow_as_planned_, rank_growths
from adntn.training.seeds import derive_seed
from adntn.training.stages.base import Event, Outcome, Stage, State
from adntn.training.stages.fitting import fit_state

if TYPE_CHECKING:
    from adntn.training.loop import Fitted

__all__ = ["Grow"]

LEGS = "legs.json"


@dataclass(frozen=True, kw_only=True)
class Grow(Stage):
    """Train until validation stalls, grow the generator whose new numbers would learn most, and so on, in legs.

    The first leg trains the model as it is. Before each further one the growth with the greatest gain by number
    (:func:`adntn.training.saliency.rank_growths`, on training images, under cross-entropy) is made among those that the
    budget still allows. It ends when there is none left, after ``steps`` of them, or when one has gained less than
    ``least_gain``. What remains is the model of the leg with the best validation accuracy; of equal ones the smallest,
    so that a growth that did not pay is taken back.

    Attributes:
        parameters: numbers that the whole model may store at most.
        steps: growths at most; one of both must be given.
        candidates: changes to choose from: ``"bond"``, ``"disentanglers"``, ``"terms"``, and the refits ``"groups"``
            and ``"root"``.
        least_gain: of validation accuracy, 0 ... 1, that a growth must bring for another to follow.
        patience: epochs without a better validation accuracy after which a leg has stalled.
        images: of the training part, for the saliency.
        optimization: of a leg; ``epochs`` is the most that it takes, and its own ``patience`` does not count.
        losses: of the training; None means cross-entropy.

    Raises:
        ConfigError: an option is impossible, or there is no end.

    Example:
        >>> Grow(parameters=20_000, candidates=("bond", "terms"), optimization=Optimization(epochs=5, lr=5e-3))
    """

    kind: ClassVar[str] = "grow"
    in_every_process: ClassVar[bool] = True
    what = "a stage of growth"

    parameters: int | None = None
    steps: int | None = None
    candidates: tuple[str, ...] = EXACT
    least_gain: float = 0.0
    patience: int = 2
    images: int = 512
    optimization: Optimization = field(default_factory=lambda: Optimization(lr=5e-3, schedule="constant"))
    losses: Losses | None = None

    def __post_init__(self) -> None:
        given: object = self.candidates
        object.__setattr__(self, "candidates", (given,) if isinstance(given, str) else tuple(self.candidates))
        for name in ("parameters", "steps"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        if self.parameters is None and self.steps is None:
            raise ConfigError("growth needs an end: parameters=20_000 of the whole model, or steps=3.")
        if not self.candidates:
            raise ConfigError(f"candidates is empty; name some of {', '.join(CHANGES)}.")
        for change in self.candidates:
            check_choice("candidates", change, CHANGES)
        check_number("least_gain", self.least_gain, least=-1)
        check_whole("patience", self.patience, 1)
        check_whole("images", self.images, 1)

    def run(self, state: State) -> Outcome:
        """Train and grow in legs.

        The model at the start and at the end of each leg is kept in the folder, with a row for each leg in
        ``legs.json``; a run that was interrupted goes on in the leg that was not finished.

        Raises:
            CompressionError: nothing in the model is generated.
            TrainingStopped: the time was up.
        """
        if not generated_weights(state.model):
            raise CompressionError("nothing in this model is generated, so there is nothing to grow: select first.")
        legs = _Legs(state.folder, state.model)
        while True:
            ended = legs.ended(self)
            if ended:
                break
            if legs.finished:
                if state.out_of_time():
                    raise TrainingStopped(f"the time was up after {len(legs.rows)} legs; they are in {state.folder}.")
                row = self._grow(state, legs)
                if row is None:
                    ended = "no growth fits into the budget"
                    break
                legs.begin(row)
            else:
                legs.take(len(legs.rows) - 1, "start")
            number = len(legs.rows) - 1
            state.tell(Event(number, self.steps or number + 1, _told(legs.rows[-1])))
            legs.finish(self._train(state, number, sum(row["steps"] for row in legs.rows[:-1])))
        best = legs.best()
        legs.take(best, "end")
        rows = [{name: value for name, value in row.items() if name != "configs"} for row in legs.rows]
        return {"legs": rows, "kept": best, "ended": ended, "parameters": rows[best]["parameters"]}

    def _grow(self, state: State, legs: _Legs) -> dict[str, Any] | None:
        """Make the growth that promises most, and return its row; None if there is none."""
        before = legs.rows[-1]
        inputs, labels = self._images(state)
        home = next(state.model.parameters()).device
        batches = [(x.to(home), y.to(home)) for x, y in zip(inputs.split(128), labels.split(128), strict=True)]
        growths = rank_growths(
            state.model,
            batches,
            changes=self.candidates,
            most=None if self.parameters is None else self.parameters - before["parameters"],
            seed=derive_seed(state.seed, "growth", len(legs.rows)),
        )
        if not growths:
            return None
        best = growths[0]
        was = _outputs(state.model, inputs[:128].to(home))
        report = grow_as_planned_(state.model, best)
        now = _outputs(state.model, inputs[:128].to(home))
        return {
            "layer": best.layer,
            "change": best.change,
            "options": dict(best.options),
            "cost": report.parameters_after - report.parameters_before,
            "saliency": best.rate,
            "relative_change": float((now - was).norm() / was.norm().clamp_min(torch.finfo(was.dtype).tiny)),
            "accuracy_before": before["accuracy"],
        }

    def _images(self, state: State) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(derive_seed(state.seed, "images"))
        index = torch.randperm(len(state.data.train), generator=random)[: self.images]
        return state.data.normalized(state.data.train.images[index]), state.data.train.labels[index]

    def _train(self, state: State, number: int, steps: int) -> Fitted:
        """Train the model in a leg before which so many steps were made."""
        folder = state.folder / f"leg-{number}"
        folder.mkdir(exist_ok=True)
        told = replace(
            state,
            folder=folder,
            seed=derive_seed(state.seed, "leg", number),
            log=lambda step, values: state.log(steps + step, values),
            tell=lambda event: state.tell(replace(event, text=f"leg {number}, {event.text}")),
        )
        return fit_state(told, replace(self.optimization, patience=self.patience), self.losses)


class _Legs:
    """The legs of a run, as they are kept in a folder.

    Attributes:
        rows: one a leg; the last one has no accuracy while it is not finished.
    """

    def __init__(self, folder: Path, model: nn.Module) -> None:
        self.folder, self.model = folder, model
        self.rows: list[dict[str, Any]] = []
        if (folder / LEGS).exists():
            try:
                self.rows = json.loads((folder / LEGS).read_text())
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{folder / LEGS} cannot be read: {error}") from None
            self.take(len(self.rows) - 1, "end" if self.finished else "start")
        else:
            self.begin({})

    @property
    def finished(self) -> bool:
        """Whether the last leg is."""
        return self.rows[-1]["accuracy"] is not None

    def begin(self, about: Mapping[str, Any]) -> None:
        """Keep the model as a leg begins with it."""
        number = len(self.rows)
        save(self.model, self.file(number, "start"))
        configs = {name: weight.config.to_dict() for name, weight in generated_weights(self.model).items()}
        count = sum(p.numel() for p in self.model.parameters())
        self.rows.append({"leg": number, **about, "parameters": count, "accuracy": None, "configs": configs})
        self._write()

    def finish(self, fitted: Fitted) -> None:
        """Keep the model as a leg ends with it."""
        save(self.model, self.file(len(self.rows) - 1, "end"))
        row = self.rows[-1]
        row["accuracy"] = fitted.validation_accuracy
        row |= {
            name: value
            for name, value in asdict(fitted).items()
            if name in ("epochs", "steps", "seconds", "stopped_early")
        }
        if "accuracy_before" in row:
            row["gain"] = row["accuracy"] - row["accuracy_before"]
        self._write()

    def take(self, number: int, when: str) -> None:
        """Make the model what it was when a leg began or ended."""
        generated = generated_weights(self.model)
        for name, values in self.rows[number]["configs"].items():
            config = GeneratorConfig.from_dict(values)
            if generated[name].config != config:
                layer = generated[name]
                new = Generator(layer.blueprint.shape, config, std=layer.std, device=layer.device, dtype=layer.dtype)
                for user in list(layer.users()):
                    user._replace(new)
        load(self.model, self.file(number, when))

    def best(self) -> int:
        """Return the leg of the best accuracy, the first of equal ones."""
        accuracies = [row["accuracy"] for row in self.rows]
        return accuracies.index(max(accuracies))

    def ended(self, stage: Grow) -> str:
        """Return why there is no further leg, or nothing."""
        if not self.finished:
            return ""
        row = self.rows[-1]
        if "gain" in row and row["gain"] < stage.least_gain:
            return "the last growth gained too little"
        if stage.steps is not None and len(self.rows) > stage.steps:
            return "as many growths as were asked for"
        return ""

    def file(self, number: int, when: str) -> Path:
        return self.folder / f"leg-{number}-{when}.safetensors"

    def _write(self) -> None:
        with writing(self.folder / LEGS) as temporary:
            temporary.write_text(json.dumps(self.rows, indent=1) + "\n")


def _told(row: Mapping[str, Any]) -> str:
    if "layer" not in row:
        return f"as it is, {row['parameters']:,} numbers"
    what = ", ".join(f"{name}={value}" for name, value in row["options"].items())
    return f"{row['layer']} with {what}, {row['parameters']:,} numbers"


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    return copy.deepcopy(model).eval()(inputs).double()  # type: ignore[no-any-return]
