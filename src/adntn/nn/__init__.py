"""Generated layers, each a subclass of the torch layer that it stands in for."""

from __future__ import annotations

from torch import nn as _nn

from adntn.nn._generated import GeneratedLayer, GeneratedWeight, StandIn
from adntn.nn.attention import MultiheadAttention
from adntn.nn.conv import Conv1d, Conv2d, Conv3d
from adntn.nn.conv_transpose import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from adntn.nn.embedding import Embedding
from adntn.nn.linear import Linear
from adntn.nn.parameter import GeneratedParameter

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "GeneratedLayer",
    "GeneratedParameter",
    "GeneratedWeight",
    "Linear",
    "MultiheadAttention",
    "StandIn",
]

#: The generated class for each torch layer.
GENERATED: dict[type[_nn.Module], type[StandIn]] = {
    kind: cls
    for cls in (
        *(Linear, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Embedding),
        MultiheadAttention,
    )
    for kind in (cls.dense_type, *cls.other_types)
}
