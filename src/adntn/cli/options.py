"""Options as they stand on the command line and in a TOML file, and what they become."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from adntn.errors import ConfigError, nearest
from adntn.topology import OWNERS, TOPOLOGIES, TREES, GeneratorConfig

DEFAULT_EPOCHS = 30
GENERATOR = tuple(f.name for f in fields(GeneratorConfig) if f.name != "topology")
RECIPE = ("epochs", "batch_size", "lr", "weight_decay", "label_smoothing", "augment", "clip")
JOB = ("model", "data", "targets", "topologies", "controls", "seeds", "train_limit", "test_limit", "device", "threads")


def split_names(text: str | None) -> tuple[str, ...] | None:
    """Split a comma-separated list of names and patterns; ``"none"`` is the empty list."""
    if text is None:
        return None
    # A comma inside a pattern's brackets or braces belongs to the pattern.
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    names = tuple(part.strip() for part in (*parts, current) if part.strip())
    return () if names == ("none",) else names


def read_toml(path: Path) -> dict[str, Any]:
    """Read options from a file.

    Raises:
        ConfigError: it cannot be read, is not TOML, or has an unknown option.
    """
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from None
    known = [name for name in (*JOB, *GENERATOR, *RECIPE, "topology") if name != "topologies"]
    for name in values:
        if name.replace("-", "_") not in known:
            raise ConfigError(
                f"{path}: there is no option {name!r}; there are {', '.join(known)}.{nearest(name, known)}"
            )
    return {name.replace("-", "_"): value for name, value in values.items()}


def make_job(options: dict[str, Any], job_type: Any) -> Any:
    """Sort flat options, as they stand on the command line and in a TOML file, into a job."""
    from adntn.training.optimization import Optimization

    options = dict(options)
    for name in ("targets", "topology", "controls"):
        value = options.get(name)
        if isinstance(value, str):
            options[name] = split_names(value)
        elif value is not None and not (
            isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
        ):
            raise ConfigError(f"{name}={value!r} is not a list of names.")
    job: dict[str, Any] = {name: options[name] for name in JOB if name in options}
    for name in ("targets", "controls"):
        if name in job:
            job[name] = tuple(job[name])
    if "topology" in options:
        job["topologies"] = tuple(options["topology"])
    if "seeds" in options:
        job["seeds"] = parse_seeds(options["seeds"])
    recipe = {"epochs": DEFAULT_EPOCHS} | {name: options[name] for name in RECIPE if name in options}
    made = job_type(**job, config=make_config(options, job.get("topologies", TREES)), recipe=Optimization(**recipe))
    # Threads that wait for each other cost more than they bring on images of 8x8.
    return replace(made, threads=1) if made.threads is None and made.data == "digits" else made


def make_config(options: Mapping[str, Any], topologies: Sequence[str]) -> GeneratorConfig:
    """Pick a generator's options out of flat ones.

    Args:
        options: as they stand on the command line and in a TOML file.
        topologies: that are asked for; empty means any. The config has the first of them that takes what only some
            take, as ``columns``; :meth:`GeneratorConfig.with_topology` makes the others' from it.

    Raises:
        ConfigError: an option is impossible, or none of the topologies takes it.
    """
    chosen = {name: options[name] for name in GENERATOR if options.get(name) is not None}
    if isinstance(chosen.get("order"), list):
        chosen["order"] = tuple(chosen["order"])
    if isinstance(chosen.get("order"), str) and chosen["order"][:1].isdigit():
        try:
            chosen["order"] = tuple(int(i) for i in chosen["order"].split(","))
        except ValueError:
            raise ConfigError(f"order={chosen['order']!r} is neither a name nor a list of numbers.") from None
    usual = GeneratorConfig().to_dict()
    special = [name for name in OWNERS if name in chosen and chosen[name] != usual[name]]
    asked = topologies or TOPOLOGIES
    takers = [t for t in asked if all(t in OWNERS[name] for name in special)]
    # Where none takes them all, the config of the first says which option is in the way.
    chosen["topology"] = (takers or asked)[0]
    return GeneratorConfig(**chosen)


def parse_seeds(given: Any) -> tuple[int, ...]:
    """Turn a number of seeds, or a list of them, into a list.

    Raises:
        ConfigError: it is neither, or there is none.
    """
    try:
        numbers = [int(part) for part in given.split(",")] if isinstance(given, str) else given
        if isinstance(given, str) and len(numbers) == 1:
            numbers = numbers[0]
        seeds = tuple(range(numbers)) if type(numbers) is int else tuple(numbers)
    except (TypeError, ValueError):
        raise ConfigError(
            f"seeds={given!r} is neither a number of seeds, as 3, nor a list of seeds, as 0,1,7."
        ) from None
    if not seeds:
        raise ConfigError(f"seeds={given!r} is not possible; give at least one, as 1, which is seed 0, or 0,1,7.")
    return seeds
