"""The stages of a recipe, one a file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adntn.training.stages.base import Event, Outcome, Stage, State
from adntn.training.stages.blocks import Blocks
from adntn.training.stages.finetune import FineTune
from adntn.training.stages.finish import Finish
from adntn.training.stages.grow import Grow
from adntn.training.stages.prune import Prune
from adntn.training.stages.quantize import Quantize
from adntn.training.stages.select import Select
from adntn.training.stages.warm_start import WarmStart

__all__ = [
    "STAGES",
    "Blocks",
    "Event",
    "FineTune",
    "Finish",
    "Grow",
    "Outcome",
    "Prune",
    "Quantize",
    "Select",
    "Stage",
    "State",
    "WarmStart",
]

_KINDS: tuple[type[Stage], ...] = (Select, WarmStart, Blocks, FineTune, Grow, Prune, Quantize, Finish)

#: Stages by the ``kind`` that names them in a recipe.
STAGES: Mapping[str, type[Stage]] = MappingProxyType({kind.kind: kind for kind in _KINDS})
