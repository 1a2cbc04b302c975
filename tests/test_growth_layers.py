"""Growth of layers in models: shared, attention, saved, compiled, kept, on the meta device."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from growing import QUICK, distance
from torch import nn

import adntn
from adntn import Generator, GeneratorConfig, grow_
from adntn.errors import ConfigError
from adntn.generator import GeneratorModule
from adntn.nn import Conv2d, Linear

pytestmark = pytest.mark.usefixtures("few_objects")


def test_layers_that_share_a_generator_grow_together() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    adntn.compress_(model, GeneratorConfig(latent_order=2))
    twin = copy.deepcopy(model)
    loaded = pickle.loads(pickle.dumps(model))
    before = model[0].weight.detach()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 16)).sum().backward()
    optimizer.step()
    before = model[0].weight.detach()
    report = grow_(model[1], topology="mera", bond_dim=3, optimizer=optimizer)
    assert report.layers == 2
    assert model[0].config == model[1].config == report.after
    assert model[0].shares_generator_with(model[1])
    assert all(
        a is b for (_, a), (_, b) in zip(model[0].generator_parameters(), model[1].generator_parameters(), strict=True)
    )
    for layer in model:
        assert distance(layer.weight, before) < 1e-6
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    for other in (twin, loaded):  # copies are their own
        assert other[0].config.topology == "ttn"
        assert grow_(other[0], terms=2).layers == 2
        assert other[1].config.terms == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_keeps_its_place_bias_and_mode(dtype: torch.dtype) -> None:
    model = nn.Sequential(Conv2d(4, 8, 3, config=GeneratorConfig(latent_order=2), dtype=dtype), nn.ReLU())
    layer, bias = model[0].eval(), model[0].bias
    x = torch.randn(2, 4, 5, 5, dtype=dtype)
    before = model(x).detach()
    report = grow_(layer, bond_dim=3, topology="mera")
    assert report.exact
    assert model[0] is layer
    assert layer.bias is bias
    assert not layer.training
    assert layer.dtype == dtype
    torch.testing.assert_close(
        model(x), before, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=2e-2 if dtype == torch.bfloat16 else 1e-5
    )


def test_a_layer_runs_the_way_that_suits_its_new_generator() -> None:
    layer = Linear(64, 64, config=GeneratorConfig(latent_order=2))
    assert layer.way.name == "factored"
    grow_(layer, bond_dim=8)
    assert layer.way.name == "dense"
    asked = Linear(64, 64, config=GeneratorConfig(latent_order=2), execution="factored")
    with pytest.raises(ConfigError, match="no split"):
        grow_(asked, order="paired", fit=QUICK)
    assert asked.config.order == "blocked"
    asked(torch.randn(2, 64))


def test_layers_of_which_one_cannot_run_as_asked_stay_as_they_were() -> None:
    # Rows 6 to 16 cut through four groups of four rows, so that they have no factors.
    model = nn.ModuleDict({"q": nn.Linear(16, 6), "k": nn.Linear(16, 10)})
    adntn.compress_(model, GeneratorConfig(latent_order=2), shared=[("q", "k")], execution="factored")
    before = {name: layer.weight.detach() for name, layer in model.items()}
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    held = [id(p) for p in optimizer.param_groups[0]["params"]]
    with pytest.raises(ConfigError, match="not possible"):
        grow_(model["q"], groups=4, fit=QUICK, optimizer=optimizer)
    for name, layer in model.items():
        assert layer.config.groups == 1
        assert torch.equal(layer.weight, before[name])
        assert layer.way.name == "factored"
        layer(torch.randn(2, 16))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == held
    report = grow_(model["q"], bond_dim=3, optimizer=optimizer)
    assert report.layers == 2
    for name, layer in model.items():
        assert distance(layer.weight, before[name]) < 1e-6


def test_an_attention_and_a_recurrent_layer_grow() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2, batch_first=True), "rnn": nn.LSTM(16, 8)})
    adntn.compress_(model, GeneratorConfig(latent_order=2), ["attention", "rnn.weight_ih_l0"])
    x = torch.randn(2, 3, 16)
    before = [model["attention"](x, x, x)[0].detach(), model["rnn"](x)[0].detach()]
    for generated in adntn.describe(model).layers:
        assert generated.topology == "ttn"
    for each in [m for m in model.modules() if isinstance(m, GeneratorModule)]:
        assert grow_(each, bond_dim=3, topology="attn").exact
    after = [model["attention"](x, x, x)[0].detach(), model["rnn"](x)[0].detach()]
    torch.testing.assert_close(after, before)
    assert {row.topology for row in adntn.describe(model).layers} == {"attn"}


def test_the_adjoint_way_back_is_kept() -> None:
    generator = Generator((12, 10), GeneratorConfig(latent_order=2), backward="adjoint")
    grow_(generator, bond_dim=3)
    assert generator.backward == "adjoint"
    generator().sum().backward()
    grow_(generator, topology="tt", fit=QUICK)
    assert generator.backward == "autograd"
    generator().sum().backward()


def test_nothing_old_is_kept_under_cached() -> None:
    layer = Linear(32, 32, config=GeneratorConfig(latent_order=2))
    x = torch.randn(2, 32)
    with adntn.cached(layer):
        layer(x)
        grow_(layer, bond_dim=3, topology="attn")
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.generate(), layer.bias))
        with torch.no_grad():
            layer.root.mul_(2.0)
        grow_(layer, groups=2, fit=QUICK)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.generate(), layer.bias))
    from adntn.execution.cache import _KEPT

    assert not _KEPT


def test_a_grown_model_is_saved_and_loaded(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 12))
    adntn.compress_(model, GeneratorConfig(latent_order=2))
    grow_(model[0], bond_dim=3, terms=2)
    grow_(model[1], topology="mera", gate=True)
    adntn.save(model, tmp_path / "m.safetensors")
    again = adntn.load(nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 12)), tmp_path / "m.safetensors")
    x = torch.randn(2, 12)
    assert torch.equal(model(x), again(x))
    assert torch.equal(model(x), copy.deepcopy(model)(x))
    assert adntn.describe(model).generated == sum(layer.num_parameters for layer in model)
    assert torch.allclose(adntn.materialize(model)(x), model(x), atol=1e-6)


def test_growth_of_a_compiled_layer_is_seen(no_graphs: None) -> None:
    layer = Linear(16, 16, config=GeneratorConfig(latent_order=2))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x = torch.randn(2, 16)
    before = compiled(x).detach()
    grow_(layer, bond_dim=3, topology="attn")
    torch.testing.assert_close(compiled(x), before)
    with torch.no_grad():
        layer.get_core("mix.2.0").mul_(2.0)
    torch.testing.assert_close(compiled(x), layer(x))


def test_growth_on_the_meta_device_has_the_shapes_of_it() -> None:
    layer = Linear(12, 10, config=GeneratorConfig(latent_order=2), device="meta")
    report = grow_(layer, bond_dim=3, topology="mera", terms=2)
    assert math.isnan(report.relative_error)
    assert {n: tuple(p.shape) for n, p in layer.generator_parameters()} == layer.blueprint.parameter_shapes
    assert layer.device.type == "meta"
    layer.to_empty(device="cpu").reset_parameters()
    assert torch.isfinite(layer.weight).all()


def test_growth_works_where_gradients_are_off_and_leaves_them_alone() -> None:
    layer = Linear(12, 10, config=GeneratorConfig(latent_order=2))
    with torch.inference_mode():
        grow_(layer, bond_dim=3)
        grow_(layer, groups=2, fit=QUICK)
    layer(torch.randn(2, 12)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
