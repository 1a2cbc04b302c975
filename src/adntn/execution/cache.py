"""What generated layers keep between calls while :func:`cached` is on.

Kept values live outside the modules, so that no copy, pickle or ``state_dict`` of a model ever holds one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from adntn.baselines import Network
from adntn.generator import GeneratorModule
from adntn.quantization import Quantization

__all__ = ["is_kept", "keep", "keeping"]

Value = TypeVar("Value")


# A parameter as it was when the values were made: its path, itself, its address, its version and its numbers.
_Seen = tuple[tuple[str, ...], Tensor, int, int, Tensor]


def _seen(path: tuple[str, ...], parameter: Tensor) -> _Seen:
    if parameter.is_meta:
        raise RuntimeError("no memory")
    return path, parameter, parameter.data_ptr(), _version(parameter), parameter.detach().clone()


def _is_true(seen: tuple[_Seen, ...], generator: GeneratorModule) -> bool:
    """Return whether all parameters are as they were; in few steps, since this runs at every call of a layer."""
    for (*modules, name), parameter, address, version, copy in seen:
        here: nn.Module = generator
        for module in modules:
            here = here._modules[module]  # type: ignore[assignment]
        if here._parameters.get(name) is not parameter or parameter.data_ptr() != address:
            return False
        # Writing through ``.data`` leaves no trace in the version. The parameters are a few hundred numbers, so on the
        # CPU they are simply compared; on a GPU that would wait for the device at every call.
        if _version(parameter) != version or not (parameter.is_cuda or torch.equal(parameter, copy)):
            return False
    return True


@dataclass
class _Kept:
    """The values of one generator, and the parameters, quantisation and activation strength they were made with."""

    users: int = 0
    seen: tuple[_Seen, ...] = ()
    setting: tuple[Quantization | None, float] = (None, 1.0)
    values: dict[str, tuple[object, tuple[int, ...]]] = field(default_factory=dict)


_KEPT: WeakKeyDictionary[Network, _Kept] = WeakKeyDictionary()


@contextlib.contextmanager
def keeping(generators: Iterable[GeneratorModule]) -> Iterator[None]:
    """Keep what the generators make until the block ends. Blocks may be nested."""
    # By key, since a layer that is grown inside the block has another one at its end.
    mine = [_key(generator) for generator in dict.fromkeys(generators)]
    for key in mine:
        _KEPT.setdefault(key, _Kept()).users += 1
    try:
        yield
    finally:
        for key in mine:
            kept = _KEPT[key]
            kept.users -= 1
            if not kept.users:
                del _KEPT[key]


def keep(generator: GeneratorModule, name: str, make: Callable[[], Value]) -> Value:
    """Return ``make()``, or what it returned before if that is kept and still true.

    A value is made anew whenever a parameter was written or replaced since, or quantisation or activation strength was
    set. Where a gradient may be wanted nothing is kept, so that training inside the block is merely slow, never wrong.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not _KEPT:
        return make()
    kept = _KEPT.get(_key(generator))
    if kept is None:
        return make()
    try:
        strength: float = generator._modules["activation"].strength  # type: ignore[union-attr, assignment]
        setting = (generator._quantization, strength)
        if not kept.seen or kept.setting != setting or not _is_true(kept.seen, generator):
            kept.seen, kept.values, kept.setting = (), {}, setting
            named = generator.generator_parameters()
            kept.seen = tuple(_seen(tuple(name.split(".")), parameter) for name, parameter in named)
    except RuntimeError:
        return make()  # parameters without memory: on the meta device, or inside torch.func
    value, versions = kept.values.get(name, (None, None))
    if versions is None or versions != _versions(value):  # written into by whoever had it
        value = make()
        kept.values[name] = (value, _versions(value))
    return value  # type: ignore[return-value]


def is_kept(generator: GeneratorModule) -> bool:
    """Return whether :func:`keep` keeps values now, so that making more than is asked for pays."""
    return not torch.compiler.is_compiling() and not torch.is_grad_enabled() and _key(generator) in _KEPT


def _versions(value: object) -> tuple[int, ...]:
    tensors = value if isinstance(value, tuple) else (value,)
    return tuple(_version(t) for t in tensors if isinstance(t, Tensor))


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _key(generator: GeneratorModule) -> Network:
    # Layers that share root and cores hold one and the same network, and so share what is kept.
    return generator._network
