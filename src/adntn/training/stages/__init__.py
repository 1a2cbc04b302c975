"""The stages of a recipe, one a file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adntn.training.stages.base import Event, Outcome, Stage, State
from adntn.training.stages.finetune import FineTune
from adntn.training.stages.finish import Finish

__all__ = ["STAGES", "Event", "FineTune", "Finish", "Outcome", "Stage", "State"]

#: Stages by the ``kind`` that names them in a recipe.
_KINDS: tuple[type[Stage], ...] = (FineTune, Finish)
STAGES: Mapping[str, type[Stage]] = MappingProxyType({kind.kind: kind for kind in _KINDS})
