"""The generated linear layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from adntn.execution import factored, kernels, tiles
from adntn.nn._generated import GeneratedLayer
from adntn.nn._ways import is_exporting
from adntn.topology import Blueprint, GeneratorConfig

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

    Example:
        >>> layer = adntn.nn.Linear(1024, 4096, config=adntn.GeneratorConfig(topology="mera"))
        >>> layer(torch.randn(8, 1024)).shape
        torch.Size([8, 4096])
    """

    #: Whether factors meet equal or zero sub-vectors of the input once (paper, Section 8.4): ``"off"``, ``"on"``, or
    #: ``"auto"``, see :func:`adntn.execution.reuse.first_stage`. ``benchmarks/reuse.py`` says for which layers it pays.
    reuse: str = "off"

    dense_type = nn.Linear
    takes_kronecker = True
    other_types = (NonDynamicallyQuantizableLinear,)  # what an attention has as its out_proj

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
        config = config if config is not None else GeneratorConfig()
        Blueprint((out_features, in_features), config)  # refuses what torch's own layer would only warn of
        template = nn.Linear(in_features, out_features, bias, device="meta")
        self._build(template, config, execution, device, dtype)

    def forward(self, input: Tensor) -> Tensor:  # shape: (*batch, in_features) -> (*batch, out_features)
        if self._runs_factored(input):
            staged = self._kronecker() or self._staged(self._positions(input))
            if staged is not None:
                return staged.linear(input, self.bias, self.reuse)
            if self.ranks is not None:  # a sum of Kronecker products has none, should an embedding have zeroed its rows
                return factored.linear(input, self._factors(), self.bias, self.reuse)
        if self._execution == "auto" and self.split_obstacle is not None:
            return self._without_split(input)
        return F.linear(input, self.weight, self.bias)

    def _without_split(self, input: Tensor) -> Tensor:
        """Run a weight that has no factors: tile by tile where that pays, whole elsewhere."""
        if kernels.in_use() and kernels.usable(self, input.device) is None:
            return kernels.linear(input, self, self.bias, self._keep("tiles", lambda: tiles.make(self)))
        by_tiles = not is_exporting() and self._backward != "adjoint" and tiles.product_obstacle(self) is None
        if by_tiles and tiles.pays(tiles.layout(self), self._positions(input), kept=self._is_kept()):
            return tiles.linear(input, self, self.bias, self._keep("tiles", lambda: tiles.make(self)))
        return F.linear(input, self.weight, self.bias)

    def _positions(self, input: Tensor) -> int:
        return input.numel() // self.in_features

    def probe(self, positions: int) -> Tensor:
        return torch.empty(positions, self.in_features, device="meta", dtype=self.dtype)
