"""Which generator to grow, by the gradient that its new numbers would have."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adntn
from adntn import GeneratorConfig
from adntn.embedding import Embedding, embed
from adntn.errors import CompressionError, ConfigError
from adntn.topology import Blueprint
from adntn.training.saliency import CHANGES, EXACT, Growth, grow_as_planned_, rank_growths, weight_gradients

pytestmark = pytest.mark.usefixtures("few_objects")


class Net(nn.Module):
    """A convolution, a norm with statistics, dropout, and two linear layers; sizes are no powers of two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(20, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(48, 70)
        self.head = nn.Linear(70, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.conv(x)).relu()).flatten(1)
        result: Tensor = self.head(self.hidden(x).relu())
        return result


def data(dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 20, 2, 2, generator=random, dtype=dtype), torch.randint(4, (n,), generator=random))
        for n in (8, 5)
    ]


def network(dtype: torch.dtype = torch.float64, **options: object) -> Net:
    torch.manual_seed(0)
    model = Net().to(dtype)
    adntn.compress_(model, GeneratorConfig(**options), ["conv", "hidden"])
    return model


def mean_loss(model: nn.Module) -> Tensor:
    batches = data()
    total = sum(F.cross_entropy(model.eval()(x), y, reduction="sum") for x, y in batches)
    return total / sum(len(y) for _, y in batches)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"groups": 2, "terms": 2},
        {"topology": "attn", "boundary_layers": 2},
        {"topology": "mera", "gate": True},
        {"order": "paired", "bond_dim": 3},
        {"topology": "brickwall", "columns": 4},
        {"topology": "tt"},
        {"topology": "lowrank"},
    ],
    ids=str,
)
def test_the_gain_is_the_squared_gradient_of_the_new_numbers_in_the_grown_model(options: dict[str, object]) -> None:
    model = network(**options)
    found = rank_growths(model, data())
    assert found
    assert {growth.layer for growth in found} == {"conv", "hidden"}
    for growth in found:
        grown = copy.deepcopy(model)
        before = Blueprint(getattr(model, growth.layer).blueprint.shape, getattr(model, growth.layer).config)
        report = grow_as_planned_(grown, growth)
        assert report.exact
        assert report.parameters_after - report.parameters_before == growth.numbers
        layer = getattr(grown, growth.layer)
        embedding = embed(before, layer.blueprint)
        assert isinstance(embedding, Embedding)
        mean_loss(grown).backward()
        total = 0.0
        for name, parameter in layer.generator_parameters():
            # Ones where old numbers lie.
            old = {each: torch.ones(before.parameter_shapes[each]) for each in embedding.sources(name)}
            there = embedding.copy(name, old, torch.zeros(parameter.shape))
            if name.startswith("activation."):
                continue
            total += float((parameter.grad * (1 - there)).square().sum())
        assert growth.gain == pytest.approx(total, rel=1e-6, abs=1e-18)
        assert growth.gain > 0


def test_a_step_of_the_new_numbers_lowers_the_loss_by_their_gain_to_first_order() -> None:
    model = network()
    growth = next(each for each in rank_growths(model, data()) if each.change == "terms")
    grow_as_planned_(model, growth)
    layer = getattr(model, growth.layer)
    before = mean_loss(model)
    parameters = [p for _, p in layer.generator_parameters()]
    gradients = torch.autograd.grad(before, parameters)
    old = network()
    norm = sum(
        float(g.square().sum())
        for g in torch.autograd.grad(mean_loss(old), [p for _, p in getattr(old, growth.layer).generator_parameters()])
    )
    rate = 1e-6
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= rate * gradient
    assert float((before - mean_loss(model)).detach()) / rate == pytest.approx(norm + growth.gain, rel=1e-3)


def test_ranked_by_gain_of_each_number_and_the_same_each_time() -> None:
    model = network()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.random.get_rng_state()
    first = rank_growths(model, data(), seed=3)
    assert [growth.rate for growth in first] == sorted((growth.rate for growth in first), reverse=True)
    assert {growth.change for growth in first} == set(EXACT)
    torch.manual_seed(99)
    assert rank_growths(model, data(), seed=3) == first
    assert rank_growths(model, data(), seed=4) != first
    torch.random.set_rng_state(random)
    rank_growths(model, data(), seed=3)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_what_may_and_can_grow_is_offered() -> None:
    model = network()
    most = 100
    assert all(growth.numbers <= most for growth in rank_growths(model, data(), most=most))
    assert {growth.change for growth in rank_growths(model, data(), changes=("bond",))} == {"bond"}
    model.conv.requires_grad_(False)
    assert {growth.layer for growth in rank_growths(model, data())} == {"hidden"}
    assert not rank_growths(network(topology="mera"), data(), changes=("disentanglers",))
    assert not rank_growths(network(topology="subspace"), data(), changes=EXACT)


def test_refits_that_come_near_enough_are_offered_with_their_error() -> None:
    model = network()
    fit = adntn.FitOptions(steps=30, polish=10)
    found = rank_growths(model, data(), changes=("groups", "root"), fit=fit, tolerance=2.0)
    assert {growth.change for growth in found} == {"groups", "root"}
    assert all(growth.relative_error > 1e-9 for growth in found)
    nearest = min(found, key=lambda growth: growth.relative_error)
    bound = nearest.relative_error * 1.0001
    assert rank_growths(model, data(), changes=("groups", "root"), fit=fit, tolerance=bound) == (nearest,)
    report = grow_as_planned_(model, nearest, fit=fit)
    assert report.relative_error == pytest.approx(nearest.relative_error, rel=1e-6)


def test_layers_that_share_a_generator_are_one_and_a_tied_weight_counts_once() -> None:
    torch.manual_seed(0)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(20, 20), nn.Linear(20, 16)
            self.first, self.second = nn.Linear(16, 20), nn.Linear(16, 20)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.k(self.q(x).tanh()).tanh()
            return (self.first(x).tanh() + self.second(x + 1))[:, :4]  # type: ignore[no-any-return]

    model = Pair().double()
    adntn.compress_(model, shared=[("q", "k")])
    batches = [(torch.randn(6, 20, dtype=torch.float64), torch.arange(6) % 4)]
    gradients = weight_gradients(model, batches)
    assert gradients[model.q._network].shape == (36, 20)
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    for name in ("q", "first"):
        layer = getattr(model, name)
        bare = layer.bare_copy()
        parameters = [p for _, p in bare.generator_parameters()]
        expected = torch.autograd.grad((bare() * gradients[layer._network]).sum(), parameters)
        for (_, parameter), gradient in zip(layer.generator_parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    found = rank_growths(model, batches, changes=("terms",))
    assert {growth.layer for growth in found} == {"q", "first"}
    grow_as_planned_(model, found[0])
    assert (model.q.config == model.k.config, model.first.config == model.second.config) == (True, True)


def test_attentions_and_single_parameters_and_other_dtypes() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(24, 2, 40, dropout=0.0, batch_first=True).bfloat16()
    adntn.compress_(model, targets=["self_attn", "linear1"])
    batch = (torch.randn(2, 3, 24, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.int64))
    loss = lambda m, x, y: m(x).float()[:, 0].square().mean()  # noqa: E731
    found = rank_growths(model, [batch], changes=("terms",), loss=loss)
    assert {growth.layer for growth in found} == {"self_attn.in_proj_weight", "self_attn.out_proj", "linear1"}
    lstm = nn.LSTM(12, 12)
    adntn.compress_(lstm, targets=["weight_hh_l0"])
    inputs = (torch.randn(5, 2, 12), torch.zeros(2, dtype=torch.int64))
    (growth,) = rank_growths(lstm, [inputs], changes=("terms",), loss=lambda m, x, y: m(x)[0].square().mean())
    assert growth.layer == "weight_hh_l0"
    assert growth.gain > 0


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"changes='bonds' is not known.*Did you mean 'bond'"):
        rank_growths(network(), data(), changes=("bonds",))
    with pytest.raises(ConfigError, match="batches is empty"):
        rank_growths(network(), [])
    with pytest.raises(CompressionError, match="nothing in this model is generated"):
        rank_growths(Net(), data())
    growth = Growth("other", "terms", {"terms": 2}, 1, 1.0, 0.0, 0)
    with pytest.raises(CompressionError, match="'other' is not generated in this model; it has conv, hidden"):
        grow_as_planned_(network(), growth)
    assert set(EXACT) < set(CHANGES)
