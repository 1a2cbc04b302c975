"""What runs where the kernels cannot, and what is said of it. What they compute: test_kernels_triton.py."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import adntn
from adntn import Generator, GeneratorConfig
from adntn.execution import kernels
from adntn.nn import Embedding, Linear


def generator(shape: tuple[int, ...] = (64, 64), **options: Any) -> Generator:
    return Generator(shape, GeneratorConfig(**{"order": "paired", **options}))


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Have Triton seem to be there or not, interpreted or not."""

    def pretend(*, found: bool = True, interpreted: bool = False) -> None:
        real = importlib.util.find_spec
        spec = importlib.util.spec_from_loader("triton", None) if found else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: spec if name == "triton" else real(name))
        monkeypatch.setattr(kernels, "_is_interpreted", lambda: interpreted)
        kernels._look.cache_clear()

    yield pretend
    kernels._look.cache_clear()


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
    kernels._look.cache_clear()
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
        kernels._look.cache_clear()
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


def test_nothing_of_triton_is_imported_before_it_is_used() -> None:
    code = "import sys, json, adntn, adntn.execution.kernels; print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(adntn.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    loaded = set(json.loads(done.stdout))
    assert loaded.isdisjoint({"triton", "adntn.execution.kernels.ops", "adntn.execution.kernels.programs"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA: with one, the benchmark runs")
def test_the_benchmark_says_that_it_needs_a_gpu() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "kernels.py"
    environment = {**os.environ, "PYTHONPATH": str(Path(adntn.__file__).parents[1])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "CUDA" in done.stderr
