"""Which way a generated layer runs: asked for, or chosen for the number of positions at hand."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Self

import torch
from torch import Tensor, nn

from adntn.errors import ConfigError, check_choice
from adntn.execution.cache import is_kept
from adntn.execution.choices import MODES, Choices, Steps, Way, way_at
from adntn.execution.machine import profile_for
from adntn.execution.plan import Work, as_chosen, choose, machine_choices, multiply_adds
from adntn.generator import GeneratorModule

__all__ = ["MODULE_STATE", "Planned", "is_exporting"]

#: What nn.Module keeps for itself. All else in a layer's __dict__ describes the layer: sizes, stride, padding ...
MODULE_STATE = frozenset(vars(nn.Module()))

is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 cannot say


class Planned(GeneratorModule):
    """Root and cores that run one way or another."""

    _execution: str = ""
    _way: Way
    _given: bool = False
    #: The device of the layer whose operations are counted on the meta device by this one.
    _stands_for: torch.device | None = None

    @property
    def execution(self) -> str:
        """How it was asked to run: ``"auto"``, ``"factored"`` or ``"dense"``."""
        return self._execution

    @execution.setter
    def execution(self, value: str) -> None:
        self._way = self.would_run(value)
        self._execution = value
        self._given = False

    def would_run(self, execution: str) -> Way:
        """Return how it would run if it were asked for this execution.

        Raises:
            ConfigError: the execution is unknown, or ``"factored"`` where the weight has no split.
        """
        return choose(execution, self, self._work(), self._find_choices)

    def _work(self) -> Work | None:
        """Return the arithmetic of both ways; None where there is nothing to compare."""
        return multiply_adds(self)

    def _find_choices(self) -> Choices | None:
        key = (type(self), self.blueprint, self.rows, self._backward, self.dtype, getattr(self, "bias", None) is None)
        return machine_choices(
            (*key, self.device.type, *self._options()), self._on_meta, profile_for(self.device), self.dtype
        )

    def _options(self) -> tuple[Hashable, ...]:
        """Return what else decides on the operations of a call."""
        return ()

    def probe(self, positions: int) -> Tensor:
        """Return an input of about that many positions, on the meta device."""
        raise NotImplementedError(f"{type(self).__name__}, as every family of layers, has to say what goes into it")

    def _on_meta(self) -> Self:
        """Return a layer of the same options on the meta device, with root and cores of its own."""
        raise NotImplementedError(
            f"{type(self).__name__}, as every family of layers, has to say how it is put together"
        )

    @property
    def way(self) -> Way:
        """How it runs with many positions in training, and why."""
        return self._way

    def way_for(self, positions: int, mode: str | None = None) -> str:
        """Return the way that a call takes, ``"factored"`` or ``"dense"``.

        Args:
            positions: rows of a linear layer's input, positions of a convolution's output in the whole batch (of its
                input where it is transposed), or looked-up rows of an embedding.
            mode: ``"training"`` with gradients, ``"rebuilt"`` without, ``"kept"`` under :func:`adntn.cached`; None
                means the one that is on.

        Raises:
            ConfigError: the mode is unknown.
        """
        return self._way.choices.at(self._mode() if mode is None else check_choice("mode", mode, MODES), positions)

    def _mode(self) -> str:
        if torch.is_grad_enabled():
            return "training"
        return "kept" if self._is_kept() else "rebuilt"

    def _is_kept(self) -> bool:
        return is_kept(self)

    def _runs_factored(self, input: Tensor) -> bool:
        steps: Steps = getattr(self._way.choices, self._mode())
        if len(steps) == 1 or is_exporting():
            # A comparison would narrow the range of an exported program's sizes.
            return steps[-1][1] == "factored"
        return way_at(steps, self._positions(input)) == "factored"

    def _positions(self, input: Tensor) -> int:
        """Return the number of positions of an input."""
        raise NotImplementedError(f"{type(self).__name__}, as every family of layers, has to say what a position is")

    @property
    def choices(self) -> Choices:
        """The way for each number of positions, as :func:`adntn.execution_state` has it."""
        return self._way.choices

    @property
    def has_given_choices(self) -> bool:
        """Whether the choices came from a file or from :func:`adntn.load_execution_state`."""
        return self._given

    @property
    def chooses(self) -> bool:
        """Whether there is anything to choose: ``execution="auto"``, and a weight that can run both ways."""
        return self._execution == "auto" and self._work() is not None and self.split_obstacle is None

    def take_choices(self, choices: Choices) -> None:
        """Take choices that were made elsewhere, and keep them wherever the layer is moved.

        Raises:
            ConfigError: they differ from what the layer does, and it has nothing to choose.
        """
        work = self._work()
        if self.chooses and work is not None:
            self._way, self._given = as_chosen(choices, work), True
        elif choices != self.choices:
            raise ConfigError(f"choices {choices} are not possible: it runs {self._way}, {self._way.reason}.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = (self.device, self.dtype)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._execution == "auto" and not self._given and (self.device, self.dtype) != before:
            self._way = self.would_run("auto")  # another device has another machine's choices
        return self
