"""Diagnosis of a start: each number against one computed by other means."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest
import torch
from conformance_cases import EVERYTHING

from adntn import Generator, GeneratorConfig
from adntn.errors import AdntnError
from adntn.health import Health, diagnose


def weights(shape: tuple[int, ...], seeds: range, **options: Any) -> list[torch.Tensor]:
    result = []
    for seed in seeds:
        torch.manual_seed(seed)
        result.append(Generator(shape, GeneratorConfig(**options))().detach().flatten(1).double())
    return result


@pytest.mark.parametrize("shape", [(64, 64), (12, 10, 3, 3)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"topology": "mera", "initialization": "isometric", "activation": "sine(omega=3)"}], ids=str
)
def test_each_number_is_the_median_over_seeds_of_what_it_says(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    health = diagnose(GeneratorConfig(**options), shape, seeds=range(3))
    drawn = weights(shape, range(3), **options)
    dense = (3 * drawn[0].shape[1]) ** -0.5
    spectra = [torch.linalg.svdvals(w) for w in drawn]
    norms = [w.norm(dim=1) for w in drawn]
    assert health.std == pytest.approx(1.0, rel=1e-4)
    assert health.mean == pytest.approx(statistics.median(float(w.mean()) / dense for w in drawn), rel=1e-3, abs=1e-6)
    assert health.stable_rank == pytest.approx(
        statistics.median(float((s / s[0]).square().sum()) for s in spectra), rel=1e-3
    )
    assert health.row_spread == pytest.approx(
        statistics.median(float(n.std(correction=0) / n.mean()) for n in norms), rel=1e-3
    )
    assert health.rank_bound == Generator(shape, GeneratorConfig(**options)).rank_bound()
    assert health.seeds == (0, 1, 2)


def test_the_root_gradient_is_the_relative_answer_of_the_weight_to_the_root() -> None:
    # With a single level the weight is linear in the root, so that W(t * root) = t * W: by Euler's rule the gradient in
    # the direction of the root itself is the weight, and the mean over probes can be had from the whole Jacobian.
    config, shape = GeneratorConfig(latent_order=9), (8, 8)
    measured = [diagnose(config, shape, seeds=[seed]).root_gradient for seed in range(200)]
    expected = []
    for seed in range(200):
        torch.manual_seed(seed)
        gen = Generator(shape, config)
        jacobian = torch.func.jacrev(lambda root, g=gen: torch.func.functional_call(g, {"root": root}, ()))(
            gen.root.detach()
        )
        expected.append(float(jacobian.detach().norm() * gen.root.detach().norm() / gen().detach().norm()))
    # For a random probe p of norm 1 in P dimensions, |J^T p|^2 is |J|^2 / P in the mean.
    mean_square = statistics.fmean(m**2 / e**2 for m, e in zip(measured, expected, strict=True))
    assert mean_square == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("config", [GeneratorConfig(), GeneratorConfig(topology="mera", groups=2)], ids=str)
def test_a_diagnosis_is_repeatable_and_leaves_the_random_state(config: GeneratorConfig) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = diagnose(config, (32, 32), seeds=[4, 5])
    assert torch.equal(torch.rand(3), expected)
    assert diagnose(config, (32, 32), seeds=[4, 5]) == first
    assert diagnose(config, (32, 32), seeds=[6]) != first


def test_a_diagnosis_works_where_gradients_are_off() -> None:
    expected = diagnose(GeneratorConfig(), (16, 16), seeds=[0])
    with torch.no_grad():
        assert diagnose(GeneratorConfig(), (16, 16), seeds=[0]) == expected
    with torch.inference_mode():
        assert diagnose(GeneratorConfig(), (16, 16), seeds=[0]) == expected


@pytest.mark.parametrize("topology", EVERYTHING)
def test_every_topology_can_be_diagnosed(topology: str) -> None:
    health = diagnose(GeneratorConfig(**EVERYTHING[topology]), (32, 24, 3), seeds=range(2))
    assert health.std == pytest.approx(1.0, rel=1e-3)
    assert 1 <= health.stable_rank <= health.rank_bound <= 32
    assert health.root_gradient > 0  # of the first parameter where there is no root


def test_no_seeds_are_refused() -> None:
    with pytest.raises((AdntnError, ValueError)):
        diagnose(GeneratorConfig(), (16, 16), seeds=[])


def test_the_findings_of_the_design_hold() -> None:
    # Positive activations give every entry the same sign; isometric cores and a sine do not.
    paper = GeneratorConfig(activation="elu", initialization="paper", order="blocked")
    isometric = paper.replace(initialization="isometric")
    sine = isometric.replace(activation="sine(omega=3)")
    ranks = [diagnose(config, (512, 512)).stable_rank for config in (paper, isometric, sine)]
    assert 1 <= ranks[0] < 1.5 < ranks[1] < ranks[2] <= 32


def test_it_reads_as_a_line_and_as_plain_values() -> None:
    health = diagnose(GeneratorConfig(), (16, 16), seeds=[0, 1])
    assert "\n" not in str(health)
    assert f"stable rank {health.stable_rank:.1f} of {health.rank_bound}" in str(health)
    assert "2 seeds" in str(health)
    assert json.loads(json.dumps(health.to_dict()))["stable_rank"] == health.stable_rank
    assert isinstance(health, Health)
