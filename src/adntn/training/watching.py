"""What may end a run before its end: signals, a time limit, and numbers that are none."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Interruptions", "find_nonfinite"]


class Interruptions:
    """Whether a run should stop at the next step: SIGTERM has come, or its time is over.

    Args:
        deadline: of :func:`time.monotonic`; None means never.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self.signalled = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    def listen(self) -> None:
        """Hear SIGTERM, in the place of whoever heard it before; threads other than the main one cannot."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear SIGTERM within a block, and leave it to whoever heard it before."""
        before = signal.getsignal(signal.SIGTERM)
        self.listen()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)

    @property
    def reason(self) -> str | None:
        """Why to stop, or None."""
        if self.signalled:
            return "it was asked to end by SIGTERM"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "its time was over"
        return None


def find_nonfinite(model: nn.Module, run: Callable[[], Tensor]) -> str | None:
    """Say where NaN or infinity comes from first: a weight, a layer's output, or a gradient on its way back.

    Args:
        model: in whose layers to look.
        run: runs the model and returns a loss, without a backward pass.

    Returns:
        As ``"the output of layer 'fc1'"``, or None where everything is finite.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not _finite(tensor):
            return f"the stored {name!r}"
    found: list[str] = []
    handles: list[RemovableHandle] = []

    def watch(name: str) -> Callable[..., None]:
        def gradient(grad: Tensor) -> None:
            if not _finite(grad):
                found.append(f"the gradient at the output of layer {name!r}")

        def output(module: nn.Module, args: Any, given: Any) -> None:
            for tensor in given if isinstance(given, (tuple, list)) else (given,):
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    if not _finite(tensor):
                        found.append(f"the output of layer {name!r}")
                    elif tensor.requires_grad:
                        tensor.register_hook(gradient)

        return output

    def stored(name: str) -> Callable[[Tensor], None]:
        def gradient(grad: Tensor) -> None:
            if not _finite(grad):
                found.append(f"the gradient of {name!r}")

        return gradient

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(watch(name or "the model")))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_hook(stored(name)))
    try:
        with torch.enable_grad():
            loss = run()
            if not found and not _finite(loss):
                found.append("the loss")
            if not found:
                torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
