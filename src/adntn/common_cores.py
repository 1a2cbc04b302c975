"""Generated weights that have their cores in common and a root each: ``share_cores_``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from adntn.describe import CompressionReport, describe, plain_name
from adntn.errors import CompressionError
from adntn.generator import GeneratorModule
from adntn.targets import by_generator, choose_generated, held_by_optimizer

__all__ = ["core_key", "groups_alike", "share_cores_", "tie_cores_", "tie_groups_"]


def share_cores_(
    model: nn.Module, targets: str | Sequence[str] = ("re:.*",), *, ignore: str | Sequence[str] = ()
) -> CompressionReport:
    """Give generated weights of one shape and config the cores of the first of them, in place; roots stay their own.

    A root says how much a weight has of what the cores make; in a sum of Kronecker products it is a number a product.
    So a network has more products for its numbers. What that is worth, and when, is on the page about whole networks.

    Here the model is compressed already; :func:`adntn.compress_` does the same with ``share_cores=True``, and can fit
    such weights together. Share, then build the optimiser. Weights of a shape or config that no other one has stay as
    they are, and so do those whose topology has no root. In a ``state_dict`` the cores stand under each layer's name,
    as torch has tied weights; :func:`adntn.save` stores them once, and :func:`adntn.load` has them in common again.
    Growing, pruning and quantising one of the weights would change the others, and is refused.

    Args:
        model: with generated layers.
        targets: names of generated weights, or ``"re:"`` and a pattern that a whole name must match.
        ignore: the same, to leave out again.

    Returns:
        A report of all generated layers; print it.

    Raises:
        CompressionError: no two targets can have their cores in common, one is quantised, sharded or made of cores
            that are common already, or an optimiser holds a core. Nothing has been changed then.

    Example:
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
        >>> report = adntn.compress_(model, adntn.GeneratorConfig.kronecker((64, 64), terms=3))
        >>> report.generated, adntn.share_cores_(model).generated
        (1548, 396)
    """
    weights = [next(iter(alike.items())) for alike in by_generator(choose_generated(model, targets, ignore))]
    groups = groups_alike(weights)
    for name, weight in (each for group in groups for each in group):
        _refuse(name, weight)
    tie_groups_([weight for _, weight in group] for group in groups)
    return describe(model)


def groups_alike(weights: Iterable[tuple[str, GeneratorModule]]) -> list[list[tuple[str, GeneratorModule]]]:
    """Return the groups of named weights that can have their cores in common.

    Raises:
        CompressionError: there is none.
    """
    alike: dict[Any, list[tuple[str, GeneratorModule]]] = {}
    for name, weight in weights:
        if "root" in weight.blueprint.parameter_shapes:
            alike.setdefault((weight.blueprint.shape, weight.config, weight.dtype), []).append((name, weight))
    groups = [group for group in alike.values() if len(group) > 1]
    if not groups:
        found = ", ".join(
            f"{group[0][0]!r} {weight.blueprint.shape}" for group in alike.values() for _, weight in group[:1]
        )
        raise CompressionError(
            "no two of the targets have the shape, the config and the type of each other, and a root: "
            f"{found or 'a tree has one, and a brick wall, a tensor train and baselines have none'}."
        )
    return groups


def core_key(weight: GeneratorModule) -> int:
    """Return what is equal for weights that have their cores in common, and for no others while both live."""
    parts = dict(weight.generator_parameters())
    return id(next(part for name, part in parts.items() if name != "root" or not weight.has_common_cores))


def tie_groups_(groups: Iterable[Sequence[GeneratorModule]]) -> None:
    """Give the weights of each group the cores of its first."""
    for first, *others in groups:
        for weight in others:
            _tie(weight, first)


def _refuse(name: str, weight: GeneratorModule) -> None:
    parameters = dict(weight.generator_parameters())
    if weight.has_common_cores:
        raise CompressionError(f"{name!r} has its cores in common with others already.")
    if weight.quantization is not None:
        raise CompressionError(f"{name!r} is quantised; quantize_(model, bits=None), and share first.")
    if any(hasattr(parameter, "device_mesh") for parameter in parameters.values()):
        raise CompressionError(f"FSDP has sharded the generator of {name!r}; share first, then shard.")
    why = held_by_optimizer({id(p): f"{name}.{own}" for own, p in parameters.items() if own != "root"})
    if why is not None:
        raise CompressionError(f"{why}. Call share_cores_ first, then build the optimiser.")


def _tie(weight: GeneratorModule, first: GeneratorModule) -> None:
    """Register another generator's cores, and its activations' numbers, in place of a generator's own."""
    for user in [*weight.users()]:
        user._take_cores(first)
    for user in [*first.users()]:
        user.has_common_cores = True


def tie_cores_(model: nn.Module, weights: Iterable[GeneratorModule], aliases: Mapping[str, str]) -> None:
    """Give generated weights of a model the cores in common that a file has as one tensor.

    Args:
        model: that holds them.
        weights: that may be tied; others stay as they are.
        aliases: further names of the file's tensors, and the names that they are stored under.
    """
    names = {plain_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    generators = {name: module for name, module in names.items() if isinstance(module, GeneratorModule)}
    chosen = {id(weight) for weight in weights}
    for name, weight in generators.items():
        if id(weight) not in chosen or _full(name, "root") in aliases:
            continue
        cores = [each for each in weight.blueprint.parameter_shapes if each != "root"]
        owners = {aliases.get(_full(name, each), "").removesuffix(each).rstrip(".") for each in cores}
        owner = generators.get(owners.pop()) if len(owners) == 1 else None
        if owner is not None and owner._network is not weight._network and owner.blueprint == weight.blueprint:
            _tie(weight, owner)


def _full(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name
