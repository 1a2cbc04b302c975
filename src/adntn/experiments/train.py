"""A whole run: data and model by name, the recipe's stages, the controls, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adntn.checkpoint import load
from adntn.errors import ConfigError
from adntn.experiments.data import ImageData, load_data
from adntn.experiments.faithfulness import faithfulness
from adntn.experiments.models import Builder, model_builder
from adntn.experiments.parts import hold_out
from adntn.experiments.rivals import train_rivals
from adntn.training.data import TrainingData
from adntn.training.distributed import one_process, share
from adntn.training.folder import RunFolder, describe_machine, read_json, write_json
from adntn.training.recipe import Recipe
from adntn.training.run import Finished, Tell, run_stages, seed_of

__all__ = ["train"]


def train(
    recipe: Recipe, path: Path, *, download: bool = False, minutes: float | None = None, tell: Tell | None = None
) -> dict[str, Any]:
    """Run what is not finished of a recipe, and write everything into its folder.

    Args:
        recipe: what to run.
        path: of the folder: new, empty, or of the same recipe.
        download: whether the data may be fetched over the network.
        minutes: after which to stop; None means never.
        tell: is told the progress.

    Returns:
        All that is known of the run, as it stands in ``run.json``.

    Raises:
        TrainingStopped: the time was up, or SIGTERM came. Run again to go on.
        ConfigError: the device is not there, or an option does not fit.
        RunFolderError: the folder holds something else, or another recipe's run.
        DataError: the data cannot be read.
        ModelError: the model cannot be built.
        AdntnError: whatever else is wrong.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda' is not possible here: torch sees no CUDA device.")
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    images = load_data(recipe.data, download=download).limit(recipe.train_limit, recipe.test_limit)
    data = hold_out(images, recipe.validation, seed_of(recipe, "validation"))
    build = model_builder(recipe.model, images.image_shape, images.num_classes)
    folder = RunFolder(path)
    first = share()[0] == 0
    if first:
        about = {"title": images.title, "source": images.source}
        parts = {name: len(getattr(data, name)) for name in ("train", "validation", "test")}
        folder.claim(recipe, {**describe_machine(), "data": {**about, **parts}})
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    tell = tell if tell is not None else Tell()
    finished = run_stages(recipe, build, data, folder, tell=tell, deadline=deadline)
    if not first:
        return {}
    with one_process():
        return _report(recipe, images, data, build, folder, finished, tell, deadline)


def _report(
    recipe: Recipe,
    images: ImageData,
    data: TrainingData,
    build: Builder,
    folder: RunFolder,
    finished: Sequence[Finished],
    tell: Tell,
    deadline: float | None,
) -> dict[str, Any]:
    """Compare what came out with its teacher and with the controls, and write down everything."""
    report: dict[str, Any] = {
        "version": 1,
        "recipe": recipe.to_dict(),
        "environment": read_json(folder.path / "environment.json"),
        "data": {"title": images.title, "source": images.source},
        "stages": [each.to_dict() for each in finished],
        "faithfulness": None,
        "controls": [],
    }
    final = finished[-1] if finished else None
    if final is not None and recipe.teacher is not None and len(finished) > 1:
        tell.begins(0, "comparing with the teacher")
        report["faithfulness"] = _compare(recipe, data, build, folder, finished[0], final)
    write_json(folder.path / "run.json", report)
    if final is not None and recipe.controls is not None:
        report["controls"] = train_rivals(
            recipe,
            build,
            data,
            final.file,
            sum(each.seconds for each in finished if each.number),
            folder.path / "controls",
            tell=tell,
            deadline=deadline,
        )
        write_json(folder.path / "run.json", report)
    return report


def _compare(
    recipe: Recipe, data: TrainingData, build: Builder, folder: RunFolder, first: Finished, final: Finished
) -> dict[str, Any]:
    """Return how near the outcome comes to its teacher on the test images; kept once it is known."""
    file = folder.path / "faithfulness.json"
    if not file.is_file():
        teacher, model = (load(build(), each.file).eval() for each in (first, final))
        found = faithfulness(
            model,
            teacher,
            data.test.images,
            data.test.labels,
            num_classes=data.num_classes,
            normalized=data.normalized,
            seed=seed_of(recipe, "corruptions"),
        )
        write_json(file, found.to_dict())
    compared: dict[str, Any] = read_json(file)
    return compared
