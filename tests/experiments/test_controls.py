"""What deleting and freezing do to a model, dense or generated."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from odd_models import OddModel, VisionTransformer
from torch import nn

from adntn import GeneratorConfig, compress_
from adntn.errors import CompressionError
from adntn.experiments.controls import chosen_weights, delete_, freeze_weights_, stored_numbers
from adntn.experiments.deleted import Deleted
from adntn.targets import select


class Net(nn.Module):
    """A linear layer, one that stands in two places, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.twice = nn.Linear(8, 8)
        self.body = nn.Sequential(self.twice, nn.ReLU(), nn.LayerNorm(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(self.twice(self.first(x))))
        return logits


def test_layers_are_deleted_in_place_wherever_they_stand() -> None:
    model = Net()
    delete_(model, ["twice", "head"])
    assert isinstance(model.twice, Deleted)
    assert model.body[0] is model.twice
    assert isinstance(model.head, Deleted)
    assert isinstance(model.first, nn.Linear)
    assert model(torch.randn(4, 6)).shape == (4, 3)
    assert {name for name, _ in model.named_parameters()} == {
        "first.weight",
        "first.bias",
        "body.2.weight",
        "body.2.bias",
    }


def test_what_cannot_be_deleted_is_named() -> None:
    with pytest.raises(CompressionError, match=r"'body\.2': a LayerNorm cannot be deleted; linear layers, conv"):
        delete_(Net(), ["body.2"])
    for act in (delete_, freeze_weights_):
        with pytest.raises(CompressionError, match=r"no layer or parameter 'hed'.*Did you mean 'head'"):
            act(Net(), ["hed"])


@pytest.mark.parametrize("cls", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_deleted_parameter_is_zero_and_not_stored(cls: type[nn.RNNBase]) -> None:
    rnn = cls(5, 7)
    model, same = nn.Sequential(rnn), copy.deepcopy(rnn)
    delete_(model, ["0.weight_hh_l0"])
    with torch.no_grad():
        same.weight_hh_l0.zero_()
    x = torch.randn(4, 2, 5)
    for each in (rnn, copy.deepcopy(rnn), copy.deepcopy(rnn).double().float()):
        assert torch.equal(each(x)[0], same(x)[0])
        assert "weight_hh_l0" not in dict(each.named_parameters())
        assert "weight_hh_l0" not in each.state_dict()


def test_a_deleted_position_is_zero() -> None:
    model = VisionTransformer()
    delete_(model, ["place"])
    assert not model.place.any()
    assert model(*model.inputs()).shape == (2, 10)


def test_everything_of_a_model_can_be_deleted() -> None:
    model = OddModel()
    names = select(model, ["re:.*", r"re:rnn\.weight_.*"])
    delete_(model, names)
    assert model(*model.inputs()).shape == (2, 6, OddModel.vocabulary)
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {"norm"}
    assert not [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Embedding, nn.MultiheadAttention))]


def test_an_encoder_of_torchs_runs_without_its_attention() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    delete_(model, ["layers.0.self_attn", "layers.0.self_attn.out_proj", "layers.1.self_attn.out_proj"])
    x = torch.randn(3, 5, 8)
    trained = model(x)
    assert trained.shape == x.shape
    with torch.no_grad():
        assert model.eval()(x).shape == x.shape


WEIGHTS = {
    "embedding": nn.Embedding(9, 8),
    "conv1d": nn.Conv1d(8, 8, 3),
    "conv3d": nn.Conv3d(4, 8, 2),
    "transposed": nn.ConvTranspose2d(4, 8, 2),
    "attention": nn.MultiheadAttention(8, 2, add_bias_kv=True),
    "separate": nn.MultiheadAttention(8, 2, kdim=6, vdim=7),
    "lstm": nn.LSTM(8, 8, num_layers=2),
    "gru": nn.GRUCell(8, 8),
}


@pytest.mark.parametrize("generated", [False, True], ids=["dense", "generated"])
def test_exactly_the_weights_that_are_replaced_are_frozen(generated: bool) -> None:
    model = nn.ModuleDict(copy.deepcopy(WEIGHTS))
    names = select(model, ["re:.*", "lstm.weight_hh_l1", "gru.weight_ih"])
    kept = set(dict(model.named_parameters()))
    replaced = {
        *("embedding.weight", "conv1d.weight", "conv3d.weight", "transposed.weight"),
        *("attention.in_proj_weight", "attention.out_proj.weight", "separate.out_proj.weight"),
        *(f"separate.{name}_proj_weight" for name in "qkv"),
        *("lstm.weight_hh_l1", "gru.weight_ih"),
    }
    if generated:
        compress_(model, GeneratorConfig(latent_order=2, activation="prelu", gate=True, topology="mera"), names)
    freeze_weights_(model, names)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == kept - replaced
    weights = chosen_weights(model, names)
    assert {name.removesuffix(".weight") for name in replaced} == weights.keys()
    stored = sum(p.numel() for weight in weights.values() for p in stored_numbers(weight))
    assert stored == sum(p.numel() for p in model.parameters() if not p.requires_grad)


def test_weights_have_one_name_dense_and_generated() -> None:
    model = OddModel()
    names = select(model, ["re:.*", r"re:rnn\.weight_.*"])
    dense = list(chosen_weights(model, names))
    model.compress(GeneratorConfig(latent_order=2))
    assert list(chosen_weights(model, names)) == dense


@pytest.mark.parametrize("generated", [False, True], ids=["dense", "generated"])
@pytest.mark.parametrize("activation", ["elu", "prelu"])
def test_a_frozen_weight_stays_while_its_bias_and_the_rest_are_trained(generated: bool, activation: str) -> None:
    model = Net()
    if generated:
        compress_(model, GeneratorConfig(latent_order=2, activation=activation), ["twice"])
    freeze_weights_(model, ["twice"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    F.cross_entropy(model(torch.randn(16, 6)), torch.randint(3, (16,))).backward()
    optimizer.step()
    after = dict(model.named_parameters())
    frozen = {name for name in before if torch.equal(before[name], after[name])}
    assert frozen == {name for name in before if name.startswith("twice.") and name != "twice.bias"}
    assert frozen
    assert all(after[name].grad is None for name in frozen)
