"""Parameters of modules that have no class of their own: chosen, replaced, tied, saved, put back."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parametrized_models import (
    BUILD,
    PATTERN,
    Cells,
    Net,
    Table,
    X,
    compressed,
    every_kind,
)
from small_models import CONFIG, OTHER, names
from torch import nn
from torch.nn.utils import parametrizations

import adntn
from adntn import AdntnError, CheckpointError, CompressionError, ConfigError, compress_
from adntn.execution import cache
from adntn.targets import select

pytestmark = [
    pytest.mark.usefixtures("few_objects"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]

# --- there and back ---------------------------------------------------------------------------------------------------


@every_kind
def test_materialize_gives_plain_modules_and_leaves_the_model_alone(kind: str) -> None:
    model = compressed(kind).eval()
    expected = model(X)
    dense = adntn.materialize(model)
    plain = BUILD[kind][0]()
    assert [type(m) for m in dense.modules()] == [type(m) for m in plain.modules()]
    assert [(n, p.shape, p.requires_grad) for n, p in dense.named_parameters()] == [
        (n, p.shape, True) for n, p in plain.named_parameters()
    ]
    torch.testing.assert_close(dense(X), expected)
    plain.eval().load_state_dict(dense.state_dict(), strict=True)
    assert torch.equal(plain(X), dense(X))
    pickle.dumps(dense)
    assert torch.equal(model(X), expected)
    dense(X).sum().backward()
    assert all(p.grad is not None for p in dense.parameters())


def test_frozen_cores_make_plain_parameters_too() -> None:
    model = compressed().requires_grad_(False)
    assert dict(adntn.materialize(model).rnn.named_buffers()) == {}


@every_kind
@pytest.mark.parametrize("into", ["dense", "compressed"])
def test_a_file_comes_back(tmp_path: Path, kind: str, into: str) -> None:
    model = compressed(kind, OTHER).eval()
    path = adntn.save(model, tmp_path / "model.safetensors")
    given = (BUILD[kind][0]() if into == "dense" else compressed(kind, OTHER)).eval()
    adntn.load(given, path)
    assert torch.equal(given(X), model(X))
    assert adntn.describe(given) == adntn.describe(model)
    assert adntn.load(given, path) is given


def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = adntn.save(compressed(), tmp_path / "model.safetensors")
    other = Net("no bias")
    modules, before = dict(other.named_modules()), list(other.parameters())
    with pytest.raises(CheckpointError, match=r"rnn\.bias_hh_l0 is not in the model"):
        adntn.load(other, path)
    assert (dict(other.named_modules()), list(map(id, other.parameters()))) == (modules, list(map(id, before)))
    with pytest.raises(CheckpointError, match="has no module of that name, nor a parameter"):
        adntn.load(Cells(), path)
    with pytest.raises(CheckpointError, match=r"weight of shape \(32, 8\) in the file, a parameter with \(12, 4\)"):
        adntn.load(Net("gru"), path)
    cells = adntn.save(compressed("cells"), tmp_path / "cells.safetensors")
    plain = Cells()
    plain.doubled = nn.Linear(8, 8)  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match=r"'doubled\.weight' is a parameter .* in the file, a Linear"):
        adntn.load(plain, cells)


def test_the_report_counts_parameters_under_their_names() -> None:
    model = compressed()
    report = adntn.describe(model)
    assert names(report) == ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]
    row = report.layers[0]
    assert (row.kind, row.shape, row.dense, row.way) == ("parameter", (32, 8), 256, "dense")
    assert report.model_before == sum(p.numel() for p in Net().parameters())
    assert report.model_after == sum(p.numel() for p in model.parameters())


def test_under_cached_a_parameter_is_made_once_and_never_stale() -> None:
    model = compressed(config=CONFIG.replace(latent_order=2))
    made: list[int] = []
    part = model.rnn.parametrizations.weight_hh_l0[0]
    next(iter(part.activation.values())).register_forward_hook(lambda *_: made.append(1))
    expected = model(X).detach()
    made.clear()
    with adntn.cached(model):
        for _ in range(3):
            torch.testing.assert_close(model(X), expected)
        assert len(made) == 1
        with torch.no_grad():
            part.root.mul_(1.5)
        assert not torch.allclose(model(X), expected)
    assert not cache._KEPT


# --- several times, ties, sharing -------------------------------------------------------------------------------------


def test_parameters_may_be_generated_one_after_the_other_also_in_a_copy() -> None:
    model = Net()
    order = list(dict(model.named_parameters()))
    compress_(model, CONFIG, "rnn.weight_hh_l0")
    twin = copy.deepcopy(model)
    compress_(twin, CONFIG, "rnn.weight_ih_l0")
    assert torch.equal(model(X), copy.deepcopy(model)(X))
    assert names(adntn.describe(model)) == ["rnn.weight_hh_l0"]
    assert sorted(names(adntn.describe(twin))) == ["rnn.weight_hh_l0", "rnn.weight_ih_l0"]
    for each in (model, twin):
        dense = adntn.materialize(each)
        assert list(dict(dense.named_parameters())) == order
        torch.testing.assert_close(dense(X), each(X))
    with pytest.raises(CompressionError, match=r"'rnn\.weight_hh_l0', nor a parameter of that name"):
        compress_(model, CONFIG, "rnn.weight_hh_l0")


def test_tied_parameters_stay_tied(tmp_path: Path) -> None:
    def make() -> nn.ModuleDict:
        model = nn.ModuleDict({"a": Table(), "b": Table(), "c": nn.Linear(8, 7, bias=False)})
        model["b"].table = model["a"].table
        model["c"].weight = model["a"].table
        return model

    model = make()
    with pytest.raises(CompressionError, match=r"'a\.table' shares its weight with 'b\.table', 'c\.weight'"):
        compress_(model, CONFIG, "a.table")
    compress_(model, CONFIG, ["a.table", "b.table", "c"])
    assert torch.equal(model["a"].table, model["c"].weight)
    assert model["a"].parametrizations.table[0].root is model["c"].root
    assert [row.generated > 0 for row in adntn.describe(model).layers].count(True) == 1
    dense = adntn.materialize(model)
    assert dense["a"].table is dense["b"].table is dense["c"].weight
    loaded = adntn.load(make(), adntn.save(model, tmp_path / "model.safetensors"))
    assert torch.equal(loaded["b"].table, model["b"].table)
    assert loaded["b"].parametrizations.table[0].root is loaded["c"].root


def test_a_module_in_two_places_has_its_parameter_under_both_names(tmp_path: Path) -> None:
    def make() -> nn.Sequential:
        one = Table()
        return nn.Sequential(one, nn.ReLU(), one)

    model = make()
    assert select(model, "2.table") == ["0.table"]
    compress_(model, CONFIG, "2.table")
    x = torch.randn(2, 8)
    loaded = adntn.load(make(), adntn.save(model, tmp_path / "model.safetensors"))
    assert loaded[0] is loaded[2]
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_recurrent_layer_on_its_own_is_changed_where_it_is(tmp_path: Path, compiled: bool) -> None:
    model: Any = nn.LSTM(8, 8, batch_first=True)
    compress_(torch.compile(model, backend="eager") if compiled else model, CONFIG, "weight_hh_l0")
    assert names(adntn.describe(model)) == ["weight_hh_l0"]
    path = adntn.save(model, tmp_path / "model.safetensors")
    given: Any = nn.LSTM(8, 8, batch_first=True)
    adntn.load(torch.compile(given, backend="eager") if compiled else given, path)
    assert torch.equal(given(X)[0], model(X)[0])
    dense = adntn.materialize(model)
    assert type(dense) is nn.LSTM
    torch.testing.assert_close(dense(X)[0], model(X)[0])


def test_two_parameters_share_a_generator() -> None:
    model = Net()
    compress_(model, CONFIG, PATTERN, shared=[("weight_ih_l0", "weight_hh_l0")])
    lists = model.rnn.parametrizations
    assert lists.weight_ih_l0[0].root is lists.weight_hh_l0[0].root
    assert lists.weight_hh_l0[0].rows == (32, 64)
    torch.testing.assert_close(model(X), adntn.materialize(model)(X))


# --- what is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets, expected",
    [
        ("re:.*", ["mine.inner"]),
        (r"re:mine\..*", ["mine.inner"]),
        (r"re:.*\.weight_hh", ["lstm.weight_hh", "gru.weight_hh"]),
        (r"re:mine\.(table|cube|scale)", ["mine.table", "mine.cube"]),
        (["mine.cube", "mine.inner.weight"], ["mine.cube", "mine.inner"]),
        ("doubled.weight", ["doubled.weight"]),
    ],
)
def test_a_pattern_is_about_layers_where_it_matches_a_module(targets: Any, expected: list[str]) -> None:
    assert select(Cells(), targets) == expected


def test_to_ignore_a_module_is_to_ignore_its_parameters() -> None:
    targets = ["lstm.weight_hh", "gru.weight_hh", "gru.weight_ih"]
    for ignore, left in (("gru", targets[:1]), ("re:gru.*", targets[:1]), ("gru.weight_ih", targets[:2])):
        model = Cells()
        assert names(compress_(model, CONFIG, targets, ignore=ignore)) == left


def test_overrides_reach_parameters() -> None:
    model = compressed(overrides={r"re:rnn\.weight_hh.*": OTHER})
    assert model.rnn.parametrizations.weight_hh_l0[0].config == OTHER
    assert model.rnn.parametrizations.weight_ih_l0[0].config == CONFIG


def test_a_parameter_starts_with_the_deviation_that_it_had() -> None:
    model = Table()
    with torch.no_grad():
        model.table.mul_(7)
        model.cube.zero_()
    before = model.table.std()
    compress_(model, CONFIG, ["table", "cube"])
    assert float((model.table.std() / before).detach()) == pytest.approx(1, abs=0.3)
    assert model.cube.any()


def test_a_parameter_on_the_meta_device_is_generated_there() -> None:
    with torch.device("meta"):
        model = Net()
    compress_(model, CONFIG, PATTERN)
    assert model.rnn.weight_hh_l0.is_meta
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, adntn.nn.GeneratedParameter):
            module.draw_()
    assert model.rnn.weight_hh_l0.isfinite().all()


# --- mistakes ---------------------------------------------------------------------------------------------------------


class Stubborn(nn.Module):
    """Does not let go of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 8))

    def __delattr__(self, name: str) -> None:
        raise TypeError("mine are mine")


def with_nan() -> nn.Module:
    model = Table()
    model.table.data[0, 0] = float("nan")
    return model


def normed() -> nn.Module:
    return nn.ModuleDict({"a": parametrizations.weight_norm(nn.Linear(8, 8)), "b": Table()})


def with_stubborn() -> nn.Module:
    return nn.ModuleDict({"first": nn.Linear(8, 8), "second": Table(), "third": Stubborn()})


Mistake = tuple[Callable[[], nn.Module], type[AdntnError], str, dict[str, Any]]
MISTAKES: dict[str, Mistake] = {
    "one axis": (Table, CompressionError, r"'scale' cannot .*shape \(8,\).*two axes", {"targets": "scale"}),
    "nan": (with_nan, CompressionError, "'table' cannot .*NaN", {"targets": "table"}),
    "not there": (Net, CompressionError, r"Did you mean 'rnn.weight_hh_l0'", {"targets": "rnn.weight_hh_lO"}),
    "the module": (Net, CompressionError, r"LSTM, and only .*its parameters can.*'weight_hh_l0'", {"targets": "rnn"}),
    "normed": (normed, CompressionError, "'a.weight', nor a parameter", {"targets": "a.weight"}),
    "factored": (Net, ConfigError, r"'rnn.weight_ih_l0': execution='factored' is not", {"execution": "factored"}),
    "unknown execution": (Net, ConfigError, "execution='quick'", {"execution": "quick"}),
    "refuses halfway": (
        with_stubborn,
        CompressionError,
        "'third.table' could not be put in place, so nothing was: mine are mine",
        {"targets": ["first", "second.table", "second.cube", "third.table"]},
    ),
    "groups": (
        Table,
        AdntnError,
        "'table': groups=2 does not divide the 7 rows",
        {"targets": ["cube", "table"], "config": CONFIG.replace(groups=2)},
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_changes_nothing(name: str) -> None:
    make, error, message, options = MISTAKES[name]
    model = make()
    modules = {key: (m, type(m)) for key, m in model.named_modules()}
    parameters = dict(model.named_parameters())
    with pytest.raises(error, match=message):
        compress_(model, **{"config": CONFIG, "targets": PATTERN, **options})
    assert {key: (m, type(m)) for key, m in model.named_modules()} == modules
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[key] is p for key, p in parameters.items())


def test_a_recurrent_layer_that_is_put_back_runs_on_its_own_weights() -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(8, 8), "stubborn": Stubborn()})
    before = model["rnn"](X)[0]
    with pytest.raises(CompressionError, match="so nothing was"):
        compress_(model, CONFIG, ["rnn.weight_hh_l0", "stubborn.table"])
    assert type(model["rnn"]) is nn.LSTM
    assert torch.equal(model["rnn"](X)[0], before)
    with torch.no_grad():
        model["rnn"].weight_hh_l0.zero_()
    assert not torch.allclose(model["rnn"](X)[0], before)


def test_an_optimiser_over_the_parameter_is_refused() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.rnn.parameters(), lr=0.1)
    with pytest.raises(
        CompressionError, match=re.escape("SGD optimiser already holds the weight of 'rnn.weight_ih_l0'")
    ):
        compress_(model, CONFIG, PATTERN)
    assert optimizer.param_groups
