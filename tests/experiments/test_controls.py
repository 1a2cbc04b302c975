"""What stands where a layer stood, and what a frozen weight does while the rest is trained."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adntn import GeneratorConfig, compress_
from adntn.errors import CompressionError
from adntn.experiments.controls import Deleted, delete_, freeze_weights_


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Linear(5, 5), (2, 5)),
        (nn.Linear(5, 5), (5,)),
        (nn.Linear(5, 5), (2, 3, 4, 5)),
        (nn.Conv2d(5, 5, 3, padding=1), (2, 5, 6, 7)),
        (nn.Conv2d(5, 5, 3, padding="same", dilation=2), (2, 5, 6, 7)),
        (nn.Conv2d(5, 5, 1), (2, 5, 6, 7)),
    ],
    ids=str,
)
def test_it_is_the_identity_where_shapes_agree(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert torch.equal(Deleted(layer)(x), x)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Linear(5, 9), (2, 5)),
        (nn.Linear(5, 2), (2, 3, 5)),
        (nn.Conv2d(4, 6, 3), (2, 4, 7, 9)),
        (nn.Conv2d(4, 2, 3, padding="valid"), (2, 4, 7, 9)),
        (nn.Conv2d(4, 4, 3, stride=2, padding="valid"), (2, 4, 8, 9)),
        (nn.Conv2d(4, 4, (3, 2), stride=(2, 1), padding="valid", dilation=(1, 3)), (2, 4, 8, 9)),
        (nn.Conv2d(4, 4, 3, padding="same"), (2, 4, 7, 9)),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), (2, 4, 8, 8)),
        (nn.Conv2d(4, 8, (5, 3), stride=(3, 2), padding=(0, 2), dilation=(1, 2)), (2, 4, 11, 8)),
        (nn.Conv2d(4, 4, 1, padding=1), (2, 4, 5, 6)),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 5, 6)),
    ],
    ids=str,
)
def test_its_output_has_the_shape_of_the_layers(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert Deleted(layer)(x).shape == layer(x).shape


def test_features_are_padded_with_zeros_or_cropped() -> None:
    x = torch.randn(2, 3, 5)
    wider = Deleted(nn.Linear(5, 8))(x)
    assert torch.equal(wider[..., :5], x)
    assert not wider[..., 5:].any()
    assert torch.equal(Deleted(nn.Linear(5, 2))(x), x[..., :2])


def test_channels_are_padded_with_zeros_or_cropped() -> None:
    x = torch.randn(2, 3, 4, 5)
    wider = Deleted(nn.Conv2d(3, 7, 3, padding=1))(x)
    assert torch.equal(wider[:, :3], x)
    assert not wider[:, 3:].any()
    assert torch.equal(Deleted(nn.Conv2d(3, 2, 3, padding=1))(x), x[:, :2])


def test_a_map_that_shrinks_is_averaged() -> None:
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(Deleted(nn.Conv2d(3, 3, 3, stride=2, padding=1))(x), F.avg_pool2d(x, 2))
    torch.testing.assert_close(Deleted(nn.Conv2d(3, 3, 8))(x), x.mean(dim=(2, 3), keepdim=True))


def test_it_has_no_parameter_and_passes_the_gradient_on() -> None:
    deleted = Deleted(nn.Conv2d(3, 7, 3, stride=2))
    assert not list(deleted.parameters())
    assert not deleted.state_dict()
    assert "outputs=7" in repr(deleted)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    deleted(x).sum().backward()
    assert x.grad is not None
    assert x.grad.any()


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


def test_only_linear_layers_and_convolutions_can_be_deleted() -> None:
    with pytest.raises(CompressionError, match=r"'body\.2' is a LayerNorm"):
        delete_(Net(), ["body.2"])


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
