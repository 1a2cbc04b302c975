"""The stages of a recipe, one a file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adntn.training.stages.base import Event, Outcome, Stage, State
from adntn.training.stages.prune import Prune
from adntn.training.stages.quantize import Quantize

__all__ = ["STAGES", "Event", "Outcome", "Prune", "Quantize", "Stage", "State"]

#: Stages by the ``kind`` that names them in a recipe.
_KINDS: tuple[type[Stage], ...] = (Prune, Quantize)
STAGES: Mapping[str, type[Stage]] = MappingProxyType({kind.kind: kind for kind in _KINDS})
