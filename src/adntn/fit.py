"""Fitting a generator to a weight that is there already (paper, Eq. 28).

A few hundred numbers seldom come near a trained weight: the relative error says how near, and belongs beside every use.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from adntn.adjoint.reverse import full_precision
from adntn.baselines import LowRank
from adntn.contraction import Contraction
from adntn.errors import ConfigError, ShapeError, nearest
from adntn.generator import Generator, GeneratorModule
from adntn.initialize import rescale, stable_rank

__all__ = ["FitOptions", "FitReport", "fit_", "relative_error"]

# Of the scale that fits best at the start: a generator scaled to nothing would have no gradient.
_LEAST_SCALE = 1e-3
# Least side of a matrix up to which all of its singular values are found: for 4096 that takes minutes.
_WHOLE_SVD = 1024


@dataclass(frozen=True)
class FitOptions:
    """How :func:`fit_` works. The defaults are what ``benchmarks/fitting.py`` found to give most for the time.

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


@dataclass(frozen=True)
class FitReport:
    """What a fit reached.

    Attributes:
        relative_error: ``||W - target|| / ||target||`` at the end, in Frobenius norms.
        start_error: the same before.
        stable_rank: of the generated weight at the end.
        target_stable_rank: of the target.
        steps: passes forward and backward.
        seconds: wall time.
    """

    relative_error: float
    start_error: float
    stable_rank: float
    target_stable_rank: float
    steps: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"relative error {self.relative_error:.4f} (was {self.start_error:.4f}), "
            f"stable rank {self.stable_rank:.1f} of {self.target_stable_rank:.1f}, "
            f"{self.steps} steps in {self.seconds:.1f} s"
        )


def relative_error(weight: Tensor, target: Tensor) -> float:
    """Return ``||weight - target|| / ||target||``; of a target of zeros, 0 where it is met and else infinity.

    Args:
        weight: of any shape.
        target: of the same.
    """
    distance, size = float((weight - target).norm()), float(target.norm())
    if size == 0.0:
        return 0.0 if distance == 0.0 else math.inf
    return distance / size


@torch.inference_mode(mode=False)
@torch.enable_grad()
def fit_(
    module: GeneratorModule,
    target: Tensor,
    options: FitOptions | None = None,
    *,
    progress: bool | None = None,
    name: str = "fit",
    **changes: Any,
) -> FitReport:
    """Fit a generator to a weight, in place, from where it stands: least squares over all entries (paper, Eq. 28).

    First the generated weight gets the scale that fits best, in closed form; then Adam, then L-BFGS. The best numbers
    met on the way are kept, so that the error never ends above its start. Work is done on a copy: the parameters are
    written once, at the end; frozen ones too, and they stay frozen. A ``"lowrank"`` generator gets the truncated
    singular value decomposition, which no other can beat.

    Args:
        module: a generator, or a generated layer. Layers that share root and cores with it change alike.
        target: shape ``(out, in, *kernel)``, of all that the generator makes; any floating-point type.
        options: how; None means the defaults.
        progress: whether to show a progress bar; None means on a terminal only.
        name: shown beside the bar.
        **changes: single options by name, as ``steps=200``.

    Returns:
        A report; print it.

    Raises:
        ShapeError: the target is of another shape than the weight.
        ConfigError: an option is unknown or out of range, the target is not finite, or something has no values, being
            on the meta device.

    Example:
        >>> generator = adntn.Generator((64, 64))
        >>> report = adntn.fit_(generator, torch.randn(64, 64), steps=20, polish=0)
        >>> report.relative_error <= report.start_error
        True
    """
    options = (options if options is not None else FitOptions()).replace(**changes)
    began = time.perf_counter()
    if tuple(target.shape) != module.blueprint.shape:
        raise ShapeError(
            f"a generator of a weight of shape {module.blueprint.shape} cannot be fitted to a target of shape "
            f"{tuple(target.shape)}."
        )
    if module.device.type == "meta" or target.is_meta:
        raise ConfigError("a fit needs values, and the meta device has none: to_empty(), then load or draw them.")
    scratch = module.bare_copy().to(torch.promote_types(module.dtype, torch.float32)).requires_grad_(True)
    target = target.detach().to(scratch.device, scratch.dtype)
    if not bool(torch.isfinite(target).all()):
        raise ConfigError(f"the target of shape {tuple(target.shape)} has NaN or infinite entries.")
    with full_precision(module.device), torch.no_grad():
        before = [parameter.detach().clone() for _, parameter in module.generator_parameters()]
        start_error = or_infinity(relative_error(scratch(), target))
        fit = _Fit(scratch, target)
        if isinstance(scratch._network, LowRank):
            truncate_(scratch, target)
            fit.loss()
        else:
            fit_scale_(scratch, target)
            fit.loss()
            fit.run(options, name, progress)
        fit.restore()
        _write(module, [parameter for _, parameter in scratch.generator_parameters()])
        weight = module.bare_copy().to(scratch.dtype)()
        error = or_infinity(relative_error(weight, target))
        if error > start_error:  # rounding to a short type may cost more than the fit has won
            _write(module, before)
            weight = module.bare_copy().to(scratch.dtype)()
            error = start_error
    return FitReport(
        relative_error=error,
        start_error=start_error,
        stable_rank=stable_rank_or_zero(weight),
        target_stable_rank=stable_rank_or_zero(target),
        steps=fit.count,
        seconds=time.perf_counter() - began,
    )


class _Fit:
    """A fit under way: the best numbers so far, and how many passes there were."""

    def __init__(self, scratch: Generator, target: Tensor) -> None:
        self.scratch, self.target = scratch, target
        self.parameters = [parameter for _, parameter in scratch.generator_parameters()]
        self.size = target.square().sum().clamp_min(torch.finfo(target.dtype).tiny)
        self.count = 0
        self.best = math.inf
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        self.loss()

    def loss(self) -> Tensor:
        """Return the squared relative error, and remember the numbers if it is the least so far."""
        error: Tensor = (self.scratch() - self.target).square().sum() / self.size
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


def or_infinity(error: float) -> float:
    """Return an error, NaN as infinity."""
    return error if math.isfinite(error) else math.inf


def stable_rank_or_zero(weight: Tensor) -> float:
    """Return the stable rank, 0 of a weight of zeros and NaN of one that is not finite."""
    if not bool(torch.isfinite(weight).all()):
        return math.nan
    return stable_rank(weight) if bool(weight.any()) else 0.0


@torch.no_grad()
def _write(module: GeneratorModule, values: list[Tensor]) -> None:
    for (_, parameter), value in zip(module.generator_parameters(), values, strict=True):
        parameter.copy_(value)


@torch.no_grad()
def fit_scale_(scratch: Generator, target: Tensor) -> None:
    """Give each group of rows the scale that fits the target best, ``<W, target> / <W, W>``."""
    groups = scratch.config.groups
    made, wanted = (weight.reshape(groups, -1) for weight in (scratch(), target))
    scale = (made * wanted).sum(1) / made.square().sum(1)
    scale = torch.where(torch.isfinite(scale), scale, 1.0)
    if bool(wanted.any()):
        scale = torch.where(scale < 0, -1.0, 1.0) * scale.abs().clamp_min(_LEAST_SCALE)
    named: dict[str, Tensor] = dict(scratch.generator_parameters())
    if isinstance(scratch._network, Contraction):
        scale = scale.repeat_interleave(scratch.config.terms)
        level = scratch.blueprint.levels[-1]
        first, values = level.scaled[0], {name: named[name] for name in level.scaled}
        rescale(values, level, scale.abs())
        for name, value in values.items():
            named[name].copy_(value)
        scale = scale.sign()
    else:
        first = next(iter(named))
    cores = named[first].unflatten(0, (len(scale), -1))[:, 0]
    cores *= scale.reshape(-1, *(1,) * (cores.ndim - 1))


@torch.no_grad()
def truncate_(scratch: Generator, target: Tensor) -> None:
    """Set a low-rank generator to the best of its rank (Eckart and Young)."""
    rank = scratch.config.chi
    matrix = target.reshape(scratch.config.groups, -1, target[0].numel())
    least = min(matrix.shape[1:])
    if least <= _WHOLE_SVD or 4 * rank > least:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        v = vh.mT
    else:
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, q=rank + 16, niter=8)
    for name, vectors in (("left", u), ("right", v)):
        kept = (vectors * s.sqrt().unsqueeze(1))[:, :, :rank]
        scratch.get_core(name).zero_()[:, :, : kept.shape[2]].copy_(kept)
