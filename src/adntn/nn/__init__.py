"""Generated layers, each a subclass of the torch layer that it stands in for."""

from __future__ import annotations

from torch import nn as _nn

from adntn.nn._generated import GeneratedLayer, GeneratedWeight, StandIn
from adntn.nn.attention import MultiheadAttention
from adntn.nn.conv import Conv2d
from adntn.nn.linear import Linear
from adntn.nn.parameter import GeneratedParameter

__all__ = [
    "Conv2d",
    "GeneratedLayer",
    "GeneratedParameter",
    "GeneratedWeight",
    "Linear",
    "MultiheadAttention",
    "StandIn",
]

#: The generated class for each torch layer.
GENERATED: dict[type[_nn.Module], type[StandIn]] = {
    kind: cls for cls in (Linear, Conv2d, MultiheadAttention) for kind in (cls.dense_type, *cls.other_types)
}
