"""Every layer of the table copied, saved, cast, put on other devices and into other layouts."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conformance_cases import (
    assert_equal,
    put_on_grid,
    relative_error,
)
from conformance_layers import (
    LayerCase,
    every_layer,
    every_layer_and_way,
    one_of_each,
    torchs_own,
)
from torch import Tensor, nn

import adntn
from adntn import Generator, quantize_

# --- copies, files, devices, dtypes ---------------------------------------------------------------


def through_deepcopy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module)


def through_pickle(module: nn.Module) -> nn.Module:
    loaded: nn.Module = pickle.loads(pickle.dumps(module))
    return loaded


def through_torch_save(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("duplicate", [through_deepcopy, through_pickle, through_torch_save])
@every_layer
def test_a_copy_is_equal_and_independent(layer: LayerCase, duplicate: Callable[[nn.Module], nn.Module]) -> None:
    module, x = layer.build().eval(), layer.make_input()
    before = module(x)
    other = duplicate(module)
    assert type(other) is type(module)
    assert not other.training
    assert other.way == module.way
    assert torch.equal(other(x), before)
    with torch.no_grad():
        next(other.generator_parameters())[1].mul_(1.5)
    assert not torch.equal(other(x), before)
    assert torch.equal(module(x), before)


@every_layer
def test_a_state_dict_goes_through_a_file(layer: LayerCase) -> None:
    module, x = layer.build(), layer.make_input()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    torch.manual_seed(99)
    other = layer.make(dtype=torch.float64)
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(state, strict=True)
    assert torch.equal(other(x), module(x))


@every_layer
def test_a_layers_state_is_its_generators_and_the_bias(layer: LayerCase) -> None:
    module = layer.build()
    gen = Generator(module.blueprint.shape, module.config)
    expected, trained = set(gen.state_dict()), {name for name, _ in gen.named_parameters()}
    if module.bias is not None:
        expected.add("bias")
        trained.add("bias")
    assert set(module.state_dict()) == expected
    assert {name for name, _ in module.named_parameters()} == trained
    assert expected - trained == ({"seed"} if module.config.topology in ("subspace", "frozen") else set())
    assert all(p.ndim <= 3 for p in module.parameters())


@one_of_each
def test_a_model_of_it_is_saved_loaded_kept_and_made_plain(layer: LayerCase, tmp_path: Path) -> None:
    module, x = layer.build(), layer.make_input()
    model = nn.Sequential(module)
    expected = model(x).detach()
    path = adntn.save(model, tmp_path / "model.safetensors")
    # Into a plain model, into one that is generated already, and the plain one that it becomes.
    for fresh in (nn.Sequential(module.to_dense()), nn.Sequential(layer.make(dtype=torch.float64))):
        loaded = adntn.load(fresh, path)
        assert type(loaded[0]) is type(module)
        assert loaded[0].way == module.way
        assert torch.equal(loaded(x), expected)
    with adntn.cached(model):
        for _ in range(2):
            assert relative_error(model(x), expected) < 1e-12
    plain = adntn.materialize(model)
    assert type(plain[0]) is module.dense_type
    assert relative_error(plain(x), expected) < 1e-12
    (row,) = adntn.describe(model).layers
    assert (row.kind, row.shape, row.way) == (module.dense_type.__name__, module.blueprint.shape, layer.way)


@pytest.mark.parametrize("way", ["dense", "factored"])
@one_of_each
def test_a_layer_runs_on_the_meta_device(layer: LayerCase, way: str) -> None:
    module = layer.make(execution=way, device="meta")
    y = module(layer.make_input(torch.float32).to("meta"))
    assert y.is_meta
    assert y.shape == layer.build(way)(layer.make_input()).shape


@pytest.mark.parametrize("way", ["dense", "factored"])
@one_of_each
def test_an_ensemble_runs_under_vmap(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    stacks = {name: torch.stack([p, 1.5 * p]).detach() for name, p in module.named_parameters()}

    def run(parameters: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(module, parameters, (x,))
        return result

    both = torch.func.vmap(run)(stacks)
    for place in (0, 1):
        assert relative_error(both[place], run({name: stack[place] for name, stack in stacks.items()})) < 1e-12


@one_of_each
def test_compress_makes_it_of_torchs_own(layer: LayerCase) -> None:
    module, x = layer.build(), layer.make_input()
    model = nn.Sequential(module.to_dense())
    report = adntn.compress_(model, module.config)
    assert [row.kind for row in report.layers] == [module.dense_type.__name__]
    assert type(model[0]) is type(module)
    assert model[0].way == module.way
    assert model[0].extra_repr() == module.extra_repr()
    assert relative_error(model(x), torchs_own(model[0], x, model[0].weight)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@every_layer_and_way
def test_a_layer_moves_to_another_dtype(layer: LayerCase, way: str, dtype: torch.dtype) -> None:
    module = layer.build(way, dtype=torch.float32).to(dtype)
    x = layer.make_input(dtype)
    assert {p.dtype for p in module.parameters()} == {dtype}
    # The weight is made in at least float32 from the rounded parameters, and rounded once.
    work = torch.promote_types(dtype, torch.float32)
    plain = copy.deepcopy(module)
    if layer.bits is not None:  # a grid is one of its type
        put_on_grid(plain)
        quantize_(plain, None)
    exact = plain.to(work).weight.detach()
    assert torch.equal(module.weight, exact.to(dtype))
    y = module(x)
    assert y.dtype == dtype
    expected = torchs_own(plain.to(torch.float64), x.double() if x.is_floating_point() else x, exact.double())
    # In the factored way the rounding errors of three products add up.
    tolerance = {torch.float64: 1e-14, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    assert relative_error(y.double(), expected) < tolerance


@every_layer_and_way
def test_channels_last_changes_nothing(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    before = module(x)
    # On a whole model, as a user calls it.
    for dims, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        model = nn.Sequential(module).to(memory_format=layout)
        if x.ndim != dims:
            assert_equal(model(x), before)
            continue
        y, torchs = model(x.to(memory_format=layout)), torchs_own(module, x.to(memory_format=layout), module.generate())
        assert_equal(y, before)
        # torch too gives the layout up here and there.
        assert y.is_contiguous(memory_format=layout) or not torchs.is_contiguous(memory_format=layout)


@every_layer_and_way
def test_autocast_leaves_the_generator_in_float32(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way, dtype=torch.float32), layer.make_input(torch.float32)
    weight, factors = module.generate(), module.factors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.weight, weight)
        for inside, outside in zip(module.factors() or (), factors or (), strict=True):
            assert torch.equal(inside, outside)
        y = module(x)
        expected = torchs_own(module, x, weight)
        # torch's own lookup is not cast.
        assert y.dtype == expected.dtype == (torch.bfloat16 if layer.rows is None else torch.float32)
        if way == "dense":
            assert torch.equal(y, expected)
    assert relative_error(y.float(), module(x)) < 2e-2


@every_layer_and_way
def test_gradients_under_autocast_are_finite_and_in_the_parameters_dtype(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way, dtype=torch.float32), layer.make_input(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(x).float().square().mean()
    loss.backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
