"""One case: every variant measured, or left out with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adntn
from adntn.execution.cache import is_kept
from benchmarks.speed import trial, variants
from benchmarks.speed.cases import Case, full_grid, quick_grid
from benchmarks.speed.measure import Timing
from benchmarks.speed.peers import tensorly_missing
from benchmarks.speed.trial import Limits, run_case, skips_from
from benchmarks.speed.variants import Variant, variants_of

QUICK = Limits(budget=0.0)
LINEAR = Case("linear", "inference", "float32", (10, 16), 2)


@pytest.mark.parametrize(
    "case",
    [
        LINEAR,
        Case("linear", "training", "float32", (10, 16), 2),
        Case("conv", "inference", "float32", (8, 8, 3, 3), 2, 4),
        Case("conv", "training", "bfloat16", (8, 8, 3, 3), 2, 4),
    ],
    ids=lambda case: case.key,
)
def test_every_variant_of_a_small_case_is_measured(case: Case) -> None:
    results = run_case(case, QUICK)
    assert list(results) == [variant.name for variant in variants_of(case)]
    for name, result in results.items():
        if name.startswith("tensorly") and tensorly_missing():
            assert result["skipped"].startswith("not installed")
            continue
        assert 0 < result["low"] <= result["median"] <= result["high"], name
        assert result["rounds"] >= 3
        assert result["peak"] > 0
    assert {result["way"] for name, result in results.items() if name.endswith("auto")} <= {"factored", "dense"}
    ttn = adntn.Generator(case.shape, adntn.GeneratorConfig(topology="ttn")).num_parameters
    assert results["ttn factored"]["parameters"] == ttn + case.shape[0]  # and the bias
    # What training holds for a dense weight at least: itself, its gradient, two moments.
    size = 2 if case.dtype == "bfloat16" else 4
    if case.mode == "training":
        assert results["dense"]["peak"] >= 4 * size * results["dense"]["parameters"]


def test_all_variants_are_given_the_same_input(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    class Looks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            assert not torch.is_grad_enabled()
            assert not self.training
            return super().forward(x)

    made = [Variant(name, "dense", lambda: Looks(16, 10)) for name in ("dense", "other")]
    monkeypatch.setattr(trial, "variants_of", lambda case: made)
    run_case(LINEAR, QUICK)
    assert len(seen) > 6
    assert all(x is seen[0] for x in seen)


def test_a_generated_layer_keeps_what_it_makes_in_inference_only(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []

    def build() -> nn.Module:
        layer = adntn.nn.Linear(64, 64, execution="factored")
        layer.register_forward_pre_hook(lambda *_: kept.append(is_kept(layer)))
        return layer

    monkeypatch.setattr(trial, "variants_of", lambda case: [Variant("ttn auto", "adntn", build)])
    for mode, expected in (("inference", True), ("training", False)):
        kept.clear()
        run_case(Case("linear", mode, "float32", (64, 64), 2), QUICK)
        assert set(kept) == {expected}


class Sleeper(nn.Module):
    """Says how long it takes, without taking it."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        return x + 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Variants that take the seconds that the dictionary says."""
    seconds: dict[str, float] = {}
    families = {"dense": "dense", "ttn auto": "adntn", "ttn dense": "adntn", "ttn paired": "paired"}

    def made(case: Case) -> Iterator[Variant]:
        for name, took in seconds.items():
            whole = name in ("ttn dense", "ttn paired")
            yield Variant(name, families.get(name, "tensorly"), lambda took=took: Sleeper(took), whole)  # type: ignore[misc]

    class Told:
        def __init__(self, work: Any) -> None:
            self.seconds = work.__closure__[0].cell_contents.seconds

        def estimate(self) -> float:
            return self.seconds

    def turns(clocks: dict[str, Told], estimates: dict[str, float], budget: float) -> dict[str, Timing]:
        return {name: Timing(told.seconds, told.seconds, told.seconds, 3, 1) for name, told in clocks.items()}

    monkeypatch.setattr(trial, "variants_of", made)
    monkeypatch.setattr(trial, "Clock", Told)
    monkeypatch.setattr(trial, "in_turns", turns)
    return seconds


def test_what_runs_a_slow_dense_kernel_on_a_whole_weight_is_left_out(clock: dict[str, float]) -> None:
    clock.update({"dense": 2.0, "ttn auto": 0.3, "ttn dense": 2.2, "ttn paired": 2.2, "tensorly a": 0.4})
    results = run_case(LINEAR, QUICK)
    assert [name for name, result in results.items() if "skipped" in result] == ["ttn dense", "ttn paired"]
    assert results["ttn paired"]["skipped"] == "as dense, which takes 2.0 s a call, on a weight made besides"


def test_a_slow_peer_is_left_with_its_first_call_but_never_the_fastest_of_tensorly(clock: dict[str, float]) -> None:
    clock.update({"dense": 0.9, "ttn auto": 0.01, "ttn dense": 0.9, "ttn paired": 0.8})
    clock.update({"tensorly a": 0.7, "tensorly b": 0.6, "tensorly c": 0.65})
    results = run_case(LINEAR, QUICK)
    assert [name for name, result in results.items() if "skipped" in result] == [
        "ttn paired",
        "tensorly a",
        "tensorly c",
    ]
    assert results["tensorly a"]["first"] == 0.7
    assert results["tensorly a"]["skipped"] == "70 times the fastest; not repeated"
    assert results["tensorly b"]["median"] == 0.6


def test_more_than_a_minute_a_call_is_too_much(clock: dict[str, float]) -> None:
    clock.update({"dense": 61.0, "ttn auto": 1.0})
    results = run_case(LINEAR, QUICK)
    assert results["dense"] | {"peak": 0} == {"peak": 0, "parameters": 0, "skipped": "61 s a call", "first": 61.0}


def test_peers_that_were_hopeless_in_a_smaller_batch_are_left_out(clock: dict[str, float]) -> None:
    clock.update(
        {"dense": 0.9, "ttn auto": 0.01, "ttn dense": 0.9, "ttn paired": 0.8, "tensorly a": 0.7, "tensorly b": 0.6}
    )
    small, large = (Case("linear", "inference", "float32", (10, 16), batch) for batch in (2, 4))
    row = {"line": small.line, "batch": 2, "results": run_case(small, QUICK)}
    skips = skips_from(large, {small.key: row}, QUICK)
    assert skips == {
        name: f"{times} times the fastest at batch 2" for name, times in (("tensorly a", 70), ("ttn paired", 80))
    }
    assert run_case(large, QUICK, skips)["tensorly a"] == {"skipped": "70 times the fastest at batch 2"}
    assert skips_from(small, {small.key: row}, QUICK) == {}
    other = Case("linear", "training", "float32", (10, 16), 4)
    assert skips_from(other, {small.key: row}, QUICK) == {}


def failing(family: str) -> Variant:
    def build() -> nn.Module:
        raise RuntimeError("not enough memory: you tried to allocate\nand more")

    return Variant("fails", family, build)


def test_a_peer_that_fails_says_why_and_the_librarys_own_failure_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = next(variants_of(LINEAR))
    monkeypatch.setattr(trial, "variants_of", lambda case: [dense, failing("tensorly")])
    results = run_case(LINEAR, QUICK)
    assert results["fails"] == {"skipped": "RuntimeError: not enough memory: you tried to allocate"}
    monkeypatch.setattr(trial, "variants_of", lambda case: [dense, failing("adntn")])
    with pytest.raises(RuntimeError, match="not enough memory"):
        run_case(LINEAR, QUICK)


def test_making_a_weight_is_measured_against_filling_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("weight", "making", "float32", (16, 16))
    results = run_case(case, QUICK)
    assert all(
        results[name]["median"] > 0 for name in ("fill new", "fill buffer", "ttn new", "mera new", "einsum loop")
    )
    assert results["fill new"]["peak"] == 0

    def generate(self: adntn.Generator, out: Tensor | None = None) -> Tensor:
        assert out is None or out.shape == (16, 16)
        return torch.zeros(16, 16) if out is None else out.fill_(2)

    monkeypatch.setattr(adntn.Generator, "generate", generate)
    assert run_case(case, QUICK)["ttn into a buffer"]["median"] > 0


def test_a_copy_of_a_layer_that_is_there_is_a_layer_of_its_own() -> None:
    config = adntn.GeneratorConfig(topology="ttn")
    one, other = (variants._generated((8, 8), config, way) for way in ("factored", "dense"))
    assert (one.execution, other.execution) == ("factored", "dense")
    with torch.no_grad():
        one.root.zero_()
    assert other.root.abs().max() > 0
    assert not one.shares_generator_with(other)


def test_the_grid_has_all_that_is_to_be_measured() -> None:
    cases = full_grid()
    keys = [case.key for case in cases]
    assert len(set(keys)) == len(keys)
    layers = [case for case in cases if case.dtype == "float32" and case.kind in ("linear", "conv")]
    assert sum(case.kind == "linear" for case in layers) == 4 * 4 * 2
    assert sum(case.kind == "conv" for case in layers) == 2 * 5 * 3 * 2
    assert {case.input_shape for case in layers} >= {(1024, 16384), (128, 512, 32, 32)}
    assert sum(case.kind == "model" for case in cases) == 2 * 2 * (3 + 1)
    assert {case.kind for case in quick_grid()} == {"linear", "conv", "weight", "model"}
    for case in cases:  # within a line batches grow, as the rule for hopeless peers needs
        assert [c.batch for c in cases if c.line == case.line] == sorted(c.batch for c in cases if c.line == case.line)


def test_the_names_of_what_is_generated_in_whole_models_are_there() -> None:
    for model, sets in variants.TARGETS.items():
        with torch.device("meta"):
            counts = {
                what: len(adntn.compress_(variants._model(model), targets=names).layers) for what, names in sets.items()
            }
        expected = {"vgg16": [1, 5, 13, 16], "alexnet": [2, 8]}[model]
        assert list(counts.values()) == expected


def test_names_of_the_papers_convolutions_are_those_of_their_shapes() -> None:
    with torch.device("meta"):
        models = {name: variants._model(name) for name in variants.TARGETS}
    shapes = [
        tuple(models["vgg16"].get_submodule(n).weight.shape) for n in variants.TARGETS["vgg16"]["five convolutions"]
    ]
    assert shapes == [(512, 512, 3, 3)] * 5
