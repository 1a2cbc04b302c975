"""Training on data small enough to know by heart."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_cases import DATA, fitted, generated, linear, same

from adntn import GeneratorConfig, compress_
from adntn.experiments.controls import freeze_weights_
from adntn.training.data import Part
from adntn.training.optimization import Optimization
from adntn.training.stages.base import Event


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("options", [{}, {"augment": True}, {"label_smoothing": 0.1}, {"ema": 0.9}], ids=str)
def test_one_seed_gives_one_network_to_the_bit(options: dict[str, Any]) -> None:
    results = []
    for seed in (5, 5, 6):
        model = generated()
        torch.manual_seed(seed + 100)  # the state of the global generator does not matter
        torch.rand(len(results))
        before = torch.get_rng_state()
        result = fitted(model, Optimization(epochs=2, batch_size=32, **options), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)  # and is left as it was
        results.append((result, model.state_dict()))
    (first, weights), (second, others_same), (_, others) = results
    assert first.curve == second.curve
    assert first.validation_loss == second.validation_loss
    assert same(weights, others_same)
    assert not same(weights, others)


@pytest.mark.parametrize(
    "how", [{}, {"optimizer": "sgd", "lr": 0.1}, {"precision": "bfloat16"}, {"ema": 0.99}], ids=str
)
@pytest.mark.parametrize("build", [linear, generated])
def test_it_learns(build: Callable[[], nn.Module], how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build()
    result = fitted(model, Optimization(**({"epochs": 8, "batch_size": 16, "lr": 2e-2} | how)))
    assert result.validation_accuracy >= 0.95
    assert result.curve[-1] == result.validation_accuracy
    assert (result.steps, result.epochs, len(result.curve)) == (8 * 6, 8, 8)
    assert not result.stopped_early
    assert 0 < result.seconds < 60


def test_images_of_either_dtype_are_the_same_data() -> None:
    models = [generated() for _ in range(2)]
    parts = {name: getattr(DATA, name) for name in ("train", "validation", "test")}
    floats = replace(DATA, **{name: Part(part.images / 255, part.labels) for name, part in parts.items()})
    one, other = (fitted(model, data=data) for model, data in zip(models, (DATA, floats), strict=True))
    assert one.validation_loss == pytest.approx(other.validation_loss, rel=1e-4)


@pytest.mark.parametrize("ema", [None, 0.8])
def test_accuracy_and_loss_are_those_of_the_trained_model_on_the_validation_images(ema: float | None) -> None:
    model = generated()
    result = fitted(model, Optimization(epochs=3, batch_size=32, ema=ema))
    assert model.training
    model.eval()
    with torch.no_grad():
        logits = model((DATA.validation.images / 255 - 0.3) / 0.2)
    labels = DATA.validation.labels
    assert result.validation_accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert result.validation_loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)


def test_the_average_is_that_of_the_weights_after_each_step() -> None:
    seen: list[dict[str, Tensor]] = []
    plain = generated()

    def note(step: int, total: int) -> None:
        seen.append({name: p.detach().clone() for name, p in plain.named_parameters()})

    fitted(plain, on_step=note)
    note(0, 0)
    averaged = generated()
    fitted(averaged, Optimization(epochs=2, batch_size=32, lr=1e-2, ema=0.3))
    expected = seen[0]
    for step, now in enumerate(seen[1:], start=1):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * now[name] for name in now}
    for name, p in averaged.named_parameters():
        torch.testing.assert_close(p, expected[name])


def test_what_is_told_and_logged() -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    told: list[Event] = []
    steps: list[tuple[int, int]] = []
    result = fitted(
        generated(),
        log=lambda step, row: rows.append((step, dict(row))),
        tell=told.append,
        on_step=lambda *now: steps.append(now),
    )
    assert steps == [(step, 6) for step in range(6)]
    assert [step for step, _ in rows] == [3, 6]
    assert [row["epoch"] for _, row in rows] == [1, 2]
    assert [row["validation_accuracy"] for _, row in rows] == list(result.curve)
    assert all(row["loss"] > 0 and row["validation_loss"] > 0 and row["rate"] > 0 for _, row in rows)
    assert (told[-1].step, told[-1].total) == (6, 6)
    assert "validation" in told[-1].text


class Doubled:
    """An objective with two terms."""

    def __call__(
        self, forward: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits = forward(inputs)
        task, size = nn.functional.cross_entropy(logits, labels), logits.square().mean()
        return task + 1e-3 * size, {"task": task, "size": size}


def test_each_term_of_an_objective_is_logged_as_a_mean_over_the_images(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    fitted(generated(), objective=Doubled(), log=lambda step, row: rows.append(dict(row)), folder=tmp_path)
    for row in rows:
        assert row["loss"] == pytest.approx(row["task"] + 1e-3 * row["size"], rel=1e-5)
    with (tmp_path / "metrics" / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in line.items()} for line in table] == rows
    assert len(list((tmp_path / "metrics").glob("events.out.tfevents.*"))) == 1


def test_tensorboard_shows_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = fitted(generated(), folder=tmp_path)
    events = EventAccumulator(str(tmp_path / "metrics"))
    events.Reload()
    shown = events.Scalars("validation_accuracy")
    assert [event.step for event in shown] == [3, 6]
    assert [event.value for event in shown] == pytest.approx(list(result.curve))


def test_patience_ends_a_run_that_does_not_get_better() -> None:
    result = fitted(generated(), Optimization(epochs=40, batch_size=45, lr=1e-9, patience=2))
    assert result.stopped_early
    assert (result.epochs, len(result.curve), result.steps) == (3, 3, 6)
    result = fitted(generated(), Optimization(epochs=2, batch_size=45, lr=1e-9, patience=2))
    assert not result.stopped_early


@pytest.mark.parametrize("build", [linear, generated])
def test_a_frozen_network_trains_the_little_that_is_left(build: Callable[[], nn.Module]) -> None:
    model = linear()
    if build is generated:
        compress_(model, GeneratorConfig(), ["1", "4"])
    freeze_weights_(model, ["1", "4"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fitted(model, Optimization(epochs=2, batch_size=32, ema=0.5))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"1.bias", "2.weight", "2.bias", "4.bias"}


def test_a_network_with_nothing_to_train_is_looked_at_once(tmp_path: Path) -> None:
    model = linear().requires_grad_(False)
    result = fitted(model, Optimization(epochs=3), folder=tmp_path)
    assert (result.steps, result.epochs) == (0, 0)
    assert result.curve == (result.validation_accuracy,)


@pytest.mark.parametrize("clip", [1e-3, None])
def test_the_peak_rate_is_reached_once_and_the_gradient_is_clipped(
    monkeypatch: pytest.MonkeyPatch, clip: float | None
) -> None:
    rates: list[float] = []
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        result = step(self, *args, **kwargs)
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in grads]).norm()))
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fitted(linear(), Optimization(epochs=5, batch_size=9, lr=0.03, clip=clip))
    assert len(rates) == 50
    assert max(rates) == pytest.approx(0.03, rel=1e-2)
    assert rates[0] == pytest.approx(0.03 / 25)
    assert rates[-1] < 1e-4
    assert (max(norms) <= 1e-3 * 1.001) == (clip is not None)


def test_ctrl_c_stops_the_caller_as_usual_and_the_next_one_is_heard() -> None:
    def stop(event: Event) -> None:
        signal.raise_signal(signal.SIGINT)

    # A process started in the background of a shell ignores the signal from birth.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                fitted(linear(), tell=stop)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_whoever_heard_sigterm_before_hears_it_after() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        fitted(linear())
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
