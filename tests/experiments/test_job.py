"""The main job on a few digits: what starts equal, what is counted, what is left after a stop, what is resumed."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from odd_models import SERIES
from torch import nn

from adntn.checkpoint import load
from adntn.errors import CompressionError, ConfigError, ShapeError
from adntn.experiments.controls import delete_
from adntn.experiments.data import ImageData, load_data, normalize
from adntn.experiments.job import Outcome, Progress, chosen_layers, run_job, variant_model
from adntn.experiments.models import ModelError, model_builder
from adntn.experiments.runs import Job, RunFolder, RunFolderError, model_file
from adntn.topology import Blueprint, GeneratorConfig
from adntn.training.optimization import Optimization

JOB = Job(recipe=Optimization(epochs=1, batch_size=40), seeds=(3, 0), train_limit=120, test_limit=60)
SMALL = replace(JOB, topologies=("ttn",), controls=("deleted",))
DENSE_CONVOLUTIONS = 9 * (64 * 8 + 128 * 64)  # of conv2 and conv3
DENSE_MODEL = 80_098
build = model_builder("small-cnn", (1, 8, 8), 10)


class Finished:
    """A finished run of ``JOB``, its folder, and what it told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[Progress] = []
        self.outcome: Outcome = run_job(JOB, folder, tell=self.told.append)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Finished(tmp_path_factory.mktemp("job") / "run")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits").limit(120, 60)


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the timing out, which takes most of a short run."""
    monkeypatch.setattr("adntn.experiments.job._time", lambda models, images: [])


def trained(told: list[Progress]) -> list[tuple[str, int]]:
    return [(now.variant, now.seed) for now in told if now.accuracy is not None]


def results(outcome: Outcome) -> dict[tuple[str, int], tuple[float, float]]:
    return {(row.variant, row.seed): (row.accuracy, row.loss) for row in outcome.rows}


# --- the networks of a job ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
def test_what_is_not_replaced_starts_equal_in_all_variants_of_a_seed(seed: int) -> None:
    names = chosen_layers(JOB, build())
    assert names == ["conv2", "conv3"]
    dense = variant_model(JOB, build, names, "dense", seed).state_dict()
    for variant in JOB.variants:
        state = variant_model(JOB, build, names, variant, seed).state_dict()
        kept = {name for name in dense if not name.startswith(("conv2", "conv3"))}
        assert kept == {name for name in state if not name.startswith(("conv2", "conv3"))}
        assert all(torch.equal(state[name], dense[name]) for name in kept)
    frozen = variant_model(JOB, build, names, "frozen-dense", seed).state_dict()
    assert all(torch.equal(frozen[name], dense[name]) for name in dense)


def test_another_seed_is_another_start() -> None:
    for variant in ("dense", "ttn"):
        first, second = (variant_model(JOB, build, ["conv2"], variant, seed).state_dict() for seed in (0, 1))
        assert not all(torch.equal(first[name], second[name]) for name in first)


def test_the_frozen_tree_is_the_first_topology_untrained() -> None:
    job = replace(JOB, topologies=("mera", "ttn"))
    tree = variant_model(job, build, ["conv2"], "frozen-tree", 0)
    mera = variant_model(job, build, ["conv2"], "mera", 0)
    assert tree.state_dict().keys() == mera.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(tree.parameters(), mera.parameters(), strict=True))


def test_a_second_boundary_layer_is_the_attns_alone() -> None:
    job = replace(JOB, config=GeneratorConfig(topology="attn", boundary_layers=2))
    for variant in job.topologies:
        layer = variant_model(job, build, ["conv2"], variant, 0).get_submodule("conv2")
        config = layer.config
        assert (config.topology, config.boundary_layers) == (variant, 2 if variant == "attn" else 1)


# --- a finished run -------------------------------------------------------------------------------------------------


def test_every_variant_is_trained_once_a_seed_and_told_of(finished: Finished) -> None:
    expected = [(variant, seed) for variant in JOB.variants for seed in JOB.seeds]
    assert trained(finished.told) == expected
    assert [(row.variant, row.seed) for row in finished.outcome.rows] == sorted(
        expected, key=lambda pair: (JOB.variants.index(pair[0]), pair[1])
    )
    assert finished.told[-1] == Progress("timing", 3, 0, None, 14, 14)
    assert [now.done for now in finished.told if now.accuracy is None] == list(range(15))
    assert {now.total for now in finished.told} == {14}


def test_counts_are_those_of_the_formulas(finished: Finished) -> None:
    shapes = ((64, 8, 3, 3), (128, 64, 3, 3))
    stored = {
        topology: sum(Blueprint(shape, JOB.config.replace(topology=topology)).num_parameters for shape in shapes)
        for topology in JOB.topologies
    }
    assert stored == {"ttn": 256, "attn": 480, "mera": 592}
    stored |= {"dense": DENSE_CONVOLUTIONS, "frozen-dense": DENSE_CONVOLUTIONS, "frozen-tree": 256, "deleted": 0}
    rest = DENSE_MODEL - DENSE_CONVOLUTIONS
    for row in finished.outcome.rows:
        layers = 0 if row.variant.startswith("frozen") else stored[row.variant]
        assert (row.layer_stored, row.layer_trained) == (stored[row.variant], layers), row.variant
        assert (row.model_stored, row.model_trained) == (rest + stored[row.variant], rest + layers), row.variant
        assert row.steps == 3
        assert (row.stable_rank_start is None) == (row.variant == "deleted")
        if row.variant.startswith("frozen"):
            assert row.stable_rank_end == row.stable_rank_start


@pytest.mark.slow
def test_saved_files_load_and_reproduce_the_recorded_accuracy(finished: Finished, data: ImageData) -> None:
    images = normalize(data.test.images, data)
    for row in finished.outcome.rows:
        model = build()
        if row.variant == "deleted":
            delete_(model, ["conv2", "conv3"])
        load(model, finished.folder / row.file).eval()
        with torch.no_grad():
            right = model(images).argmax(1) == data.test.labels
        assert float(right.double().mean()) == pytest.approx(row.accuracy, abs=1e-6), row.variant
        assert (finished.folder / row.file).stat().st_size == row.file_bytes


def test_frozen_weights_are_in_the_file_as_they_started(finished: Finished) -> None:
    start = variant_model(JOB, build, ["conv2", "conv3"], "frozen-dense", 3)
    model = load(build(), finished.folder / model_file("frozen-dense", 3))
    for name, started in start.named_parameters():
        same = torch.equal(started, model.get_parameter(name))
        assert same == name.startswith(("conv2", "conv3")), name


def test_the_folder_says_all_that_the_outcome_says(finished: Finished) -> None:
    files = {path.relative_to(finished.folder).as_posix() for path in finished.folder.rglob("*") if path.is_file()}
    models = {model_file(variant, seed).as_posix() for variant in JOB.variants for seed in JOB.seeds}
    assert files == {"config.json", "environment.json", "metrics.json", "metrics.csv"} | models
    content = json.loads((finished.folder / "metrics.json").read_text())
    assert content["runs"] == [asdict(row) | {"curve": list(row.curve)} for row in finished.outcome.rows]
    assert content["forward_times"] == [asdict(timing) for timing in finished.outcome.timings]
    with (finished.folder / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, finished.outcome.rows, strict=True):
        assert (line["variant"], int(line["seed"]), float(line["accuracy"])) == (row.variant, row.seed, row.accuracy)
        assert int(line["model_trained"]) == row.model_trained
    assert RunFolder(finished.folder).job() == JOB


def test_every_variant_is_timed_against_the_dense_network(finished: Finished) -> None:
    timings = {timing.variant: timing for timing in finished.outcome.timings}
    assert tuple(timings) == JOB.variants
    assert timings["dense"].dense_ratio == 1
    assert all(timing.batch == 60 and timing.milliseconds > 0 for timing in timings.values())


def test_weights_are_those_of_the_first_seeds_files(finished: Finished) -> None:
    weights = finished.outcome.weights
    assert tuple(weights) == ("dense", "ttn", "attn", "mera")
    for variant, layers in weights.items():
        model = load(build(), finished.folder / model_file(variant, 3))
        assert [name for name, _ in layers] == ["conv2", "conv3"]
        for name, weight in layers:
            assert torch.equal(weight, model.get_submodule(name).weight)


# --- stopping and going on ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_a_finished_run_is_not_trained_again(finished: Finished) -> None:
    told: list[Progress] = []
    again = run_job(JOB, finished.folder, tell=told.append)
    assert trained(told) == []
    assert again.rows == finished.outcome.rows


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("when", ["in training", "while saving"])
def test_a_stop_leaves_whole_files_and_the_rest_is_done_later(
    finished: Finished, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(now: Progress) -> None:
        if (now.variant, now.seed) == ("ttn", 0) and now.accuracy is not None:
            raise KeyboardInterrupt

    whole_replace = Path.replace

    def full(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    def spoil(now: Progress) -> None:
        if (now.variant, now.seed) == ("ttn", 0) and now.accuracy is not None:
            monkeypatch.setattr(Path, "replace", full)

    tell: Callable[[Progress], None] = spoil if when == "while saving" else stop
    with pytest.raises(KeyboardInterrupt):
        run_job(SMALL, tmp_path, tell=tell)
    monkeypatch.setattr(Path, "replace", whole_replace)
    done = [("dense", 3), ("dense", 0), ("ttn", 3)]
    assert [(row.variant, row.seed) for row in RunFolder(tmp_path).rows()] == done
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    models = sorted(model_file(*pair).name for pair in done)
    assert files == sorted(["config.json", "environment.json", "metrics.json", "metrics.csv", *models])
    for pair in done:
        load(build(), tmp_path / model_file(*pair))

    told: list[Progress] = []
    outcome = run_job(SMALL, tmp_path, tell=told.append)
    assert trained(told) == [("ttn", 0), ("deleted", 3), ("deleted", 0)]
    assert [now.done for now in told if now.accuracy is None] == [3, 4, 5, 6]
    whole = results(finished.outcome)
    assert results(outcome) == {pair: whole[pair] for pair in results(outcome)}
    assert len(outcome.rows) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_a_network_whose_file_is_gone_is_trained_again_to_the_same_end(finished: Finished) -> None:
    gone = finished.folder / model_file("attn", 0)
    before = load(build(), gone).state_dict()
    gone.unlink()
    told: list[Progress] = []
    again = run_job(JOB, finished.folder, tell=told.append)
    assert trained(told) == [("attn", 0)]
    after = load(build(), gone).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert results(again) == results(finished.outcome)
    assert [(row.variant, row.seed) for row in again.rows] == [(r.variant, r.seed) for r in finished.outcome.rows]


# --- what cannot be done is said before anything is trained ---------------------------------------------------------


@pytest.mark.parametrize(
    "changes, kind, words",
    [
        ({"targets": ("conv9",)}, CompressionError, r"'conv9'.*Did you mean 'conv\d'"),
        ({"targets": ("norm1",)}, CompressionError, "'norm1' cannot be generated"),
        ({"config": GeneratorConfig(groups=3)}, ShapeError, "'conv2': groups=3 does not divide"),
        ({"model": "smal-cnn"}, ModelError, "Did you mean 'small-cnn'"),
        ({"data": "digit"}, ValueError, "Did you mean 'digits'"),
    ],
    ids=["no target", "impossible target", "groups", "model", "data"],
)
def test_a_job_that_cannot_be_done_leaves_no_folder(
    tmp_path: Path, changes: dict[str, object], kind: type[Exception], words: str
) -> None:
    told: list[Progress] = []
    with pytest.raises(kind, match=words):
        run_job(replace(JOB, **changes), tmp_path / "run", tell=told.append)  # type: ignore[arg-type]
    assert not told
    assert not (tmp_path / "run").exists()


def test_a_job_takes_all_that_can_be_generated() -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "rnn": nn.GRUCell(8, 8), "head": nn.Linear(8, 2)})
    assert chosen_layers(replace(JOB, model="mine"), model) == ["attn", "attn.out_proj", "head"]
    named = replace(JOB, targets=("attn", "rnn.weight_hh"))
    assert chosen_layers(named, model) == ["attn", "attn.out_proj", "rnn.weight_hh"]


# --- a user's model of other families --------------------------------------------------------------------------------

SERIES_WEIGHTS = {
    "conv": 24 * 8 * 3,
    "down": 16 * 24 * 2,
    "up": 16 * 16 * 2,
    "attention.in_proj_weight": 48 * 16,
    "attention.out_proj": 16 * 16,
    "rnn.weight_hh_l0": 64 * 16,
}


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_a_users_model_of_all_families_is_trained_beside_its_controls(tmp_path: Path) -> None:
    (tmp_path / "series.py").write_text(SERIES)
    targets = ("conv", "down", "up", "attention", "rnn.weight_hh_l0")
    job = replace(JOB, model=f"{tmp_path / 'series.py'}:build", targets=targets, topologies=("ttn",), seeds=(1,))
    job = replace(job, train_limit=40, test_limit=20)
    outcome = run_job(job, tmp_path / "run")
    rows = {row.variant: row for row in outcome.rows}
    make = model_builder(job.model, (1, 8, 8), 10)
    whole, dense = sum(p.numel() for p in make().parameters()), sum(SERIES_WEIGHTS.values())
    tree = rows["ttn"].layer_stored
    assert 0 < tree < dense / 4
    assert {v: (row.layer_stored, row.layer_trained) for v, row in rows.items()} == {
        "dense": (dense, dense),
        "ttn": (tree, tree),
        "deleted": (0, 0),
        "frozen-dense": (dense, 0),
        "frozen-tree": (tree, 0),
    }
    assert rows["frozen-dense"].model_trained == rows["frozen-tree"].model_trained == whole - dense
    biases = 24 + 16 + 16 + 48 + 16  # a deleted layer's bias goes with it, not a parameter's module
    assert rows["deleted"].model_stored == whole - dense - biases
    assert [name for name, _ in outcome.weights["ttn"]] == list(SERIES_WEIGHTS)[:4]
    assert [name for name, _ in outcome.weights["dense"]] == list(SERIES_WEIGHTS)[:4]
    start = variant_model(job, make, chosen_layers(job, make()), "frozen-dense", 1)
    end = load(make(), tmp_path / "run" / model_file("frozen-dense", 1))
    moved = {name for name, p in start.named_parameters() if not torch.equal(p, end.get_parameter(name))}
    assert moved == set(dict(end.named_parameters())) - {
        f"{name}.weight" if name in dict(end.named_modules()) else name for name in SERIES_WEIGHTS
    }
    assert run_job(job, tmp_path / "run").rows == outcome.rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device='cuda' is not possible here"):
        run_job(replace(JOB, device="cuda"), tmp_path / "run")


def test_another_jobs_folder_is_refused(finished: Finished) -> None:
    before = (finished.folder / "metrics.json").read_bytes()
    with pytest.raises(RunFolderError, match="other settings"):
        run_job(SMALL, finished.folder)
    assert (finished.folder / "metrics.json").read_bytes() == before


# --- slow -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_process_leaves_whole_files(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from dataclasses import replace\nfrom pathlib import Path\n"
        "from adntn.experiments.job import run_job\nfrom adntn.experiments.runs import Job\n"
        "def tell(now):\n"
        "    if now.variant == 'ttn' and now.accuracy is not None: os.kill(os.getpid(), signal.SIGKILL)\n"
        "job = Job.from_dict(__import__('json').loads(sys.argv[2]))\n"
        "run_job(job, Path(sys.argv[1]), tell=tell)\n"
    )
    job = replace(SMALL, seeds=(0,))
    command = [sys.executable, "-c", script, str(tmp_path / "run"), json.dumps(job.to_dict())]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    told: list[Progress] = []
    outcome = run_job(job, tmp_path / "run", tell=told.append)
    assert trained(told) == [("ttn", 0), ("deleted", 0)]
    assert len(outcome.rows) == 3


@pytest.mark.slow
def test_the_demo_learns_and_its_controls_tell_something(tmp_path: Path) -> None:
    job = Job(recipe=Optimization(epochs=20, lr=2e-2), topologies=("ttn",), controls=("deleted",), seeds=(0, 1))
    outcome = run_job(job, tmp_path / "run")
    mean = {
        variant: statistics.mean(row.accuracy for row in outcome.rows if row.variant == variant)
        for variant in job.variants
    }
    assert mean["dense"] >= 0.97
    assert mean["deleted"] < mean["dense"] - 0.03
    assert mean["ttn"] > mean["deleted"]
