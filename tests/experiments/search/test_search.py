"""A search finds what there is within its budgets, and loses nothing when it is broken off."""

from __future__ import annotations

import csv
import json
import os
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from search_fakes import EPOCHS, RECIPE, SPACE, Fake

from adntn.errors import ConfigError
from adntn.experiments.runs import RunFolderError
from adntn.experiments.search.comparison import default_for
from adntn.experiments.search.options import SearchOptions
from adntn.experiments.search.run import Ended, SearchError, SearchOutcome, run_search, stored_search
from adntn.experiments.search.space import config_of, optimization_of
from adntn.experiments.search.study import Search, Trials
from adntn.report.search import verdict

BUDGETS = (250, 700)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def options(**given: Any) -> SearchOptions:
    return SearchOptions(**{"trials": 16, "budget": BUDGETS, "space": SPACE, "pruner": "none", "finalists": 1} | given)


def searched(folder: Path, how: SearchOptions | None = None, **fake: Any) -> SearchOutcome:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return run_search(RECIPE, how or options(), folder, evaluator=Fake(folder.parent, **fake))


def trials_of(folder: Path) -> list[tuple[int, dict[str, Any], str]]:
    """Budget, knobs and state of every trial that was not skipped or broken off."""
    search = Search(RECIPE, stored_search(folder)[1], BUDGETS, dict.fromkeys(BUDGETS), folder, Fake(folder))
    found = Trials(search).all()
    return [(b, t.params, t.state.name) for b, t in found if t.state.name != "FAIL" and "skipped" not in t.user_attrs]


def test_the_best_of_each_budget_is_found_and_nothing_larger_is_trained(tmp_path: Path) -> None:
    outcome = searched(tmp_path / "out")
    assert outcome.budgets == BUDGETS
    assert [outcome.counts[b].done for b in BUDGETS] == [8, 8]
    for point in outcome.points:
        assert point.parameters <= point.budget
        config, rates = config_of(point.recipe), optimization_of(point.recipe)
        assert {"groups": config.groups, "latent_order": config.latent_order, "lr": rates.lr} == point.settings
        assert rates.epochs == EPOCHS
    best = {b: max((p for p in outcome.points if p.budget == b), key=lambda p: p.validation_accuracy) for b in BUDGETS}
    assert [best[b].settings["groups"] for b in BUDGETS] == [2, 6]
    trained = {int(line.split()[0]) for line in Fake(tmp_path).trained()}
    assert trained <= {1, 2, 4, 6}  # 3 is impossible, 8 over both budgets
    skipped = outcome.counts[250].skipped
    assert skipped["impossible"] > 0
    assert skipped["over the budget"] > 0


def test_the_first_trial_of_a_budget_is_the_default_in_its_size(tmp_path: Path) -> None:
    how = options(trials=2, space={**SPACE, "groups": [1, 8]}, seeds=0)
    outcome = searched(tmp_path / "out", how)
    first = {point.budget: point.settings for point in outcome.points}
    # Not among the choices, but what the search is compared with.
    assert first[250] == {"groups": 2, "latent_order": 5, "lr": 0.1}
    assert first[700] == {"groups": 6, "latent_order": 5, "lr": 0.1}


def test_without_a_budget_it_is_the_recipes_own_size(tmp_path: Path) -> None:
    how = options(trials=4, budget=None, space={"latent_order": {"low": 2, "high": 7}, "lr": [1e-3, 1.0]})
    outcome = searched(tmp_path / "out", how)
    assert outcome.budgets == (105,)
    assert max(point.parameters for point in outcome.points) <= 105


def test_every_file_is_written_and_a_points_recipe_says_what_was_trained(tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = searched(out)
    content = json.loads((out / "points.json").read_text())
    assert [row["name"] for row in content["points"]] == [point.name for point in outcome.points]
    assert [row["name"] for row in json.loads((out / "pareto.json").read_text())] == content["front"]
    with (out / "points.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["lr"]) for row in table] == [point.settings["lr"] for point in outcome.points]
    assert {row["name"] for row in table if row["front"] == "True"} == set(content["front"])
    for point in outcome.points:
        recipe = tomllib.loads((out / "recipes" / f"point-{point.name}.toml").read_text())
        assert recipe == point.recipe
        assert point.latency_ms == config_of(recipe).groups
        assert (out / point.file).is_file()


def test_hopeless_trials_are_pruned_and_count(tmp_path: Path) -> None:
    events: list[Any] = []
    how = options(pruner="median", trials=20, budget=700, seeds=0)
    outcome = run_search(RECIPE, how, tmp_path / "out", evaluator=Fake(tmp_path), tell=events.append)
    counts = outcome.counts[700]
    assert counts.pruned > 0
    assert counts.done + counts.pruned == 20
    ended = [event for event in events if isinstance(event, Ended)]
    assert [event.count for event in ended] == list(range(1, 21))
    pruned = [event for event in ended if event.state == "pruned"]
    assert len(pruned) == counts.pruned
    assert max(event.accuracy or 0.0 for event in pruned) < outcome.front[-1].validation_accuracy
    assert ended[-1].best == max(point.validation_accuracy for point in outcome.points)


def test_a_training_that_fails_counts_and_the_rest_goes_on(tmp_path: Path) -> None:
    outcome = searched(tmp_path / "out", diverge=6)
    assert outcome.counts[700].failed > 0
    _, compared = outcome.comparisons
    assert compared.failures == 3  # the default of that budget
    assert compared.differences == ()
    assert "3 trainings failed" in verdict(compared)
    assert outcome.counts[700].done + outcome.counts[700].failed == 8
    assert all(point.settings["groups"] != 6 for point in outcome.points)


@pytest.mark.parametrize("finalists, expected", [(1, 1), (4, 6)])
def test_a_lucky_trial_does_not_stand_the_finals(tmp_path: Path, finalists: int, expected: int) -> None:
    how = options(budget=700, trials=12, space={"groups": [1, 2, 4, 6]}, finalists=finalists)
    outcome = searched(tmp_path / "out", how, lucky=1)
    (compared,) = outcome.comparisons
    groups = {point.name: point.settings["groups"] for point in outcome.points}
    assert compared.trial is not None
    assert groups[compared.trial] == expected


def test_the_default_may_win_the_finals(tmp_path: Path) -> None:
    # Not in the space, so no trial had it.
    how = options(budget=700, trials=12, space={"lr": [0.3, 1.0]}, finalists=2)
    outcome = searched(tmp_path / "out", how)
    (compared,) = outcome.comparisons
    assert (compared.trial, compared.same) == ("default", True)
    assert "came back to the default" in verdict(compared)


# --- broken off, and gone on with ------------------------------------------------------------------------------------


def test_a_search_stopped_by_ctrl_c_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = searched(tmp_path / "a" / "out", options(seeds=0))
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "b" / "out", options(seeds=0), stop=5)
    folder = tmp_path / "b" / "out"
    assert len(json.loads((folder / "points.json").read_text())["points"]) == 5
    again = searched(folder, options(seeds=0))
    assert sum(counts.again for counts in again.counts.values()) == 1
    assert trials_of(folder) == trials_of(tmp_path / "a" / "out")
    assert [p.settings for p in again.points] == [p.settings for p in whole.points]
    assert len(Fake(tmp_path / "b").trained()) == 17


def test_out_of_minutes_a_trial_is_put_back_and_done_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        # In the middle of the sixth training.
        patch.setattr(Search, "out_of_time", lambda self: len(self.evaluator.trained()) == 6)
        outcome = searched(out, options(seeds=0))
    counts = outcome.counts.values()
    assert (sum(each.done for each in counts), sum(each.again for each in counts)) == (5, 1)
    assert (sum(each.running for each in counts), len(outcome.points)) == (0, 5)
    outcome = searched(out, options(seeds=0))
    assert sum(counts.done for counts in outcome.counts.values()) == 16


def claimed(folder: Path, deaths: int) -> Trials:
    """A search whose process died that many times in its first trial."""
    from adntn.experiments.search.storage import Presence

    fake = Fake(folder)
    defaults = {budget: default_for(RECIPE, budget, fake.parameters) for budget in BUDGETS}
    search = Search(RECIPE, options(), BUDGETS, defaults, folder, fake)
    for _ in range(deaths):
        with Presence(search.workers) as presence:
            assert Trials(search).claim(presence) is not None
    return Trials(search)


@pytest.mark.parametrize("deaths", [1, 2])
def test_the_trial_of_a_dead_process_is_done_again_once(tmp_path: Path, deaths: int) -> None:
    from adntn.experiments.search.storage import Presence

    trials = claimed(tmp_path, deaths)
    assert trials.counts().running == 1
    with Presence(trials.search.workers) as presence:
        next_one = trials.claim(presence)
        assert next_one is not None
        params = [trial.params for _, trial in trials.all()]
        if deaths == 1:
            assert next_one.trial.params == params[0]
            assert (trials.counts().again, trials.counts().failed) == (1, 0)
        else:
            assert next_one.budget == 700
            assert (trials.counts().again, trials.counts().failed) == (1, 1)
        # A living process keeps what it has.
        with Presence(trials.search.workers) as other:
            assert trials.claim(other) is not None
        assert trials.counts().running == 2


def test_half_a_line_that_a_killed_process_left_is_no_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    searched(out, options(trials=4, seeds=0))
    journal = out / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:9])
    outcome = searched(out, options(trials=6, seeds=0))
    assert sum(counts.done for counts in outcome.counts.values()) == 6
    assert journal.read_bytes().startswith(whole)


def test_a_finished_search_trains_nothing_again_and_takes_more_trials(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = searched(out)
    lines = Fake(tmp_path).trained()
    assert searched(out).to_dict() == first.to_dict()
    assert Fake(tmp_path).trained() == lines
    more = searched(out, options(trials=18))
    assert len(more.points) == 18
    # The comparison's networks are known, unless another point has become the best.
    changed = sum(a.trial != b.trial for a, b in zip(first.comparisons, more.comparisons, strict=True))
    assert len(Fake(tmp_path).trained()) == len(lines) + 2 + 3 * changed


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    searched(out, options(trials=2, seeds=0))
    with pytest.raises(RunFolderError, match="other settings"):
        searched(out, options(trials=2, seeds=0, budget=300))
    with pytest.raises(RunFolderError, match="not empty"):
        searched(tmp_path, options())
    with pytest.raises(RunFolderError, match=r"no search\.json"):
        stored_search(tmp_path)
    recipe, stored = stored_search(out)
    assert (recipe, stored) == (RECIPE, options(trials=2, seeds=0))


@pytest.mark.parametrize(
    "space, words",
    [({"groups": [3]}, "does not divide"), (SPACE, "over the budget")],
    ids=["impossible", "too large"],
)
def test_a_space_without_anything_possible_is_said_to_be_so(tmp_path: Path, space: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        searched(tmp_path / "out", options(space=space, budget=50))


def test_a_space_that_is_used_up_ends_the_search(tmp_path: Path) -> None:
    outcome = searched(tmp_path / "out", options(space={"groups": [1, 2]}, budget=500, seeds=0))
    # The default of that budget has four groups, and is tried with them.
    assert sorted(point.settings["groups"] for point in outcome.points) == [1, 2, 4]
    assert outcome.counts[500].skipped["known already"] > 0


def test_the_time_is_over_at_the_deadline_and_when_the_parent_is_gone(tmp_path: Path) -> None:
    search = Search(RECIPE, options(), BUDGETS, dict.fromkeys(BUDGETS), tmp_path, Fake(tmp_path))
    assert not search.out_of_time()
    assert replace(search, deadline=time.monotonic() - 1).out_of_time()
    assert not replace(search, deadline=time.monotonic() + 60, parent=os.getppid()).out_of_time()
    assert replace(search, parent=os.getpid()).out_of_time()


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_share_the_trials_and_one_that_is_killed_loses_none(tmp_path: Path) -> None:
    how = options(processes=2, trials=14, budget=(700,), seeds=0)
    fake = Fake(tmp_path, kill=1, seconds=0.02)
    outcome = run_search(RECIPE, how, tmp_path / "out", evaluator=fake)
    counts = outcome.counts[700]
    assert (counts.done, counts.again, counts.running) == (14, 1, 0)
    trained = [line.rsplit(maxsplit=1)[0] for line in fake.trained()]
    assert len(trained) == 15
    assert len(set(trained)) == 14


@pytest.mark.slow
def test_when_all_processes_are_killed_the_search_says_so_and_can_go_on(tmp_path: Path) -> None:
    how = options(processes=1, trials=6, budget=(700,), seeds=0, space={"groups": [4], "lr": [1e-3, 1.0]})
    two = replace(how, processes=2)
    with pytest.raises(SearchError, match="--resume"):
        run_search(RECIPE, two, tmp_path / "out", evaluator=Fake(tmp_path, kill=100))
    outcome = run_search(RECIPE, how, tmp_path / "out", evaluator=Fake(tmp_path))
    assert outcome.counts[700].counted == 6


@pytest.mark.slow
def test_what_is_wrong_in_a_process_is_said_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        searched(tmp_path / "out", options(processes=2, space={"groups": [3]}, budget=50))
