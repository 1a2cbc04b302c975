"""What a job is, and the folder of a run: whole at any time, and its own job's only."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adntn.errors import AdntnError, CheckpointError, ConfigError
from adntn.experiments.data import ImageData, Split
from adntn.experiments.runs import Job, Row, RunFolder, RunFolderError, Timing, environment, model_file
from adntn.topology import GeneratorConfig
from adntn.training.optimization import Optimization

DATA = ImageData(
    "toy",
    "Toy",
    Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])),
    Split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1])),
    2,
    (0.0,),
    (1.0,),
    "made by hand",
)


def row(variant: str = "dense", seed: int = 0, **changes: Any) -> Row:
    values = Row(
        variant=variant,
        seed=seed,
        accuracy=0.5,
        loss=1.25,
        curve=(0.25, 0.5),
        layer_stored=100,
        layer_trained=100,
        model_stored=120,
        model_trained=120,
        file_bytes=999,
        stable_rank_start=3.5,
        stable_rank_end=4.5,
        train_seconds=0.125,
        steps=7,
        file=model_file(variant, seed).as_posix(),
    )
    return replace(values, **changes)


# --- the job --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job",
    [
        Job(),
        Job(
            model="a/b.py:build",
            data="folder",
            targets=("conv2", r"re:features\.[0-9]{1,2}"),
            topologies=("mera", "ttn"),
            config=GeneratorConfig(bond_dim=3, groups=2, order="paired", activation="sine(omega=2)"),
            controls=("deleted",),
            recipe=Optimization(epochs=3, augment=True, label_smoothing=0.1),
            seeds=(7, 0),
            train_limit=100,
            test_limit=50,
            threads=2,
        ),
        Job(config=GeneratorConfig(order=(2, 0, 1)), topologies=(), controls=()),
    ],
    ids=["default", "all", "permutation"],
)
def test_a_job_goes_to_json_and_back(job: Job) -> None:
    text = json.dumps(job.to_dict())
    assert Job.from_dict(json.loads(text)) == job


def test_lists_are_as_good_as_tuples() -> None:
    job = Job(seeds=[1, 2], targets=["conv2"])  # type: ignore[arg-type]
    assert job == Job(seeds=(1, 2), targets=("conv2",))
    assert hash(job.seeds)


def test_the_dense_network_comes_first_and_the_controls_last() -> None:
    assert Job(topologies=("mera", "ttn"), controls=("frozen-tree",)).variants == (
        "dense",
        "mera",
        "ttn",
        "frozen-tree",
    )


@pytest.mark.parametrize(
    "options, words",
    [
        ({"topologies": ("mero",)}, r"topology='mero'.*Did you mean 'mera'\?"),
        ({"topologies": ("ttn", "ttn")}, "topologies=.*each once"),
        ({"topologies": "ttn"}, "topologies='ttn' is not a list"),
        ({"topologies": (), "controls": ("frozen-tree",)}, "'frozen-tree' needs a topology"),
        ({"controls": ("delted",)}, r"control='delted'.*Did you mean 'deleted'\?"),
        ({"controls": ("deleted", "deleted")}, "controls=.*each once"),
        ({"seeds": ()}, "at least one"),
        ({"seeds": (1, 2, 1)}, "each once"),
        ({"seeds": (-1,)}, "whole number from 0"),
        ({"seeds": (2**32,)}, "whole number from 0"),
        ({"seeds": (0.5,)}, "whole number from 0"),
        ({"train_limit": 0}, "train_limit=0"),
        ({"test_limit": "many"}, "test_limit='many'"),
        ({"threads": 0}, "threads=0"),
        ({"threads": True}, "threads=True"),
        ({"device": "cudaa"}, r"device='cudaa'.*Did you mean 'cuda'\?"),
        ({"model": 3}, "model=3"),
        ({"data": ""}, "data=''"),
    ],
    ids=str,
)
def test_an_impossible_job_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Job(**options)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"modle": "x"}, r"no option 'modle'.*Did you mean 'model'\?"),
        ({"recipe": {"epoch": 3}}, r"no option 'epoch'.*Did you mean 'epochs'\?"),
        ({"config": {"version": 1, "bond_dimm": 3}}, r"bond_dimm.*Did you mean 'bond_dim'\?"),
        ({"version": 2}, "newer version"),
    ],
    ids=str,
)
def test_an_unknown_option_names_the_nearest(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Job.from_dict(values)


# --- the folder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["absent", "empty", "nested"])
def test_a_new_or_empty_folder_can_be_claimed(tmp_path: Path, before: str) -> None:
    folder = tmp_path / ("a/b/c" if before == "nested" else "run")
    if before == "empty":
        folder.mkdir()
    job = Job(seeds=(3,))
    RunFolder(folder).claim(job, DATA)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "environment.json"]
    assert RunFolder(folder).job() == job
    assert RunFolder(folder).rows() == []
    RunFolder(folder).claim(job, DATA)  # once more is going on


def test_the_environment_says_what_ran_and_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    known = environment(DATA)
    assert known["torch"] == torch.__version__
    assert known["threads"] == torch.get_num_threads()
    assert known["data"] == {"title": "Toy", "source": "made by hand", "train": 4, "test": 2}
    assert str(Path.home()) not in json.dumps(known)
    assert str(Path.cwd()) not in json.dumps(known)


def test_a_foreign_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match="not empty and is no run folder"):
        RunFolder(tmp_path).claim(Job(), DATA)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunFolderError, match=r"no config\.json"):
        RunFolder(tmp_path).job()


def test_a_place_where_no_folder_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunFolderError, match="cannot make the folder"):
            RunFolder(path).claim(Job(), DATA)
    assert (tmp_path / "file").read_text() == "mine"


def test_another_jobs_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    RunFolder(tmp_path).claim(Job(seeds=(0,)), DATA)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(RunFolderError, match=r"other settings.*--out.*--resume"):
        RunFolder(tmp_path).claim(Job(seeds=(1,)), DATA)
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"seeds": 3}', '{"recipe": 3}', '{"config": 3}', '{"x": 1}'])
def test_a_config_that_is_not_one_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"config\.json cannot be read"):
        RunFolder(tmp_path).job()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"runs": [3]}', '{"runs": [{}]}', '{"runs": [{"curve": 3}]}'])
def test_metrics_that_are_none_are_an_error_that_names_them(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"metrics\.json cannot be read") as caught:
        RunFolder(tmp_path).rows()
    assert isinstance(caught.value, AdntnError)


def test_rows_come_back_as_they_were_without_those_whose_model_is_gone(tmp_path: Path) -> None:
    rows = [row(), row("deleted", 1, stable_rank_start=None, stable_rank_end=None), row("ttn", 2)]
    RunFolder(tmp_path).write_metrics(rows, [])
    (tmp_path / "models").mkdir()
    for kept in rows:
        (tmp_path / kept.file).touch()
    assert RunFolder(tmp_path).rows() == rows
    (tmp_path / rows[1].file).unlink()
    assert RunFolder(tmp_path).rows() == [rows[0], rows[2]]


def test_the_csv_says_what_the_json_says(tmp_path: Path) -> None:
    rows = [row(), row("deleted", 1, stable_rank_start=None, accuracy=1 / 3)]
    timings = [Timing("dense", 2.0, 1.0, 128, 7)]
    RunFolder(tmp_path).write_metrics(rows, timings)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["forward_times"] == [
        {"variant": "dense", "milliseconds": 2.0, "dense_ratio": 1.0, "batch": 128, "rounds": 7}
    ]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2
    for line, run in zip(lines, content["runs"], strict=True):
        run.pop("curve")
        assert line == {name: "" if value is None else str(value) for name, value in run.items()}


def test_a_write_that_is_interrupted_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.write_metrics([row()], [])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def stop(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(CheckpointError, match="No space left"):
        folder.write_metrics([row(), row(seed=1)], [])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
