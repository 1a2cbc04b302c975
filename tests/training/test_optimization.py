"""What an optimisation can be told."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from adntn.errors import ConfigError
from adntn.training.optimization import Optimization


@pytest.mark.parametrize(
    "options",
    [
        *({name: value} for name in ("epochs", "batch_size") for value in (0, -1, 1.5, True, "3", None)),
        *({name: value} for name in ("lr", "clip", "core_lr") for value in (0, -1.0, math.inf, math.nan, "1", True)),
        *({"weight_decay": value} for value in (-1e-9, math.inf, math.nan, "0", True)),
        *({"label_smoothing": value} for value in (-0.1, 1.0, 2, math.nan, "0")),
        *({"momentum": value} for value in (-0.1, 1.0, "0")),
        *({"warmup": value} for value in (-0.1, 1.0, math.nan)),
        *({"ema": value} for value in (0, 1.0, "0.9")),
        *({"patience": value} for value in (0, 1.5, True)),
        *({name: value} for name in ("augment", "channels_last", "compile") for value in ("yes", 1, None)),
    ],
    ids=str,
)
def test_an_impossible_recipe_is_refused(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name}={value!r} is not possible"):
        Optimization(**options)


def test_the_limits_of_the_possible_are_possible() -> None:
    Optimization(epochs=1, batch_size=1, lr=1, clip=None, weight_decay=0, label_smoothing=0, augment=True, warmup=0)


@pytest.mark.parametrize("name", ["optimizer", "schedule", "precision", "on_nonfinite"])
def test_a_name_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}='other' is not known"):
        Optimization(**{name: "other"})


def test_it_goes_through_json() -> None:
    how = Optimization(optimizer="sgd", core_lr=0.5, ema=0.9, patience=3, clip=None, channels_last=True, compile=True)
    assert Optimization.from_dict(json.loads(json.dumps(how.to_dict()))) == how
