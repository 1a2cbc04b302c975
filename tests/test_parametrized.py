"""Parameters of modules that have no class of their own: LSTM, GRU, subclasses, anything user-made."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import CONFIG, OTHER, names
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import adntn
from adntn import AdntnError, CheckpointError, CompressionError, ConfigError, GeneratorConfig, compress_
from adntn.execution import cache
from adntn.targets import select

pytestmark = [
    pytest.mark.usefixtures("few_objects"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]


class Table(nn.Module):
    """A module of a user's with parameters of three kinds and a child."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.table = nn.Parameter(torch.randn(7, 8))
        self.cube = nn.Parameter(torch.randn(4, 8, 3))
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:  # shape: (..., 8)
        return F.linear(self.inner(x * self.scale), self.table) @ self.table + self.cube.sum((0, 2))


class Doubled(nn.Linear):
    """Does something else than its parent."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.linear(input, 2 * self.weight, self.bias)


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(8, 8, batch_first=True),
    "two layers, both ways, projected": lambda: nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True, proj_size=4),
    "no bias": lambda: nn.LSTM(8, 8, bias=False, batch_first=True),
    "gru": lambda: nn.GRU(8, 4, 2, batch_first=True, bidirectional=True),
    "rnn": lambda: nn.RNN(8, 8, batch_first=True, nonlinearity="relu"),
}


class Cells(nn.Module):
    """Recurrent cells, a subclass of a layer, and a user's module."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(8, 8), nn.GRUCell(8, 8)
        self.doubled, self.mine = Doubled(8, 8), Table()

    def forward(self, x: Tensor) -> Tensor:  # shape: (batch, length, 8)
        h = c = g = x.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            h, c = self.lstm(x[:, t], (h, c))
            g = self.gru(h, g)
        result: Tensor = self.mine(self.doubled(g))
        return result


class Net(nn.Module):
    """A recurrent layer and a head."""

    def __init__(self, kind: str = "lstm") -> None:
        super().__init__()
        self.rnn = RECURRENT[kind]()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.rnn(x)[0])
        return result


X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
PATTERN = r"re:rnn\.weight_.*"
CELLS = ["lstm.weight_ih", "lstm.weight_hh", "gru.weight_hh", "doubled.weight", "mine.table", "mine.cube"]

BUILD: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    **{kind: (lambda kind=kind: Net(kind), [PATTERN]) for kind in RECURRENT},
    "cells": (Cells, CELLS),
}


def compressed(kind: str = "lstm", config: GeneratorConfig = CONFIG, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    make, targets = BUILD[kind]
    model = make()
    compress_(model, config, **{"targets": targets, **options})
    return model


every_kind = pytest.mark.parametrize("kind", BUILD)


def set_weights(dense: nn.Module, generated: nn.Module) -> nn.Module:
    """Give a plain model the weights of a generated one, by reading its parameters one by one."""
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            owner, _, key = name.rpartition(".")
            parameter.copy_(getattr(generated.get_submodule(owner), key))
    return dense


# --- running ----------------------------------------------------------------------------------------------------------


@every_kind
def test_a_model_gives_what_it_gives_with_the_generated_parameters(kind: str) -> None:
    model = compressed(kind)
    dense = set_weights(BUILD[kind][0](), model)
    assert any(not torch.equal(p, q) for p, q in zip(dense.parameters(), BUILD[kind][0]().parameters(), strict=True))
    for mode in (True, False):
        model.train(mode)
        torch.testing.assert_close(model(X), dense(X))
        with torch.no_grad():
            torch.testing.assert_close(model(X), dense(X))


@every_kind
def test_gradients_reach_root_and_cores_at_every_step(kind: str) -> None:
    model = compressed(kind, GeneratorConfig())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        expected = model(X).detach()
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
        assert all(p.grad is not None for p in model.parameters())
        roots = [name for name, p in model.named_parameters() if name.endswith("root") and torch.equal(p, before[name])]
        assert roots == []
        assert not torch.allclose(model(X), expected)


def test_gradients_are_those_at_the_weights_taken_on() -> None:
    model = compressed().double()
    dense = set_weights(Net().double(), model)
    x = X.double()
    model(x).square().sum().backward()
    dense(x).square().sum().backward()
    for name in ("weight_ih_l0", "weight_hh_l0"):
        parameters = list(model.rnn.parametrizations[name].parameters())
        at_weight = getattr(dense.rnn, name).grad
        expected = torch.autograd.grad((getattr(model.rnn, name) * at_weight).sum(), parameters)
        for p, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(p.grad, gradient)
    torch.testing.assert_close(model.rnn.bias_hh_l0.grad, dense.rnn.bias_hh_l0.grad)


def test_a_recurrent_layer_makes_each_weight_once_a_call() -> None:
    model = compressed()
    calls: list[int] = []
    for name in ("weight_ih_l0", "weight_hh_l0"):
        model.rnn.parametrizations[name][0].register_forward_hook(lambda *_: calls.append(1))
    model(X)
    assert len(calls) == 2


def test_packed_sequences_and_states_go_through() -> None:
    model = compressed()
    dense = set_weights(Net(), model)
    state = (torch.randn(1, 3, 8), torch.randn(1, 3, 8))
    packed = pack_padded_sequence(X, torch.tensor([5, 3, 2]), batch_first=True)
    for x in (X, packed):
        (y, (h, c)), (z, (k, d)) = model.rnn(x, state), dense.rnn(x, state)
        torch.testing.assert_close((h, c), (k, d))
        torch.testing.assert_close(getattr(y, "data", y), getattr(z, "data", z))


def test_nothing_of_the_dense_weights_or_of_a_graph_stays() -> None:
    model = Net()
    dense = [weakref.ref(model.rnn.weight_ih_l0), weakref.ref(model.rnn.weight_hh_l0)]
    compress_(model, CONFIG, PATTERN)
    gc.collect()
    assert [ref() for ref in dense] == [None, None]
    model(X)
    held = [t for value in vars(model.rnn).values() if isinstance(value, list) for t in value if isinstance(t, Tensor)]
    assert held == []
    model.rnn.flatten_parameters()
    assert len(model.rnn.all_weights[0]) == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_moves_to_another_type(dtype: torch.dtype) -> None:
    model = compressed()
    expected = model(X)
    moved = model.to(dtype)
    assert moved.rnn.weight_hh_l0.dtype == dtype
    torch.testing.assert_close(moved(X.to(dtype)).float(), expected, rtol=0.1, atol=0.1)


def test_autocast_leaves_the_generator_in_float32() -> None:
    model = compressed("cells")
    expected = model.doubled.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.doubled.weight, expected)
        assert model.doubled(X).dtype == torch.bfloat16


# --- copies -----------------------------------------------------------------------------------------------------------


@every_kind
def test_a_deep_copy_after_training_is_equal_and_on_its_own(kind: str) -> None:
    model = compressed(kind)
    model(X).sum().backward()
    twin = copy.deepcopy(model)
    before = model(X).detach()
    assert torch.equal(twin(X), before)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.5)
    assert not torch.allclose(twin(X), before)
    assert torch.equal(model(X), before)


def test_a_state_dict_goes_through_a_file_and_functional_call() -> None:
    model, other = compressed(), compressed(config=CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.2)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert "rnn.parametrizations.weight_hh_l0.0.root" in state
    assert not {"rnn.weight_hh_l0", "rnn.parametrizations.weight_hh_l0.original"} & state.keys()
    expected, before = model(X), other(X)
    torch.testing.assert_close(functional_call(other, state, (X,)), expected)
    assert torch.equal(other(X), before)
    other.load_state_dict(state, strict=True)
    assert torch.equal(other(X), expected)


def test_such_a_module_is_not_pickled_whole() -> None:
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(compressed())


def test_a_generated_parameter_is_read_only() -> None:
    model = compressed("cells")
    with pytest.raises(AttributeError, match=r"shape \(8, 8\) is read-only"):
        model.doubled.weight = torch.zeros(8, 8)
    with pytest.raises(KeyError, match="already exists"):  # torch's own, of all parametrized modules
        model.doubled.weight = nn.Parameter(torch.zeros(8, 8))
    rnn = compressed().rnn
    before = rnn(X)[0]
    with pytest.raises(AttributeError, match="read-only"):
        rnn.weight_hh_l0 = torch.zeros(32, 8)
    assert torch.equal(rnn(X)[0], before)


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize("kind", ["lstm", "cells"])
def test_a_compiled_model_follows_its_parameters(kind: str) -> None:
    model = compressed(kind)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(X), model(X))
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1)


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
