"""The rows of `adntn reproduce levers`: true sizes, one thing changed at a time."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from adntn.describe import generated_weights
from adntn.experiments.lessons import LESSONS
from adntn.experiments.reproduce.counts import count_numbers
from adntn.experiments.reproduce.levers import LEVERS, SIZES, Lever, lever_rows
from adntn.experiments.reproduce.rows import Row
from adntn.experiments.reproduce.settings import Settings
from adntn.initialize import default_std
from adntn.nn import GeneratedLayer

LAYERS = 12


@functools.cache
def rows() -> dict[str, Row]:
    return {row.variant: row for row in lever_rows(Settings(width=0.25), (3, 32, 32), 10)}


def weights_of(model: nn.Module) -> dict[str, GeneratedLayer]:
    return {name: w for name, w in generated_weights(model).items() if isinstance(w, GeneratedLayer)}


def test_every_lever_has_a_row_of_each_of_its_sizes_beside_the_rivals() -> None:
    wanted = {f"{name}-{size}" for name, lever in LEVERS.items() for size in lever.sizes}
    assert set(rows()) == {*wanted, *(f"narrow-dense-{size}" for size in SIZES), "dense", "frozen-dense"}


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_rows_of_a_size_train_about_as_many_numbers(size: str) -> None:
    counts = {name: count_numbers(row) for name, row in rows().items() if name.endswith(size)}
    beside = counts[f"ttn-{size}"].model_trained - counts[f"ttn-{size}"].layer_trained
    for name, count in counts.items():
        assert count.model_trained == pytest.approx(beside + SIZES[size] * LAYERS, rel=0.25), name


@pytest.mark.parametrize("name", ["ttn-large", "kronecker-small", "signs-small"])
def test_a_row_makes_a_network_that_runs_equal_for_a_seed(name: str) -> None:
    row = rows()[name]
    first, again, other = row.make(0), row.make(0), row.make(1)
    inputs = torch.randn(2, 3, 32, 32)
    assert first(inputs).shape == (2, 10)
    torch.testing.assert_close(first(inputs), again(inputs))
    assert not torch.allclose(first(inputs), other(inputs))
    assert set(weights_of(first)) == set(row.layers)


@pytest.mark.slow
def test_a_lever_says_what_it_does() -> None:
    def config(name: str) -> object:
        return weights_of(rows()[name].make(0))["features.27"].config

    def changed(name: str) -> set[str]:
        ours, plain = vars(config(name)), vars(config("ttn-large"))
        return {key for key in ours if ours[key] != plain[key]}

    assert changed("conformal-large") == {"initialization"}
    assert changed("elu-large") == {"activation"}
    assert changed("mera-large") >= {"topology"}
    assert changed("terms-large") == {"groups", "terms"}
    assert changed("slow-large") == set()
    assert rows()["slow-large"].optimization.core_lr == 3e-3
    assert rows()["ttn-large"].optimization.core_lr == 1e-2


def test_early_and_late_turn_the_share_of_the_halves_around() -> None:
    def share(name: str) -> float:
        sizes = [weight.num_parameters for weight in weights_of(rows()[name].make(0)).values()]
        return sum(sizes[: LAYERS // 2]) / sum(sizes)

    assert share("early-large") == pytest.approx(0.75, abs=0.1)
    assert share("late-large") == pytest.approx(0.25, abs=0.1)


def test_a_start_at_a_hundredth_is_one() -> None:
    weight = weights_of(rows()["start-100th-large"].make(0))["features.27"]
    assert float(weight.weight.detach().std()) == pytest.approx(0.01 * default_std(weight.shape), rel=1e-3)


def test_layers_of_one_shape_share_cores_and_have_a_root_each() -> None:
    row, plain = rows()["shared-large"], rows()["ttn-large"]
    weights = weights_of(row.make(0))
    first, second, other = (weights[f"features.{place}"] for place in (30, 37, 24))
    ours, theirs = dict(first.generator_parameters()), dict(second.generator_parameters())
    assert {name for name in ours if ours[name] is not theirs[name]} == {"root"}
    assert not {id(p) for p in ours.values()} & {id(p) for _, p in other.generator_parameters()}
    assert count_numbers(row).layer_trained == pytest.approx(count_numbers(plain).layer_trained, rel=0.1)
    assert first.config.groups > weights_of(plain.make(0))["features.30"].config.groups


def test_products_and_a_rival_of_theirs_learn_from_the_dense_network() -> None:
    taught = {name: row.lessons for name, row in rows().items() if row.teacher is not None}
    assert taught == {
        "kronecker-distilled-large": ("answers",),
        "kronecker-rest-large": ("rest",),
        "kronecker-fitted-large": ("rest", "weights"),
        "kronecker-taught-large": LESSONS,
        "subspace-distilled-large": ("answers",),
        "subspace-fitted-large": ("rest", "weights"),
        "subspace-taught-large": LESSONS,
    }
    assert all(rows()[name].teacher is rows()["dense"] for name in taught)


def test_options_of_a_lever_go_with_its_digits() -> None:
    lever = Lever("faster", {"initialization": "isometric"}, grows="terms", digits=2)
    config = lever.config((64, 64, 3, 3), 900)
    assert (config.initialization, config.bond_dim) == ("isometric", 1)
    assert config.terms > 1


def test_levers_may_learn_from_a_teacher_of_epochs_of_its_own() -> None:
    made = {row.variant: row for row in lever_rows(Settings(width=0.25, epochs=2, teacher_epochs=8), (3, 32, 32), 10)}
    teacher = made["kronecker-taught-large"].teacher
    assert teacher is made["teacher"]
    assert (teacher.optimization.epochs, made["dense"].optimization.epochs) == (8, 2)
    assert teacher.about["size"] is None
