"""Fitting a generator to a weight that is there already (paper, Eq. 28).

A few hundred numbers seldom come near a trained weight: the relative error says how near, and belongs beside every use.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adntn.adjoint.reverse import full_precision
from adntn.baselines import LowRank
from adntn.contraction import Contraction
from adntn.errors import ConfigError, ShapeError
from adntn.generator import Generator, GeneratorModule
from adntn.initialize import rescale, stable_rank
from adntn.least_squares import FitOptions, LeastSquares

__all__ = ["FitOptions", "FitReport", "fit_", "fit_together_", "relative_error"]

# Of the scale that fits best at the start: a generator scaled to nothing would have no gradient.
_LEAST_SCALE = 1e-3
# Least side of a matrix up to which all of its singular values are found: for 4096 that takes minutes.
_WHOLE_SVD = 1024


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
        module: a generator, or a generated layer. Layers that share root and cores with it change alike; one that has
            cores alone in common with others needs :func:`fit_together_`.
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
        CompressionError: its cores are common to others, see :func:`adntn.share_cores_`.

    Example:
        >>> generator = adntn.Generator((64, 64))
        >>> report = adntn.fit_(generator, torch.randn(64, 64), steps=20, polish=0)
        >>> report.relative_error <= report.start_error
        True
    """
    options = (options if options is not None else FitOptions()).replace(**changes)
    module.refuse_common_cores("fitted", "adntn.fit_together_ fits all of them")
    (report,) = _fit([module], [target], options, name, progress)
    return report


@torch.inference_mode(mode=False)
@torch.enable_grad()
def fit_together_(
    modules: Sequence[GeneratorModule],
    targets: Sequence[Tensor],
    options: FitOptions | None = None,
    *,
    progress: bool | None = None,
    name: str = "fit",
    **changes: Any,
) -> tuple[FitReport, ...]:
    """Fit generators that have their cores in common, each to a weight of its own, in place: as :func:`fit_` does one.

    What falls is the mean of the squared relative errors, so that every weight counts alike, whatever its scale. It
    never ends above its start; the error of a single weight may, where others win more.

    Args:
        modules: generated layers after :func:`adntn.share_cores_`: all that have these cores, or what is left out
            changes along.
        targets: a weight each, of shape ``(out, in, *kernel)``, any floating-point type.
        options: how; None means the defaults.
        progress: whether to show a progress bar; None means on a terminal only.
        name: shown beside the bar.
        **changes: single options by name, as ``steps=200``.

    Returns:
        A report of each; steps and seconds are those of all.

    Raises:
        ShapeError: a target is of another shape than its weight.
        ConfigError: as many targets as modules are not given, the modules do not have the same cores and a root each,
            or what :func:`fit_` says.

    Example:
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(3)))
        >>> dense = [layer.weight.detach().clone() for layer in model]
        >>> report = adntn.compress_(model, adntn.GeneratorConfig.kronecker((16, 16), terms=4))
        >>> report = adntn.share_cores_(model)
        >>> reports = adntn.fit_together_(list(model), dense, steps=20, polish=0)
        >>> sum(r.relative_error**2 for r in reports) <= sum(r.start_error**2 for r in reports)
        True
    """
    options = (options if options is not None else FitOptions()).replace(**changes)
    _check_together(modules, targets)
    return _fit(modules, targets, options, name, progress)


def _fit(
    modules: Sequence[GeneratorModule],
    targets: Sequence[Tensor],
    options: FitOptions,
    name: str,
    progress: bool | None,
) -> tuple[FitReport, ...]:
    """Fit one generator, or several that have their cores in common."""
    began = time.perf_counter()
    prepared = [_prepared(*each) for each in zip(modules, targets, strict=True)]
    scratches, wanted = [scratch for scratch, _ in prepared], [target for _, target in prepared]
    for scratch in scratches[1:]:
        scratch._take_cores(scratches[0])
    with full_precision(modules[0].device), torch.no_grad():
        before = [[parameter.detach().clone() for _, parameter in each.generator_parameters()] for each in modules]
        start = _errors(modules, wanted)
        fit = LeastSquares(scratches, wanted)
        if isinstance(scratches[0]._network, LowRank):  # which has no root, and so is alone
            truncate_(scratches[0], wanted[0])
            fit.loss()
        else:
            fit_scales_(scratches, wanted)
            fit.loss()
            fit.run(options, name, progress)
        fit.restore()
        for module, scratch in zip(modules, scratches, strict=True):
            _write(module, [parameter for _, parameter in scratch.generator_parameters()])
        errors = _errors(modules, wanted)
        if _square(errors) > _square(start):  # rounding to a short type may cost more than the fit has won
            for module, values in zip(modules, before, strict=True):
                _write(module, values)
            errors = start
        weights = [module.bare_copy().to(scratches[0].dtype)() for module in modules]
    seconds = time.perf_counter() - began
    return tuple(
        FitReport(
            relative_error=error,
            start_error=first,
            stable_rank=stable_rank_or_zero(weight),
            target_stable_rank=stable_rank_or_zero(target),
            steps=fit.count,
            seconds=seconds,
        )
        for error, first, weight, target in zip(errors, start, weights, wanted, strict=True)
    )


def _check_together(modules: Sequence[GeneratorModule], targets: Sequence[Tensor]) -> None:
    if len(modules) != len(targets) or not modules:
        raise ConfigError(
            f"{len(modules)} modules and {len(targets)} targets are given; a fit needs a target for each."
        )
    parts = [{name: id(parameter) for name, parameter in each.generator_parameters()} for each in modules]
    roots = {each.pop("root", None) for each in parts}
    if None in roots or len(roots) < len(parts) or any(each != parts[0] for each in parts):
        shapes = ", ".join(str(each.blueprint.shape) for each in modules)
        raise ConfigError(
            f"generators of weights of shapes {shapes} do not have the same cores and a root each; share_cores_ gives "
            "them that, and fit_ fits one that has nothing in common."
        )


def _errors(modules: Sequence[GeneratorModule], targets: Sequence[Tensor]) -> list[float]:
    made = (module.bare_copy().to(target.dtype)() for module, target in zip(modules, targets, strict=True))
    return [or_infinity(relative_error(weight, target)) for weight, target in zip(made, targets, strict=True)]


def _square(errors: Sequence[float]) -> float:
    return sum(error**2 for error in errors)


def _prepared(module: GeneratorModule, target: Tensor) -> tuple[Generator, Tensor]:
    """Return a copy that can be trained, and the target as it is compared with."""
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
    return scratch, target


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


def fit_scale_(scratch: Generator, target: Tensor) -> None:
    """Give each group of rows the scale that fits the target best, ``<W, target> / <W, W>``."""
    fit_scales_([scratch], [target])


@torch.no_grad()
def fit_scales_(scratches: Sequence[Generator], targets: Sequence[Tensor]) -> None:
    """Give generators of the same cores the one scale that fits all targets best, of each group of rows."""
    scratch, groups = scratches[0], scratches[0].config.groups
    products, squares = [], []
    for each, target in zip(scratches, targets, strict=True):
        made, wanted = (weight.reshape(groups, -1) for weight in (each(), target))
        size = wanted.square().sum().clamp_min(torch.finfo(wanted.dtype).tiny) if len(targets) > 1 else 1.0
        products.append((made * wanted).sum(1) / size)
        squares.append(made.square().sum(1) / size)
    scale = torch.stack(products).sum(0) / torch.stack(squares).sum(0)
    scale = torch.where(torch.isfinite(scale), scale, 1.0)
    if any(bool(target.any()) for target in targets):
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
