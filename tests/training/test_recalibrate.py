from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from adntn.training.recalibrate import recalibrate_norms


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.9), nn.BatchNorm1d(4))


def test_statistics_are_those_of_all_batches() -> None:
    net, images = model(), torch.randn(40, 3)
    with torch.no_grad():
        net[1].running_mean += 5.0
        net(images)  # in training mode, which must not leave a trace
        assert recalibrate_norms(net, images.split(20)) == 2
        seen = net[0](images)
        later = [torch.batch_norm(net[0](b), None, None, None, None, True, 0.0, 1e-5, False) for b in images.split(20)]
    assert torch.allclose(net[1].running_mean, seen.mean(0), atol=1e-6)
    assert torch.allclose(net[1].running_var, torch.stack([net[0](b).var(0) for b in images.split(20)]).mean(0))
    # Had the dropout been on, the variance would be ten times that.
    assert torch.allclose(net[3].running_var, torch.stack([each.var(0) for each in later]).mean(0), rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_modes_momenta_and_parameters_stay(training: bool) -> None:
    net = model().train(training)
    net[2].eval()
    before = {name: p.clone() for name, p in net.named_parameters()}
    recalibrate_norms(net, torch.randn(8, 3).split(4))
    assert [module.training for module in net] == [training, training, False, training]
    assert [net[1].momentum, net[3].momentum] == [0.3, 0.1]
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())


def test_they_stay_when_a_batch_fails_too() -> None:
    net = model().train()
    with pytest.raises(RuntimeError):
        recalibrate_norms(net, [torch.randn(4, 5)])
    assert net[1].training
    assert net[1].momentum == 0.3


def test_without_norms_no_batch_is_asked_for() -> None:
    def batches() -> Iterator[Tensor]:
        raise AssertionError
        yield torch.zeros(1)

    assert recalibrate_norms(nn.Linear(3, 3), batches()) == 0
    assert recalibrate_norms(nn.BatchNorm1d(3, track_running_stats=False), batches()) == 0
