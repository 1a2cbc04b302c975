"""Every layer of the table, in every way that it can run, against torch's own on the generated weight.

Each check says which way that was.
"""

from __future__ import annotations

import pytest
import torch
from conformance_cases import (
    assert_equal,
    relative_error,
)
from conformance_layers import (
    LAYERS,
    LayerCase,
    every_layer,
    every_layer_and_way,
    some_layers,
    torchs_own,
)
from torch import Tensor, nn

import adntn
from adntn.execution.choices import MODES
from adntn.execution.machine import shipped, using


def differentiable(x: Tensor) -> Tensor:
    """Ask for the gradient by an input that has one."""
    return x.requires_grad_() if x.is_floating_point() else x


@every_layer
def test_a_layer_takes_the_cheaper_way_by_itself(layer: LayerCase) -> None:
    module = layer.build()
    assert module.execution == "auto"
    assert module.way.name == layer.way


@every_layer
def test_a_layer_gives_torchs_outputs_whichever_way_a_machine_chooses(layer: LayerCase) -> None:
    with using(shipped()):
        module = layer.build()
    ways = {module.way_for(1 << power, mode) for power in range(25) for mode in MODES}
    assert ways <= ({"factored", "dense"} if module.chooses else {module.way.name})
    x = layer.make_input()
    expected = torchs_own(module, x, module.generate())
    assert relative_error(module(x), expected) < 1e-12
    with torch.no_grad():
        assert relative_error(module(x), expected) < 1e-12
    with adntn.cached(module):
        assert relative_error(module(x), expected) < 1e-12


@every_layer_and_way
def test_forward_is_torchs_with_the_generated_weight(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    assert module.way.name == way
    y, expected = module(x), torchs_own(module, x, module.generate())
    assert y.shape == expected.shape
    assert relative_error(y, expected) < 1e-12


@every_layer
def test_entries_and_rows_alone_are_those_of_the_layers_weight(layer: LayerCase) -> None:
    module = layer.build()
    weight, index = module.weight, torch.stack([torch.randint(-size, size, (20,)) for size in module.shape], -1)
    assert_equal(module.entries(index), weight[index.unbind(1)])
    assert_equal(module.rows_at(index[:, 0]), weight[index[:, 0]])
    assert_equal(module.rows_at(torch.arange(len(weight))), weight)


@every_layer_and_way
def test_forward_takes_other_batches(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    whole = module(x)
    assert_equal(module(x[0]), whole[0])
    assert module(x[:0]).shape == (0, *whole.shape[1:])
    if isinstance(module, nn.Linear):
        assert_equal(module(x.reshape(1, 3, 1, -1)), whole.reshape(1, 3, 1, -1))


@pytest.mark.parametrize(
    "layer", [c for c in LAYERS.values() if c.splits], ids=[n for n, c in LAYERS.items() if c.splits]
)
def test_gradients_are_the_same_in_both_ways(layer: LayerCase) -> None:
    gradients = {}
    for way in ("dense", "factored"):
        module, x = layer.build(way), differentiable(layer.make_input())
        y = module(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        gradients[way] = {"input": x.grad} | {name: p.grad for name, p in module.named_parameters()}
    if layer.rows is not None:
        for found in gradients.values():
            assert found.pop("input") is None
    assert all(g is not None for g in gradients["dense"].values())
    for name, gradient in gradients["dense"].items():
        assert_equal(gradients["factored"][name], gradient)


@pytest.mark.parametrize("way", ["dense", "factored"])
@some_layers(
    "linear, mera, padded",
    "linear, 3 groups",
    "conv, reflect",
    "conv, generator of 2 groups",
    "conv, 2 groups, generator of 3",
    "conv1d",
    "transposed, 2 groups, generator of 4",
    "embedding, 2 groups, padding",
)
def test_gradients_of_a_layer_are_those_of_finite_differences(layer: LayerCase, way: str) -> None:
    module = layer.build(way)
    assert module.way.name == way
    names = [name for name, _ in module.named_parameters()]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
        return result

    values = tuple(p.detach().clone().requires_grad_() for p in module.parameters())
    x = differentiable(layer.make_input(batch=1))
    assert torch.autograd.gradcheck(function, (x, *values), fast_mode=True)


@every_layer_and_way
def test_forward_mode_runs_through_a_layer(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    names, values = zip(*module.named_parameters(), strict=True)

    def function(*values: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
        return result

    tangents = tuple(torch.randn_like(v) for v in values)
    y, forward = torch.func.jvp(function, values, tangents)
    probe = torch.randn_like(y)
    gradients = torch.autograd.grad((function(*values) * probe).sum(), values)
    assert_equal((forward * probe).sum(), sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True)))
    if layer.rows is None:
        tangent = torch.randn_like(x)
        _, moved = torch.func.jvp(module, (x,), (tangent,))
        # A layer is affine in its input.
        assert_equal(moved, module(x + tangent) - module(x), tolerance=1e-8)


# --- learning -------------------------------------------------------------------------------------


@every_layer_and_way
def test_every_parameter_learns(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
    assert [name for name, p in module.named_parameters() if torch.equal(p, before[name])] == []
