"""The optimisers of a fit: Adam, then L-BFGS, and the best numbers that either met."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from adntn.errors import ConfigError, nearest
from adntn.generator import Generator

__all__ = ["FitOptions", "LeastSquares"]


@dataclass(frozen=True)
class FitOptions:
    """How :func:`adntn.fit_` works. The defaults are what ``benchmarks/fitting.py`` found to give most for the time.

    Attributes:
        steps: of Adam, the learning rate falling to zero along a cosine.
        lr: Adam's learning rate at the start.
        polish: iterations of L-BFGS after that.
        patience: steps without progress after which either of them stops.
        tolerance: relative fall of the squared error that counts as progress.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> adntn.compress_(model, init="fit", fit=adntn.FitOptions(steps=100, polish=0))
    """

    steps: int = 400
    lr: float = 0.06
    polish: int = 100
    patience: int = 100
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("polish", 0), ("patience", 1)):
            given = getattr(self, name)
            if type(given) is not int or given < least:
                raise ConfigError(f"{name}={given!r} is not possible; give a whole number of at least {least}.")
        for name in ("lr", "tolerance"):
            given = getattr(self, name)
            if not isinstance(given, (int, float)) or not math.isfinite(given) or given <= 0:
                raise ConfigError(f"{name}={given!r} is not possible; give a positive number.")

    def replace(self, **changes: Any) -> FitOptions:
        """Return a copy with some options changed.

        Raises:
            ConfigError: there is no such option.
        """
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(f"a fit has no option {name!r}; it has {', '.join(known)}.{nearest(name, known)}")
        return replace(self, **changes)


class LeastSquares:
    """A fit under way: the best numbers so far, and how many passes there were.

    Args:
        scratches: generators that are fitted, of one or of several weights; they may have parameters in common.
        targets: of each.
    """

    def __init__(self, scratches: Sequence[Generator], targets: Sequence[Tensor]) -> None:
        self.pairs = list(zip(scratches, targets, strict=True))
        found = [parameter for scratch in scratches for _, parameter in scratch.generator_parameters()]
        self.parameters = list({id(parameter): parameter for parameter in found}.values())
        self.sizes = [target.square().sum().clamp_min(torch.finfo(target.dtype).tiny) for target in targets]
        self.count = 0
        self.best = math.inf
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        self.loss()

    def loss(self) -> Tensor:
        """Return the squared relative error, the mean of all, and remember the numbers if it is the least so far."""
        errors = [
            (made() - wanted).square().sum() / size for (made, wanted), size in zip(self.pairs, self.sizes, strict=True)
        ]
        error = torch.stack(errors).mean()
        value = float(error.detach())
        if value < self.best:  # false for NaN
            self.best = value
            self.values = [parameter.detach().clone() for parameter in self.parameters]
        return error

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the best numbers."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.copy_(value)

    def step(self) -> Tensor:
        """Make one pass forward and backward."""
        self.count += 1
        for parameter in self.parameters:
            parameter.grad = None
        with torch.enable_grad():
            error = self.loss()
            error.backward()
        return error.detach()

    def run(self, options: FitOptions, name: str, progress: bool | None) -> None:
        """Run both optimisers."""
        from tqdm import tqdm  # only a fit needs it

        disable = None if progress is None else not progress  # None: unless this is a terminal
        with tqdm(total=options.steps + options.polish, desc=name, disable=disable, leave=False) as bar:

            def tell(done: int) -> None:
                bar.update(done)
                bar.set_postfix_str(f"error {math.sqrt(self.best):.4f}", refresh=False)

            if options.steps:
                self._adam(options, tell)
                self.restore()
            if options.polish:
                self._polish(options, tell)

    def _adam(self, options: FitOptions, tell: Callable[[int], None]) -> None:
        optimizer = torch.optim.Adam(self.parameters, options.lr)
        stall, lr = _Stall(options, self.best), options.lr
        for number in range(options.steps):
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1.0 + math.cos(math.pi * number / options.steps))
            if bool(torch.isfinite(self.step())):
                optimizer.step()
            else:
                # Too long a step led out of what numbers can hold: go on from the best, more slowly.
                self.restore()
                optimizer.state.clear()
                lr *= 0.5
            tell(1)
            if stall.after(1, self.best):
                break
        self.loss()  # of what the last step made

    def _polish(self, options: FitOptions, tell: Callable[[int], None]) -> None:
        stall = _Stall(options, self.best)
        optimizer = torch.optim.LBFGS(
            self.parameters,
            max_iter=min(10, options.polish),
            max_eval=40,
            history_size=50,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
        for _ in range(-(-options.polish // 10)):
            try:
                error = float(optimizer.step(self.step))
            except RuntimeError as overrun:
                # torch's line search multiplies its step by ten where the error is flat, without an end.
                if "without overflow" not in str(overrun):
                    raise
                break
            tell(10)
            if not math.isfinite(error) or stall.after(10, self.best):
                break


class _Stall:
    """Notices that the squared error has not fallen for a while."""

    def __init__(self, options: FitOptions, start: float) -> None:
        self.patience, self.tolerance = options.patience, options.tolerance
        self.mark, self.waited = start, 0

    def after(self, steps: int, best: float) -> bool:
        """Return whether to stop."""
        self.waited += steps
        if best < self.mark * (1.0 - self.tolerance):
            self.mark, self.waited = best, 0
        return self.waited >= self.patience or best == 0.0
