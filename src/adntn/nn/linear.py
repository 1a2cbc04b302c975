"""The generated linear layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adntn.execution import factored
from adntn.generator import Generator
from adntn.nn._generated import GeneratedLayer
from adntn.topology import GeneratorConfig

__all__ = ["Linear"]


class Linear(GeneratedLayer, nn.Linear):  # type: ignore[override, misc]  # the weight is read-only, on purpose
    """``torch.nn.Linear`` with a generated weight (paper, Section 2.1).

    Args:
        in_features: size of each input.
        out_features: size of each output.
        bias: whether it has a (stored) bias.
        config: of the generator; None means the default.
        execution: ``"auto"``, ``"factored"`` or ``"dense"``.
        device: of all parameters.
        dtype: of all parameters.

    Raises:
        ConfigError: ``execution="factored"`` with an order that has no split.
        ShapeError: the generator's groups do not divide ``out_features``.
    """

    dense_type = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        config: GeneratorConfig | None = None,
        *,
        execution: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        generator = Generator((out_features, in_features), config, device=device, dtype=dtype)
        template = nn.Linear(in_features, out_features, bias, device="meta")
        if bias:
            template.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self._adopt(template, generator, execution)
        if self.bias is not None and not self.bias.is_meta:
            nn.init.uniform_(self.bias, -(in_features**-0.5), in_features**-0.5)

    def forward(self, input: Tensor) -> Tensor:  # shape: (*batch, in_features) -> (*batch, out_features)
        if self._way.name == "factored":
            return factored.linear(input, self._factors(), self.bias)
        return F.linear(input, self.weight, self.bias)
