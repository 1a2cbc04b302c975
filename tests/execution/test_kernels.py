"""The cut that the kernels start from, and what runs where they cannot. What they compute: test_kernels_triton.py."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conformance_cases import assert_equal, generator_cases

import adntn
from adntn import Generator, GeneratorConfig, topology
from adntn.contraction import Contraction, in_digit_order
from adntn.errors import ConfigError, ShapeError
from adntn.execution import kernels
from adntn.nn import Embedding, Linear

CASES = {
    name: case for name, case in generator_cases().items() if case.options.get("topology") not in topology.BASELINES
}


def generator(shape: tuple[int, ...] = (64, 64), **options: Any) -> Generator:
    return Generator(shape, GeneratorConfig(**{"order": "paired", **options}))


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have Triton seem to be there or not, interpreted or not."""

    def pretend(*, found: bool = True, interpreted: bool = False) -> None:
        real = importlib.util.find_spec
        spec = importlib.util.spec_from_loader("triton", None) if found else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: spec if name == "triton" else real(name))
        monkeypatch.setattr(kernels, "_is_interpreted", lambda: interpreted)

    return pretend


@pytest.mark.parametrize("name", CASES)
def test_every_entry_of_the_weight_is_a_row_of_the_state_times_a_column_of_the_matrix(name: str) -> None:
    gen: Generator = CASES[name].build()
    network, where = gen._network, kernels.layout(gen)
    assert isinstance(network, Contraction)
    state, matrix = kernels.tiles(gen)
    assert state.shape[::2] == (where.groups, where.inner) == matrix.shape[:2]
    assert (state.numel(), matrix.numel()) == (where.state_entries, where.matrix_entries)
    whole = (state @ matrix).reshape(where.groups, *where.high, *where.low).permute(0, 1, 4, 2, 5, 3, 6)
    whole = whole.reshape(where.groups, *(h * n for h, n in zip(where.high, where.low, strict=True)))
    for axis, size in enumerate(where.size, start=1):
        whole = whole.narrow(axis, 0, size)
    t = network.blueprint.tensorization
    assert where.ravel == (len(t.axes) == 1)
    assert_equal(in_digit_order(whole, t, range(len(t.axes)), first_dim=1).reshape(gen.shape), gen())


@pytest.mark.parametrize("order", ["paired", "block_paired", "blocked"])
def test_the_state_is_far_smaller_than_the_weight_and_the_matrix_smaller_still(order: str) -> None:
    for name, share in (("ttn", 16), ("attn", 4), ("mera", 4)):
        gen = Generator((4096, 4096), GeneratorConfig(topology=name, order=order), device="meta")
        where = kernels.layout(gen)
        assert where.state_entries == 4096**2 // share
        assert where.matrix_entries == 4096


def test_numbers_are_made_in_float32_and_gradients_go_through_to_the_cores() -> None:
    gen = generator().to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = kernels.tiles(gen)
    assert [t.dtype for t in made] == [torch.float32] * 2
    (made[0].sum() * made[1].sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gen.parameters())


# --- where they cannot run -------------------------------------------------------------------------------------------


def test_without_triton_torch_operations_run_and_it_says_so(triton: Any) -> None:
    triton(found=False)
    can_run = kernels.available("cpu")
    assert not can_run
    assert str(can_run) == can_run.reason == "Triton is not installed, so torch operations run"
    gen, x, bias = generator(groups=2, terms=2), torch.randn(2, 3, 64, requires_grad=True), torch.randn(64)
    assert kernels.usable(gen, "cuda") == can_run.reason
    assert torch.equal(kernels.weight(gen), gen())
    assert torch.equal(kernels.linear(x, gen, bias), F.linear(x, gen(), bias))
    kernels.linear(x, gen, bias).sum().backward()
    assert gen.root.grad is not None


def test_a_triton_that_cannot_be_imported_is_no_error(triton: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bool:
        raise RuntimeError("no driver")

    triton()
    monkeypatch.setattr(kernels, "_is_interpreted", fail)
    assert kernels.available("cuda").reason == "Triton cannot be imported (no driver), so torch operations run"


def test_the_device_decides(triton: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    triton()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.available("cpu").reason == "Triton kernels run on CUDA, not on 'cpu'"
    assert kernels.available("meta").reason == "Triton kernels run on CUDA, not on 'meta'"
    assert kernels.available().reason == "torch finds no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, runs in (((7, 5), False), ((8, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert bool(kernels.available("cuda:1")) is runs
    assert kernels.usable(generator(), "cuda") is None
    triton(interpreted=True)
    assert kernels.available("cpu")
    assert "interpreter is on" in kernels.available("cuda").reason


@pytest.mark.parametrize(
    "shape, options, product, weight",
    [
        ((8, 8), {"topology": "tt"}, "topology='tt' has no levels", "topology='tt' has no levels"),
        ((8, 8, 3, 3), {}, "a weight of shape (8, 8, 3, 3) is no matrix", None),
        ((10, 12), {"order": "flat"}, "order='flat' ravels a weight of shape (10, 12)", None),
        ((8, 8), {"order": "flat"}, None, None),  # a ravel that lines up is blocked
        ((8, 8), {"groups": 2, "terms": 2, "topology": "mera"}, None, None),
    ],
    ids=str,
)
def test_the_generator_decides(
    triton: Any, shape: tuple[int, ...], options: dict[str, Any], product: str | None, weight: str | None
) -> None:
    triton(interpreted=True)
    gen = generator(shape, **options)
    for made, expected in (("product", product), ("weight", weight)):
        found = kernels.usable(gen, "cpu", made)  # type: ignore[arg-type]
        assert found is None if expected is None else found is not None and found.startswith(expected)


def test_what_a_layer_adds_decides_too(triton: Any) -> None:
    triton(interpreted=True)
    assert kernels.usable(Linear(8, 8), "cpu") is None
    assert kernels.usable(Linear(8, 8, dtype=torch.float64), "cpu") == "there is no kernel for torch.float64"
    adjoint = Linear(8, 8)
    adjoint.backward = "adjoint"
    assert "adjoint" in (kernels.usable(adjoint, "cpu") or "")
    shared, obstacle = generator((16, 8)), "its rows are not just the 16 that its generator makes"
    part = Linear.from_dense(torch.nn.Linear(8, 4), share=shared, rows=(4, 8))
    padded = Embedding(16, 8, padding_idx=3)
    tied = Linear.from_dense(torch.nn.Linear(8, 16), share=padded)
    for layer in (part, padded, tied):
        assert kernels.usable(layer, "cpu") == obstacle
        # The whole weight is that of root and cores, whatever rows a layer has of it; a product is the layer's own.
        assert kernels.usable(layer, "cpu", "weight") is None
    triton(found=False)
    for layer in (part, padded, tied):
        assert torch.equal(kernels.weight(layer), layer.bare()())
        x = torch.randn(3, 8)
        assert torch.equal(kernels.linear(x, layer), F.linear(x, layer.weight))


def test_errors_say_what_was_given() -> None:
    with pytest.raises(ShapeError, match=r"input of shape \(3, 63\) does not fit a weight of shape \(64, 64\)"):
        kernels.linear(torch.randn(3, 63), generator())
    with pytest.raises(ShapeError, match=r"input of shape \(\)"):
        kernels.linear(torch.tensor(1.0), generator())
    with pytest.raises(ConfigError, match="topology='lowrank' has no levels to cut"):
        kernels.tiles(generator(topology="lowrank", order="blocked"))


def test_nothing_of_triton_is_imported_before_it_is_used() -> None:
    code = "import sys, json, adntn, adntn.execution.kernels; print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(adntn.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    loaded = set(json.loads(done.stdout))
    assert loaded.isdisjoint({"triton", "adntn.execution.kernels.ops", "adntn.execution.kernels.programs"})


def test_the_benchmark_says_that_it_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("it would run here")
    script = Path(__file__).parents[2] / "benchmarks" / "kernels.py"
    environment = {**os.environ, "PYTHONPATH": str(Path(adntn.__file__).parents[1])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "CUDA" in done.stderr
