"""Generated layers, each a subclass of the torch layer that it stands in for."""

from __future__ import annotations

from torch import nn as _nn

from adntn.nn._generated import GeneratedLayer
from adntn.nn.conv import Conv2d
from adntn.nn.linear import Linear

__all__ = ["Conv2d", "GeneratedLayer", "Linear"]

#: The generated class for each torch layer.
GENERATED: dict[type[_nn.Module], type[GeneratedLayer]] = {cls.dense_type: cls for cls in (Linear, Conv2d)}
