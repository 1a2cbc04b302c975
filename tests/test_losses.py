"""Losses against values worked by hand, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from allocations import Allocations

import adntn
from adntn import ConfigError, Generator, GeneratorConfig, ShapeError
from adntn.losses import WeightedSum, distillation, frobenius, huber, isometry, l1, sampled_frobenius

W = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64)
T = torch.tensor([[1.0, 0.0], [4.0, 2.0]], dtype=torch.float64)


def test_the_distances_of_weights_are_those_worked_by_hand() -> None:
    # Differences 0, 2, -1, 3.
    assert float(frobenius(W, T)) == (0 + 4 + 1 + 9) / 2
    assert float(l1(W, T)) == 0 + 2 + 1 + 3
    assert float(huber(W, T)) == 0 + (2 - 0.5) + 0.5 + (3 - 0.5)
    assert float(huber(W, T, delta=2.0)) == 0 + 2 + 0.5 + 2 * (3 - 1)


def test_at_sampled_entries_only_these_count() -> None:
    index = torch.tensor([[0, 1], [1, 1]])
    assert float(sampled_frobenius(W, T, index)) == (4 + 9) / (2 * 2)
    weight = W.clone().requires_grad_()
    sampled_frobenius(weight, T, index).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 1.0], [0.0, 1.5]]


def test_all_entries_sampled_once_are_the_mean_of_the_whole() -> None:
    index = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    assert float(sampled_frobenius(W, T, index)) == float(frobenius(W, T)) / 4


@pytest.mark.parametrize("order", ["blocked", "paired"])
def test_of_a_generator_only_the_sampled_entries_are_made(order: str) -> None:
    layer = adntn.nn.Linear(600, 500, bias=False, config=GeneratorConfig(order=order), dtype=torch.float64)
    target = torch.randn(500, 600, dtype=torch.float64)
    index = torch.stack([torch.randint(-500, 500, (30,)), torch.randint(600, (30,))], 1)
    expected = torch.autograd.grad(sampled_frobenius(layer.weight, target, index), list(layer.parameters()))
    for given in (target, target[index.unbind(1)]):
        with Allocations() as seen:
            loss = sampled_frobenius(layer, given, index)
            ours = torch.autograd.grad(loss, list(layer.parameters()))
        assert float(loss.detach()) == pytest.approx(float(sampled_frobenius(layer.weight, target, index).detach()))
        assert seen.largest < 8 * 500 * 600 / 8, seen.by
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_subgradient_of_l1_at_zero_is_zero() -> None:
    weight = W.clone().requires_grad_()
    l1(weight, T).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 1.0], [-1.0, 1.0]]


def test_distillation_is_the_divergence_worked_by_hand() -> None:
    teacher = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)  # probabilities 3/4, 1/4
    logits = torch.tensor([[0.0, 0.0]], dtype=torch.float64)  # 1/2, 1/2
    delta = 0.25
    expected = 0.75 * math.log(1.0 / 0.75) + 0.25 * math.log(0.5 / 0.75)
    assert float(distillation(logits, teacher, delta=delta)) == pytest.approx(expected, rel=1e-12)
    assert float(distillation(teacher, teacher, delta=delta)) == 0.0


def test_distillation_with_a_small_delta_is_torchs_divergence() -> None:
    logits, teacher = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    expected = F.kl_div(
        (logits / 2).log_softmax(-1), (teacher / 2).log_softmax(-1), log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(distillation(logits, teacher, temperature=2.0, delta=1e-14), 4 * expected)


def test_distillation_teaches_only_the_student_and_stays_finite() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = distillation(logits, teacher)
    loss.backward()
    assert loss.isfinite()
    assert teacher.grad is None
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_distillation_in_half_precision_is_worked_out_in_full() -> None:
    logits, teacher = torch.randn(5, 7).bfloat16(), torch.randn(5, 7).bfloat16()
    assert torch.equal(distillation(logits, teacher), distillation(logits.float(), teacher.float()))


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


def test_a_weighted_sum_tells_its_terms_apart() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    loss = WeightedSum({"square": (2.0, lambda x: x**2), "cube": (0.5, lambda x: x**3), "off": (0.0, lambda x: 1 / 0)})
    total, terms = loss(x)
    total.backward()
    assert float(total.detach()) == 2 * 9 + 0.5 * 27
    assert {name: float(value) for name, value in terms.items()} == {"square": 9.0, "cube": 27.0}
    assert not any(value.requires_grad for value in terms.values())
    assert float(x.grad) == 2 * 6 + 0.5 * 27  # type: ignore[arg-type]


def test_a_generator_learns_from_a_composite_loss() -> None:
    gen = Generator((16, 16))
    target = torch.randn(16, 16)
    loss = WeightedSum({"fit": (1.0, lambda: frobenius(gen(), target)), "isometry": (1e-2, lambda: isometry(gen))})
    optimizer = torch.optim.Adam(gen.parameters(), lr=1e-2)
    totals = []
    for _ in range(30):
        optimizer.zero_grad()
        total, _ = loss()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < totals[0]


def test_mistakes_are_refused_with_what_was_given() -> None:
    for loss in (frobenius, l1, huber, distillation):
        with pytest.raises(ShapeError, match=r"\(2, 2\) and \(2, 3\)"):
            loss(W, torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"index of shape \(2, 3\)"):
        sampled_frobenius(W, T, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"target of shape \(3,\) and a weight of shape \(8, 8\) .* its 2 values"):
        sampled_frobenius(Generator((8, 8)), torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"target of shape \(2,\) .* whole target\.$"):
        sampled_frobenius(W, torch.zeros(2), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(adntn.EntryIndexError, match="index 2 is out of range for axis 1"):
        sampled_frobenius(W, T, torch.tensor([[0, 2]]))
    with pytest.raises(ShapeError, match="at least one row"):
        sampled_frobenius(W, T, torch.zeros(0, 2, dtype=torch.int64))
    for name in ("temperature", "delta"):
        with pytest.raises(ConfigError, match=name):
            distillation(W, T, **{name: 0.0})
    with pytest.raises(ConfigError, match=r"delta=-1\.0"):
        huber(W, T, delta=-1.0)
    with pytest.raises(ConfigError, match="topology='lowrank'"):
        isometry(Generator((8, 8), GeneratorConfig(topology="lowrank")))
    with pytest.raises(ConfigError, match="expansions=-1"):
        isometry(Generator((8, 8)), expansions=-1.0)
    with pytest.raises(ConfigError, match="factor of 'task'"):
        WeightedSum({"task": (math.nan, lambda: W.sum())})
    with pytest.raises(ConfigError, match="at least one term"):
        WeightedSum({})
