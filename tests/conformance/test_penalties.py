"""The penalties on cores and gates of every generator of the table, beside their sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conformance_cases import Case, generator_cases

from adntn import Generator
from adntn.losses import activation_scale, gate_sparsity, isometry, quantization_penalty
from adntn.losses.cores import has_cores, has_gates, has_levels

CASES = generator_cases()
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
GATES = ("gate.level.", "gate.term", "gate.mix.", "gate.gate.")  # a brick wall's own cores are gate.1.2


def numbers(gen: Generator) -> dict[str, np.ndarray]:
    named = {name: value.numpy() for name, value in gen.state_dict().items()}
    return {name: value for name, value in named.items() if not name.startswith(("activation.", "seed"))}


@every_case
def test_penalties_are_the_sums_of_their_equations_with_finite_gradients(case: Case) -> None:
    gen = case.build()
    stored = {name: value for name, value in numbers(gen).items() if not name.startswith(GATES)}
    gates = [value for name, value in numbers(gen).items() if name.startswith(GATES)]
    assert has_gates(gen) == bool(gates)

    squares = []
    for value in stored.values():
        if value.size == gen.config.trees:  # a single number each is left as it is: it would need a scale of its own
            continue
        for tree in np.split(value, gen.config.trees):
            step = np.abs(tree).max() / 7
            squares += [float((x - np.round(x)) ** 2) for x in (tree / step).flat]
    expected = math.fsum(squares) / max(1, len(squares))
    assert float(quantization_penalty(gen, bits=4).detach()) == pytest.approx(expected)

    if gates:
        assert float(gate_sparsity(gen).detach()) == pytest.approx(sum(float(np.abs(gate).sum()) for gate in gates))
    total = 0.0
    for name, stack in stored.items() if has_cores(gen) else ():
        for core in stack if name != "root" else ():
            matrix = core if len(core) <= len(core.T) else core.T
            total += float(((matrix @ matrix.T - np.eye(len(matrix))) ** 2).sum())
    loss = quantization_penalty(gen)
    if has_cores(gen):
        assert float(isometry(gen).detach()) == pytest.approx(total)
        loss = loss + isometry(gen)
    loss = loss + (gate_sparsity(gen) if gates else 0.0) + (activation_scale(gen) if has_levels(gen) else 0.0)
    if not squares:
        assert not loss.requires_grad
        return
    loss.backward()
    for name, parameter in gen.generator_parameters():
        if name in stored and parameter.numel() > gen.config.trees:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
