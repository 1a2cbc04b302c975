"""A weighted sum of losses (paper, Eqs. 31 and 35)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from adntn.errors import ConfigError
from adntn.options import check_number

__all__ = ["WeightedSum"]


@dataclass(frozen=True)
class WeightedSum:
    """A weighted sum of losses, ``sum lambda_m L_m`` (Eqs. 31 and 35), that tells its terms apart.

    Args:
        terms: by name, the factor lambda >= 0 and the loss: a function without arguments, or one of those that
            :meth:`__call__` is given.

    Raises:
        ConfigError: there is no term, or a factor is negative or not finite.

    Example:
        >>> loss = adntn.losses.WeightedSum({
        ...     "task": (1.0, lambda logits, y: F.cross_entropy(logits, y)),
        ...     "isometry": (1e-3, lambda *_: adntn.losses.isometry(layer)),
        ... })
        >>> total, terms = loss(model(x), y)
    """

    terms: Mapping[str, tuple[float, Callable[..., Tensor]]]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ConfigError("a weighted sum needs at least one term: {'task': (1.0, loss)}.")
        for name, (factor, _) in self.terms.items():
            check_number(f"the factor of {name!r}", factor, least=0)
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))

    def __call__(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum, and every term by name without its factor and detached; terms of factor zero are left out."""
        values = {name: loss(*inputs) for name, (factor, loss) in self.terms.items() if factor}
        parts = [self.terms[name][0] * value for name, value in values.items()]
        device = next((each.device for each in inputs if isinstance(each, Tensor)), None)
        total = torch.stack(parts).sum() if parts else torch.zeros((), device=device)
        return total, {name: value.detach() for name, value in values.items()}
