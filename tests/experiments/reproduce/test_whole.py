"""The rows of `adntn reproduce whole`: within their budgets, and made as they are named."""

from __future__ import annotations

import functools

import pytest
import torch

from adntn.describe import generated_weights
from adntn.experiments.reproduce.counts import count_numbers
from adntn.experiments.reproduce.rows import Row
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.reproduce.whole import BUDGETS, NETWORKS, OURS, TAUGHT, whole_rows
from adntn.experiments.seeded import SeededConv2d


@functools.cache
def rows() -> dict[str, Row]:
    return {row.name: row for row in whole_rows(Settings(width=0.25), (3, 32, 32), 10)}


def test_every_budget_that_a_network_has_room_for_has_ours_and_the_rivals() -> None:
    for network in NETWORKS:
        assert {f"{network}/dense", f"{network}/frozen-dense"} <= set(rows())
    for budget in BUDGETS:
        for rival in (*OURS, "narrow-dense", "subspace", "subspaces", "tt"):
            assert f"vgg16/{rival}-{budget}" in rows() or (rival, budget) == ("kronecker", 5_500)
    for large in ("lowrank", "kronecker"):  # rank one, and one product of two digits, of every weight is more
        assert f"vgg16/{large}-5500" not in rows()
    assert not [name for name in rows() if name.startswith("resnet20/") and name.endswith("-20000")]  # it has less


@pytest.mark.slow
def test_no_row_trains_more_than_its_budget_and_ours_use_most_of_it() -> None:
    for name, row in rows().items():
        budget = row.about["budget"]
        if budget is None:
            continue
        trained = count_numbers(row).model_trained
        assert trained <= budget, name
        if name.startswith("vgg16/") and row.about["ours"]:
            assert trained >= 0.9 * budget, name


def test_one_subspace_is_of_all_weights_and_subspaces_are_each_its_own() -> None:
    one = generated_weights(rows()["vgg16/subspace-5500"].make(0))
    assert len({id(weight.coordinates) for weight in one.values()}) == 1
    each = generated_weights(rows()["vgg16/subspaces-5500"].make(0))
    assert len({id(weight.coordinates) for weight in each.values()}) == len(each) == 12


def test_kronecker_products_are_shuffled_where_they_are_called_so() -> None:
    shuffled, plain = rows()["vgg16/kronecker-shuffled-20000"], rows()["vgg16/kronecker-20000"]
    first, again = shuffled.make(0), shuffled.make(0)
    layers = [layer for layer in first.modules() if isinstance(layer, SeededConv2d)]
    assert len(layers) == len(shuffled.layers)
    assert all(layer.seeding == "shuffle" for layer in layers)
    assert any(layer.config.terms > 1 for layer in layers)
    assert not any(isinstance(layer, SeededConv2d) for layer in plain.make(0).modules())
    tangent = rows()["vgg16/kronecker-tangent-20000"]
    straight = [layer for layer in tangent.make(0).modules() if isinstance(layer, SeededConv2d)]
    assert {layer.seeding for layer in straight} == {"tangent"}
    assert count_numbers(tangent) == count_numbers(plain)
    assert not tangent.about["ours"]
    assert count_numbers(shuffled).layer_stored == sum(layer.num_parameters for layer in layers)
    inputs = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(first(inputs), again(inputs))


def test_what_the_dense_network_teaches_is_taught_to_ours_and_to_rivals() -> None:
    for rival, lessons in TAUGHT.items():
        taught, plain = rows()[f"vgg16/{rival}-taught-20000"], rows()[f"vgg16/{rival}-20000"]
        assert taught.teacher is rows()["vgg16/dense"]
        assert taught.lessons == lessons
        assert taught.about == {"rival": f"{rival}-taught", "budget": 20_000, "ours": rival in OURS}
        assert taught.optimization == plain.optimization
        assert count_numbers(taught) == count_numbers(plain)
        assert plain.teacher is None


def test_a_teacher_may_be_trained_for_epochs_of_its_own() -> None:
    settings = Settings(width=0.25, epochs=2, teacher_epochs=8)
    longer = {row.name: row for row in whole_rows(settings, (3, 32, 32), 10)}
    teacher, dense = longer["vgg16/teacher"], longer["vgg16/dense"]
    assert (teacher.optimization.epochs, dense.optimization.epochs) == (8, 2)
    assert count_numbers(teacher) == count_numbers(dense)
    assert teacher.about == {"rival": "teacher", "budget": None, "ours": False}
    assert longer["vgg16/kronecker-taught-20000"].teacher is teacher
    assert longer["vgg16/kronecker-taught-20000"].optimization.epochs == 2
    assert longer["resnet20/kronecker-taught-10000"].teacher is longer["resnet20/teacher"]
    assert longer.keys() - rows().keys() == {"vgg16/teacher", "resnet20/teacher"}


def test_layers_of_one_shape_have_their_cores_in_common_where_they_are_called_so() -> None:
    row, plain = (
        rows()["vgg16/kronecker-shared-10000"],
        rows()["vgg16/kronecker-shuffled-10000"],
    )  # both of three digits
    made = generated_weights(row.make(0))
    alike = [dict(weight.generator_parameters()) for weight in made.values() if weight.shape == (128, 128, 3, 3)]
    assert len(alike) == 5
    for name in alike[0]:
        own = {id(each[name]) for each in alike}
        assert len(own) == (5 if name == "root" else 1), name
    terms = {name: weight.config.terms for name, weight in generated_weights(plain.make(0)).items()}
    assert all(w.config.terms > terms[name] for name, w in made.items() if w.shape == (128, 128, 3, 3))
    assert row.about["ours"]


def test_products_of_more_digits_are_trained_at_a_lower_rate() -> None:
    rates = {budget: rows()[f"vgg16/kronecker-shared-{budget}"].optimization.core_lr for budget in (5_500, 10_000)}
    assert rates == {5_500: 1e-2, 10_000: 2e-2}  # four digits, and two
    assert rows()["vgg16/kronecker-shuffled-20000"].optimization.core_lr == 2e-2  # as it asks for three
    assert rows()["vgg16/subspace-5500"].optimization.core_lr == 6e-2


def test_the_more_numbers_the_lower_the_rate_of_products_and_subspaces_alike() -> None:
    def rate(rival: str, budget: int) -> float | None:
        return rows()[f"vgg16/{rival}-{budget}"].optimization.core_lr

    for rival, usual in (("kronecker", 2e-2), ("subspace", 6e-2), ("subspaces", 6e-2)):
        assert rate(rival, 20_000) == rate(rival, 10_000) == usual
        assert rate(rival, 50_000) == pytest.approx(usual * 0.4**0.5)
        assert rate(rival, 100_000) == pytest.approx(usual * 0.2**0.5)
    assert rate("lowrank", 100_000) == rate("lowrank", 20_000)
    assert rate("kronecker-taught", 50_000) == rate("kronecker", 50_000)
