"""Fits: never worse than the start, near where nearness is possible, and nobody else is touched."""

from __future__ import annotations

import copy
import doctest
import math
from typing import Any

import pytest
import torch
from conformance_cases import TOPOLOGIES
from torch import Tensor, nn

import adntn
from adntn import FitOptions, Generator, GeneratorConfig, compress_, fit_, stable_rank
from adntn.compress import cached
from adntn.errors import ConfigError, ShapeError
from adntn.fit import relative_error
from adntn.nn import Conv2d, Linear

QUICK = FitOptions(steps=12, polish=6)
FAMILIES: dict[str, dict[str, Any]] = {
    **{name: {**options, "latent_order": 2} for name, options in TOPOLOGIES.items()},
    "paired": {"order": "paired"},
    "groups and terms": {"groups": 2, "terms": 2},
    "gates, norm, prelu": {"topology": "mera", "gate": True, "norm": "layer", "activation": "prelu"},
    "wall": {"topology": "brickwall", "columns": 4},
    "tt": {"topology": "tt", "bond_dim": 3},
    "subspace": {"topology": "subspace"},
    "frozen": {"topology": "frozen"},
    "lowrank": {"topology": "lowrank", "bond_dim": 3, "groups": 2},
}


def error_of(module: Any, target: Tensor) -> float:
    weight = module.generate().detach().double()
    return float((weight - target).norm() / target.norm())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(12, 10), (8, 5, 3, 3)], ids=str)
def test_a_fit_is_nearer_than_its_start_and_says_how_near(name: str, shape: tuple[int, ...]) -> None:
    generator = Generator(shape, GeneratorConfig(**FAMILIES[name]))
    target = torch.randn(shape)
    start = error_of(generator, target)
    report = fit_(generator, target, QUICK)
    assert report.start_error == pytest.approx(start, rel=1e-4)
    assert report.relative_error == pytest.approx(error_of(generator, target), rel=1e-4)
    assert report.relative_error < min(start, 1.0)
    assert report.stable_rank == pytest.approx(stable_rank(generator()), rel=1e-3)
    assert report.target_stable_rank == pytest.approx(stable_rank(target), rel=1e-3)
    assert all(p.grad is None for p in generator.parameters())
    again = fit_(generator, target, QUICK)
    assert again.start_error == report.relative_error
    assert again.relative_error <= report.relative_error


def test_a_generators_own_weight_is_found_again() -> None:
    config = GeneratorConfig(topology="mera", latent_order=2)
    generator = Generator((16, 16), config)
    target = generator().detach()
    generator.load_state_dict({n: p + 0.05 * torch.randn_like(p) for n, p in generator.state_dict().items()})
    report = fit_(generator, target, steps=100, polish=50)
    assert report.start_error > 0.1
    assert report.relative_error < 0.05
    same = Generator((16, 16), config)
    kept = {n: p.clone() for n, p in same.state_dict().items()}
    exact = fit_(same, same().detach(), QUICK)
    assert exact.relative_error <= exact.start_error == 0.0
    assert all(torch.equal(p, kept[n]) for n, p in same.state_dict().items())


def test_a_multiple_of_the_weight_is_met_by_scale_alone() -> None:
    for options in FAMILIES.values():
        generator = Generator((12, 10), GeneratorConfig(**options), dtype=torch.float64)
        target = -3.0 * generator().detach()
        report = fit_(generator, target, steps=0, polish=0)
        assert report.relative_error < 1e-12, (options, report)


def test_low_rank_is_the_truncated_decomposition() -> None:
    target = torch.randn(12, 10, dtype=torch.float64)
    generator = Generator((12, 10), GeneratorConfig(topology="lowrank", bond_dim=4), dtype=torch.float64)
    report = fit_(generator, target)
    spectrum = torch.linalg.svdvals(target)
    assert report.relative_error == pytest.approx(float(spectrum[4:].norm() / spectrum.norm()))
    assert report.steps == 0
    wide = Generator((3, 10), GeneratorConfig(topology="lowrank", bond_dim=5), dtype=torch.float64)
    assert fit_(wide, target[:3]).relative_error < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_fit_keeps_types_modes_and_what_is_frozen(dtype: torch.dtype) -> None:
    model = nn.Sequential(Linear(12, 10, config=GeneratorConfig(topology="attn"), dtype=dtype), nn.Linear(10, 4))
    layer = model[0].eval()
    layer.root.requires_grad_(False)
    others = {n: p.clone() for n, p in model.state_dict().items() if n.startswith("1.") or n.endswith("bias")}
    before = dict(model.named_parameters())
    trained = {n: p.requires_grad for n, p in before.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        report = fit_(layer, torch.randn(10, 12), QUICK)
    assert report.relative_error < 1.0
    assert all(p is before[n] and p.requires_grad == trained[n] for n, p in model.named_parameters())
    assert all(torch.equal(model.state_dict()[n], p) for n, p in others.items())
    assert layer.dtype == layer.weight.dtype == dtype
    assert (layer.training, model[1].training) == (False, True)


def test_a_fit_is_repeatable_and_draws_nothing() -> None:
    generator, target = Generator((12, 10)), torch.randn(12, 10)
    twin = copy.deepcopy(generator)
    before = torch.get_rng_state()
    fit_(generator, target, QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    fit_(twin, target, QUICK)
    assert torch.equal(twin(), generator())


def test_a_fit_is_seen_under_cached_and_by_those_who_share() -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
    model[1].weight = model[0].weight
    compress_(model, GeneratorConfig())
    target = torch.randn(12, 12)
    with cached(model):
        stale = model[1].weight.clone()
        fit_(model[0], target, QUICK)
        assert not torch.equal(model[1].weight, stale)
        assert torch.equal(model[1].weight, model[0].weight)
        assert torch.equal(model[1].weight, model[0].generate())


def test_steps_that_overflow_end_no_worse_than_the_start() -> None:
    generator = Generator((16, 16), GeneratorConfig(topology="mera", activation="elu"))
    target = torch.randn(16, 16)
    report = fit_(generator, target, steps=40, lr=1e12, polish=10)
    assert report.relative_error <= min(1.0, report.start_error)
    assert torch.isfinite(generator()).all()
    broken = Generator((16, 16))
    with torch.no_grad():
        broken.root.fill_(math.nan)
    assert fit_(broken, target, QUICK).start_error == math.inf
    assert math.isnan(float(broken.root[0, 0].detach()))  # nothing finite was met, so nothing was changed


def test_a_fit_stops_when_it_stalls() -> None:
    generator, target = Generator((16, 16), GeneratorConfig(topology="frozen")), torch.randn(16, 16)
    report = fit_(generator, target, steps=1000, patience=20, polish=0)
    assert report.steps < 100
    assert fit_(Generator((8, 8)), torch.randn(8, 8), steps=15, polish=0).steps == 15


def test_a_target_of_zeros_is_met() -> None:
    for options in ({}, {"topology": "mera", "groups": 2}, {"topology": "tt"}):
        generator = Generator((12, 10), GeneratorConfig(**options))
        report = fit_(generator, torch.zeros(12, 10), QUICK)
        assert report.relative_error == 0.0
        assert report.stable_rank == report.target_stable_rank == 0.0
    assert relative_error(torch.ones(2), torch.zeros(2)) == math.inf


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda g: fit_(g, torch.zeros(8, 9)), ShapeError, r"shape \(8, 8\) cannot be fitted to .*\(8, 9\)"),
        (lambda g: fit_(g, torch.full((8, 8), math.nan)), ConfigError, "NaN or infinite"),
        (lambda g: fit_(g, torch.zeros(8, 8, device="meta")), ConfigError, "meta device"),
        (lambda g: fit_(g.to("meta"), torch.zeros(8, 8)), ConfigError, "meta device"),
        (lambda g: fit_(g, torch.zeros(8, 8), stepps=3), ConfigError, "Did you mean 'steps'"),
        (lambda g: fit_(g, torch.zeros(8, 8), steps=-1), ConfigError, "steps=-1"),
        (lambda g: fit_(g, torch.zeros(8, 8), lr=0.0), ConfigError, r"lr=0\.0"),
    ],
    ids=["shape", "nan", "meta target", "meta", "unknown", "steps", "lr"],
)
def test_what_cannot_be_fitted_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(Generator((8, 8)))


@pytest.mark.parametrize("progress, shown", [(True, True), (False, False), (None, False)])
def test_the_bar_is_shown_when_asked(progress: bool | None, shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    fit_(Generator((8, 8)), torch.randn(8, 8), QUICK, progress=progress, name="a layer")
    captured = capsys.readouterr()
    assert ("a layer" in captured.err) == shown
    assert captured.out == ""


def test_a_grown_generator_fits_better() -> None:
    target = torch.randn(16, 16)
    generator = Generator((16, 16), GeneratorConfig(latent_order=2))
    first = fit_(generator, target, steps=150, polish=20)
    adntn.grow_(generator, topology="mera", bond_dim=4)
    second = fit_(generator, target, steps=150, polish=20)
    assert second.start_error == pytest.approx(first.relative_error, rel=1e-4)
    assert second.relative_error < 0.95 * first.relative_error


# --- compress_(init="fit") ----------------------------------------------------------------------------------------


def model_of_three() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 16), nn.Conv2d(4, 8, 3), nn.Linear(16, 16))


def test_compress_fits_each_layer_to_its_weight_and_reports_it() -> None:
    model = model_of_three()
    weights = [layer.weight.detach().clone() for layer in model]
    report = compress_(model, GeneratorConfig(), ["0", "1"], init="fit", fit=QUICK, progress=False)
    for row, weight in zip(report.layers, weights, strict=False):
        layer = model[int(row.name)]
        assert row.fit is not None
        assert row.fit.relative_error == pytest.approx(error_of(layer, weight), rel=1e-4)
        assert row.fit.relative_error < 1.0
        assert row.fit.target_stable_rank == pytest.approx(stable_rank(weight), rel=1e-3)
    assert torch.equal(model[2].weight, weights[2])
    text = str(report).splitlines()
    assert text[0].split()[-5:] == ["error", "stable", "rank", "of", "dense"]
    assert f"{report.layers[0].fit.relative_error:.3f}" in text[2]
    assert len({len(line) for line in text[2:4]}) == 1
    plain = compress_(model_of_three(), GeneratorConfig())
    assert all(row.fit is None for row in plain.layers)
    assert "error" not in str(plain)


def test_compress_fits_tied_layers_once() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    weight = model[0].weight.detach().clone()
    report = compress_(model, GeneratorConfig(), init="fit", fit=QUICK)
    assert report.layers[0].fit is report.layers[1].fit
    assert error_of(model[1], weight) < 1.0


def test_compress_fits_those_who_share_together() -> None:
    model = nn.ModuleDict({"q": nn.Linear(16, 6), "k": nn.Linear(16, 10), "lone": nn.MultiheadAttention(8, 2)})
    weights = {name: model[name].weight.detach().clone() for name in ("k", "q")}
    whole = torch.cat([weights["q"], weights["k"]])
    report = compress_(model, GeneratorConfig(), shared=[("q", "k")], init="fit", fit=QUICK)
    fits = {row.name: row.fit for row in report.layers}
    assert len(fits) == 4
    assert None not in fits.values()
    assert fits["q"] is fits["k"]
    made = torch.cat([model["q"].weight, model["k"].weight]).detach()
    assert fits["q"].relative_error == pytest.approx(float((made - whole).norm() / whole.norm()), rel=1e-4)


def test_compress_starts_as_at_random_and_ends_nearer() -> None:
    model = model_of_three()
    other = copy.deepcopy(model)
    torch.manual_seed(5)
    report = compress_(model, GeneratorConfig(), ["0"], init="fit", fit=QUICK)
    torch.manual_seed(5)
    target = other[0].weight.detach().clone()
    compress_(other, GeneratorConfig(), ["0"])
    assert report.layers[0].fit is not None
    assert report.layers[0].fit.start_error == pytest.approx(error_of(other[0], target), rel=1e-4)


def test_compress_refuses_what_cannot_be_fitted_and_changes_nothing() -> None:
    model = model_of_three()
    with pytest.raises(ConfigError, match="needs init='fit'"):
        compress_(model, fit=QUICK)
    with pytest.raises(ConfigError, match=r"init='fitt' is not known.*Did you mean 'fit'"):
        compress_(model, init="fitt")
    meta = model_of_three().to("meta")
    with pytest.raises(ConfigError, match=r"'0': .*meta device"):
        compress_(meta, init="fit")
    assert [type(layer) for layer in (*model, *meta)] == [nn.Linear, nn.Conv2d, nn.Linear] * 2
    assert isinstance(compress_(model, targets=["1"], init="fit", fit=QUICK), adntn.CompressionReport)
    assert isinstance(model[1], Conv2d)


def test_a_report_says_what_was_reached() -> None:
    report = fit_(Generator((8, 8)), torch.randn(8, 8), QUICK)
    assert f"relative error {report.relative_error:.4f}" in str(report)
    assert f"{report.steps} steps" in str(report)


def test_the_docstring_tells_the_truth() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(fit_, "fit_", globs={"adntn": adntn, "torch": torch})
    assert doctest.DocTestRunner().run(example).failed == 0


def test_an_overflow_in_the_line_search_ends_the_polish_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def overrun(self: Any, closure: Any) -> Tensor:
        closure()
        raise RuntimeError(message)

    monkeypatch.setattr(torch.optim.LBFGS, "step", overrun)
    generator, target = Generator((8, 8)), torch.randn(8, 8)
    message = "value cannot be converted to type float without overflow"
    report = fit_(generator, target, steps=5, polish=20)
    assert report.steps == 6
    assert report.relative_error < 1.0
    message = "out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        fit_(generator, target, steps=5, polish=20)
