"""How long each module takes in a forward pass."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from adntn.errors import ConfigError, ShapeError
from adntn.forward_times import forward_times


class Slow(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.02)
        return super().forward(x)


def model() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Slow(4, 4), nn.BatchNorm1d(4)), nn.Dropout(0.5))
    made.idle = nn.Linear(4, 4)
    made.forward = lambda x: made[2](made[1](made[1](made[0](x))))
    return made


def test_each_module_has_its_own_time_and_its_childrens_over_all_of_its_calls() -> None:
    times = forward_times(model(), torch.randn(3, 4))
    assert times["1.0"] >= 0.04
    assert times["1"] >= times["1.0"]
    assert times[""] >= times["1"]
    assert times["0"] < times["1.0"]
    assert times["idle"] == 0


def test_the_model_is_left_as_it_was() -> None:
    made = model().train()
    made[1].eval()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    modes = [module.training for module in made.modules()]
    forward_times(made, (torch.randn(3, 4),))
    assert [module.training for module in made.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.modules())


def test_mistakes_are_named_and_leave_no_hooks() -> None:
    made = model()
    with pytest.raises(ShapeError, match=r"cannot run on the example, \(3, 5\)"):
        forward_times(made, torch.randn(3, 5))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.modules())
    with pytest.raises(ConfigError, match="give an input"):
        forward_times(made, None)
    with pytest.raises(ConfigError, match="meta device"):
        forward_times(made.to("meta"), torch.randn(3, 4))
