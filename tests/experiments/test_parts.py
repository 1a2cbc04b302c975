"""Holding out what to choose by: every class in proportion, nothing lost, nothing twice."""

from __future__ import annotations

import pytest
import torch

from adntn.errors import ConfigError
from adntn.experiments.data import load_data
from adntn.experiments.parts import hold_out


@pytest.mark.parametrize("validation", [0.2, 260], ids=str)
def test_validation_is_held_out_of_every_class(validation: float) -> None:
    data = load_data("digits")
    made = hold_out(data, validation, 0)
    assert len(made.train) + len(made.validation) == len(data.train)
    assert abs(len(made.validation) - 260) <= 5
    counts = made.validation.labels.bincount(minlength=10)
    assert counts.min() >= 24
    both = torch.cat([made.train.images, made.validation.images]).flatten(1).float().sum(1).sort().values
    assert torch.equal(both, data.train.images.flatten(1).float().sum(1).sort().values)
    assert torch.equal(hold_out(data, validation, 0).validation.labels, made.validation.labels)


@pytest.mark.parametrize("validation", [0.0, 5000])
def test_a_part_that_would_be_empty_is_refused(validation: float) -> None:
    with pytest.raises(ConfigError, match="leaves none"):
        hold_out(load_data("digits"), validation, 0)
