"""What stands where a layer stood: its shapes, and what it does to an input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adntn.errors import CompressionError
from adntn.experiments.deleted import deleted


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Linear(5, 5), (2, 5)),
        (nn.Linear(5, 5), (5,)),
        (nn.Linear(5, 5), (2, 3, 4, 5)),
        (nn.Conv2d(5, 5, 3, padding=1), (2, 5, 6, 7)),
        (nn.Conv2d(5, 5, 3, padding="same", dilation=2), (2, 5, 6, 7)),
        (nn.Conv2d(5, 5, 1), (2, 5, 6, 7)),
        (nn.Conv2d(5, 5, 1), (5, 6, 7)),
        (nn.Conv1d(5, 5, 5, padding=2), (2, 5, 6)),
        (nn.Conv3d(5, 5, 3, padding=1), (2, 5, 4, 3, 6)),
        (nn.ConvTranspose1d(5, 5, 3, padding=1), (2, 5, 6)),
        (nn.ConvTranspose2d(5, 5, 1), (2, 5, 6, 7)),
    ],
    ids=str,
)
def test_it_is_the_identity_where_shapes_agree(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert torch.equal(deleted(layer)(x), x)


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
        (nn.Conv2d(4, 8, 3), (4, 5, 6)),
        (nn.Conv1d(4, 2, 3, stride=2, dilation=2), (2, 4, 17)),
        (nn.Conv1d(4, 6, 3, padding=2), (4, 17)),
        (nn.Conv3d(2, 5, (1, 2, 3), stride=(1, 2, 1), padding=(1, 0, 2)), (2, 2, 4, 5, 6)),
        (nn.ConvTranspose1d(4, 6, 5, stride=3, padding=1, output_padding=2, dilation=2), (2, 4, 7)),
        (nn.ConvTranspose1d(4, 2, 1, stride=2, padding=1), (4, 7)),
        (nn.ConvTranspose2d(4, 2, (3, 2), stride=(1, 2), padding=(0, 1), groups=2), (2, 4, 5, 6)),
        (nn.ConvTranspose3d(2, 5, 2, stride=2), (2, 2, 3, 4, 5)),
        (nn.Embedding(17, 3), (2, 5)),
        (nn.Embedding(17, 40, padding_idx=0), ()),
    ],
    ids=str,
)
def test_its_output_has_the_shape_of_the_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randint(17, shape) if isinstance(layer, nn.Embedding) else torch.randn(shape)
    assert deleted(layer)(x).shape == layer(x).shape


def test_features_are_padded_with_zeros_or_cropped() -> None:
    x = torch.randn(2, 3, 5)
    wider = deleted(nn.Linear(5, 8))(x)
    assert torch.equal(wider[..., :5], x)
    assert not wider[..., 5:].any()
    assert torch.equal(deleted(nn.Linear(5, 2))(x), x[..., :2])


def test_channels_are_padded_with_zeros_or_cropped() -> None:
    x = torch.randn(2, 3, 4, 5)
    wider = deleted(nn.Conv2d(3, 7, 3, padding=1))(x)
    assert torch.equal(wider[:, :3], x)
    assert not wider[:, 3:].any()
    assert torch.equal(deleted(nn.Conv2d(3, 2, 3, padding=1))(x), x[:, :2])


def test_a_map_that_shrinks_is_averaged() -> None:
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(deleted(nn.Conv2d(3, 3, 3, stride=2, padding=1))(x), F.avg_pool2d(x, 2))
    torch.testing.assert_close(deleted(nn.Conv2d(3, 3, 8))(x), x.mean(dim=(2, 3), keepdim=True))


def test_it_has_no_parameter_and_passes_the_gradient_on() -> None:
    gone = deleted(nn.Conv2d(3, 7, 3, stride=2))
    assert not list(gone.parameters())
    assert not gone.state_dict()
    assert "3, 7, kernel_size=(3, 3), stride=(2, 2)" in repr(gone)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    gone(x).sum().backward()
    assert x.grad is not None
    assert x.grad.any()


def test_a_volume_and_a_series_that_shrink_are_averaged() -> None:
    x = torch.randn(2, 3, 4, 6, 8)
    torch.testing.assert_close(deleted(nn.Conv3d(3, 3, 2, stride=2))(x), F.avg_pool3d(x, 2))
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(deleted(nn.Conv1d(3, 3, 4, stride=4))(x), F.avg_pool1d(x, 4))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"kernel_size": 2, "stride": 2}, [1, 1, 2, 2, 3, 3]),
        ({"kernel_size": 4, "stride": 2, "padding": 1}, [1, 1, 2, 2, 3, 3]),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}, [1, 2, 2, 3, 3, 0]),
        ({"kernel_size": 3}, [0, 1, 2, 3, 0]),
        ({"kernel_size": 1, "padding": 1}, [2]),
        ({"kernel_size": 3, "padding": 1}, [1, 2, 3]),
        ({"kernel_size": 5, "stride": 3}, [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0]),
    ],
    ids=str,
)
def test_a_map_that_grows_is_repeated(options: dict[str, int], expected: list[int]) -> None:
    gone = deleted(nn.ConvTranspose1d(1, 1, **options))
    assert gone(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [expected]


def test_every_axis_of_a_map_has_its_own_growth() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    grown = deleted(nn.ConvTranspose2d(1, 2, (2, 3), stride=(2, 1)))(x)
    assert grown[0].tolist() == [[0, 1, 2, 0], [0, 1, 2, 0], [0, 3, 4, 0], [0, 3, 4, 0]]
    assert not grown[1].any()


@pytest.mark.parametrize("size", [9, 10])
def test_an_output_size_that_is_asked_for_is_given(size: int) -> None:
    layer = nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1)
    x = torch.randn(4, 2, 5)
    assert deleted(layer)(x, [size]).shape == layer(x, [size]).shape == (4, 3, size)


def test_an_index_becomes_its_binary_digits() -> None:
    gone = deleted(nn.Embedding(6, 7))
    assert gone(torch.tensor([[0, 5]])).tolist() == [[[-1] * 7, [1, -1, 1, 1, -1, 1, 1]]]
    assert not list(gone.parameters())
    assert not gone.state_dict()
    assert gone.embedding_dim == 7  # models multiply by its root


@pytest.mark.parametrize("rows, columns", [(1, 1), (2, 1), (333, 9), (1000, 64)])
def test_codes_of_all_indices_differ(rows: int, columns: int) -> None:
    table = deleted(nn.Embedding(rows, columns)).weight
    assert table.shape == (rows, columns)
    assert len(table.unique(dim=0)) == rows
    assert torch.equal(table.square(), torch.ones_like(table))


def test_a_code_follows_type_and_padding_of_the_table() -> None:
    gone = deleted(nn.Embedding(6, 7, padding_idx=2))
    assert not gone(torch.tensor(2)).any()
    assert gone.to(torch.bfloat16)(torch.tensor([3])).dtype == torch.bfloat16


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "query, value", [((5, 3, 8), (5, 3, 8)), ((5, 3, 8), (2, 3, 6)), ((2, 3, 8), (5, 3, 11)), ((5, 8), (7, 8))], ids=str
)
def test_an_attention_gives_the_shape_of_the_query(
    query: tuple[int, ...], value: tuple[int, ...], batch_first: bool
) -> None:
    layer = nn.MultiheadAttention(8, 2, kdim=value[-1], vdim=value[-1], batch_first=batch_first)
    q, v = torch.randn(query), torch.randn(value)
    if batch_first and len(query) == 3:
        q, v = q.transpose(0, 1), v.transpose(0, 1)
    y, weights = deleted(layer)(q, v, v, key_padding_mask=None, need_weights=True)
    assert y.shape == layer(q, v, v)[0].shape
    assert weights is None


def test_an_attention_passes_the_value_through() -> None:
    x, memory = torch.randn(2, 4, 8), torch.randn(2, 8, 8)
    gone = deleted(nn.MultiheadAttention(8, 2, batch_first=True))
    assert torch.equal(gone(x, x, x, need_weights=False)[0], x)
    torch.testing.assert_close(gone(x, memory, memory)[0], F.avg_pool1d(memory.mT, 2).mT)


def test_a_matrix_that_is_read_is_the_same_map() -> None:
    x = torch.randn(3, 5)
    for outputs in (5, 2, 8):
        gone = deleted(nn.Linear(5, outputs))
        weight, bias = gone.weight, gone.bias
        assert isinstance(weight, Tensor)
        assert isinstance(bias, Tensor)
        assert torch.equal(F.linear(x, weight, bias), gone(x))


def test_other_layers_are_refused() -> None:
    with pytest.raises(CompressionError, match="a LayerNorm cannot be deleted; linear layers, convolutions"):
        deleted(nn.LayerNorm(3))


@pytest.mark.parametrize("layer", [nn.Linear(6, 6), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)], ids=str)
def test_what_works_in_place_after_it_leaves_its_input_alone(layer: nn.Module) -> None:
    """Without a copy a ReLU in place would change what the layer before has kept for its gradient."""
    before = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Sigmoid()) if isinstance(layer, nn.Conv2d) else nn.Sigmoid()
    x = torch.randn((5, 6, 4, 4) if isinstance(layer, nn.Conv2d) else (5, 6), requires_grad=True)
    found = []
    for inplace in (True, False):
        x.grad = None
        kept = before(x)
        y = nn.Sequential(deleted(layer), nn.Hardtanh(-0.1, 0.5, inplace=inplace))(kept)
        assert torch.equal(kept, before(x))
        y.square().sum().backward()
        assert x.grad is not None
        found.append(x.grad)
    assert torch.equal(*found)


def test_a_network_whose_layers_are_gone_trains_with_activations_in_place() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(deleted(nn.Conv2d(4, 4, 3, padding=1)), nn.ReLU(inplace=True)),
        *(deleted(nn.Conv2d(4, 4, 3, padding=1)), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(inplace=True), deleted(nn.Linear(8, 8)), nn.ReLU(inplace=True)),
        nn.Linear(8, 2),
    )
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
