"""How healthy a generator's start is: deviation, stable rank, spread of row norms, gradient at the root."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from adntn.errors import ConfigError
from adntn.generator import Generator
from adntn.initialize import default_std, stable_rank
from adntn.topology import GeneratorConfig

__all__ = ["Health", "diagnose"]


@dataclass(frozen=True)
class Health:
    """Medians over seeds of what :func:`diagnose` measured on freshly drawn weights.

    Attributes:
        std: deviation of the kept entries, over the deviation that the dense layer would start with.
        mean: mean of the kept entries, over the same.
        stable_rank: ``||W||_F^2 / ||W||_2^2`` of the matrix (out, in * kernel).
        rank_bound: the greatest rank that the weight can have.
        row_spread: deviation of the rows' norms over their mean; 0 where all rows are of equal length.
        root_gradient: Frobenius norm of the weight's derivative by the root, ``||dW / droot||``, in units of
            ``||W|| / ||root||``, estimated with one random probe. Near 0 the root learns nothing. Where a topology
            has no root, its first parameter stands in.
        seeds: the seeds used.
    """

    std: float
    mean: float
    stable_rank: float
    rank_bound: int
    row_spread: float
    root_gradient: float
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"std {self.std:.2f} x dense, mean {self.mean:+.2f} x, "
            f"stable rank {self.stable_rank:.1f} of {self.rank_bound}, row spread {self.row_spread:.2f}, "
            f"root gradient {self.root_gradient:.2f} (medians of {len(self.seeds)} seeds)"
        )

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def diagnose(config: GeneratorConfig, shape: tuple[int, ...], *, seeds: Sequence[int] = range(5)) -> Health:
    """Draw a weight for each seed and measure its start.

    A sine keeps the stable rank up, activations that are mostly positive do not. The levels of ``siren`` are not
    calibrated inside (:func:`adntn.activations.hidden_bound`), so that its numbers vary most between seeds.

    Args:
        config: of the generator.
        shape: of the weight, ``(out, in)`` or ``(out, in, *kernel)``.
        seeds: one draw each, at least one. torch's global random state is left as it was.

    Returns:
        Medians over the seeds.

    Example:
        >>> print(adntn.diagnose(adntn.GeneratorConfig(), (128, 128)))
    """
    if not seeds:
        raise ConfigError("seeds is empty; give at least one.")
    columns: dict[str, list[float]] = {}
    for seed in seeds:
        for name, value in _measure(config, shape, seed).items():
            columns.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in columns.items()}
    bound = int(medians.pop("rank_bound"))
    return Health(**medians, rank_bound=bound, seeds=tuple(seeds))


@torch.inference_mode(mode=False)
@torch.enable_grad()
def _measure(config: GeneratorConfig, shape: tuple[int, ...], seed: int) -> dict[str, float]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's only; torch.manual_seed would reset the GPU's too
        generator = Generator(shape, config)
        probe = torch.randn(shape)
    weight = generator()
    _, root = next(generator.generator_parameters())
    (gradient,) = torch.autograd.grad((weight * (probe / probe.norm())).sum(), root)
    matrix = weight.detach().flatten(1)
    norms = matrix.norm(dim=1)
    dense = default_std(shape)
    # For a random probe, each entry of the weight's tangent contributes 1 / sqrt(P) on average; undo that.
    relative = gradient.norm() * root.detach().norm() / matrix.norm() * matrix.numel() ** 0.5
    return {
        "std": float(matrix.std(correction=0)) / dense,
        "mean": float(matrix.mean()) / dense,
        "stable_rank": stable_rank(matrix),
        "rank_bound": float(generator.rank_bound()),
        "row_spread": float(norms.std(correction=0) / norms.mean()),
        "root_gradient": float(relative),
    }
