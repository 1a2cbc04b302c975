"""A compressed model goes through what models go through: training, copies, files, formats, torch's own wrappers."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import adntn
from adntn import GeneratorConfig

pytestmark = pytest.mark.usefixtures("few_objects")

CONFIGS = {
    "ttn": GeneratorConfig(topology="ttn", order="blocked", activation="elu"),
    "mera": GeneratorConfig(topology="mera", order="paired", activation="prelu", latent_order=2),
    "groups": GeneratorConfig(topology="attn", order="blocked", activation="sine(omega=3)", groups=2),
}


class Net(nn.Module):
    """A small convolutional classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU()),
        )
        self.head = nn.Sequential(nn.Linear(256, 32), nn.GELU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.features(x).flatten(1))
        return result


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Net:
    model = Net()
    report = adntn.compress_(model, CONFIGS[request.param])
    assert [row.name for row in report.layers] == ["features.0", "features.3", "head.0", "head.2"]
    return model


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 3, 8, 8), torch.arange(16) % 10


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[name], rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def train(model: nn.Module, batch: tuple[Tensor, Tensor], steps: int, *, autocast: bool = False) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16 autocast"])
def test_a_few_steps_lower_the_loss_and_move_every_parameter(
    model: Net, batch: tuple[Tensor, Tensor], autocast: bool
) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = train(model, batch, 12, autocast=autocast)
    assert losses[-1] < 0.9 * losses[0]
    for name, parameter in model.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, before[name]), name


def test_bf16_autocast_gives_about_the_same_outputs(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    model.eval()
    with torch.no_grad():
        full = model(batch[0])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(batch[0])
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() < 0.05 * full.norm()


def test_training_resumes_from_model_and_optimiser_states(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steps(model, optimizer)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    steps(model, optimizer)

    other = Net()
    adntn.compress_(other, model.head[0].config)
    resumed = torch.optim.AdamW(other.parameters(), lr=1.0)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    steps(other, resumed)
    close(dict(other.named_parameters()), dict(model.named_parameters()))


def test_gradient_checkpointing_gives_equal_gradients(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    x = x.requires_grad_()
    model.features[1].eval()  # its statistics would be updated twice
    loss_of(model, (x, y)).backward()
    expected, at_input = gradients(model), x.grad.clone()
    model.zero_grad()
    x.grad = None
    hidden = checkpoint_sequential(model.features, 2, x, use_reentrant=False).flatten(1)
    F.cross_entropy(checkpoint(model.head, hidden, use_reentrant=False), y).backward()
    close(gradients(model), expected)
    torch.testing.assert_close(x.grad, at_input)


def test_gradients_accumulate(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    model.eval()
    loss_of(model, batch).backward()
    expected = gradients(model)
    model.zero_grad()
    for part in range(2):
        (loss_of(model, (batch[0][part::2], batch[1][part::2])) / 2).backward()
    close(gradients(model), expected)


def test_a_frozen_model_passes_gradients_on(model: Net) -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    model.requires_grad_(False)
    model(x).sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    assert not gradients(model)


# --- copies and files -------------------------------------------------------------------------------------------------


def test_a_state_dict_travels_through_torch_save(model: Net, batch: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    train(model, batch, 2)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = Net()
    adntn.compress_(other, model.head[0].config)
    assert other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    assert torch.equal(other.eval()(batch[0]), model.eval()(batch[0]))


def test_a_state_dict_holds_plain_small_tensors(model: Net) -> None:
    state = model.state_dict()
    assert {type(tensor) for tensor in state.values()} == {Tensor}
    assert max(tensor.dim() for tensor in state.values()) <= 3
    assert not [name for name in state if name.endswith("weight") and not name.startswith("features.1.")]


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_equal_and_on_its_own(model: Net, batch: tuple[Tensor, Tensor], how: str) -> None:
    train(model, batch, 1)
    model.eval()
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    expected = model(batch[0])
    assert torch.equal(twin(batch[0]), expected)
    assert not twin.training
    train(twin, batch, 2)
    assert torch.equal(model(batch[0]), expected)
    assert not torch.allclose(twin(batch[0]), expected)


def test_a_trained_model_is_saved_loaded_and_trained_on(
    model: Net, batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    train(model, batch, 3)
    path = adntn.save(model, tmp_path / "model.safetensors")
    other = adntn.load(Net(), path)
    assert torch.equal(other.eval()(batch[0]), model.eval()(batch[0]))
    assert train(other.train(), batch, 2) == pytest.approx(train(model.train(), batch, 2), rel=1e-4)


def test_a_trained_model_is_materialized(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    train(model, batch, 3)
    model.eval()
    dense = adntn.materialize(model)
    torch.testing.assert_close(dense(batch[0]), model(batch[0]), rtol=1e-3, atol=1e-4)
    losses = train(dense, batch, 4)
    assert losses[-1] < losses[0]


# --- formats and torch's wrappers -------------------------------------------------------------------------------------


def test_channels_last_changes_nothing_but_the_layout(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x, y = batch
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(twin(last), model(x), rtol=1e-3, atol=1e-4)
    assert twin.features(last).is_contiguous(memory_format=torch.channels_last)
    loss_of(twin, (last, y)).backward()
    loss_of(model, (x, y)).backward()
    close(gradients(twin), gradients(model))


def test_a_model_in_double_precision_agrees(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    twin = copy.deepcopy(model).double()
    y = twin(batch[0].double())
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.float(), model(batch[0]), rtol=1e-3, atol=1e-4)


def test_a_functional_call_takes_other_parameters(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    model.eval()
    other = copy.deepcopy(model)
    train(other, batch, 2)
    other.eval()
    before = model(batch[0])
    # As buffers travel along, so does all of the other model.
    assert torch.equal(functional_call(model, other.state_dict(), (batch[0],)), other(batch[0]))
    assert torch.equal(model(batch[0]), before)


def test_gradients_per_example_are_those_of_single_examples(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    model.eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])

    x, y = batch[0][:3], batch[1][:3]
    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    loss_of(model, (x[1:2], y[1:2])).backward()
    close({name: rows[name][1] for name in parameters}, gradients(model))


@pytest.mark.parametrize("exponential", [False, True], ids=["mean", "moving average"])
def test_an_averaged_model_averages_roots_and_cores(
    model: Net, batch: tuple[Tensor, Tensor], exponential: bool
) -> None:
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5) if exponential else None)
    first = copy.deepcopy(model.head[0].root)
    averaged.update_parameters(model)
    train(model, batch, 2)
    averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module.head[0].root, (first + model.head[0].root) / 2)
    assert isinstance(averaged.module.head[0], adntn.nn.Linear)
    update_bn([batch[0]], averaged)
    expected = functional_call(model, averaged.module.state_dict(), (batch[0],))
    torch.testing.assert_close(averaged(batch[0]), expected)


@pytest.mark.slow
def test_a_compiled_model_trains_as_the_plain_one(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    torch._dynamo.reset()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="aot_eager")
    torch.testing.assert_close(
        torch.tensor(train(compiled, batch, 3)), torch.tensor(train(model, batch, 3)), rtol=1e-3, atol=1e-3
    )
    torch._dynamo.reset()
