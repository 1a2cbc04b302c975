"""Adam, then L-BFGS, on a few numbers, that never end worse than they began."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Descent"]

# How often the whole error is looked at on the way.
_LOOKS = 10


class Descent:
    """A minimisation under way: the best values met, by an error that is measured now and then.

    Args:
        parameters: to change.
        measure: what is to be least; without a gradient.
        pause: is called before each step, and may raise to end it all.

    Attributes:
        before: the error at the start.
        best: the least one so far, which :meth:`restore` goes back to.
        steps: passes forward and backward so far.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], measure: Callable[[], float], pause: Callable[[], None]
    ) -> None:
        self.parameters, self.measure, self.pause = list(parameters), measure, pause
        self.steps = 0
        self.best = math.inf
        self._values = [p.detach().clone() for p in self.parameters]
        self.before = self.look()

    def look(self) -> float:
        """Measure, and remember the values if they are the best so far."""
        error = self.measure()
        if error < self.best:  # false for NaN
            self.best = error
            self._values = [p.detach().clone() for p in self.parameters]
        return error

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the best values."""
        for parameter, value in zip(self.parameters, self._values, strict=True):
            parameter.copy_(value)

    def adam(self, loss: Callable[[], Tensor], steps: int, lr: float) -> None:
        """Take steps of Adam along a falling cosine.

        Args:
            loss: of the next batch.
            steps: how many.
            lr: at the start.
        """
        optimizer = torch.optim.Adam(self.parameters, lr)
        every = max(1, steps // _LOOKS)
        for number in range(steps):
            self.pause()
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1.0 + math.cos(math.pi * number / steps))
            if math.isfinite(self._backward(loss)):
                optimizer.step()
            else:
                # Too long a step led out of what numbers can hold: go on from the best, more slowly.
                self.restore()
                optimizer.state.clear()
                lr *= 0.5
            if (number + 1) % every == 0 or number + 1 == steps:
                self.look()
        self.restore()

    def polish(self, losses: Sequence[Callable[[], Tensor]], iterations: int) -> None:
        """Take iterations of L-BFGS.

        Args:
            losses: whose sum is to be least.
            iterations: how many.
        """
        if not iterations:
            return
        optimizer = torch.optim.LBFGS(
            self.parameters,
            max_iter=min(10, iterations),
            max_eval=40,
            history_size=50,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
        for _ in range(-(-iterations // 10)):
            self.pause()
            try:
                error = float(optimizer.step(lambda: self._backward(*losses)))
            except RuntimeError as overrun:
                # torch's line search multiplies its step by ten where the error is flat, without an end.
                if "without overflow" not in str(overrun):
                    raise
                break
            before = self.best
            self.look()
            if not math.isfinite(error) or self.best == before:
                break
        self.restore()

    def _backward(self, *losses: Callable[[], Tensor]) -> float:
        """Make the gradient of a sum of losses, one after the other, and return the sum."""
        self.steps += 1
        for parameter in self.parameters:
            parameter.grad = None
        total = 0.0
        with torch.enable_grad():
            for loss in losses:
                value = loss()
                value.backward()
                total += float(value.detach())
        return total
