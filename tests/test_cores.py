"""How strongly the activations of a generator act."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from conformance_cases import DIFFERENTIATED, NETWORKS, Case, scramble
from torch import Tensor, nn

import adntn
from adntn import Generator, GeneratorConfig
from adntn.errors import CheckpointError, ConfigError

STRENGTH = 0.3


def weakened(strength: float = STRENGTH, **options: Any) -> Generator:
    gen = Case((8, 16), {"latent_order": 2, "activation": "tanh", **options}).build()
    gen.activation_strength = strength
    return gen


@pytest.mark.parametrize("strength", [0.0, STRENGTH, 1.0])
@pytest.mark.parametrize("norm", [None, "layer"])
@pytest.mark.parametrize("topology", NETWORKS)
def test_it_is_the_share_of_the_activation(topology: str, norm: str | None, strength: float) -> None:
    options = {"norm": norm, "groups": 2, **NETWORKS[topology]}
    plain = weakened(strength, **options)
    gated = weakened(1.0, **options, gate=True)
    with torch.no_grad():
        values = dict(plain.named_parameters())
        for name, parameter in gated.named_parameters():
            if name.startswith("gate.level."):
                parameter.fill_(strength)
            else:
                parameter.copy_(values[name] if name in values else torch.ones(()))
    torch.testing.assert_close(plain(), gated(), rtol=1e-12, atol=1e-12)


def test_at_zero_a_tree_is_linear_in_its_root() -> None:
    gen = weakened(0.0)
    before = gen()
    with torch.no_grad():
        gen.root.mul_(3.0)
    torch.testing.assert_close(gen(), 3.0 * before)
    gen.activation_strength = 1.0
    assert not torch.allclose(gen(), 3.0 * before)


@pytest.mark.parametrize("strength", [0.0, STRENGTH])
@pytest.mark.parametrize("name", [n for n, case in DIFFERENTIATED.items() if case.blueprint().levels])
def test_the_adjoint_has_it_too(name: str, strength: float) -> None:
    gen = DIFFERENTIATED[name].build()
    gen.activation_strength = strength
    upstream = torch.randn(gen.shape, dtype=torch.float64)
    gen().backward(upstream)
    expected = {n: p.grad for n, p in gen.named_parameters()}
    by_equations = adntn.adjoint.weight_adjoint(gen, upstream)
    gen.zero_grad()
    gen.backward = "adjoint"
    gen().backward(upstream)
    for n, p in gen.named_parameters():
        torch.testing.assert_close(p.grad, expected[n], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(by_equations[n], expected[n], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backward", ["autograd", "adjoint"])
@pytest.mark.parametrize(
    "execution, order",
    [("auto", "blocked"), ("factored", "blocked"), ("dense", "blocked"), ("auto", "paired"), ("dense", "paired")],
)
def test_every_way_of_running_has_it(execution: str, order: str, backward: str) -> None:
    config = GeneratorConfig(latent_order=2, order=order)
    layer = adntn.nn.Linear(16, 32, config=config, execution=execution, dtype=torch.float64)
    layer.backward = backward
    layer.activation_strength = STRENGTH
    bare = layer.bare_copy()
    assert bare.activation_strength == STRENGTH
    weight = bare()
    bare.activation_strength = 1.0
    assert not torch.allclose(weight, bare())
    x = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ weight.T + layer.bias)
    torch.testing.assert_close(layer.weight, weight)
    torch.testing.assert_close(layer.rows_at(torch.tensor([3, 5])), weight[[3, 5]])
    torch.testing.assert_close(layer.entries((torch.tensor([3, 5]), 2)), weight[[3, 5], 2])
    with torch.no_grad():
        torch.testing.assert_close(layer.generate(out=torch.empty_like(weight)), weight)


def test_what_is_kept_follows_it() -> None:
    layer = adntn.nn.Linear(16, 32, config=GeneratorConfig(latent_order=2))
    x = torch.randn(3, 16)
    with adntn.cached(layer):
        full = layer(x)
        assert torch.equal(layer(x), full)
        layer.activation_strength = 0.0
        linear = layer(x)
        assert not torch.allclose(linear, full)
        assert torch.equal(layer(x), linear)
        layer.activation_strength = 1.0
        assert torch.equal(layer(x), full)
    layer.activation_strength = 0.0
    torch.testing.assert_close(layer(x), linear)


def test_compiled_it_is_a_number_that_may_change() -> None:
    layer = adntn.nn.Linear(16, 32, config=GeneratorConfig(latent_order=2))
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(3, 16)
    for strength in (1.0, 0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0):
        layer.activation_strength = strength
        torch.testing.assert_close(compiled(x), layer(x))
    assert counter.frame_count <= 3


def test_forward_mode_and_functional_calls_have_it() -> None:
    gen = weakened()
    values = {name: parameter.detach() for name, parameter in gen.named_parameters()}
    made = lambda named: torch.func.functional_call(gen, named, ())  # noqa: E731
    step = {name: torch.randn_like(value) for name, value in values.items()}
    out, tangent = torch.func.jvp(made, (values,), (step,))
    assert torch.equal(out, gen())
    moved = {name: value + 1e-6 * step[name] for name, value in values.items()}
    back = {name: value - 1e-6 * step[name] for name, value in values.items()}
    torch.testing.assert_close(tangent, (made(moved) - made(back)) / 2e-6, rtol=1e-6, atol=1e-6)
    several = torch.func.vmap(made)({name: torch.stack([value, value]) for name, value in values.items()})
    torch.testing.assert_close(several[1], gen())


@pytest.mark.parametrize(
    "move", [copy.deepcopy, lambda gen: gen.bare_copy(), lambda gen: _unpickled(gen), lambda gen: gen.to(torch.float64)]
)
def test_copies_have_it_and_go_their_own_way(move: Callable[[Generator], Generator]) -> None:
    gen = weakened()
    other = move(gen)
    assert other.activation_strength == STRENGTH
    torch.testing.assert_close(other(), gen())
    if other is not gen:
        other.activation_strength = 0.9
        assert gen.activation_strength == STRENGTH


def _unpickled(module: Generator) -> Generator:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    loaded: Generator = torch.load(buffer, weights_only=False)
    return loaded


def test_neither_config_nor_state_dict_has_it() -> None:
    gen, other = weakened(0.0), weakened(1.0)
    assert gen.config == other.config
    assert gen.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(gen.state_dict())
    assert other.activation_strength == 1.0


def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.ModuleDict({name: nn.Linear(16, 8) for name in ("q", "k", "v")})
    adntn.compress_(made, GeneratorConfig(latent_order=2), shared=[("q", "k", "v")])
    return made


def test_layers_that_share_a_generator_have_one() -> None:
    made = model()
    made["q"].activation_strength = STRENGTH
    assert [layer.activation_strength for layer in made.values()] == [STRENGTH] * 3
    other = copy.deepcopy(made)
    other["k"].activation_strength = 0.5
    assert [layer.activation_strength for layer in other.values()] == [0.5] * 3
    assert made["v"].activation_strength == STRENGTH


@pytest.mark.parametrize("changes", [{"bond_dim": 3}, {"topology": "mera"}, {"terms": 2}, {"order": "paired"}])
def test_growth_keeps_it(changes: dict[str, Any]) -> None:
    made = model()
    made["q"].activation_strength = STRENGTH
    before = made["v"].weight
    report = adntn.grow_(made["k"], **changes, fit=adntn.FitOptions(steps=1, polish=0), progress=False)
    assert [layer.activation_strength for layer in made.values()] == [STRENGTH] * 3
    assert report.exact == ("order" not in changes)
    if report.exact:
        torch.testing.assert_close(made["v"].weight, before)


def test_a_file_holds_generators_in_full_only(tmp_path: Path) -> None:
    made, path = model(), tmp_path / "model.safetensors"
    made["q"].activation_strength = STRENGTH
    with pytest.raises(
        CheckpointError, match=r"'q' has activation_strength=0.3, which a file cannot hold.*materialize"
    ):
        adntn.save(made, path)
    assert not path.exists()
    dense = adntn.materialize(made)
    torch.testing.assert_close(dense["k"].weight, made["k"].weight)
    made["q"].activation_strength = 1.0
    adntn.save(made, path)
    weight = made["k"].weight
    made["q"].activation_strength = STRENGTH
    adntn.load(made, path)
    assert made["v"].activation_strength == 1.0
    assert torch.equal(made["k"].weight, weight)


def test_where_there_is_no_activation_it_keeps_nothing_from_being_saved(tmp_path: Path) -> None:
    for options in ({"topology": "lowrank"}, {"latent_order": 9}):
        layer = nn.Sequential(adntn.nn.Linear(8, 8, config=GeneratorConfig(**options)))
        before = layer[0].weight
        layer[0].activation_strength = 0.5
        assert torch.equal(layer[0].weight, before)
        adntn.save(layer, tmp_path / "model.safetensors")


def test_a_start_is_calibrated_as_it_runs() -> None:
    layer = adntn.nn.Linear(64, 64, config=GeneratorConfig(latent_order=2, activation="elu"))
    layer.activation_strength = 0.0
    layer.reset_parameters()
    assert layer.activation_strength == 0.0
    assert float(layer.weight.detach().std(correction=0)) == pytest.approx(1 / (3 * 64) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "1", None, True])
def test_other_values_are_refused(value: Any) -> None:
    gen = weakened()
    with pytest.raises(ConfigError, match=r"activation_strength=.*at least 0 and at most 1"):
        gen.activation_strength = value
    assert gen.activation_strength == STRENGTH


def test_learned_activations_learn_in_their_share() -> None:
    gradients: dict[float, Tensor] = {}
    for strength in (0.25, 0.5):
        gen = scramble(Generator((8, 8), GeneratorConfig(activation="prelu", latent_order=2), dtype=torch.float64))
        gen.activation_strength = strength
        with torch.no_grad():
            for name, parameter in gen.named_parameters():
                if name.startswith("activation."):
                    parameter.fill_(1.0)  # the identity, whatever the strength
                else:
                    torch.manual_seed(len(name))
                    parameter.copy_(torch.randn_like(parameter))
        gen().sum().backward()
        gradients[strength] = gen.activation["1"].slope.grad
    torch.testing.assert_close(gradients[0.5], 2 * gradients[0.25])
