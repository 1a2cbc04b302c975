"""Made-up folders of `adntn reproduce`, as its command leaves them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adntn.experiments.reproduce.rows import Folder, Result
from adntn.experiments.reproduce.settings import Settings
from adntn.training.folder import write_json

CPU = {"processor": "EPYC", "threads": 1, "device": "cpu", "gpu": None, "torch": "2.13.0"}
DENSE_LAYER, DENSE_MODEL = 1_048_576, 2_113_786


def result(group: str, variant: str, seed: int, accuracy: float, **changes: Any) -> Result:
    """A generated row of 216 numbers in two layers, if nothing else is said."""
    layers = {"vgg16-fc2": ("classifier.3",), "vgg16-conv": ("features.27", "features.40")}
    names = layers.get(group, ("features.27", "classifier.3") if variant == "dense" else ("features.3",))
    stored = DENSE_LAYER if variant == "dense" else 216
    values: dict[str, Any] = {
        "group": group,
        "variant": variant,
        "seed": seed,
        "accuracy": accuracy,
        "loss": 1.0,
        "curve": (0.3, accuracy),
        "layer_dense": DENSE_LAYER,
        "layer_stored": stored,
        "layer_trained": stored,
        "model_stored": DENSE_MODEL - DENSE_LAYER + stored,
        "model_trained": DENSE_MODEL - DENSE_LAYER + stored,
        "stable_rank_start": dict.fromkeys(names, 4.0),
        "stable_rank_end": dict.fromkeys(names, 3.0),
        "rank_bound": {} if variant == "dense" else dict.fromkeys(names, 64),
        "steps": 10,
        "train_seconds": 1.0,
        "optimization": {},
        "about": {"config": None},
        "environment": CPU,
    }
    return Result(**{**values, **changes})


def deleted(group: str, seed: int, accuracy: float) -> Result:
    gone: dict[str, Any] = {"stable_rank_start": {}, "stable_rank_end": {}, "rank_bound": {}}
    return result(
        group,
        "deleted",
        seed,
        accuracy,
        layer_stored=0,
        layer_trained=0,
        model_stored=DENSE_MODEL - DENSE_LAYER,
        **gone,
    )


def frozen_dense(group: str, seed: int, accuracy: float) -> Result:
    numbers: dict[str, Any] = {"layer_stored": DENSE_LAYER, "layer_trained": 0, "model_stored": DENSE_MODEL}
    return result(group, "frozen-dense", seed, accuracy, rank_bound={}, **numbers)


def rival(network: str, name: str, budget: int | None, seed: int, accuracy: float, ours: bool = False) -> Result:
    trained = budget or 3_800
    return result(
        network,
        name if budget is None else f"{name}-{budget}",
        seed,
        accuracy,
        model_stored=DENSE_MODEL if budget is None else trained,
        model_trained=DENSE_MODEL if name == "dense" else trained,
        about={"rival": name, "budget": budget, "config": None, "ours": ours},
    )


def folder(path: Path, experiment: str, results: Iterable[Result], **settings: Any) -> Path:
    """Write a folder with what is finished."""
    path.mkdir(parents=True, exist_ok=True)
    values = Settings(**{"epochs": 8, "width": 0.25} | settings).to_dict()
    write_json(path / "settings.json", {"experiment": experiment, **values, "data": "CIFAR-10 (JPEG)", "source": "x"})
    for each in results:
        file = Folder(path).result_file(each.name, each.seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, each.to_dict())
    return path
