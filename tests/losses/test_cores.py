"""Penalties on cores and gates against values worked by hand, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch

import adntn
from adntn import ConfigError, Generator, GeneratorConfig
from adntn.losses import activation_scale, gate_sparsity, isometry, quantization_penalty
from adntn.topology import BASELINES

GATED = GeneratorConfig(topology="mera", gate=True, terms=2, latent_order=2)


@pytest.mark.parametrize("topology", ["ttn", "attn", "mera", "brickwall"])
def test_isometric_cores_cost_nothing_and_others_what_the_equation_says(topology: str) -> None:
    config = GeneratorConfig(topology=topology, latent_order=2, groups=2, activation="identity")
    gen = Generator((32, 16), config, dtype=torch.float64)
    expected_v = expected_u = 0.0
    gen.requires_grad_(False)
    with torch.no_grad():
        for level in gen.blueprint.levels:
            for stack in level.stacks:
                cores = gen.get_core(stack.name)
                rows, columns = cores.shape[1:]
                cores.copy_(torch.eye(rows, columns).expand_as(cores))
        assert float(isometry(gen)) == 0.0
        for level in gen.blueprint.levels:
            for stack in level.stacks:
                gen.get_core(stack.name).mul_(2.0)
                side = min(stack.shape)
                cost = gen.config.trees * stack.count * side * (4.0 - 1.0) ** 2
                expected_u += cost if stack.kind == "mix" else 0.0
                expected_v += cost if stack.kind != "mix" else 0.0
    assert float(isometry(gen, disentanglers=0.0)) == pytest.approx(expected_v)
    assert float(isometry(gen, expansions=0.0)) == pytest.approx(expected_u)
    assert float(isometry(gen, expansions=0.5, disentanglers=3.0)) == pytest.approx(0.5 * expected_v + 3 * expected_u)


def test_the_penalty_brings_cores_to_isometries() -> None:
    layer = adntn.nn.Linear(32, 32, config=GeneratorConfig(topology="mera", initialization="paper"))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    start = isometry(layer).item()
    for _ in range(150):
        optimizer.zero_grad()
        isometry(layer).backward()
        optimizer.step()
    assert isometry(layer).item() < 1e-3 * start


def gates(gen: Generator) -> dict[str, torch.Tensor]:
    cores = {stack.name for level in gen.blueprint.levels for stack in level.stacks}
    return {n: p for n, p in gen.generator_parameters() if n.startswith("gate.") and n not in cores}


@pytest.mark.parametrize("config", [GATED, GATED.replace(groups=2), GATED.with_topology("brickwall")], ids=str)
def test_gate_sparsity_is_the_sum_worked_by_hand(config: GeneratorConfig) -> None:
    gen = Generator((32, 16), config, dtype=torch.float64)
    named = gates(gen)
    count = sum(p.numel() for p in named.values())
    assert "gate.term" in named
    with torch.no_grad():
        for gate in named.values():
            gate.fill_(-0.5)
        named["gate.term"].zero_()
    zeros = named["gate.term"].numel()
    assert float(gate_sparsity(gen).detach()) == pytest.approx(0.5 * (count - zeros))
    smooth = (count - zeros) * (math.sqrt(0.25 + 0.01) - 0.1)
    assert float(gate_sparsity(gen, smooth=0.1).detach()) == pytest.approx(smooth)
    gate_sparsity(gen).backward()
    for name, parameter in gen.generator_parameters():
        if name not in named:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None
            assert parameter.grad.unique().tolist() == [0.0 if name == "gate.term" else -1.0]


@pytest.mark.parametrize("groups, terms", [(1, 1), (2, 1), (2, 2)])
def test_activation_scale_of_a_fresh_tree_is_nothing_and_of_another_that_worked_by_hand(
    groups: int, terms: int
) -> None:
    config = GeneratorConfig(topology="ttn", latent_order=2, activation="identity", groups=groups, terms=terms)
    gen = Generator((64, 64), config, dtype=torch.float64)
    hidden = len(gen.schedule) - 2
    assert hidden == 2
    assert float(activation_scale(gen).detach()) < 1e-20  # calibrated to variance 1
    with torch.no_grad():
        gen.root *= 3.0  # both levels are linear: three times the deviation
    assert float(activation_scale(gen).detach()) == pytest.approx(hidden * math.log(3) ** 2)
    assert float(activation_scale(gen, target=3.0).detach()) < 1e-20
    with torch.no_grad():
        gen.root[0] /= 9.0  # one tree at a third, the others at three times
    assert float(activation_scale(gen).detach()) == pytest.approx(hidden * math.log(3) ** 2)
    assert float(activation_scale(gen, target=3.0).detach()) == pytest.approx(
        hidden * math.log(9) ** 2 / (groups * terms)
    )


def test_activation_scale_brings_levels_back_and_leaves_dead_ones_alone() -> None:
    layer = adntn.nn.Linear(64, 64, config=GeneratorConfig(topology="mera", latent_order=2))
    with torch.no_grad():
        layer.root *= 20.0
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    start = activation_scale(layer).item()
    for _ in range(100):
        optimizer.zero_grad()
        activation_scale(layer).backward()
        optimizer.step()
    assert activation_scale(layer).item() < 1e-2 * start
    with torch.no_grad():
        layer.root.zero_()
    loss = activation_scale(layer)
    loss.backward()
    assert loss.item() == 0.0
    assert layer.root.grad is not None
    assert layer.root.grad.isfinite().all()


def set_all(gen: Generator, numbers: list[float]) -> None:
    """Fill every stored tensor but gates with a few numbers, over and over."""
    named = gates(gen) if gen.config.gate else {}
    with torch.no_grad():
        for name, parameter in gen.generator_parameters():
            if name not in named and not name.startswith("activation."):
                parameter.view(-1).copy_(
                    torch.tensor(numbers, dtype=parameter.dtype).repeat(parameter.numel())[: parameter.numel()]
                )


@pytest.mark.parametrize("topology", ["ttn", "mera", "brickwall", "tt", "lowrank"])
def test_quantization_is_the_distance_to_the_grid_worked_by_hand(topology: str) -> None:
    gen = Generator((16, 16), GeneratorConfig(topology=topology), dtype=torch.float64)
    set_all(gen, [1.0, -0.3])
    # Three bits: three steps to each side, of a third. -0.3 is -0.9 steps, 0.1 from the nearest point.
    assert float(quantization_penalty(gen, bits=3).detach()) == pytest.approx(0.1**2 / 2)
    # Two bits: one step to each side. -0.3 is -0.3 steps.
    assert float(quantization_penalty(gen, bits=2).detach()) == pytest.approx(0.3**2 / 2)
    quantization_penalty(gen, bits=3).backward()
    count = sum(p.numel() for p in gen.parameters())
    for parameter in gen.parameters():
        assert parameter.grad is not None
        flat = parameter.grad.view(-1)
        assert flat[0].abs() < 1e-12  # the largest is on the grid
        assert flat[1].item() == pytest.approx(2 * 0.1 * 3 / count)  # a step down goes to -1/3
    set_all(gen, [1.0, -1 / 3])
    assert float(quantization_penalty(gen, bits=3).detach()) < 1e-20


def test_each_stored_tensor_has_a_step_of_its_own_and_gates_have_none() -> None:
    gen = Generator((32, 16), GATED, dtype=torch.float64)
    set_all(gen, [1.0, -0.3])
    with torch.no_grad():
        gen.root.mul_(1000.0)
        for gate in gates(gen).values():
            gate.fill_(0.123)
    assert float(quantization_penalty(gen, bits=3).detach()) == pytest.approx(0.1**2 / 2)
    with torch.no_grad():
        gen.root.zero_()
    loss = quantization_penalty(gen, bits=3)
    loss.backward()
    assert loss.isfinite()
    assert gen.root.grad is not None
    assert gen.root.grad.isfinite().all()


@pytest.mark.parametrize("topology", ["ttn", "attn", "mera", "brickwall"])
def test_every_penalty_is_the_same_of_a_layer_in_bfloat16_and_under_autocast(topology: str) -> None:
    config = GeneratorConfig(topology="ttn", gate=True, latent_order=2, bond_dim=3, groups=2).with_topology(topology)
    config = config.replace(columns=4) if topology == "brickwall" else config
    layer = adntn.nn.Linear(24, 20, bias=False, config=config).bfloat16()
    whole = adntn.nn.Linear(24, 20, bias=False, config=config)
    whole.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
    for penalty in (isometry, gate_sparsity, activation_scale, quantization_penalty):
        assert penalty(layer).dtype == torch.float32
        expected = penalty(whole)
        torch.testing.assert_close(penalty(layer), expected)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(penalty(whole), expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("no_graphs")
def test_penalties_compile_to_one_graph() -> None:
    layer = adntn.nn.Linear(24, 20, config=GATED)

    def penalties() -> torch.Tensor:
        parts = (isometry, gate_sparsity, activation_scale, quantization_penalty)
        return torch.stack([part(layer) for part in parts]).sum()

    torch.testing.assert_close(torch.compile(penalties, fullgraph=True, backend="eager")(), penalties())


@pytest.mark.parametrize("topology", BASELINES)
def test_what_a_baseline_lacks_is_refused(topology: str) -> None:
    gen = Generator((8, 8), GeneratorConfig(topology=topology))
    with pytest.raises(ConfigError, match=f"topology='{topology}' has no cores that could be isometries"):
        isometry(gen)
    with pytest.raises(ConfigError, match=f"topology='{topology}' and gate=False has no gates"):
        gate_sparsity(gen)
    with pytest.raises(ConfigError, match=f"topology='{topology}' .* no level before its readout"):
        activation_scale(gen)


def test_mistakes_are_refused_with_what_was_given() -> None:
    with pytest.raises(ConfigError, match="expansions=-1"):
        isometry(Generator((8, 8)), expansions=-1.0)
    with pytest.raises(ConfigError, match="smooth=-1"):
        gate_sparsity(Generator((8, 8)), smooth=-1)
    with pytest.raises(ConfigError, match="target=0"):
        activation_scale(Generator((8, 8)), target=0)
    with pytest.raises(ConfigError, match=r"schedule \(3, 6\) has no level before its readout"):
        activation_scale(Generator((8, 8)))
    for bits in (1, 2.5, True):
        with pytest.raises(ConfigError, match=f"bits={bits}"):
            quantization_penalty(Generator((8, 8)), bits=bits)  # type: ignore[arg-type]
