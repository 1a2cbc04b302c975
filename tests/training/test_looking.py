"""How a model is run and looked at: precision, layout in memory, compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_cases import DATA, fitted, same

from adntn import GeneratorConfig, compress_
from adntn.training.data import Part
from adntn.training.looking import forward, look
from adntn.training.optimization import Optimization


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def coloured(part: Part) -> Part:
    """Three channels: one lies in memory the same way first and last."""
    return Part(part.images.repeat(1, 3, 1, 1), part.labels)


COLOURED = replace(
    DATA,
    **{name: coloured(getattr(DATA, name)) for name in ("train", "validation", "test")},
    mean=DATA.mean.repeat(3),
    std=DATA.std.repeat(3),
)
HOW = Optimization(epochs=2, batch_size=32, lr=1e-2)


class Watching(nn.Module):
    """A small convolutional network with a generated layer; notes how its inputs and its weight lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 36, 3)
        compress_(self, GeneratorConfig(), ["second"])
        self.seen: list[tuple[bool, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        last = [t.is_contiguous(memory_format=torch.channels_last) for t in (x, self.first.weight)]
        hidden = self.second(torch.relu(self.norm(self.first(x))))
        self.seen.append((self.training, *last, hidden.dtype == torch.bfloat16))
        out: Tensor = self.head(torch.relu(hidden).flatten(1))
        return out


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("last", [True, False])
def test_images_lie_as_they_are_asked_to_and_come_to_the_same(precision: str, last: bool) -> None:
    images = torch.randn(5, 3, 6, 6)
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return nn.functional.conv2d(x, torch.ones(2, 3, 3, 3))

    out = forward(model, images, precision, channels_last=last)
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == last
    assert torch.equal(seen[0], images)
    assert images.is_contiguous()
    assert out.dtype == getattr(torch, precision)
    torch.testing.assert_close(out.float(), model(images), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("options", [{"channels_last": True}, {"precision": "bfloat16"}], ids=str)
def test_a_look_sees_a_model_as_it_is_trained(options: dict[str, Any]) -> None:
    model = Watching().train()
    plain = look(model, COLOURED, COLOURED.validation)
    found = look(model, COLOURED, COLOURED.validation, **options)
    last, bfloat16 = "channels_last" in options, "precision" in options
    assert model.seen == [(False, False, False, False), (False, last, False, bfloat16)]
    assert model.training
    assert found[0] == pytest.approx(plain[0], abs=0.1 if bfloat16 else 1e-6)
    assert found[1] == pytest.approx(plain[1], rel=0.05 if bfloat16 else 1e-5)


def test_convolutions_are_trained_and_looked_at_channels_last() -> None:
    model, plain = Watching(), Watching()
    result = fitted(model, replace(HOW, channels_last=True), data=COLOURED)
    other = fitted(plain, HOW, data=COLOURED)
    assert set(model.seen) == {(True, True, True, False), (False, True, True, False)}
    assert set(plain.seen) == {(True, False, False, False), (False, False, False, False)}
    assert result.steps == other.steps
    assert result.validation_loss == pytest.approx(other.validation_loss, rel=1e-2)


def test_a_compiled_model_is_what_is_trained_and_the_plain_one_what_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[nn.Module] = []
    modes: list[bool] = []

    def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
        made.append(model)

        def run(x: Tensor) -> Tensor:
            modes.append(model.training)
            out: Tensor = model(x)
            return out

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    model, plain = Watching(), Watching()
    result = fitted(model, replace(HOW, compile=True), data=COLOURED)
    assert made == [model]
    assert modes == [True] * result.steps
    assert [seen[0] for seen in model.seen].count(False) == 2  # a look an epoch
    assert result.curve == fitted(plain, HOW, data=COLOURED).curve
    assert len(made) == 1
    assert same(model.state_dict(), plain.state_dict())


@pytest.mark.slow
@pytest.mark.usefixtures("no_graphs")
def test_a_model_compiled_for_real_learns_the_same() -> None:
    results = [
        fitted(Watching(), replace(HOW, epochs=4, batch_size=30, compile=compiled, channels_last=True), data=COLOURED)
        for compiled in (True, False)
    ]
    assert all(math.isfinite(result.validation_loss) for result in results)
    assert results[0].validation_loss == pytest.approx(results[1].validation_loss, rel=0.05, abs=0.02)
    assert results[0].validation_accuracy >= 0.9
