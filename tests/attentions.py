"""Attentions of all options, and what they are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adntn import GeneratorConfig, compress_
from adntn.nn import MultiheadAttention

CONFIG = GeneratorConfig(topology="ttn", order="blocked", activation="elu", initialization="paper")
MERA = CONFIG.replace(topology="mera", latent_order=2)
WAYS = ("dense", "factored")
SIZE, HEADS = 32, 4

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "dropout": {"dropout": 0.4, "batch_first": True},
    "bias_kv": {"add_bias_kv": True},
    "bias_kv and zeros, batch first": {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
    "zeros": {"add_zero_attn": True, "bias": False},
    "other sizes": {"kdim": 24, "vdim": 40},
    "other values, no bias, batch first": {"vdim": 33, "bias": False, "batch_first": True, "add_bias_kv": True},
    "joint out": {"joint_out": True},
    "groups that cut through queries": {"config": CONFIG.replace(groups=2)},
    "three groups": {"config": CONFIG.replace(groups=3), "batch_first": True},
    "mera, joint out": {"config": MERA, "joint_out": True, "batch_first": True},
}
#: Where the config of a generator does not fit out_proj too.
OUT_PLAIN = ("three groups",)


def build(name: str = "plain", way: str = "auto", dtype: torch.dtype = torch.float64) -> MultiheadAttention:
    """Return an attention whose biases and disentanglers are not what they start as."""
    torch.manual_seed(0)
    options = {"config": CONFIG, **OPTIONS[name]}
    if name in OUT_PLAIN:
        model = nn.Sequential(nn.MultiheadAttention(SIZE, HEADS, batch_first=True, dtype=dtype))
        compress_(model, options["config"], "0", ignore="0.out_proj", execution=way)
        layer: MultiheadAttention = model[0]
    else:
        layer = MultiheadAttention(SIZE, HEADS, **options, execution=way, dtype=dtype)
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            if "bias" in key or "mix" in key:
                parameter.copy_(torch.randn_like(parameter) / 2)
    return layer


def inputs(layer: nn.MultiheadAttention, kind: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Return queries of length 5, keys and values of length 7, three of each where batched; ``"self"``: one of all."""
    generator = torch.Generator().manual_seed(1)

    def make(length: int, size: int) -> Tensor:
        shape = (length, 3, size) if kind != "unbatched" else (length, size)
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return x.transpose(0, 1).contiguous() if layer.batch_first and kind != "unbatched" else x

    if kind == "self":
        return (make(7, SIZE),) * 3
    query, key = make(5, SIZE), make(7, layer.kdim)
    return query, key, key if kind == "memory" else make(7, layer.vdim)


def masks(kind: str, length: int, batched: bool) -> dict[str, Any]:
    """Return arguments that mask something, but nothing of what only one query sees."""
    generator = torch.Generator().manual_seed(2)
    padding = torch.rand(3, 7, generator=generator) < 0.3
    padding[:, 0] = False
    plain = torch.rand(length, 7, generator=generator) < 0.3
    plain[:, 0] = False
    each = torch.rand(3 * HEADS, length, 7, generator=generator) < 0.3
    each[:, :, 0] = False
    return {
        "none": {},
        "padding": {"key_padding_mask": padding if batched else padding[0]},
        "mask": {"attn_mask": plain},
        "both": {"attn_mask": plain, "key_padding_mask": padding if batched else padding[0]},
        "float masks": {
            "attn_mask": torch.randn(length, 7, generator=generator, dtype=torch.float64),
            "key_padding_mask": torch.randn((3, 7) if batched else (7,), generator=generator, dtype=torch.float64),
        },
        "a mask each": {"attn_mask": each if batched else each[:HEADS]},
        "causal": {"attn_mask": torch.ones(length, 7).triu(1).bool(), "is_causal": True},
        "causal and padding": {
            "attn_mask": torch.ones(length, 7).triu(1).bool(),
            "is_causal": True,
            "key_padding_mask": padding if batched else padding[0],
        },
    }[kind]


MASKS = ("none", "padding", "mask", "both", "float masks", "a mask each", "causal", "causal and padding")


def close(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def kinds(name: str) -> tuple[str, ...]:
    sizes = {"kdim", "vdim"} & OPTIONS[name].keys()
    return ("cross", "unbatched") if sizes else ("self", "memory", "cross", "unbatched")
