"""Triton kernels: the whole weight in one pass, and a product whose tiles of the weight are made as it goes.

Both start from a cut of the readout (:mod:`adntn.execution.tiles`) that every order has, ``"paired"`` among them. They
run on CUDA, and on the CPU under Triton's interpreter (``TRITON_INTERPRET=1``), which is for tests. Wherever they
cannot run, torch operations do the same: :func:`usable` says so beforehand, and why. Importing this imports neither
Triton nor the operators.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from adntn.contraction import Contraction, in_digit_order
from adntn.execution.tiles import Tiles, between_trees, layout, make, product_obstacle
from adntn.generator import GeneratorModule
from adntn.tensorize import OUT

__all__ = ["Availability", "available", "in_use", "linear", "usable", "use", "weight"]

_CAPABILITY = (8, 0)  # of older devices the tiles' products need more shared memory than they have
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


_in_use = False


def use(on: bool = True) -> None:
    """Say whether layers that make their weight are to run through :func:`linear` where they can.

    They do not by themselves: no GPU has timed the kernels yet (``benchmarks/kernels.py`` is ready to).
    """
    global _in_use
    _in_use = on


def in_use() -> bool:
    """Return what :func:`use` was told last."""
    return _in_use


@dataclass(frozen=True)
class Availability:
    """Whether kernels can run, true or false as a whole, and why.

    Attributes:
        can_run: whether they can.
        reason: one line for a person.
    """

    can_run: bool
    reason: str

    def __bool__(self) -> bool:
        return self.can_run

    def __str__(self) -> str:
        return self.reason


def available(device: torch.device | str = "cuda") -> Availability:
    """Return whether kernels can run on a device.

    Example:
        >>> str(adntn.execution.kernels.available("cpu"))
        'Triton is not installed, so torch operations run'
    """
    obstacle = _obstacle(torch.device(device))
    return Availability(obstacle is None, obstacle or "Triton kernels run")


def _obstacle(device: torch.device) -> str | None:
    return _look(device)


# What torch.compiler.assume_constant_result does, without its import of the compiler: no graph can look for packages.
_obstacle._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _look(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, so torch operations run"
    try:
        interpreted = _is_interpreted()
    except Exception as error:  # of a Triton that does not fit this machine, anything
        return f"Triton cannot be imported ({error}), so torch operations run"
    if interpreted:
        return None if device.type == "cpu" else f"Triton's interpreter is on, which runs on the CPU, not on {device}"
    if device.type != "cuda":
        return f"Triton kernels run on CUDA, not on {device.type!r}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < _CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"the kernels need a device of compute capability 8.0, this one has {found}"
    return None


def _is_interpreted() -> bool:
    import triton

    from adntn.execution.kernels import programs

    return not isinstance(programs.multiply, triton.runtime.JITFunction)


def usable(
    generator: GeneratorModule, device: torch.device | str, made: Literal["product", "weight"] = "product"
) -> str | None:
    """Return what keeps a generator from the kernels on a device, in words, or None where they run.

    Args:
        generator: or a layer.
        device: where it runs.
        made: for :func:`linear` or for :func:`weight`.
    """
    if not isinstance(generator._network, Contraction):
        return f"topology={generator.config.topology!r} has no levels"
    if generator.dtype not in _DTYPES:
        return f"there is no kernel for {generator.dtype}"
    if generator.backward == "adjoint":
        return "backward='adjoint' keeps nothing of which tiles could be made"
    return (product_obstacle(generator) if made == "product" else None) or _obstacle(torch.device(device))


def weight(generator: GeneratorModule, made: Tiles | None = None) -> Tensor:
    """Return the whole weight that root and cores make, all its rows, written once by a kernel.

    Args:
        generator: or a layer.
        made: what :func:`adntn.execution.tiles.make` returned for it, if that is at hand.

    Returns:
        As :meth:`adntn.Generator.generate` of a bare generator, in its dtype.
    """
    if _transformed() or usable(generator, generator.device, "weight"):
        return GeneratorModule.generate(generator)
    from adntn.execution.kernels import ops

    state, matrix = make(generator) if made is None else made
    t = generator.blueprint.tensorization
    whole: Tensor = ops.weight(state, matrix, layout(generator).numbers(), generator.dtype)
    if len(t.axes) > 1:
        whole = in_digit_order(whole, t, range(len(t.axes)), first_dim=1)
    return whole.reshape(generator.blueprint.shape)


def linear(
    x: Tensor,  # shape: (*batch, in)
    generator: GeneratorModule,
    bias: Tensor | None = None,  # shape: (out,)
    made: Tiles | None = None,
) -> Tensor:  # shape: (*batch, out)
    """Return ``x W^T + bias``; the kernel makes each tile of W as it meets it, and never writes W, nor its gradient.

    Args:
        x: input, of the generator's dtype; under autocast it is cast as torch casts it.
        generator: or a layer.
        bias: added to each output.
        made: what :func:`adntn.execution.tiles.make` returned for it, if that is at hand.

    Raises:
        ShapeError: the input's last dimension is not the weight's.
    """
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    other = not autocast and x.dtype != generator.dtype  # of which torch says what is wrong with it
    if other or _transformed() or usable(generator, x.device):
        return F.linear(x, generator.generate(), bias)
    from adntn.execution.kernels import ops

    if autocast:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    state, matrix = make(generator) if made is None else made
    numbers = layout(generator).numbers()
    if generator.blueprint.tensorization.digit_permutation(OUT) is None:
        return between_trees(x, generator, lambda rows: ops.product(rows, state, matrix, bias, numbers, False))
    y = between_trees(x, generator, lambda rows: ops.product(rows, state, matrix, None, numbers, False))
    return y if bias is None else y + bias.to(y.dtype)


def _transformed() -> bool:
    """Return whether derivatives or batches are asked for that only torch operations have rules for."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
