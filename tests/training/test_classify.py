"""Batches, augmentation, what is decayed, and training itself, on data small enough to know by heart."""

from __future__ import annotations

import json
import math
import signal
from typing import Any

import pytest
import torch
from profiles import DEAR_CALLS, FREE_CALLS
from torch import Tensor, nn

from adntn import GeneratorConfig, compress_
from adntn.errors import ConfigError
from adntn.execution.choices import Choices
from adntn.execution.machine import using
from adntn.experiments.controls import freeze_weights_
from adntn.experiments.models import SmallCNN
from adntn.nn import GeneratedLayer
from adntn.training.classify import Batches, Fitted, Recipe, _Classifier, augment, fit, parameter_groups

# --- the recipe -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        *({name: value} for name in ("epochs", "batch_size") for value in (0, -1, 1.5, True, "3", None)),
        *({name: value} for name in ("lr", "clip") for value in (0, -1.0, math.inf, math.nan, "1", True, None)),
        *({"weight_decay": value} for value in (-1e-9, math.inf, math.nan, "0", True)),
        *({"label_smoothing": value} for value in (-0.1, 1.0, 2, math.nan, "0")),
        *({"augment": value} for value in ("yes", 1, None)),
    ],
    ids=str,
)
def test_an_impossible_recipe_is_refused(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name}={value!r} is not possible"):
        Recipe(**options)


def test_the_limits_of_the_possible_are_possible() -> None:
    Recipe(epochs=1, batch_size=1, lr=1, clip=1, weight_decay=0, label_smoothing=0, augment=True)


# --- batches --------------------------------------------------------------------------------------------------------


def seen(batches: Batches) -> list[int]:
    return [int(label) for _, labels in batches for label in labels]


@pytest.mark.parametrize("count, size", [(10, 3), (9, 3), (1, 5), (5, 5), (7, 1)])
@pytest.mark.parametrize("shuffle", [None, 4])
def test_every_image_comes_once_with_its_label(count: int, size: int, shuffle: int | None) -> None:
    labels = torch.arange(count)
    images = labels[:, None, None, None].expand(count, 2, 3, 3).to(torch.uint8).clone()
    batches = Batches(images, labels, size, shuffle)
    given = list(batches)
    assert len(given) == len(batches) == math.ceil(count / size)
    assert [len(y) for _, y in given[:-1]] == [size] * (len(given) - 1)
    assert sorted(seen(batches)) == list(range(count))
    for x, y in given:
        assert x.dtype == torch.uint8
        assert x.shape == (len(y), 2, 3, 3)
        assert torch.equal(x[:, 0, 0, 0].long(), y)


def test_the_order_is_new_each_epoch_and_the_same_for_one_seed() -> None:
    images, labels = torch.zeros(50, 1, 1, 1), torch.arange(50)
    first, second, other = (Batches(images, labels, 7, seed) for seed in (3, 3, 4))
    epochs = [seen(first) for _ in range(3)]
    assert [seen(second) for _ in range(3)] == epochs
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert seen(other) != epochs[0]
    assert seen(Batches(images, labels, 7)) == list(range(50))


def test_batches_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    seen(Batches(torch.zeros(5, 1, 1, 1), torch.arange(5), 2, 0))
    assert torch.equal(torch.get_rng_state(), state)


# --- augmentation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(40, 3, 16, 16), (40, 1, 8, 8), (40, 2, 24, 9), (40, 1, 5, 20), (1, 1, 1, 1)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_an_augmented_image_is_a_shift_of_itself_or_of_its_mirror_image(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    count, _, height, width = shape
    reach = max(1, height // 8)
    # No two pixels of an image are equal and none is 0, so that each can be found again.
    images = (torch.arange(math.prod(shape[1:])).remainder(255) + 1).reshape(shape[1:]).repeat(count, 1, 1, 1).to(dtype)
    out = augment(images)
    assert out.shape == images.shape
    assert out.dtype == dtype
    padded = torch.nn.functional.pad(images[0], (reach,) * 4)
    windows = [padded[:, y : y + height, x : x + width] for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
    windows += [window.flip(-1) for window in windows]
    found = [next(i for i, window in enumerate(windows) if torch.equal(window, image)) for image in out]
    assert set(out.unique().tolist()) <= {0, *images.unique().tolist()}
    if count > 1:
        assert len(set(found)) > 5  # each image has a shift of its own
        flipped = sum(i >= len(windows) // 2 for i in found)
        assert 0 < flipped < count


def test_augmentation_follows_the_seed_and_leaves_its_input_alone() -> None:
    images = torch.rand(20, 1, 8, 8)
    before = images.clone()
    torch.manual_seed(1)
    first = augment(images)
    torch.manual_seed(1)
    assert torch.equal(augment(images), first)
    assert not torch.equal(augment(images), first)
    assert torch.equal(images, before)


# --- what is decayed ------------------------------------------------------------------------------------------------


def names_by_decay(model: nn.Module) -> dict[float, set[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.5)
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    return {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in groups}


def test_dense_weights_decay_and_norms_and_biases_do_not() -> None:
    groups = names_by_decay(SmallCNN((1, 8, 8), 3))
    assert groups[0.5] == {"conv1.weight", "conv2.weight", "conv3.weight", "head.weight"}
    assert groups[0.0] == {"head.bias", *(f"norm{i}.{p}" for i in (1, 2, 3) for p in ("weight", "bias"))}


def test_root_and_cores_do_not_decay() -> None:
    model = SmallCNN((1, 8, 8), 3)
    compress_(model, GeneratorConfig(topology="mera", activation="prelu"), ["conv2", "conv3"])
    groups = names_by_decay(model)
    assert groups[0.5] == {"conv1.weight", "head.weight"}
    generated = {
        f"{layer}.{name}"
        for layer, m in model.named_modules()
        if isinstance(m, GeneratedLayer)
        for name, _ in m.generator_parameters()
    }
    assert generated <= groups[0.0]
    assert any("root" in name for name in generated)
    assert groups[0.0] | groups[0.5] == {name for name, _ in model.named_parameters()}


def test_what_is_shared_comes_once_and_what_is_frozen_not_at_all() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 4))
    model[3].weight = shared.weight
    freeze_weights_(model, ["3"])  # the shared weight too
    assert names_by_decay(model) == {0.0: {"0.bias", "3.bias"}}


# --- fit ------------------------------------------------------------------------------------------------------------


def bars(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes: the bright third of an image."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 90, (count, 1, 6, 6), generator=random)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * int(label) : 2 * int(label) + 2] += 120
    return images.to(torch.uint8), labels


TRAIN, TEST = bars(90, 0), bars(30, 1)


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def fitted(model: nn.Module, recipe: Recipe | None = None, **options: Any) -> Fitted:
    given: dict[str, Any] = {"train": TRAIN, "test": TEST, "mean": torch.tensor([0.3]), "std": torch.tensor([0.2])}
    recipe = recipe or Recipe(epochs=2, batch_size=32, lr=1e-2)
    return fit(model, recipe, **(given | {"num_classes": 3, "seed": 0} | options))


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("options", [{}, {"augment": True}, {"label_smoothing": 0.1}], ids=str)
def test_one_seed_gives_one_network_to_the_bit(options: dict[str, Any]) -> None:
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(0)
        model = linear()
        torch.manual_seed(seed + 100)  # the state of the global generator does not matter
        result = fitted(model, Recipe(epochs=2, batch_size=32, **options), seed=seed)
        results.append((result, model.state_dict()))
    (first, weights), (second, same), (_, others) = results
    assert (first.accuracy, first.loss, first.curve) == (second.accuracy, second.loss, second.curve)
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("generated", [False, True], ids=["dense", "generated"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_it_learns(generated: bool, dtype: torch.dtype) -> None:
    model = linear()
    if generated:
        compress_(model, GeneratorConfig(), ["1"])
    train, test = ((x if dtype == torch.uint8 else x / 255, y) for x, y in (TRAIN, TEST))
    told: list[tuple[int, float]] = []
    result = fitted(
        model, Recipe(epochs=6, batch_size=16, lr=2e-2), train=train, test=test, tell=lambda *now: told.append(now)
    )
    assert result.accuracy >= 0.95
    assert result.curve[-1] == result.accuracy
    assert told == list(enumerate(result.curve, start=1))
    assert result.steps == 6 * 6
    assert 0 < result.seconds < 60


def test_accuracy_and_loss_are_those_of_the_trained_model_on_the_test_images() -> None:
    model = linear()
    result = fitted(model)
    model.eval()
    with torch.no_grad():
        logits = model((TEST[0] / 255 - 0.3) / 0.2)
    assert result.accuracy == pytest.approx(float((logits.argmax(1) == TEST[1]).double().mean()))
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(logits, TEST[1])), rel=1e-5)


@pytest.mark.parametrize(
    "epochs, every, looks", [(4, 1, [1, 2, 3, 4]), (4, 2, [2, 4]), (4, 4, [4]), (4, 6, [2, 4]), (3, 2, [1, 2, 3])]
)
def test_the_test_images_are_looked_at_when_asked_and_at_the_end(epochs: int, every: int, looks: list[int]) -> None:
    told: list[int] = []
    result = fitted(
        linear(), Recipe(epochs=epochs), evaluate_every=every, tell=lambda epoch, accuracy: told.append(epoch)
    )
    assert told == looks
    assert len(result.curve) == len(looks)


@pytest.mark.parametrize("generated", [False, True], ids=["dense", "generated"])
def test_a_frozen_network_trains_the_little_that_is_left(generated: bool) -> None:
    model = linear()
    if generated:
        compress_(model, GeneratorConfig(), ["1", "4"])
    freeze_weights_(model, ["1", "4"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fitted(model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"1.bias", "2.weight", "2.bias", "4.bias"}


def test_a_network_with_nothing_to_train_is_looked_at_once() -> None:
    model = linear().requires_grad_(False)
    told: list[tuple[int, float]] = []
    result = fitted(model, Recipe(epochs=3), tell=lambda *now: told.append(now))
    assert result.steps == 0
    assert told == [(3, result.accuracy)]
    assert result.curve == (result.accuracy,)


def test_the_peak_learning_rate_is_reached_once_and_the_gradient_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
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
    fitted(linear(), Recipe(epochs=5, batch_size=9, lr=0.03, clip=1e-3))
    assert len(rates) == 50
    assert max(rates) == pytest.approx(0.03, rel=1e-2)
    assert rates[0] == pytest.approx(0.03 / 25)
    assert rates[-1] < 1e-4
    assert max(norms) <= 1e-3 * 1.001


def test_ctrl_c_stops_the_caller_as_usual_and_the_next_one_is_heard() -> None:
    def stop(epoch: int, accuracy: float) -> None:
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


def test_a_checkpoint_says_how_the_layers_run_and_a_resumed_run_takes_the_same_ways() -> None:
    def module() -> _Classifier:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64))
        compress_(model, targets=["1"])
        return _Classifier(model, Recipe(), 64, torch.zeros(1), torch.ones(1), 1)

    with using(FREE_CALLS):
        first = module()
    checkpoint: dict[str, Any] = {}
    first.on_save_checkpoint(checkpoint)
    with using(DEAR_CALLS):
        resumed = module()
        assert resumed.model[1].choices != first.model[1].choices
        resumed.on_load_checkpoint({})
        assert resumed.model[1].choices == Choices.only("dense")
        resumed.on_load_checkpoint(json.loads(json.dumps(checkpoint)))
    assert resumed.model[1].choices == first.model[1].choices
