"""Parameters of modules that have no class of their own (LSTM, GRU, anything user-made): running and copying."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from parametrized_models import (
    BUILD,
    PATTERN,
    Net,
    X,
    compressed,
    every_kind,
    set_weights,
)
from small_models import CONFIG
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

from adntn import GeneratorConfig, compress_

pytestmark = [
    pytest.mark.usefixtures("few_objects"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]

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


@pytest.mark.slow
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
