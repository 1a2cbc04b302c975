"""Fits of generators to weights, cell by cell: what they come to is true, and none is made twice."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adntn import Generator, GeneratorConfig, fit_, save
from adntn.errors import ConfigError, TrainingStopped
from adntn.experiments.models import vgg16
from adntn.experiments.reproduce import expressivity
from adntn.experiments.reproduce.expressivity import CellFolder, ExpressivitySettings, ToldFit, run_expressivity
from adntn.experiments.reproduce.fit_cells import BASELINE, SIZES, Cell, Fitting, Wanted, fit_cell, wanted_cells
from adntn.experiments.reproduce.fit_targets import TARGETS, TRAINED, make_target, measured_rank, spectrum
from adntn.ranks import cut_bound, matrix_bound
from adntn.training.folder import RunFolderError

WIDTH = 1 / 32
QUICK = Fitting(restarts=1, steps=4, polish=0)
SETTINGS = ExpressivitySettings(
    width=WIDTH,
    targets=("lowrank", "gaussian", "trained-conv"),
    topologies=("ttn",),
    orders=("paired",),
    activations=("sine(omega=3)",),
    sizes=("base",),
    restarts=1,
    steps=2,
    polish=0,
)


def wanted(size: str = "base", **options: Any) -> Wanted:
    return Wanted(size, GeneratorConfig(**options))


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in TRAINED])
def test_a_target_is_of_mean_square_one_drawn_from_its_seed_and_says_what_no_rank_can_beat(name: str) -> None:
    before = torch.get_rng_state()
    target, same, other = (make_target(name, WIDTH, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(target.weight, same.weight)
    assert not torch.equal(target.weight, other.weight)
    assert float(target.weight.square().mean()) == pytest.approx(1.0)
    facts = target.facts()
    u, s, vh = torch.linalg.svd(target.weight.flatten(1), full_matrices=False)
    best = (u[:, :2] * s[:2]) @ vh[:2]
    error = float((best - target.weight.flatten(1)).norm() / target.weight.norm())
    assert facts["svd_errors"][2] == pytest.approx(error, rel=1e-5)
    assert (facts["svd_errors"][0], facts["svd_errors"][-1]) == (1.0, 0.0)
    assert len(facts["svd_errors"]) == len(s) + 1
    assert facts["rank"] == int(torch.linalg.matrix_rank(target.weight.flatten(1)))
    assert json.loads(json.dumps(facts)) == facts


def test_structured_targets_have_their_structure() -> None:
    assert make_target("lowrank", WIDTH, 0).facts()["rank"] == 4
    assert make_target("smooth", WIDTH, 0).facts()["rank"] == 9
    circulant = make_target("circulant", WIDTH, 0).weight
    assert torch.equal(circulant.roll((1, 1), (0, 1)), circulant)
    blocks = make_target("kronecker", WIDTH, 0).weight.unflatten(0, (8, 4)).unflatten(2, (8, 4))
    assert int(torch.linalg.matrix_rank(blocks.transpose(1, 2).reshape(64, 16), tol=1e-9)) == 1
    orthogonal = make_target("orthogonal", WIDTH, 0).weight / math.sqrt(32)
    assert torch.allclose(orthogonal @ orthogonal.mT, torch.eye(32, dtype=torch.float64))


def test_trained_targets_are_a_files_weights(tmp_path: Path) -> None:
    model = vgg16((3, 32, 32), 10, WIDTH, (128, 128))
    file = tmp_path / "models" / "vgg16" / "dense-seed0.safetensors"
    file.parent.mkdir(parents=True)
    save(model, file)
    for given in (tmp_path, tmp_path / "models", file):
        target = make_target("trained-conv", WIDTH, 0, given)
        trained = model.get_parameter("features.27.weight").detach().double()
        assert torch.allclose(target.weight, trained / trained.square().mean().sqrt())
    matrix = make_target("trained-fc", WIDTH, 0, file)
    corner = model.get_parameter("classifier.3.weight").detach().double()[:32, :32]
    assert torch.allclose(matrix.weight, corner / corner.square().mean().sqrt())
    assert matrix.facts()["digest"] != target.facts()["digest"] is not None
    with pytest.raises(ConfigError, match="no trained network is given"):
        make_target("trained-fc", WIDTH, 0)
    with pytest.raises(ConfigError, match=r"models/vgg16/dense-seed0\.safetensors"):
        make_target("trained-fc", WIDTH, 0, tmp_path / "elsewhere")


# --- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "each",
    [
        wanted(topology="mera", order="paired"),
        wanted(topology="ttn", groups=2, activation="elu"),
        wanted(topology="brickwall"),
        wanted(BASELINE, topology="tt", bond_dim=3, activation="identity"),
        wanted(BASELINE, topology="lowrank", bond_dim=3, activation="identity"),
    ],
    ids=lambda each: each.config.topology,
)
def test_what_a_cell_says_is_what_a_direct_computation_says(each: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_target("gaussian", WIDTH, 0)
    fitted: list[Generator] = []

    def keeping(generator: Generator, *args: Any, **options: Any) -> Any:
        fitted.append(generator)
        return fit_(generator, *args, **options)

    monkeypatch.setattr("adntn.experiments.reproduce.fit_cells.fit_", keeping)
    before = torch.get_rng_state()
    cell = fit_cell(each, target, QUICK, 0)
    assert torch.equal(torch.get_rng_state(), before)
    generator = fitted[-1]
    weight = generator.double()().detach()
    assert cell.numbers == sum(p.numel() for p in generator.parameters())
    pairs = zip(weight.flatten().tolist(), target.weight.flatten().tolist(), strict=True)
    distance = sum((made - meant) ** 2 for made, meant in pairs)
    assert cell.error == pytest.approx(math.sqrt(distance / target.weight.numel()), rel=1e-6)
    assert cell.rank == int(torch.linalg.matrix_rank(weight, rtol=1e-12)) <= cell.rank_bound == generator.rank_bound()
    assert cell.linear_bound <= cell.rank_bound
    assert 1.0 <= cell.stable_rank <= cell.rank
    assert cell.key == each.key
    assert Cell.from_dict(json.loads(json.dumps(cell.to_dict()))) == cell


def test_low_rank_meets_a_target_of_its_rank_and_is_else_the_best_that_there_is() -> None:
    target = make_target("lowrank", WIDTH, 0)
    for rank in (3, 4):
        cell = fit_cell(wanted(BASELINE, topology="lowrank", bond_dim=rank), target, QUICK, 0)
        assert cell.error == pytest.approx(target.facts()["svd_errors"][rank], rel=1e-4, abs=1e-6)
        assert (cell.rank, cell.start, cell.numbers) == (rank, "decomposed", 64 * rank)
    assert cell.error < 1e-5


def test_a_subspace_gets_its_least_squares() -> None:
    target = make_target("gaussian", WIDTH, 0)
    cell = fit_cell(wanted(BASELINE, topology="subspace", subspace_dim=256, activation="identity"), target, QUICK, 0)
    assert cell.error == pytest.approx(math.sqrt(1 - 256 / 1024), abs=0.03)


def test_a_trees_own_weight_is_fitted_far_better_than_a_gaussian_one() -> None:
    how = Fitting(restarts=2, steps=60, polish=10)
    each = wanted(topology="mera", order="paired")
    tree, gaussian = (fit_cell(each, make_target(name, WIDTH, 0), how, 0) for name in ("tree", "gaussian"))
    assert tree.error < 0.4 < 0.8 < gaussian.error
    assert sorted(tree.starts) == ["conformal-1", "decomposed", "isometric-0"]
    assert tree.start == min(tree.starts, key=lambda name: tree.starts[name]).rpartition("-")[0] or "decomposed"


@pytest.mark.parametrize("size", [BASELINE, *SIZES])
def test_each_generator_is_asked_for_once(size: str) -> None:
    shape = (256, 256)
    activations = ("identity", "sine(omega=3)")
    found = wanted_cells(shape, size, ("ttn", "brickwall"), ("blocked", "flat", "paired"), activations)
    assert len({each.key for each in found}) == len(found) > 0
    assert "flat" not in {each.config.order for each in found}  # the blocked order, for these sides
    for each in found:
        generator = Generator(shape, each.config, device="meta")
        assert generator.num_parameters < 65536
        if each.config.activation != "identity":
            assert len(generator.blueprint.levels) > 1
    conv = wanted_cells((16, 16, 3, 3), "base", ("ttn",), ("blocked", "flat"), activations)
    assert {each.config.order for each in conv} == {"blocked", "flat"}


def test_the_bound_of_the_whole_matrix_is_that_of_its_cut_and_every_group_adds_its_own() -> None:
    config = GeneratorConfig(activation="identity")
    assert matrix_bound(config, (256, 256), linear=True) == cut_bound(config, (256, 256), range(8), linear=True) == 4
    assert matrix_bound(config.replace(groups=4), (256, 256), linear=True) == 16
    assert matrix_bound(config.replace(order="flat"), (16, 16, 3, 3), linear=True) == 16
    for order in ("blocked", "paired"):
        grouped = config.replace(groups=4, order=order)
        weight = Generator((32, 32), grouped, dtype=torch.float64)()
        assert measured_rank(spectrum(weight)) <= matrix_bound(grouped, (32, 32), linear=True)
    tree = GeneratorConfig(groups=2)
    assert matrix_bound(tree, (256, 256), linear=False) == Generator((256, 256), tree, device="meta").rank_bound()


# --- the run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return how many fits there were."""
    calls = []

    def counting(*args: Any) -> Cell:
        calls.append(args)
        return fit_cell(*args)

    monkeypatch.setattr(expressivity, "fit_cell", counting)
    return lambda: len(calls)


def test_a_run_goes_on_where_it_was_stopped_and_makes_no_fit_twice(
    tmp_path: Path, counted: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[ToldFit] = []

    def late(told_fit: ToldFit) -> None:
        told.append(told_fit)
        if counted() == 3:
            monkeypatch.setattr(expressivity.time, "monotonic", lambda: 2.0)

    monkeypatch.setattr(expressivity.time, "monotonic", lambda: 0.0)
    with pytest.raises(TrainingStopped, match="the same command goes on"):
        run_expressivity(SETTINGS, tmp_path / "run", deadline=1.0, tell=late)
    assert counted() == 3
    assert [each.note for each in told if each.target == "trained-conv"] == ["no trained network is given"]
    stopped = CellFolder(tmp_path / "run").all_fits()
    assert [len(fits.cells) for fits in stopped] == [3]

    monkeypatch.setattr(expressivity.time, "monotonic", time.perf_counter)
    fits = run_expressivity(SETTINGS, tmp_path / "run", threads=1, tell=told.append)
    total = told[-1].total
    assert counted() == total == sum(len(each.cells) for each in fits)
    assert fits[0].cells[:3] == stopped[0].cells
    assert sum(each.earlier for each in told) == 3
    assert run_expressivity(SETTINGS, tmp_path / "run") == fits
    assert counted() == total

    straight = run_expressivity(SETTINGS, tmp_path / "straight")
    for ours, theirs in zip(fits, straight, strict=True):
        assert [replace(cell, seconds=0) for cell in ours.cells] == [replace(cell, seconds=0) for cell in theirs.cells]


def test_what_another_process_fits_to_is_passed_over(tmp_path: Path, counted: Callable[[], int]) -> None:
    folder = CellFolder(tmp_path)
    folder.claim_for(SETTINGS)
    with folder.holding("lowrank", 0):
        fits = run_expressivity(SETTINGS, tmp_path)
    assert [each.target for each in fits] == ["gaussian"]
    alone = counted()
    assert [each.target for each in run_expressivity(SETTINGS, tmp_path)] == ["lowrank", "gaussian"]
    assert counted() == 2 * alone


def test_trained_targets_are_added_later_and_another_networks_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for file in files:
        save(vgg16((3, 32, 32), 10, WIDTH, (128, 128)), file)
    settings = ExpressivitySettings.from_dict({**SETTINGS.to_dict(), "targets": ["trained-conv"]})
    assert run_expressivity(settings, tmp_path / "run") == []
    (fits,) = run_expressivity(settings, tmp_path / "run", models=files[0])
    assert fits.target == "trained-conv"
    assert fits.facts["shape"] == [16, 16, 3, 3]
    with pytest.raises(RunFolderError, match="another network"):
        run_expressivity(settings, tmp_path / "run", models=files[1])


def test_a_folder_of_other_settings_or_with_a_damaged_file_is_refused(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path)
    folder.claim_for(SETTINGS)
    with pytest.raises(RunFolderError, match="other settings"):
        run_expressivity(replace(SETTINGS, steps=3), tmp_path)
    file = folder.fits_file("lowrank", 0)
    file.parent.mkdir()
    for text in ('{"target"', '{"target": "lowrank"}\n{"size": "base"}\n'):
        file.write_text(text)
        with pytest.raises(RunFolderError):
            folder.all_fits()


@pytest.mark.parametrize(
    "change",
    [
        {"targets": ["lowrnk"]},
        {"topologies": []},
        {"topologies": ["tt"]},
        {"orders": ["blocked", "blocked"]},
        {"activations": ["sinus"]},
        {"sizes": ["huge"]},
        {"seeds": [-1]},
        {"steps": 0},
        {"restarts": 0},
        {"width": 0},
        {"step": 3},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ExpressivitySettings.from_dict({**SETTINGS.to_dict(), **change})
