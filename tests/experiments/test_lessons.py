"""What a network takes over from the trained one that it is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adntn import GeneratorConfig, compress_, share_cores_
from adntn.describe import generated_weights
from adntn.experiments.lessons import fit_weights_, take_rest_
from adntn.fit import relative_error
from adntn.initialize import default_std


def network(seed: int) -> nn.Sequential:
    """Build one in whose last convolution structure hides, with norms that have seen something."""
    torch.manual_seed(seed)
    first, second = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 3)
    model = nn.Sequential(first, nn.BatchNorm2d(12), second, nn.BatchNorm2d(10), nn.Flatten(), nn.Linear(40, 5))
    with torch.no_grad():
        weight = torch.einsum("ac,bd,xy->abcdxy", torch.randn(5, 6), torch.randn(2, 2), torch.randn(3, 3))
        second.weight.copy_(weight.reshape(10, 12, 3, 3) + 0.1 * torch.randn(10, 12, 3, 3))
        model(torch.randn(8, 3, 6, 6) + 2.0)
    return model


def generated(config: GeneratorConfig, seed: int = 1) -> nn.Module:
    model = network(seed)
    compress_(model, config, ["2"], progress=False)
    return model


def test_all_but_the_generated_weight_is_taken_over() -> None:
    trained, model = network(0), generated(GeneratorConfig())
    before = {name: p.clone() for name, p in generated_weights(model)["2"].generator_parameters()}
    take_rest_(model, trained)
    values, there = model.state_dict(), trained.state_dict()
    common = values.keys() & there.keys()
    assert common == there.keys() - {"2.weight"}
    assert all(torch.equal(values[name], there[name]) for name in common)
    assert all(torch.equal(p, before[name]) for name, p in generated_weights(model)["2"].generator_parameters())


@pytest.mark.parametrize(
    "config, below",
    [
        (GeneratorConfig.kronecker((10, 12, 3, 3), terms=3), 0.75),
        (GeneratorConfig(topology="lowrank", bond_dim=2), 0.95),
        (GeneratorConfig(topology="subspace", subspace_dim=200), 0.95),
        (GeneratorConfig(groups=2, terms=2), 0.98),
    ],
)
def test_weights_are_fitted_up_to_a_scale_that_is_that_of_a_start(config: GeneratorConfig, below: float) -> None:
    trained, model = network(0), generated(config)
    layer = generated_weights(model)["2"]
    target = trained.get_parameter("2.weight").detach()

    def error() -> float:
        made = layer.weight.detach()
        return relative_error(made * (made * target).sum() / made.square().sum(), target)

    before = error()
    fit_weights_(model, trained)
    assert error() < min(below, before)
    assert float(layer.weight.detach().std()) == pytest.approx(default_std((10, 12, 3, 3)), rel=1e-3)
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert all(p.grad is not None for _, p in layer.generator_parameters())


def test_weights_with_cores_in_common_are_fitted_together_up_to_a_scale_each() -> None:
    torch.manual_seed(0)
    trained = nn.Sequential(*(nn.Conv2d(8, 8, 3, bias=False) for _ in range(3)), nn.Conv2d(8, 4, 3))
    small, large = torch.randn(2, 8, 8, 3, 3)
    with torch.no_grad():  # two that are much alike, and one that is not, of other scales
        for place, weight in enumerate((small, 100 * (small + 0.1 * large), large)):
            trained[place].weight.copy_(weight)  # type: ignore[operator]
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, bias=False) for _ in range(3)), nn.Conv2d(8, 4, 3))
    overrides = {"3": GeneratorConfig.kronecker((4, 8, 3, 3), terms=4)}
    compress_(model, GeneratorConfig.kronecker((8, 8, 3, 3), terms=6), overrides=overrides, progress=False)
    share_cores_(model, ["0", "1", "2"])
    fit_weights_(model, trained)
    for name, layer in generated_weights(model).items():
        made, target = layer.weight.detach(), trained.get_parameter(f"{name}.weight").detach()
        assert float(made.std()) == pytest.approx(default_std(made.shape), rel=1e-3)
        cosine = float((made * target).sum() / made.norm() / target.norm())
        assert cosine > 0.3, (name, cosine)
