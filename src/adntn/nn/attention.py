"""The generated multi-head attention."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adntn.errors import ConfigError, ShapeError
from adntn.execution import factored
from adntn.execution.choices import Way
from adntn.generator import Generator
from adntn.nn._generated import GeneratedLayer, Source, StandIn, _copy_description, plain_weight, rows_of
from adntn.nn.linear import Linear
from adntn.topology import GeneratorConfig

__all__ = ["MultiheadAttention"]

_JOINT = ("in_proj_weight",)
_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class _Projection(Linear):
    """What makes one of the weights of an attention; torch's own has a parameter in its place."""

    kind = "MultiheadAttention"

    @classmethod
    def of(cls, shape: tuple[int, ...], source: Source, execution: str) -> _Projection:
        template = nn.Linear(shape[1], shape[0], bias=False, device="meta")
        return cls._assemble(template, {"weight": source}, execution)

    def dense_name(self, name: str) -> str:
        return f"{name}_weight"

    def project(self, pieces: list[tuple[Tensor, int, int]], bias: Tensor | None) -> list[Tensor]:
        """Return ``x W[start:stop]^T + bias[start:stop]`` for each (x, start, stop)."""
        biases = [None if bias is None else bias[start:stop] for _, start, stop in pieces]
        if self._runs_factored(pieces[-1][0]):  # keys and values are most of the rows
            staged = self._kronecker() or self._staged(min(self._positions(x) for x, _, _ in pieces))
            stages = [None if staged is None else staged.rows(start, stop) for _, start, stop in pieces]
            if None not in stages:
                return [
                    part.linear(x, b)
                    for (x, _, _), part, b in zip(pieces, stages, biases, strict=True)
                    if part is not None
                ]
            whole = self._factors() if self.ranks is not None else None
            parts = [None if whole is None else rows_of(whole, start, stop) for _, start, stop in pieces]
            if None not in parts:
                return [
                    factored.linear(x, part, b)
                    for (x, _, _), part, b in zip(pieces, parts, biases, strict=True)
                    if part is not None
                ]
        weight = self.weight
        return [F.linear(x, weight[start:stop], b) for (x, start, stop), b in zip(pieces, biases, strict=True)]


class MultiheadAttention(StandIn, nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` with generated projections (paper, Section 2.3, Eq. 6).

    One generator makes ``in_proj_weight``, the queries', keys' and values' rows one below the other; where ``kdim`` or
    ``vdim`` differ from ``embed_dim``, ``q_proj_weight``, ``k_proj_weight`` and ``v_proj_weight`` have one each.
    ``out_proj`` is an :class:`adntn.nn.Linear` with its own. In ``state_dict`` they stand under ``in_proj`` (or
    ``q_proj``, ``k_proj``, ``v_proj``) and ``out_proj``, biases under torch's names.

    For inference torch's encoder layers have a fast path that takes whole weights; it gives the same numbers, and under
    :func:`adntn.cached` the weights are made once.

    Args:
        embed_dim: size of each query and output.
        num_heads: how many heads share it.
        dropout: share of the attention weights to drop in training.
        bias: whether the projections have (stored) biases.
        add_bias_kv: whether to add a learned key and value to every sequence.
        add_zero_attn: whether to add a key and value of zeros to every sequence.
        kdim: size of each key; None means ``embed_dim``.
        vdim: size of each value; None means ``embed_dim``.
        batch_first: whether inputs are (batch, length, size) instead of (length, batch, size).
        config: of the generators; None means the default.
        joint_out: whether ``out_proj`` is made by the generator of ``in_proj_weight`` too, as its last rows.
        execution: ``"auto"``, ``"factored"`` or ``"dense"``.
        device: of all parameters.
        dtype: of all parameters.

    Raises:
        ConfigError: ``execution="factored"`` with an order that has no split, or ``joint_out`` with a ``kdim`` or
            ``vdim`` of its own.
        ShapeError: ``num_heads`` does not divide ``embed_dim``, or the generator's groups the rows of a weight.

    Example:
        >>> attention = adntn.nn.MultiheadAttention(512, 8, batch_first=True, config=adntn.GeneratorConfig())
        >>> y, _ = attention(x, x, x, need_weights=False)
    """

    dense_type = nn.MultiheadAttention
    in_proj: _Projection
    q_proj: _Projection
    k_proj: _Projection
    v_proj: _Projection
    _generated = (*_JOINT, *_SEPARATE)

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        config: GeneratorConfig | None = None,
        *,
        joint_out: bool = False,
        execution: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        try:
            template = nn.MultiheadAttention(
                embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device="meta"
            )
        except (AssertionError, ValueError) as error:
            raise ShapeError(f"{error} (embed_dim={embed_dim}, num_heads={num_heads}).") from None
        device = torch.device(device) if device is not None else torch.get_default_device()
        dtype = dtype if dtype is not None else torch.get_default_dtype()
        for module in (template, template.out_proj):
            for name, p in module._parameters.items():
                if p is not None and p.ndim != 2:  # what is not generated
                    module._parameters[name] = nn.Parameter(torch.empty(p.shape, device=device, dtype=dtype))
        self._become(template, *_sources(template, config, device, dtype, joint_out=joint_out), execution)
        self._reset_biases()

    @classmethod
    def from_dense(
        cls,
        dense: nn.MultiheadAttention,
        config: GeneratorConfig | None = None,
        *,
        joint_out: bool = False,
        execution: str = "auto",
    ) -> Self:
        """Build the attention that stands in for a dense one, with its options, biases, hooks, device, dtype and mode.

        Args:
            dense: torch's; its weights may lie on the meta device.
            config: of the generators, which start at random values; None means the default.
            joint_out: as for the class.
            execution: how to run, see :attr:`execution`.

        Raises:
            ConfigError: as the class.
            ShapeError: the weights cannot be generated.
        """
        weight = dense.out_proj.weight
        layer = cls.__new__(cls)
        layer._become(dense, *_sources(dense, config, weight.device, weight.dtype, joint_out=joint_out), execution)
        return layer

    @classmethod
    def generated_names(cls, dense: nn.Module) -> tuple[str, ...]:
        return _JOINT if getattr(dense, "_qkv_same_embed_dim", True) else _SEPARATE

    @classmethod
    def initial_std(cls, dense: nn.Module, name: str) -> float | None:
        out, inner = dense._parameters[name].shape  # type: ignore[union-attr]
        return float((2 / (out + inner)) ** 0.5)  # torch starts these with xavier_uniform_

    @classmethod
    def _assemble(cls, dense: nn.Module, sources: Mapping[str, Source], execution: str) -> Self:
        layer = cls.__new__(cls)
        layer._become(dense, sources, None, execution)
        return layer

    def _become(
        self, dense: nn.Module, sources: Mapping[str, Source], out_source: Source | None, execution: str
    ) -> None:
        """Become what stands in for ``dense``; without a source its ``out_proj`` stays the module that it is."""
        nn.Module.__init__(self)
        _copy_description(dense, self)
        for name, parameter in dense._parameters.items():
            if name not in self._generated:
                self.register_parameter(name, parameter)
        for name, source in sources.items():
            shape = tuple(dense._parameters[name].shape)  # type: ignore[union-attr]
            self.add_module(name.removesuffix("_weight"), _Projection.of(shape, source, execution))
        out_proj = dense._modules["out_proj"]
        assert out_proj is not None
        if out_source is not None:
            out_proj = Linear._assemble(out_proj, {"weight": out_source}, execution)
        self.add_module("out_proj", out_proj)
        self.train(dense.training)

    def _plain(self, made: dict[object, nn.Parameter] | None) -> nn.Module:
        dense = nn.MultiheadAttention.__new__(nn.MultiheadAttention)
        nn.Module.__init__(dense)
        _copy_description(self, dense)
        for name in self._generated:
            projection = self._modules.get(name.removesuffix("_weight"))
            weight = None if projection is None else plain_weight(projection, {} if made is None else made)  # type: ignore[arg-type]
            dense.register_parameter(name, weight)
        for name, p in self._parameters.items():
            own = (
                p if p is None or made is not None else nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
            )
            dense.register_parameter(name, own)
        out_proj = self._modules["out_proj"]
        if isinstance(out_proj, StandIn):
            out_proj = out_proj._plain(made)
        elif made is None:
            out_proj = copy.deepcopy(out_proj)
        dense.add_module("out_proj", out_proj)
        return dense.train(self.training)

    def _weight(self, name: str) -> Tensor | None:
        projection = self._modules.get(name)
        return projection.weight if isinstance(projection, _Projection) else None

    @property
    def in_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The weights of queries, keys and values one below the other, made anew at each access; read-only."""
        return self._weight("in_proj")

    @property
    def q_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The queries' own weight where ``kdim`` or ``vdim`` differ from ``embed_dim``, else None; read-only."""
        return self._weight("q_proj")

    @property
    def k_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The keys', as :attr:`q_proj_weight`."""
        return self._weight("k_proj")

    @property
    def v_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The values', as :attr:`q_proj_weight`."""
        return self._weight("v_proj")

    def _projections(self) -> list[GeneratedLayer]:
        return [child for child in self.children() if isinstance(child, GeneratedLayer)]

    @property
    def execution(self) -> str:
        """How the projections were asked to run: ``"auto"``, ``"factored"`` or ``"dense"``."""
        return self._projections()[0].execution

    @execution.setter
    def execution(self, value: str) -> None:
        for projection in self._projections():
            projection.execution = value

    @property
    def way(self) -> Way:
        """How the projection of the queries runs, and why."""
        return self._projections()[0].way

    def _reset_parameters(self) -> None:
        for projection in self._projections():
            projection.reset_parameters()
        self._reset_biases()

    def _reset_biases(self) -> None:
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)
        for extra in (self.bias_k, self.bias_v):
            if extra is not None:
                nn.init.xavier_normal_(extra)

    # --- running ------------------------------------------------------------------------------------------------

    def forward(
        self,
        query: Tensor,  # shape: (length, batch, embed_dim), (batch, length, embed_dim), or (length, embed_dim)
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,  # shape: (batch, source) or (source,)
        need_weights: bool = True,
        attn_mask: Tensor | None = None,  # shape: (length, source) or (batch * heads, length, source)
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # shapes: that of query; (batch, length, source), with heads if not averaged
        """Return outputs and attention weights, as torch's own."""
        if query.is_nested or key.is_nested or value.is_nested:
            result: tuple[Tensor, Tensor | None] = super().forward(
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
            return result
        try:
            batched = F._mha_shape_check(query, key, value, key_padding_mask, attn_mask, self.num_heads)  # type: ignore[attr-defined]
        except AssertionError as error:
            raise ShapeError(f"{error}.") from None
        if is_causal and attn_mask is None:
            raise ConfigError("is_causal only says what attn_mask is; give attn_mask as well.")
        kind = query.dtype
        padding = F._canonical_mask(
            key_padding_mask, "key_padding_mask", F._none_or_dtype(attn_mask), "attn_mask", target_type=kind
        )
        mask = F._canonical_mask(attn_mask, "attn_mask", None, "", target_type=kind, check_other=False)
        q, k, v = self._project(query, key, value)
        q, k, v = (self._split_heads(x, batched) for x in (q, k, v))
        hint = is_causal and padding is None and not need_weights
        y, weights = self._attend(q, k, v, None if hint else self._merge(mask, padding, q, k), hint, need_weights)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            y, weights = y[0], None if weights is None else weights[0]
        elif not self.batch_first:
            y = y.transpose(0, 1)
        out: Tensor = self.out_proj(y)
        return out, weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        size, bias = self.embed_dim, self.in_proj_bias
        sizes = (query.shape[-1], key.shape[-1], value.shape[-1])
        if sizes != (size, self.kdim, self.vdim) or key.shape[:-1] != value.shape[:-1]:
            raise ShapeError(
                f"query, key and value of shapes {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)} do "
                f"not fit: their sizes must be {size}, {self.kdim} and {self.vdim}, and key and value of one length."
            )
        if not self._qkv_same_embed_dim:
            biases = (None, None, None) if bias is None else bias.chunk(3)
            pieces = zip((self.q_proj, self.k_proj, self.v_proj), (query, key, value), biases, strict=True)
            return tuple(projection.project([(x, 0, size)], b)[0] for projection, x, b in pieces)
        # As few products as there are different inputs.
        if query is key and key is value:
            return self.in_proj.project([(query, 0, 3 * size)], bias)[0].chunk(3, dim=-1)
        if key is value:
            q, kv = self.in_proj.project([(query, 0, size), (key, size, 3 * size)], bias)
            return (q, *kv.chunk(2, dim=-1))
        return tuple(self.in_proj.project([(query, 0, size), (key, size, 2 * size), (value, 2 * size, 3 * size)], bias))

    def _split_heads(self, x: Tensor, batched: bool) -> Tensor:  # shape: as query -> (batch, heads, length, head_dim)
        if not batched:
            x = x[None]
        elif not self.batch_first:
            x = x.transpose(0, 1)
        heads: Tensor = x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        return heads

    def _merge(self, mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """Return both masks as one of shape (batch or 1, heads or 1, length or 1, source), to be added."""
        (batch, heads, length, _), source = q.shape, k.shape[2]
        if mask is not None:
            possible = ((length, source), (batch * heads, length, source))
            if mask.shape not in possible:
                raise ShapeError(f"attn_mask has shape {tuple(mask.shape)}; possible here are {possible}.")
            mask = mask[None, None] if mask.ndim == 2 else mask.unflatten(0, (batch, heads))
        if padding is not None:
            padding = padding if padding.ndim == 2 else padding[None]
            if padding.shape != (batch, source):
                raise ShapeError(f"key_padding_mask has shape {tuple(padding.shape)}, not {(batch, source)}.")
            padding = padding[:, None, None]
        return padding if mask is None else mask if padding is None else mask + padding

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:  # shapes: (batch, length, embed_dim), (batch, heads, length, source)
        if self.bias_k is not None and self.bias_v is not None:
            extra = (b.expand(len(k), -1, -1) for b in (self.bias_k, self.bias_v))
            k, v = (
                torch.cat([x, e.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)], dim=2)
                for x, e in zip((k, v), extra, strict=True)
            )
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        if mask is not None and k.shape[2] != mask.shape[-1]:
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[-1]))  # what was added may be attended to
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.mT
            weights = F.dropout((scores if mask is None else scores + mask).softmax(dim=-1), dropout)
            y = weights.to(v.dtype) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        return y.transpose(1, 2).flatten(2), weights


def _sources(
    dense: nn.MultiheadAttention,
    config: GeneratorConfig | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    joint_out: bool,
) -> tuple[dict[str, Source], Source]:
    """Return new generators for the in-projections of an attention, and for its out-projection."""
    names = MultiheadAttention.generated_names(dense)
    shapes = {name: tuple(dense._parameters[name].shape) for name in names}  # type: ignore[union-attr]
    out_shape = tuple(dense.out_proj.weight.shape)
    if joint_out:
        if names != _JOINT:
            raise ConfigError(
                "joint_out=True needs queries, keys and values of one size: "
                f"embed_dim={dense.embed_dim}, kdim={dense.kdim}, vdim={dense.vdim}."
            )
        rows = shapes["in_proj_weight"][0]
        whole = rows + out_shape[0]
        generator = Generator((whole, out_shape[1]), config, device=device, dtype=dtype)
        return {"in_proj_weight": (generator, (0, rows))}, (generator, (rows, whole))
    std = MultiheadAttention.initial_std
    sources: dict[str, Source] = {
        name: (Generator(shape, config, std=std(dense, name), device=device, dtype=dtype), None)
        for name, shape in shapes.items()
    }
    return sources, (Generator(out_shape, config, device=device, dtype=dtype), None)
