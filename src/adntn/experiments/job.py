"""The main job: a dense network, the same network with generated layers, and the controls, under one recipe.

A job writes a run folder as it goes. What is finished is in it, whole; :func:`run_job` on the same folder does the
rest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adntn.checkpoint import load, save
from adntn.errors import ConfigError
from adntn.experiments.controls import chosen_weights, delete_, stored_numbers
from adntn.experiments.data import ImageData, load_data, normalize
from adntn.experiments.fitting import fit_to
from adntn.experiments.models import DEFAULT_TARGETS, model_builder
from adntn.experiments.runs import Job, Row, RunFolder, Timing, model_file
from adntn.experiments.timing import time_forward as _time
from adntn.experiments.variants import Variant
from adntn.initialize import stable_rank
from adntn.nn import GeneratedWeight
from adntn.targets import select

__all__ = ["Outcome", "Progress", "run_job"]


@dataclass(frozen=True)
class Progress:
    """Told while a job runs: which network, how far, how well.

    Attributes:
        variant: being trained, or ``"timing"``.
        seed: being trained.
        epoch: epochs done.
        accuracy: on the test images, or None before the first epoch.
        done: networks finished, those of an earlier run included.
        total: networks in all.
    """

    variant: str
    seed: int
    epoch: int
    accuracy: float | None
    done: int
    total: int


Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class Outcome:
    """What a finished job came to.

    Attributes:
        rows: one a network, variants in the job's order.
        timings: forward times, one a variant.
        weights: of the first seed's dense and generated networks, the first weights by name, trained.
    """

    rows: tuple[Row, ...]
    timings: tuple[Timing, ...]
    weights: Mapping[str, Sequence[tuple[str, Tensor]]]


def run_job(job: Job, folder: Path, *, download: bool = False, tell: Tell = lambda progress: None) -> Outcome:
    """Run what is not finished of a job, and write everything into its folder.

    The folder gets ``config.json``, ``environment.json``, ``metrics.json``, ``metrics.csv`` and
    ``models/*.safetensors``. Tables and plots are made from the outcome by :mod:`adntn.report`.

    Args:
        job: what to run.
        folder: new, empty, or of the same job.
        download: whether the data may be fetched over the network.
        tell: called with the progress.

    Raises:
        ConfigError: the device is not there, or an option does not fit a layer.
        RunFolderError: the folder holds something else, or another job.
        DataError: the data cannot be read.
        ModelError: the model cannot be built.
        CompressionError: a target does not fit the model.
    """
    if job.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda' is not possible here: torch sees no CUDA device.")
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    data = load_data(job.data, download=download).limit(job.train_limit, job.test_limit)
    build = model_builder(job.model, data.image_shape, data.num_classes)
    names = chosen_layers(job, build())
    for topology in job.topologies:
        # What cannot be built is said now, not after the dense networks have been trained.
        variant_model(job, build, names, topology, job.seeds[0])
    run = RunFolder(folder)
    run.claim(job, data)
    rows = run.rows()
    finished = {(row.variant, row.seed) for row in rows}
    total = len(job.variants) * len(job.seeds)
    for variant in job.variants:
        for seed in job.seeds:
            if (variant, seed) in finished:
                continue

            def told(epoch: int, accuracy: float | None, variant: str = variant, seed: int = seed) -> None:
                tell(Progress(variant, seed, epoch, accuracy, len(rows), total))

            told(0, None)
            rows.append(_train(job, data, build, names, variant, seed, folder, told))
            run.write_metrics(rows, [])
    rows.sort(key=lambda row: (job.variants.index(row.variant), row.seed))
    tell(Progress("timing", job.seeds[0], 0, None, total, total))
    trained = {v: _load_trained(build, names, v, folder / model_file(v, job.seeds[0])) for v in job.variants}
    timings = _time(trained, normalize(data.test.images[:128], data))
    run.write_metrics(rows, timings)
    shown = ("dense", *job.topologies)
    weights = {v: list(_weights(trained[v], names).items())[:4] for v in shown}
    return Outcome(tuple(rows), tuple(timings), weights)


def chosen_layers(job: Job, model: nn.Module) -> list[str]:
    """Return the names of the layers, and of parameters chosen by their own names, that a job generates.

    Raises:
        CompressionError: a target matches nothing or cannot be generated.
    """
    targets: Sequence[str] = job.targets or DEFAULT_TARGETS.get(job.model, ("re:.*",))
    return select(model, targets)


def variant_model(job: Job, build: Callable[[], nn.Module], names: Sequence[str], variant: str, seed: int) -> nn.Module:
    """Build an untrained network. What is not replaced starts equal in all variants of one seed."""
    return _variant(job, variant).make(build, names, seed)


def _variant(job: Job, name: str) -> Variant:
    if name == "frozen-tree":
        return Variant(name, "frozen", job.config.with_topology(job.topologies[0]))
    if name in ("dense", "deleted", "frozen-dense"):
        return Variant(name, name)
    return Variant(name, "generated", job.config.with_topology(name))


def _train(
    job: Job,
    data: ImageData,
    build: Callable[[], nn.Module],
    names: Sequence[str],
    variant: str,
    seed: int,
    folder: Path,
    told: Callable[[int, float | None], None],
) -> Row:
    model = variant_model(job, build, names, variant, seed)
    start = _mean_stable_rank(model, names, variant)
    fitted = fit_to(data, model, job.recipe, seed=seed, device=job.device, tell=told)
    file = model_file(variant, seed)
    (folder / "models").mkdir(exist_ok=True)
    save(model, folder / file)
    stored, trained = _layer_parameters(model, names, variant)
    return Row(
        variant=variant,
        seed=seed,
        accuracy=fitted.validation_accuracy,
        loss=fitted.validation_loss,
        curve=fitted.curve,
        layer_stored=stored,
        layer_trained=trained,
        model_stored=sum(p.numel() for p in model.parameters()),
        model_trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        file_bytes=(folder / file).stat().st_size,
        stable_rank_start=start,
        stable_rank_end=_mean_stable_rank(model, names, variant),
        train_seconds=fitted.seconds,
        steps=fitted.steps,
        file=file.as_posix(),
    )


def _layer_parameters(model: nn.Module, names: Sequence[str], variant: str) -> tuple[int, int]:
    """Return how many numbers the chosen weights store, and how many of those are trained; what is shared, once."""
    if variant == "deleted":
        return 0, 0
    parts = {id(p): p for weight in chosen_weights(model, names).values() for p in stored_numbers(weight)}.values()
    return sum(p.numel() for p in parts), sum(p.numel() for p in parts if p.requires_grad)


def _weights(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    chosen = chosen_weights(model, names)
    return {name: (w.weight if isinstance(w, GeneratedWeight) else w).detach() for name, w in chosen.items()}


def _mean_stable_rank(model: nn.Module, names: Sequence[str], variant: str) -> float | None:
    if variant == "deleted":
        return None
    return statistics.mean(map(stable_rank, _weights(model, names).values()))


def _load_trained(build: Callable[[], nn.Module], names: Sequence[str], variant: str, file: Path) -> nn.Module:
    model = build()
    if variant == "deleted":
        delete_(model, names)
    return load(model, file).eval()
