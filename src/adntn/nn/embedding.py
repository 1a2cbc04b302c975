"""The generated embedding."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adntn.adjoint.reverse import full_precision
from adntn.cores import CoreModule
from adntn.errors import ConfigError, ShapeError
from adntn.execution import factored
from adntn.nn._generated import GeneratedLayer
from adntn.topology import Blueprint, GeneratorConfig

__all__ = ["Embedding"]


class Embedding(GeneratedLayer, nn.Embedding):  # type: ignore[override]  # the weight is read-only, on purpose
    """``torch.nn.Embedding`` with a generated table, which starts with torch's deviation of 1.

    Where the order splits, only the rows that are looked up are made, and the table never is. As torch's own, rows keep
    the precision of the parameters under autocast.

    The row of ``padding_idx``, read once when the layer is made, is zero and stays zero. In torch a weight tied between
    an embedding and a linear layer is one tensor. So it is here: the row is zero for every layer that shares the
    generator, and its score in a language model's head is the bias. (torch's row starts at zero too, but the head's
    gradient then moves it, and with it what the embedding returns for padding.) Tied layers start with the deviation of
    the first of them that ``compress_`` replaces.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: size of each row.
        padding_idx: the row that is zero; counted from the end if negative.
        max_norm: only None: a generated table cannot be renormalised in place.
        norm_type: of ``max_norm``, and so without effect.
        scale_grad_by_freq: only False: a row has no gradient of its own.
        sparse: only False, for the same reason.
        config: of the generator; None means the default.
        execution: ``"auto"``, which is ``"factored"`` wherever the order splits, ``"factored"`` or ``"dense"``.
        device: of all parameters.
        dtype: of all parameters.

    Raises:
        ConfigError: an option that a generated table cannot have, or ``execution="factored"`` with an order that has no
            split.
        ShapeError: the generator's groups do not divide ``num_embeddings``.

    Example:
        >>> table = adntn.nn.Embedding(50_000, 512, padding_idx=0)
        >>> table(torch.tensor([[0, 17, 49_999]])).shape
        torch.Size([1, 3, 512])
    """

    dense_type = nn.Embedding
    dense_std = 1.0
    bias = None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        config: GeneratorConfig | None = None,
        *,
        execution: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = config if config is not None else GeneratorConfig()
        Blueprint((num_embeddings, embedding_dim), config)  # refuses what torch's own layer would not
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ConfigError(f"padding_idx={padding_idx} is not one of the {num_embeddings} rows.")
        template = nn.Embedding(
            num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, device="meta"
        )
        self._build(template, config, execution, device, dtype)

    @classmethod
    def refusal(cls, dense: nn.Module) -> str | None:
        assert isinstance(dense, nn.Embedding)
        if dense.max_norm is not None:
            return f"it has max_norm={dense.max_norm}, and a generated table cannot be renormalised in place; use None"
        for option in ("scale_grad_by_freq", "sparse"):
            if getattr(dense, option):
                return f"it has {option}=True, and a row of a generated table has no gradient of its own; use False"
        return None

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> NoReturn:
        """Raise: a generated table cannot take over given rows.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a generated table cannot take over given rows; keep them in torch.nn.Embedding.from_pretrained, or start "
            "anew with adntn.nn.Embedding.from_dense."
        )

    def _grow(self, *args: Any) -> None:
        super()._grow(*args)
        self._keep_padding_zero()

    def _share(self, other: CoreModule) -> None:
        if self.rows is not None:
            raise ShapeError("an embedding looks up all rows that a generator makes; it cannot share one in part.")
        super()._share(other)
        self._keep_padding_zero()

    def _keep_padding_zero(self) -> None:
        if self.padding_idx is not None and self.padding_idx not in self._zero_rows:
            self._zero_rows.append(self.padding_idx)

    def _work(self) -> None:
        return None

    def _positions(self, input: Tensor) -> int:
        return input.numel()

    def probe(self, positions: int) -> Tensor:
        return torch.empty(positions, device="meta", dtype=torch.int64)

    def forward(self, input: Tensor) -> Tensor:  # shape: (*) -> (*, embedding_dim)
        if not self._runs_factored(input):
            return nn.Embedding.forward(self, input)
        size = self.num_embeddings // self.config.groups
        with full_precision(self.device):
            factors = None if self._whole_pays(input) else self.factors_at(input)
            if factors is None:
                a, *rest = self._factors()
                rows = F.embedding(input, a.flatten(0, 1))
            else:
                rows, *rest = factors
            return factored.embedding(rows, input, rest, size).to(self.dtype)

    def _whole_pays(self, index: Tensor) -> bool:
        """Return whether to make A whole, and not only the rows of it that are looked up."""
        assert self.ranks is not None
        return index.numel() >= self.num_embeddings or (self._is_kept() and self.ranks[0] < self.embedding_dim)
