"""Rows that are trained once each, stopped, and gone on with."""

from __future__ import annotations

import functools
import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_rows import SETTINGS, STEPS, Heard, bright_halves, small_rows
from torch import Tensor, nn

from adntn import GeneratorConfig
from adntn.checkpoint import load
from adntn.errors import ConfigError, NonFiniteError, TrainingStopped
from adntn.experiments.data import normalize
from adntn.experiments.reproduce import run
from adntn.experiments.reproduce.counts import count_numbers
from adntn.experiments.reproduce.rows import Folder, Result
from adntn.experiments.reproduce.run import Told, run_rows
from adntn.experiments.seeded import SeededConv2d
from adntn.training.loop import Fitted, fit
from adntn.training.objective import Losses, Objective

DATA = bright_halves()
ROWS = {row.variant: row for row in small_rows(SETTINGS, DATA.image_shape, DATA.num_classes)}
ALL = list(ROWS.values())


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Finished:
    """All rows with two seeds."""

    def __init__(self, path: Path) -> None:
        self.folder, self.heard = Folder(path), Heard()
        self.folder.claim("small", SETTINGS, DATA)
        self.results = run_rows(ALL, (0, 5), DATA, self.folder, tell=self.heard)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("rows") / "run")


def same(one: Result, other: Result) -> bool:
    """Whether two results are equal in all but time and place."""
    return replace(one, train_seconds=0, environment={}) == replace(other, train_seconds=0, environment={})


def assert_same_model(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_every_row_is_trained_with_the_first_seed_before_any_with_the_second(finished: Finished) -> None:
    expected = [(row.name, seed) for seed in (0, 5) for row in ALL]
    assert finished.heard.begun() == expected
    assert [(each.name, each.seed) for each in finished.results] == expected
    ends = [t for t in finished.heard.told if isinstance(t, Told) and t.result is not None]
    assert [(t.number, t.total, t.earlier) for t in ends] == [(n, 8, False) for n in range(1, 9)]
    assert finished.folder.results() == sorted(finished.results, key=lambda each: (each.name, each.seed))


def test_a_network_with_random_numbers_mixed_in_is_not_kept_as_a_file(tmp_path: Path) -> None:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        seeded = SeededConv2d.made_of(nn.Conv2d(1, 4, 3, padding=1), GeneratorConfig(order="paired"), "signs")
        return nn.Sequential(seeded, nn.Flatten(), nn.Linear(4 * 64, 2))

    build = functools.partial(nn.Sequential, nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 2))
    row = replace(ROWS["ttn"], variant="signs", build=build, make=make, layers=("0",))
    folder = Folder(tmp_path / "run")
    folder.claim("small", SETTINGS, DATA)
    run_rows([row], (0,), DATA, folder, tell=Heard())
    assert folder.result(row.name, 0) is not None
    assert not folder.model_file(row.name, 0).exists()  # loaded, it would be another network


def test_a_result_says_what_was_trained(finished: Finished) -> None:
    for each in finished.results:
        row, counts = ROWS[each.variant], count_numbers(ROWS[each.variant])
        assert (each.group, each.steps, len(each.curve)) == (row.group, STEPS, 3)
        assert each.curve[-1] == each.accuracy
        assert each.optimization == row.optimization.to_dict()
        assert each.about == {"kind": row.about["kind"]}
        assert (each.layer_stored, each.model_trained) == (counts.layer_stored, counts.model_trained)
        assert each.environment["device"] == "cpu"
        assert each.train_seconds > 0
        assert set(each.rank_bound) == ({"7"} if each.variant == "ttn" else set())
    ranks = {
        each.variant: (each.stable_rank_start, each.stable_rank_end) for each in finished.results if each.seed == 0
    }
    assert ranks["deleted"] == ({}, {})
    assert ranks["frozen-dense"][0] == ranks["frozen-dense"][1] == ranks["dense"][0]
    assert ranks["dense"][1] != ranks["dense"][0]
    assert all(1 <= rank["7"] <= 32 for rank in (*ranks["ttn"], *ranks["dense"]))


def test_what_can_be_learned_is_learned(finished: Finished) -> None:
    assert all(each.accuracy > 0.85 for each in finished.results), [each.accuracy for each in finished.results]


@pytest.mark.slow
def test_the_files_are_those_of_the_results_and_nothing_else_is_left(finished: Finished) -> None:
    path = finished.folder.path
    files = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    names = [f"{row.name}-seed{seed}" for row in ALL for seed in (0, 5)]
    assert files == {
        "settings.json",
        *(f"rows/{name}.json" for name in names),
        *(f"models/{name}.safetensors" for name in names),
        *(f"checkpoints/{name}.lock" for name in names),
    }
    images = normalize(DATA.test.images, DATA)
    for each in finished.results:
        model = ROWS[each.variant].build() if each.variant != "deleted" else ROWS["deleted"].make(0)
        load(model, finished.folder.model_file(each.name, each.seed)).eval()
        with torch.no_grad():
            right = (model(images).argmax(1) == DATA.test.labels).double().mean()
        assert float(right) == pytest.approx(each.accuracy)


def test_a_finished_row_is_never_run_again(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "fit", lambda *_, **__: pytest.fail("it was trained again"))
    heard = Heard()
    # Also where the time is over: there is nothing to be done.
    again = run_rows(ALL[:2], (5, 0), DATA, finished.folder, deadline=-math.inf, tell=heard)
    assert [(each.name, each.seed) for each in again] == [(row.name, seed) for seed in (5, 0) for row in ALL[:2]]
    assert all(each in finished.results for each in again)
    assert heard.begun() == []
    assert all(isinstance(t, Told) and t.earlier for t in heard.told)


def test_what_another_process_trains_is_passed_over(tmp_path: Path) -> None:
    folder, heard = Folder(tmp_path), Heard()
    with Folder(tmp_path).holding("small-fc/ttn", 0):
        results = run_rows([ROWS["ttn"], ROWS["deleted"]], (0,), DATA, folder, tell=heard)
    assert [each.name for each in results] == ["small-fc/deleted"]
    assert heard.begun() == [("small-fc/deleted", 0)]


def test_a_teacher_is_trained_before_its_row_and_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught_by: list[tuple[Losses, nn.Module | None]] = []

    def objective(losses: Losses, model: nn.Module, teacher: nn.Module | None, *, seed: int) -> Objective:
        taught_by.append((losses, teacher))
        return Objective(losses, model, teacher, seed=seed)

    monkeypatch.setattr(run, "Objective", objective)
    pupil = replace(ROWS["ttn"], variant="taught", teacher=ROWS["dense"])
    folder = Folder(tmp_path / "run")
    folder.claim("small", SETTINGS, DATA)
    heard = Heard()
    run_rows([ROWS["ttn"], pupil], (0,), DATA, folder, tell=heard)
    assert heard.begun() == [(ROWS["ttn"].name, 0), (ROWS["dense"].name, 0), (pupil.name, 0)]
    alone, taught = (load_file(folder.model_file(name, 0)) for name in (ROWS["ttn"].name, pupil.name))
    assert alone.keys() == taught.keys()
    assert not torch.equal(alone["4.weight"], taught["4.weight"])
    ((losses, teacher),) = taught_by
    assert {name: term.weight for name, term in losses.terms.items()} == {"cross_entropy": 0.5, "distillation": 0.5}
    assert teacher is not None
    dense = load_file(folder.model_file(ROWS["dense"].name, 0))
    assert all(torch.equal(value, dense[name]) for name, value in teacher.state_dict().items())


def test_a_row_starts_where_its_teacher_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: dict[str, dict[str, Tensor]] = {}

    def look(model: nn.Module, *args: Any, **options: Any) -> Fitted:
        starts[f"{len(starts)}"] = {name: value.clone() for name, value in model.state_dict().items()}
        assert options["teacher"] is None
        assert options["objective"] is None
        return fit(model, *args, **options)

    rest, fitted = (
        replace(ROWS["ttn"], variant=each[-1], teacher=ROWS["dense"], lessons=each)
        for each in (("rest",), ("rest", "weights"))
    )
    folder = Folder(tmp_path / "run")
    folder.claim("small", SETTINGS, DATA)
    run_rows([ROWS["dense"]], (0,), DATA, folder)
    monkeypatch.setattr(run, "fit", look)
    results = run_rows([rest, fitted], (0,), DATA, folder)
    dense = load_file(folder.model_file(ROWS["dense"].name, 0))
    for start in starts.values():
        common = start.keys() & dense.keys()
        assert "4.bias" in common
        assert all(torch.equal(start[name], dense[name]) for name in common)
    untaught = ROWS["ttn"].make(0).state_dict()
    own = untaught.keys() - dense.keys()
    assert all(torch.equal(starts["0"][name], untaught[name]) for name in own)
    assert not any(torch.equal(starts["1"][name], untaught[name]) for name in own)
    assert results[0].stable_rank_start != results[-1].stable_rank_start


def test_a_teacher_that_is_gone_is_trained_again_where_a_row_still_needs_it(tmp_path: Path) -> None:
    dense, pupil = ROWS["dense"], replace(ROWS["ttn"], variant="taught", teacher=ROWS["dense"])
    folder = Folder(tmp_path / "run")
    folder.claim("small", SETTINGS, DATA)
    (first,) = run_rows([dense], (0,), DATA, folder)
    file = folder.model_file(dense.name, 0)
    kept = file.with_name("kept.safetensors")
    file.rename(kept)
    again, _ = run_rows([pupil], (0,), DATA, folder)
    assert same(first, again)
    assert_same_model(kept, file)
    file.unlink()
    run_rows([pupil], (0,), DATA, folder)
    assert not file.exists()  # nobody needs it now


def test_what_learns_from_a_row_of_another_process_is_passed_over(tmp_path: Path) -> None:
    pupil = replace(ROWS["ttn"], variant="taught", teacher=ROWS["dense"])
    folder = Folder(tmp_path / "run")
    folder.claim("small", SETTINGS, DATA)
    with Folder(tmp_path / "run").holding(ROWS["dense"].name, 0) as mine:
        assert mine
        assert run_rows([pupil], (0,), DATA, folder) == []


def test_what_another_process_finished_just_now_is_not_trained_again(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None])
    known = Folder.result
    monkeypatch.setattr(Folder, "result", lambda self, row, seed: next(answers, known(self, row, seed)))
    heard = Heard()
    (result,) = run_rows([ROWS["ttn"]], (0,), DATA, finished.folder, tell=heard)
    assert (heard.begun(), result.name) == ([], "small-fc/ttn")


class Exploding(nn.Module):
    """Its weights are so large that the first loss is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ROWS["dense"].build()
        with torch.no_grad():
            for parameter in self.inner.parameters():
                parameter.mul_(1e30)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


def test_a_row_that_comes_to_nothing_does_not_stop_the_others(tmp_path: Path) -> None:
    bad = replace(ROWS["dense"], group="small-fc", variant="bad", make=lambda seed: Exploding(), layers=())
    heard, folder = Heard(), Folder(tmp_path)
    with pytest.raises(NonFiniteError, match=r"^small-fc/bad, seed 0: the loss is NaN or infinite at step 1"):
        run_rows([bad, ROWS["deleted"]], (0,), DATA, folder, tell=heard)
    assert [each.name for each in folder.results()] == ["small-fc/deleted"]
    assert [t.row for t in heard.told if isinstance(t, Told) and t.failed] == ["small-fc/bad"]


# --- an end before the end ------------------------------------------------------------------------------------------


def stop_by_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[Told], None]:
    """The time is over once the second row has trained for an epoch."""
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr("adntn.experiments.reproduce.run.time", fake)
    monkeypatch.setattr("adntn.training.watching.time", fake)

    def tell(told: Told) -> None:
        if told.number == 2 and told.event is not None and told.event.step >= STEPS // 3:
            clock.now = 100.0

    return tell


def stop_by_signal(monkeypatch: pytest.MonkeyPatch) -> Callable[[Told], None]:
    """SIGTERM comes in the second row's first steps."""
    monkeypatch.setattr("adntn.training.module._TELL_EVERY", 0.0)

    def tell(told: Told) -> None:
        if told.number == 2 and told.event is not None:
            signal.raise_signal(signal.SIGTERM)

    return tell


@pytest.mark.parametrize("how", [stop_by_time, stop_by_signal])
def test_it_stops_cleanly_and_goes_on_to_the_same_networks(
    how: Callable[[pytest.MonkeyPatch], Callable[[Told], None]], finished: Finished, tmp_path: Path
) -> None:
    rows, folder = [ROWS["dense"], ROWS["ttn"]], Folder(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        tell = how(patch)
        with pytest.raises(TrainingStopped):
            run_rows(rows, (0,), DATA, folder, deadline=50.0 if how is stop_by_time else None, tell=tell)
    assert [each.name for each in folder.results()] == ["small/dense"]
    assert list(folder.checkpoints("small-fc/ttn", 0).glob("*.ckpt"))
    heard = Heard()
    results = run_rows(rows, (0,), DATA, folder, tell=heard)
    assert heard.begun() == [("small-fc/ttn", 0)]
    steps = [t.event.step for t in heard.told if isinstance(t, Told) and t.event is not None]
    assert steps[0] > (STEPS // 3 if how is stop_by_time else 0)
    for each in results:
        (expected,) = [r for r in finished.results if (r.name, r.seed) == (each.name, each.seed)]
        assert same(each, expected)
        assert_same_model(folder.model_file(each.name, 0), finished.folder.model_file(each.name, 0))


def test_a_time_that_is_over_begins_nothing(tmp_path: Path) -> None:
    heard = Heard()
    with pytest.raises(TrainingStopped, match=r"before small/dense, seed 0; 0 of 4 are finished"):
        run_rows(ALL, (0,), DATA, Folder(tmp_path), deadline=-math.inf, tell=heard)
    assert not heard.told


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device='cuda' is not possible here"):
        run_rows(ALL, (0,), DATA, Folder(tmp_path), device="cuda")
