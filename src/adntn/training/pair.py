"""A model and its teacher, side by side: what has the same name in both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from adntn.describe import generated_weights, plain_name
from adntn.errors import ConfigError, ShapeError, nearest
from adntn.generator import GeneratorModule
from adntn.nn import GeneratedLayer, GeneratedWeight, MultiheadAttention
from adntn.targets import is_compiled_wrapper

__all__ = ["Pair", "Target", "inner_model"]


def inner_model(model: nn.Module) -> nn.Module:
    """Return what DistributedDataParallel, DataParallel and torch.compile have been wrapped around."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif is_compiled_wrapper(model):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


@dataclass(frozen=True, eq=False)
class Target:
    """A weight of the teacher.

    Attributes:
        owner: the module whose weight it is.
        name: in that module.
        rms: its root mean square; 1 for a weight of zeros.
    """

    owner: nn.Module
    name: str
    rms: float = 1.0

    @property
    def values(self) -> Tensor:
        """The weight, wherever the teacher is now."""
        weight: Tensor = getattr(self.owner, self.name)
        return weight.detach()

    @property
    def size(self) -> int:
        return self.values.numel()

    def beside(self, layer: GeneratedWeight) -> tuple[Tensor, Tensor]:
        """Return a layer's whole weight and this, in float32 at least."""
        weight = layer.weight
        work = torch.promote_types(torch.promote_types(weight.dtype, self.values.dtype), torch.float32)
        return weight.to(work), self.values.to(weight.device, work)


class Pair:
    """A model and its teacher.

    Args:
        model: may be wrapped; names are those of the inner one.
        teacher: the same; None where there is none.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module | None = None) -> None:
        self.model = inner_model(model)
        self.teacher = None if teacher is None else inner_model(teacher)
        self._modules, self._generated = _named(self.model), generated_weights(self.model)
        self._teachers = {} if self.teacher is None else _named(self.teacher)

    def check_module(self, name: str, term: str) -> None:
        """Raise unless there is a module of this name in both.

        Raises:
            ConfigError: there is not.
        """
        for whose, modules in (("model", self._modules), ("teacher", self._teachers)):
            if name not in modules:
                raise ConfigError(
                    f"{term}: the {whose} has no module {name!r}; it has {_listed(modules)}.{nearest(name, modules)}"
                )

    def modules(self, name: str) -> tuple[nn.Module, nn.Module]:
        """Return the modules of a name in the model and in the teacher."""
        return self._modules[name], self._teachers[name]

    def layers(self, names: Iterable[str], term: str) -> dict[str, GeneratedWeight]:
        """Return generated weights by name; all for no names.

        Raises:
            ConfigError: there is none, or none of that name.
        """
        if not self._generated:
            raise ConfigError(f"{term} needs generated layers, and the model has none; adntn.compress_ makes them.")
        for name in names:
            if name not in self._generated:
                raise ConfigError(
                    f"{term}: {name!r} is no generated layer of the model; {_listed(self._generated)} are."
                    f"{nearest(name, self._generated)}"
                )
        return {name: self._generated[name] for name in names} or dict(self._generated)

    def generators(
        self, names: tuple[str, ...], term: str, applies: Callable[[GeneratorModule], bool], wanted: str
    ) -> list[GeneratedWeight]:
        """Return one layer for each generator to which something applies; layers that share one come once.

        Raises:
            ConfigError: there is none, or one that was named is not such a one.
        """
        layers = self.layers(names, term)
        for name in names:
            if not applies(layers[name]):
                raise ConfigError(f"{term}: {name!r} is a layer without {wanted}.")
        fitting = {layer._network: layer for layer in layers.values() if applies(layer)}
        if not fitting:
            raise ConfigError(f"{term}: none of the generated layers {_listed(layers)} has {wanted}.")
        return list(fitting.values())

    def targets(self, names: tuple[str, ...], term: str) -> list[tuple[GeneratedWeight, Target]]:
        """Return generated layers, all for no names, each with the weight of the same name in the teacher.

        Raises:
            ConfigError: the teacher has no such weight.
            ShapeError: it has another shape.
        """
        found = []
        for name, layer in self.layers(names, term).items():
            target = self._target(name, term)
            values = target.values
            if tuple(values.shape) != tuple(layer.shape):
                raise ShapeError(
                    f"{term}: {name!r} has a weight of shape {tuple(layer.shape)} in the model and of shape "
                    f"{tuple(values.shape)} in the teacher."
                )
            rms = values.float().square().mean().sqrt().item()
            found.append((layer, replace(target, rms=rms or 1.0)))
        return found

    def _target(self, name: str, term: str) -> Target:
        module, _, own = name.rpartition(".")
        for owner, attribute in ((name, "weight"), (module, own)):
            there = self._teachers.get(owner)
            if there is not None and isinstance(getattr(there, attribute, None), Tensor):
                return Target(there, attribute)
        raise ConfigError(f"{term}: the teacher has no weight {name!r}; name the layers that it has, as layers=[...].")

    @torch.no_grad()
    def positions(self, inputs: Tensor) -> dict[GeneratedWeight, int]:
        """Return with how many positions each generated layer is called for some inputs, found by running the model."""
        seen: dict[GeneratedWeight, int] = {}

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            (given, *_) = (each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
            if isinstance(module, MultiheadAttention):
                count = given.numel() // module.embed_dim
                seen.update({part: count for part in module.children() if isinstance(part, GeneratedWeight)})
            elif isinstance(module, GeneratedLayer):
                seen[module] = module._positions(given)

        training = {module: module.training for module in self.model.modules()}
        looked = [m for m in training if isinstance(m, (GeneratedLayer, MultiheadAttention))]
        handles = [module.register_forward_pre_hook(look, with_kwargs=True) for module in looked]
        try:
            self.model.eval()(inputs)
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in training.items():
                module.training = mode
        return {layer: max(1, count) for layer, count in seen.items()}


def _named(model: nn.Module) -> dict[str, nn.Module]:
    # What torch.compile wraps around a module comes before it, and has the same name.
    return {plain_name(name): module for name, module in model.named_modules()}


def _listed(names: Mapping[str, object]) -> str:
    named = [name for name in names if name]  # the model itself has none
    return ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "") or "none"
