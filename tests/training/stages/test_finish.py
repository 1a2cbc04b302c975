"""The finished model's files give what the model gives, in both forms, and a file that does not is no result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import CONFIG, Net
from torch import nn

import adntn
from adntn import CheckpointError, ConfigError
from adntn.training.data import Part, TrainingData
from adntn.training.modes import in_its_dtype
from adntn.training.stages import finish
from adntn.training.stages.base import Event, State
from adntn.training.stages.finish import CORES, DENSE, Finish


def data() -> TrainingData:
    part = Part(torch.randint(0, 256, (12, 3, 4, 4), dtype=torch.uint8), torch.randint(0, 4, (12,)))
    return TrainingData(part, part, part, 4, torch.tensor([0.5] * 3), torch.tensor([0.25] * 3))


def state(folder: Path, model: nn.Module | None = None, **options: Any) -> State:
    if model is None:
        model = Net()
        adntn.compress_(model, CONFIG, ["features.3", "head.0"])
    return State(model, None, data(), folder, **options)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 4)
        self.second.weight = self.first.weight
        self.register_buffer("seen", torch.tensor(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.second(self.first(x.flatten(1)).relu()).relu())
        return result


def outputs(model: nn.Module, of: State) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(in_its_dtype(model, of.data.normalized(of.data.validation.images)))
    return result


def test_both_files_give_what_the_model_gives(tmp_path: Path) -> None:
    told: list[Event] = []
    here = state(tmp_path, tell=told.append)
    here.model.train()
    before = {name: each.clone() for name, each in here.model.state_dict().items()}
    outcome = Finish(images=5).run(here)
    assert here.model.training
    assert all(torch.equal(each, before[name]) for name, each in here.model.state_dict().items())
    assert json.loads(json.dumps(outcome)) == outcome
    assert outcome["images"] == 5
    for form, file in (("cores", CORES), ("dense", DENSE)):
        assert outcome[form]["file"] == file
        assert outcome[form]["bytes"] == (tmp_path / file).stat().st_size
        assert 0 <= outcome[form]["difference"] < 1e-5
    assert outcome["cores"]["bytes"] < outcome["dense"]["bytes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [CORES, DENSE]
    assert (told[-1].step, told[-1].total) == (2, 2)

    meant = outputs(here.model, here)
    small = adntn.load(Net(), tmp_path / CORES)
    torch.testing.assert_close(outputs(small, here), meant)
    plain = Net()
    plain.load_state_dict(load_file(tmp_path / DENSE))
    torch.testing.assert_close(outputs(plain, here), meant)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_generated_layers_and_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Tied()
    adntn.compress_(model, CONFIG, ["first", "second"])
    here = state(tmp_path, model.to(dtype))
    outcome = Finish().run(here)
    assert outcome["images"] == 12
    assert outcome["cores"]["difference"] == 0
    stored = load_file(tmp_path / DENSE)
    assert set(stored) == set(Tied().state_dict())
    assert stored["first.weight"].dtype == dtype
    plain = Tied().to(dtype)
    plain.load_state_dict(stored)
    assert plain.second.weight is plain.first.weight
    assert plain.get_buffer("seen") == 3


def test_a_model_without_generated_layers(tmp_path: Path) -> None:
    assert Finish().run(state(tmp_path, Net()))["cores"]["difference"] == 0


@pytest.mark.slow
def test_a_compiled_model(tmp_path: Path) -> None:
    model = Net()
    adntn.compress_(model, CONFIG, ["head.0"])
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    Finish().run(state(tmp_path, compiled))
    Net().load_state_dict(load_file(tmp_path / DENSE))
    adntn.load(Net(), tmp_path / CORES)


def test_the_dense_form_can_be_left_out_and_a_second_run_writes_anew(tmp_path: Path) -> None:
    here = state(tmp_path)
    outcome = Finish(dense=False).run(here)
    assert "dense" not in outcome
    (tmp_path / CORES).write_bytes(b"left behind by an interruption")
    assert Finish(dense=False).run(here) == outcome
    assert [path.name for path in tmp_path.iterdir()] == [CORES]


@pytest.mark.parametrize("form", ["_through_cores", "_through_dense"])
@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_file_that_gives_something_else_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, factor: float
) -> None:
    through = getattr(finish, form)

    def changed(model: nn.Module, path: Path) -> nn.Module:
        read: Net = through(model, path)
        with torch.no_grad():
            read.head[2].weight *= factor
        return read

    monkeypatch.setattr(finish, form, changed)
    with pytest.raises(CheckpointError, match="gives other outputs than the model"):
        Finish().run(state(tmp_path))


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write"):
        Finish().run(state(tmp_path / "none"))


def test_options() -> None:
    assert Finish.from_dict({"dense": False, "images": 3}) == Finish(dense=False, images=3)
    assert Finish.from_dict(Finish(tolerance=0.1).to_dict()) == Finish(tolerance=0.1)
    for options in ({"dense": 1}, {"images": 0}, {"tolerance": 0}, {"dens": True}):
        with pytest.raises(ConfigError):
            Finish.from_dict(options)
