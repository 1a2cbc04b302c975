from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from block_models import CONFIG, Blocky, Rows, compressed, data, same, state, teacher, values
from torch import Tensor, nn

import adntn
from adntn.errors import CompressionError, ConfigError, TrainingStopped
from adntn.training.blocks import make
from adntn.training.seeds import derive_seed
from adntn.training.stages.base import Event, State
from adntn.training.stages.blocks import Blocks

CONVOLUTIONS = ["first.2", "second.1"]
# As few as it takes for errors to fall.
SHORT: dict[str, Any] = {
    "steps": 12,
    "batch_size": 16,
    "calibration": 24,
    "polish": 0,
    "workers": 1,
    "recalibrate_norms": False,
}


@pytest.fixture
def dense() -> nn.Module:
    return teacher()


def run(stage: Blocks, model: nn.Module, dense: nn.Module | None, folder: Path, **options: Any) -> dict[str, Any]:
    return stage.run(state(model, dense, folder, **options))


def calibration(stage: Blocks) -> Tensor:
    random = torch.Generator().manual_seed(derive_seed(5, "calibration"))
    part = data().train
    return data().normalized(part.images[torch.randperm(len(part), generator=random)[: stage.calibration]])


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"objective": "output"}, "objective='output' is not known; choose one of weight, outputs, task. Did you mean"),
        ({"engine": "dask"}, "engine='dask' is not known; choose one of local, ray."),
        ({"workers": 0}, "workers=0 is not possible; give a whole number of at least 1."),
        ({"calibration": 1}, "calibration=1 is not possible; give a whole number of at least 2."),
        ({"objective": "task", "polish": 5}, "polish=5 is not possible with objective='task'"),
        ({"distillation": 1.0}, "distillation=1 needs objective='task', not 'outputs'."),
        ({"ray_address": "auto"}, "ray_address='auto' needs engine='ray', not 'local'."),
        ({"blocks": "first"}, "blocks='first' is not possible; give a list of names."),
        ({"layer": ["first"]}, "a stage 'blocks' has no option 'layer'"),
    ],
)
def test_an_impossible_option_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Blocks.from_dict(options)
    assert words in str(caught.value)


def test_options_go_to_plain_values_and_back() -> None:
    stage = Blocks(objective="task", blocks=("first",), workers=2, polish=0, distillation=0.5)
    assert Blocks.from_dict(json.loads(json.dumps(stage.to_dict()))) == stage


def test_names_are_checked_before_any_stage_has_run(dense: nn.Module) -> None:
    Blocks(layers=("first.2", "re:second.*"), blocks=("first",)).check(dense)
    with pytest.raises(CompressionError, match=r"nothing that 'frist' means. Did you mean 'first'"):
        Blocks(blocks=("frist",)).check(dense)
    with pytest.raises(CompressionError, match="layers: the model has nothing that 're:third' means"):
        Blocks(layers=("re:third",)).check(dense)


def test_a_missing_ray_is_told_with_the_extra_that_has_it(dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.util.joblib", None)
    with pytest.raises(ConfigError, match=r"pip install 'adntn\[ray\]'"):
        Blocks(engine="ray").check(dense)


def test_without_a_teacher_there_is_nothing_to_fit_to(dense: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is none; give the dense model"):
        run(Blocks(), compressed(dense, CONVOLUTIONS), None, tmp_path)


# --- what comes out -----------------------------------------------------------------------------------------------


def test_weights_come_out_as_of_fit(dense: nn.Module, tmp_path: Path) -> None:
    model = compressed(dense, CONVOLUTIONS)
    alone = {name: model.get_submodule(name).bare_copy() for name in CONVOLUTIONS}
    outcome = run(Blocks(**{**SHORT, "objective": "weight", "polish": 10}), model, dense, tmp_path)
    for name, row in zip(CONVOLUTIONS, outcome["blocks"], strict=True):
        torch.set_num_threads(1)
        report = adntn.fit_(alone[name], dense.get_submodule(name).weight, steps=12, polish=10, progress=False)
        assert torch.equal(model.get_submodule(name).weight, alone[name]())
        assert (row["name"], row["before"], row["after"]) == (name, report.start_error, report.relative_error)
        assert row["after"] < row["before"]


def test_outputs_are_compared_on_what_the_teachers_block_was_given(dense: nn.Module, tmp_path: Path) -> None:
    stage = Blocks(**{**SHORT, "polish": 10})
    model = compressed(dense, CONVOLUTIONS)
    untouched = values(model)
    outcome = run(stage, model, dense, tmp_path)
    with torch.no_grad():
        given = dense.first[:2](dense.stem(calibration(stage)))
        wanted = dense.first[2](given)
        error = float((model.first[2](given) - wanted).norm() / wanted.norm())
    row = outcome["blocks"][0]
    assert row["after"] == pytest.approx(error, rel=1e-5)
    assert row["after"] < row["before"]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, untouched[name])}
    assert {name.rpartition(".")[0].split(".expand")[0] for name in changed} >= set(CONVOLUTIONS)
    assert all(name.startswith(tuple(CONVOLUTIONS)) for name in changed)
    assert "first.2.bias" in changed


def test_the_task_is_the_teacher_with_one_block_of_the_model(dense: nn.Module, tmp_path: Path) -> None:
    stage = Blocks(**{**SHORT, "objective": "task"}, layers=("second.1",))
    model = compressed(dense, CONVOLUTIONS)
    before = values(dense)
    row = run(stage, model, dense, tmp_path)["blocks"][0]
    mixed = copy.deepcopy(dense)
    mixed.second[1] = model.second[1]
    with torch.no_grad():
        labels = data().train.labels
        random = torch.Generator().manual_seed(derive_seed(5, "calibration"))
        chosen = labels[torch.randperm(len(labels), generator=random)[:24]]
        loss = float(nn.functional.cross_entropy(mixed(calibration(stage)), chosen))
    assert row["after"] == pytest.approx(loss, rel=1e-5)
    assert row["after"] < row["before"]
    assert same(before, values(dense))


def test_distillation_pulls_to_the_teachers_outputs(dense: nn.Module, tmp_path: Path) -> None:
    how = {**SHORT, "objective": "task", "steps": 60, "layers": ("first.2",)}
    agreement = []
    for factor in (0.0, 30.0):
        model, folder = compressed(dense, CONVOLUTIONS), tmp_path / str(factor)
        folder.mkdir()
        run(Blocks(**how, distillation=factor), model, dense, folder)
        mixed = copy.deepcopy(dense)
        mixed.first[2] = model.first[2]
        with torch.no_grad():
            x = data().normalized(data().train.images)
            agreement.append(float(adntn.losses.distillation(mixed(x), dense(x))))
    assert agreement[1] < agreement[0]


def test_a_block_is_fitted_as_a_whole_in_evaluation_mode(dense: nn.Module, tmp_path: Path) -> None:
    stage = Blocks(**SHORT, blocks=("first",))
    model = compressed(dense, CONVOLUTIONS).train()
    outcome = run(stage, model, dense, tmp_path)
    assert [(row["name"], row["weights"]) for row in outcome["blocks"]] == [
        ("first", ["first.2"]),
        ("second.1", ["second.1"]),
    ]
    with torch.no_grad():
        given = dense.stem(calibration(stage))
        wanted, made = dense.first(given.clone()), model.first.eval()(given.clone())
    assert outcome["blocks"][0]["after"] == pytest.approx(float((made - wanted).norm() / wanted.norm()), rel=1e-5)
    assert torch.equal(model.first[0].running_mean, dense.first[0].running_mean)
    assert torch.equal(model.first[0].weight, dense.first[0].weight)


class Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(24, 9)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.add_(1.0))
        return out


def test_a_block_may_write_into_what_it_is_given(tmp_path: Path) -> None:
    dense = teacher(lambda: nn.Sequential(nn.Flatten(), Adds(), nn.Linear(9, 3)))
    stage, model = Blocks(**SHORT, layers=(), blocks=("1",)), compressed(dense, ["1.layer"])
    row = run(stage, model, dense, tmp_path)["blocks"][0]
    with torch.no_grad():
        given = calibration(stage).flatten(1)
        wanted, made = (net[1](given.clone()) for net in (dense, model))
    assert row["after"] == pytest.approx(float((made - wanted).norm() / wanted.norm()), rel=1e-5)


def test_dense_parts_of_a_block_are_trained_if_asked_for(dense: nn.Module, tmp_path: Path) -> None:
    model = compressed(dense, CONVOLUTIONS)
    run(Blocks(**SHORT, blocks=("first",), dense=True), model, dense, tmp_path)
    assert not torch.equal(model.first[0].weight, dense.first[0].weight)
    assert torch.equal(model.second[2].weight, dense.second[2].weight)


def test_frozen_parameters_stay(dense: nn.Module, tmp_path: Path) -> None:
    model = compressed(dense, CONVOLUTIONS)
    model.first[2].root.requires_grad_(False)
    root = model.first[2].root.clone()
    run(Blocks(**SHORT, layers=("first.2",)), model, dense, tmp_path)
    assert torch.equal(model.first[2].root, root)
    model.first[2].requires_grad_(False)
    with pytest.raises(CompressionError, match=r"block 'first.2' has nothing to train"):
        run(Blocks(**SHORT, layers=("first.2",)), model, dense, tmp_path)


def test_norms_are_recalibrated_at_the_end(dense: nn.Module, tmp_path: Path) -> None:
    stage = Blocks(**{**SHORT, "recalibrate_norms": True, "batch_size": 24})
    model = compressed(dense, CONVOLUTIONS)
    assert run(stage, model, dense, tmp_path)["recalibrated_norms"] == 2
    with torch.no_grad():
        seen = model.stem(calibration(stage))
    assert torch.allclose(model.first[0].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(model.first[0].running_var, seen.var((0, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("objective", ["weight", "outputs"])
def test_other_types_of_numbers(objective: str, dtype: torch.dtype, tmp_path: Path) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(24, 9, dtype=dtype)

        def forward(self, x: Tensor) -> Tensor:
            return self.stem(x.flatten(1).to(dtype))

    dense = First().requires_grad_(False).eval()
    model = compressed(dense, ["stem"])
    row = run(Blocks(**{**SHORT, "objective": objective}), model, dense, tmp_path)["blocks"][0]
    assert row["after"] < row["before"]
    assert model.stem.weight.dtype == dtype


@pytest.mark.parametrize(
    "options",
    [
        {"topology": "mera", "order": "paired", "groups": 3, "bond_dim": 3},
        {"topology": "ttn", "terms": 2, "gate": True},
        {"topology": "brickwall"},
        {"topology": "subspace"},
        {"topology": "lowrank", "bond_dim": 2},
        {"topology": "tt", "radix": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("objective", ["weight", "outputs", "task"])
def test_every_topology(objective: str, options: dict[str, Any], dense: nn.Module, tmp_path: Path) -> None:
    model = compressed(dense, ["second.1"], config=adntn.GeneratorConfig(**options))
    row = run(Blocks(**{**SHORT, "objective": objective}), model, dense, tmp_path)["blocks"][0]
    assert row["after"] < row["before"]
    adntn.save(model, tmp_path / "model.safetensors")


# --- every layer --------------------------------------------------------------------------------------------------

ROWS = ["embed", "tied", "q", "k", "v", "attention", "up", "rnn.weight_ih_l0", "rnn.weight_hh_l0"]


@pytest.fixture
def rows() -> tuple[nn.Module, nn.Module]:
    dense = teacher(Rows)
    return dense, compressed(dense, ROWS, shared=[("q", "k", "v")])


def test_weights_of_every_layer_are_fitted(rows: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    dense, model = rows
    outcome = run(Blocks(**{**SHORT, "objective": "weight"}), model, dense, tmp_path)
    found = {row["name"]: row["weights"] for row in outcome["blocks"]}
    assert found == {
        "embed": ["embed", "tied"],
        "q": ["q", "k", "v"],
        "attention.in_proj_weight": ["attention.in_proj_weight"],
        "attention.out_proj": ["attention.out_proj"],
        "up": ["up"],
        "rnn.weight_ih_l0": ["rnn.weight_ih_l0"],
        "rnn.weight_hh_l0": ["rnn.weight_hh_l0"],
    }
    assert all(row["after"] < row["before"] for row in outcome["blocks"])
    whole = torch.cat([getattr(dense, name).weight for name in "qkv"])
    made = torch.cat([getattr(model, name).weight.detach() for name in "qkv"])
    error = float((made - whole).norm() / whole.norm())
    assert outcome["blocks"][1]["after"] == pytest.approx(error, rel=1e-4)


def test_outputs_of_layers_and_blocks_of_every_kind(rows: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    dense, model = rows
    stage = Blocks(**SHORT, layers=("attention", "up"), blocks=("rnn",))
    outcome = run(stage, model, dense, tmp_path)
    assert [row["name"] for row in outcome["blocks"]] == ["rnn", "attention", "up"]
    assert all(row["after"] < row["before"] for row in outcome["blocks"])
    assert outcome["blocks"][1]["weights"] == ["attention.in_proj_weight", "attention.out_proj"]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"layers": ("rnn.weight_ih_l0",)}, "name its module in blocks=['rnn'], or take objective='weight'"),
        ({"layers": ("q",)}, "block 'q' shares its generator with 'k.root', 'v.root'"),
        ({"layers": ("nothing",)}, "layers: 'nothing' means no generated layer of 'embed', "),
        ({"layers": (), "blocks": ("head",)}, "blocks: nothing that 'head' means holds a generated layer."),
        ({"layers": (), "blocks": ("rnm",)}, "blocks: the model has no module 'rnm'. Did you mean 'rnn'?"),
        (
            {"layers": (), "blocks": ("attention", "attention.out_proj")},
            "'attention.out_proj' is a part of 'attention'",
        ),
        ({"objective": "weight", "blocks": ("rnn",)}, "objective='weight' fits each generator to its own weight"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    options: dict[str, Any], words: str, rows: tuple[nn.Module, nn.Module], tmp_path: Path
) -> None:
    dense, model = rows
    with pytest.raises((CompressionError, ConfigError)) as caught:
        run(Blocks(**{**SHORT, **options}), model, dense, tmp_path)
    assert words in str(caught.value)


def test_a_teacher_of_another_shape_is_refused(dense: nn.Module, tmp_path: Path) -> None:
    other = copy.deepcopy(dense)
    other.second[1] = nn.Conv2d(8, 6, (1, 1))
    model = compressed(dense, CONVOLUTIONS)
    with pytest.raises(CompressionError, match=r"shape \(6, 8, 1, 3\); the teacher has one of shape \(6, 8, 1, 1\)"):
        run(Blocks(**{**SHORT, "objective": "weight"}), model, other, tmp_path)
    with pytest.raises(CompressionError, match="compress it before the stage 'blocks'"):
        run(Blocks(), copy.deepcopy(dense), dense, tmp_path)


# --- several workers ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["weight", "outputs", "task"])
def test_two_workers_come_to_the_same_bits(objective: str, dense: nn.Module, tmp_path: Path) -> None:
    came = []
    for workers in (1, 2):
        torch.randn(workers)  # the global state is not what it depends on
        model, folder = compressed(dense, CONVOLUTIONS), tmp_path / str(workers)
        folder.mkdir()
        stage = Blocks(**{**SHORT, "objective": objective, "recalibrate_norms": True, "workers": workers})
        outcome = run(stage, model, dense, folder)
        assert outcome["workers"] == workers
        came.append((values(model), [{**row, "seconds": 0} for row in outcome["blocks"]]))
    assert same(came[0][0], came[1][0])
    assert came[0][1] == came[1][1]


def test_what_cannot_be_sent_stays_here_or_is_refused(rows: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    dense, model = rows
    how = {**SHORT, "layers": ("up",), "blocks": ("rnn",)}
    with pytest.raises(ConfigError, match=r"'rnn' cannot be sent to another process .*workers=1"):
        run(Blocks(**{**how, "workers": 2}), model, dense, tmp_path)
    outcome = run(Blocks(**{**how, "workers": None}), model, dense, tmp_path)
    if "one_worker_because" in outcome:  # not on a machine of one CPU
        assert outcome["workers"] == 1
        assert "'rnn' cannot be sent" in outcome["one_worker_because"]


def test_a_model_from_a_users_file_is_sent_along(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n"
        "def twice(x): return 2 * x\n"
        "class Mine(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.one, self.two = nn.Linear(24, 9), nn.Linear(9, 3)\n"
        "    def forward(self, x): return self.two(twice(self.one(x.flatten(1))))\n"
    )
    spec = importlib.util.spec_from_file_location("adntn_user_mine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["adntn_user_mine"] = module
    try:
        spec.loader.exec_module(module)
        dense = teacher(module.Mine)
        came = []
        for workers in (1, 2):
            folder, model = tmp_path / str(workers), compressed(dense, ["one", "two"])
            folder.mkdir()
            outcome = run(Blocks(**{**SHORT, "objective": "task", "workers": workers}), model, dense, folder)
            assert outcome["workers"] == workers
            came.append(values(model))
    finally:
        del sys.modules["adntn_user_mine"]
    assert same(*came)


# --- interruptions ------------------------------------------------------------------------------------------------


def test_finished_blocks_are_not_fitted_again(
    dense: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, whole = Blocks(**SHORT), compressed(dense, CONVOLUTIONS)
    (tmp_path / "whole").mkdir()
    run(stage, whole, dense, tmp_path / "whole")

    told: list[Event] = []
    stopped = state(compressed(dense, CONVOLUTIONS), dense, tmp_path, tell=told.append)
    stopped.out_of_time = lambda: bool(told)  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="1 of 2 blocks are fitted and kept"):
        stage.run(stopped)
    assert [(event.step, event.total, event.text[:7]) for event in told] == [(1, 2, "first.2")]

    made: list[str] = []
    job = make.Maker.job
    monkeypatch.setattr(
        make.Maker, "job", lambda self, block, **how: made.append(block.name) or job(self, block, **how)
    )
    model = compressed(dense, CONVOLUTIONS)
    outcome = run(stage, model, dense, tmp_path)
    assert made == ["second.1"]
    assert [row["kept"] for row in outcome["blocks"]] == [True, False]
    assert same(values(model), values(whole))


@pytest.mark.slow
def test_other_options_or_a_broken_file_do_not_pass_for_finished(dense: nn.Module, tmp_path: Path) -> None:
    def kept(**options: Any) -> list[bool]:
        outcome = run(Blocks(**{**SHORT, **options}), compressed(dense, CONVOLUTIONS), dense, tmp_path)
        return [row["kept"] for row in outcome["blocks"]]

    assert kept() == [False, False]
    assert kept(recalibrate_norms=True) == [True, True]
    assert kept(steps=3) == [False, False]
    file = tmp_path / "first.2.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert kept(steps=3) == [False, True]
    file.write_bytes(bytes(content)[:40])
    assert kept(steps=3) == [False, True]


def test_the_time_may_be_up_in_the_middle_of_a_block(dense: nn.Module, tmp_path: Path) -> None:
    stage = Blocks(**{**SHORT, "steps": 10**9})
    began = time.monotonic()
    with pytest.raises(TrainingStopped, match="0 of 2 blocks"):
        run(stage, compressed(dense, CONVOLUTIONS), dense, tmp_path, deadline=began + 0.3)
    assert not list(tmp_path.iterdir())


class Fails(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not self.training:
            raise FloatingPointError("no more")
        return super().forward(x)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_block_that_fails_is_named_and_others_are_kept(workers: int, tmp_path: Path) -> None:
    dense = teacher(lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 8), nn.Sequential(nn.Linear(8, 8), Fails(8, 3))))
    model = compressed(dense, ["1", "2.0"])
    told: list[Event] = []
    stage = Blocks(**{**SHORT, "workers": workers}, layers=("1",), blocks=("2",))
    with pytest.raises(RuntimeError, match="block '2': FloatingPointError: no more") as caught:
        run(stage, model, dense, tmp_path, tell=told.append)
    assert "in forward" in caught.value.__notes__[0]
    assert [event.text[:1] for event in told] == ["1"] * (workers - 1)


class Dies(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not self.training:
            os._exit(1)
        return super().forward(x)


@pytest.mark.slow
def test_a_worker_that_dies_stops_the_stage_with_what_is_kept(tmp_path: Path) -> None:
    dense = teacher(lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 8), nn.Sequential(nn.Linear(8, 8), Dies(8, 3))))
    stage = Blocks(**{**SHORT, "workers": 2}, layers=("1",), blocks=("2",))
    with pytest.raises(TrainingStopped, match=r"a worker died, .*: \d of 2 blocks are kept"):
        run(stage, compressed(dense, ["1", "2.0"]), dense, tmp_path)


def test_an_error_of_the_librarys_own_keeps_its_type(dense: nn.Module, tmp_path: Path) -> None:
    dense.first[2].weight[0, 0] = math.nan
    with pytest.raises(ConfigError, match=r"block 'first.2': the target of shape \(8, 6, 3, 3\) has NaN"):
        run(Blocks(**{**SHORT, "objective": "weight"}), compressed(teacher(), CONVOLUTIONS), dense, tmp_path)


def test_compiled_and_uncompiled_models_have_blocks_of_one_name(dense: nn.Module, tmp_path: Path) -> None:
    model = compressed(dense, CONVOLUTIONS)
    wrapped = torch.compile(model, backend="eager")
    outcome = Blocks(**SHORT).run(State(wrapped, dense, data(), tmp_path, seed=5))
    assert [row["name"] for row in outcome["blocks"]] == CONVOLUTIONS
    assert CONFIG.topology == model.first[2].config.topology
    assert isinstance(dense, Blocky)
