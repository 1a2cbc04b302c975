"""Optimisers of generators that grow: what they had they keep, and what is new joins them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from growing import step
from torch import Tensor, nn

from adntn import Generator, GeneratorConfig, grow_
from adntn.embedding import Embedding, embed
from adntn.errors import CompressionError
from adntn.nn import Linear

pytestmark = pytest.mark.usefixtures("few_objects")


@pytest.mark.parametrize(
    "make, keys",
    [
        (lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9), {"momentum_buffer"}),
        (lambda p: torch.optim.Adam(p, 1e-3), {"exp_avg", "exp_avg_sq"}),
        (lambda p: torch.optim.AdamW(p, 1e-3, amsgrad=True), {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
        (lambda p: torch.optim.RMSprop(p, 1e-3), {"square_avg"}),
        (lambda p: torch.optim.Adagrad(p, 1e-3), {"sum"}),
    ],
    ids=["sgd", "adam", "amsgrad", "rmsprop", "adagrad"],
)
def test_the_optimisers_state_is_carried_over(make: Callable[..., torch.optim.Optimizer], keys: set[str]) -> None:
    torch.manual_seed(0)
    generator = Generator((12, 10), GeneratorConfig(topology="mera", latent_order=2), dtype=torch.float64)
    optimizer, target = make(generator.parameters()), torch.randn(12, 10, dtype=torch.float64)
    for _ in range(2):
        step(generator, optimizer, target)
    before = {
        n: {k: torch.as_tensor(v).clone() for k, v in optimizer.state[p].items()}
        for n, p in generator.named_parameters()
    }
    old = generator.blueprint
    report = grow_(generator, bond_dim=4, optimizer=optimizer)
    assert report.optimizer.kept == tuple(n for n, _ in generator.named_parameters())
    embedding = embed(old, generator.blueprint)
    assert isinstance(embedding, Embedding)
    for name, parameter in generator.named_parameters():
        state = optimizer.state[parameter]
        for key, value in before[name].items():
            if key in keys:
                assert state[key].shape == parameter.shape
                assert state[key].abs().sum() == pytest.approx(float(value.abs().sum()))  # nothing else but zeros
                assert torch.equal(state[key], embedding.copy(name, {name: value}, torch.zeros_like(parameter)))
            else:
                assert torch.as_tensor(state[key]) == value
    core, was = optimizer.state[generator.get_core("expand.1")], before["expand.1"]
    for key in keys:
        assert torch.equal(core[key].view(-1, 4, 4, 4)[:, :2, :2, :2].reshape_as(was[key]), was[key])
    assert len(optimizer.state) == len(list(generator.parameters()))
    step(generator, optimizer, target)


def test_an_optimiser_of_one_that_grew_is_one_built_anew() -> None:
    # Saved states go by the order of the parameters, so that new ones have to stand where a fresh module has them.
    model = nn.Sequential(Linear(12, 10, config=GeneratorConfig(latent_order=2)), nn.Linear(10, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 12)).sum().backward()
    optimizer.step()
    report = grow_(model[0], topology="attn", boundary_layers=2, bond_dim=3, optimizer=optimizer)
    assert set(report.optimizer.added) == {"mix.2.0", "mix.2.1"}
    fresh = nn.Sequential(Linear(12, 10, config=model[0].config), nn.Linear(10, 3))
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in fresh.named_parameters()]
    assert list(model.state_dict()) == list(fresh.state_dict())
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    other = torch.optim.AdamW(fresh.parameters())
    other.load_state_dict(optimizer.state_dict())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh[0].weight, model[0].weight)


def test_new_parameters_join_the_group_of_the_one_before_and_frozen_ones_stay_out() -> None:
    layer = Linear(12, 10, config=GeneratorConfig(latent_order=2))
    cores = [p for n, p in layer.named_parameters() if n.startswith("expand")]
    optimizer = torch.optim.SGD([{"params": [layer.root], "lr": 1.0}, {"params": cores, "lr": 2.0}])
    grow_(layer, topology="attn", optimizer=optimizer)
    assert any(p is layer.get_core("mix.2.0") for p in optimizer.param_groups[1]["params"])
    assert len(optimizer.param_groups[0]["params"]) == 1
    for p in layer.parameters():
        p.requires_grad_(False)
    layer.root.requires_grad_(True)
    only_root = torch.optim.SGD([layer.root], 1.0)
    del optimizer
    grow_(layer, bond_dim=3, optimizer=only_root)
    assert only_root.param_groups[0]["params"][0] is layer.root
    assert len(only_root.param_groups[0]["params"]) == 1
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["root"]


def test_named_parameters_of_an_optimiser_stay_aligned() -> None:
    model = nn.Sequential(Linear(12, 10, config=GeneratorConfig(latent_order=2)))
    optimizer = torch.optim.SGD(model.named_parameters(), 1.0)
    grow_(model[0], topology="mera", optimizer=optimizer)
    group = optimizer.param_groups[0]
    assert group["param_names"] == [n for n, _ in model.named_parameters()]
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


def test_two_optimisers_of_one_generator_each_keep_their_part() -> None:
    layer = Linear(12, 10, config=GeneratorConfig(latent_order=2))
    cores = [p for n, p in layer.named_parameters() if n.startswith("expand")]
    one, other = torch.optim.Adam([layer.root]), torch.optim.SGD(cores, 1.0)
    grow_(layer, topology="attn", bond_dim=3, optimizer=[one, other])
    assert [id(p) for p in one.param_groups[0]["params"]] == [id(layer.root)]
    rest = {id(p) for n, p in layer.generator_parameters() if n != "root"}
    assert {id(p) for p in other.param_groups[0]["params"]} == rest


@pytest.mark.parametrize("kind", ["adafactor", "lbfgs"])
def test_state_of_another_shape_is_dropped_and_training_goes_on(kind: str) -> None:
    torch.manual_seed(0)
    generator = Generator((12, 10), GeneratorConfig(latent_order=2))
    target = torch.randn(12, 10)
    make = {"adafactor": torch.optim.Adafactor, "lbfgs": torch.optim.LBFGS}[kind]
    optimizer = make(generator.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (generator() - target).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    report = grow_(generator, bond_dim=3, optimizer=optimizer)
    assert report.optimizer.reset
    assert "dropped" in str(report)
    before = float(closure().detach())
    for _ in range(3):
        optimizer.step(closure)
    assert float(closure().detach()) < before


def test_an_optimiser_that_was_not_given_is_an_error_and_nothing_changes() -> None:
    layer = Linear(12, 10, config=GeneratorConfig(latent_order=2))
    optimizer = torch.optim.AdamW(layer.parameters())
    config, weight = layer.config, layer.weight.detach()
    with pytest.raises(CompressionError, match=r"AdamW optimiser already holds .*optimizer="):
        grow_(layer, bond_dim=3)
    assert layer.config == config
    assert torch.equal(layer.weight, weight)
    assert grow_(layer, bond_dim=3, optimizer=[optimizer]).exact
