"""Knobs, points, TOML, energy, and what the report says."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_fakes import RECIPE, SPACE, Fake

from adntn.errors import ConfigError
from adntn.experiments.search.comparison import Comparison, default_for
from adntn.experiments.search.energy import measured_energy
from adntn.experiments.search.options import SearchOptions, read_recipe
from adntn.experiments.search.points import Point, front
from adntn.experiments.search.run import run_search
from adntn.experiments.search.space import DEFAULT_SPACE, Knob, Space, config_of, optimization_of, with_settings
from adntn.experiments.search.storage import Presence, _drop_half_line
from adntn.experiments.search.toml import to_toml
from adntn.report.search import pareto_plot, search_markdown, verdict

# --- knobs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, given, knob",
    [
        ("lr", [1e-3, 1e-1], Knob("lr", low=1e-3, high=1e-1, log=True)),
        ("core-lr", [1e-3, 1e-2, 1e-1], Knob("core_lr", choices=(1e-3, 1e-2, 1e-1))),
        ("groups", [1, 2], Knob("groups", choices=(1, 2))),
        ("groups", {"low": 1, "high": 6}, Knob("groups", low=1, high=6)),
        ("bond_dim", {"low": 2, "high": 8, "log": True}, Knob("bond_dim", low=2, high=8, log=True)),
        ("momentum", [0.5, 0.9], Knob("momentum", low=0.5, high=0.9)),
        ("topology", ["ttn", "lowrank"], Knob("topology", choices=("ttn", "lowrank"))),
        ("boundary_layers", [1, 2], Knob("boundary_layers", choices=(1, 2))),
        ("activation", ["elu", "sine(omega=2)"], Knob("activation", choices=("elu", "sine(omega=2)"))),
    ],
    ids=str,
)
def test_a_list_is_choices_or_of_two_rates_a_range(name: str, given: Any, knob: Knob) -> None:
    assert Knob.read(name, given) == knob


@pytest.mark.parametrize(
    "name, given, words",
    [
        ("bond", [2, 3], "no knob 'bond'"),
        ("topologi", ["ttn"], "Did you mean 'topology'"),
        ("topology", ["ttn", "mira"], "Did you mean 'mera'"),
        ("lr", [0.1, 0.01], "low below high"),
        ("lr", [0.0, 0.1], "above 0"),
        ("groups", {"low": 1, "high": 3, "step": 2}, "low below high"),
        ("groups", [0, 1], "groups=0"),
        ("groups", [], "list of choices"),
        ("lr", 0.1, "list of choices"),
        ("activation", ["sin"], "sin"),
    ],
    ids=str,
)
def test_a_knob_that_cannot_be_is_refused(name: str, given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Knob.read(name, given)


def test_the_usual_space_is_possible() -> None:
    assert {knob.name for knob in Space.read(None).knobs} == set(DEFAULT_SPACE)


def test_settings_go_into_their_stages_and_what_a_topology_lacks_is_left_out() -> None:
    base = with_settings(RECIPE, {"topology": "attn", "boundary_layers": 2, "order": "paired", "core_lr": 0.2})
    assert (config_of(base).topology, config_of(base).boundary_layers) == ("attn", 2)
    assert (optimization_of(base).core_lr, optimization_of(base).lr, optimization_of(base).epochs) == (0.2, 0.1, 4)
    assert [stage["kind"] for stage in base["stage"]] == ["select", "fine-tune"]
    assert "core_lr" not in RECIPE["stage"][1]["optimization"]
    other = with_settings(base, {"topology": "lowrank", "terms": 4, "bond_dim": 3})
    config = config_of(other)
    assert (config.topology, config.boundary_layers, config.terms, config.bond_dim) == ("lowrank", 1, 1, 3)
    assert config.order == "paired"
    with pytest.raises(ConfigError, match="no 'fine-tune'"):
        with_settings({"stage": RECIPE["stage"][:1]}, {"lr": 0.1})


def test_a_recipes_own_settings_are_found_where_the_space_has_them() -> None:
    space = Space.read({**SPACE, "bond_dim": [2, 3], "core_lr": [1e-3, 1.0]})
    found = space.settings_of(RECIPE)
    assert found == {"groups": 1, "latent_order": 5, "lr": 0.1, "bond_dim": 2, "core_lr": 0.1}
    assert Space.read({"topology": ["mera"]}).settings_of(RECIPE) is None
    assert Space.read({"lr": [1e-3, 1e-2]}).settings_of(RECIPE) is None


@pytest.mark.parametrize(
    "budget, expected", [(250, (2, 5)), (399, (2, 5)), (10_000, (99, 5)), (104, (1, 4)), (101, (1, 1)), (50, None)]
)
def test_the_default_of_a_budget_is_as_large_as_it_may_be(budget: int, expected: tuple[int, int] | None) -> None:
    made = default_for(RECIPE, budget, Fake(Path()).parameters)
    assert (made and (config_of(made).groups, config_of(made).latent_order)) == expected


# --- the recipe ------------------------------------------------------------------------------------------------------


def test_a_recipe_is_read_without_its_search(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(RECIPE | {"search": {"trials": 5, "budget": 900, "space": {"groups": [1, 2]}}}))
    recipe, options = read_recipe(path)
    assert recipe == RECIPE
    assert options == SearchOptions(trials=5, budget=(900,), space={"groups": [1, 2]})
    assert SearchOptions.from_dict(options.to_dict()) == options


@pytest.mark.parametrize(
    "given, words",
    [
        ({"trials": 0}, "trials=0"),
        ({"trial": 3}, "Did you mean 'trials'"),
        ({"budget": [10, 10]}, "each once"),
        ({"budget": 1.5}, "budget=1.5"),
        ({"front": ["accuracy"]}, "Did you mean 'test_accuracy'|validation_accuracy"),
        ({"pruner": "mean"}, "Did you mean 'median'"),
        ({"space": {}}, "no table of knobs|not a table of knobs"),
        ({"minutes": 0}, "above 0"),
        ({"storage": ""}, "name of a file"),
    ],
    ids=str,
)
def test_impossible_options_of_a_search_are_refused(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(RECIPE | {"search": given}))
    with pytest.raises(ConfigError, match=words):
        read_recipe(path)


_PLAIN = st.one_of(
    st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
_NAMES = st.text(min_size=1)
_TABLES = st.recursive(
    st.dictionaries(_NAMES, st.one_of(_PLAIN, st.lists(_PLAIN)), max_size=3),
    lambda inner: st.dictionaries(_NAMES, st.one_of(_PLAIN, inner, st.lists(inner, max_size=3)), max_size=3),
    max_leaves=8,
)


@settings(max_examples=30)
@given(_TABLES)
def test_toml_is_read_back_as_it_was(values: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(values)) == values


def test_what_toml_has_not_is_left_out_or_refused() -> None:
    assert to_toml({"a": None, "b": (1, 2)}) == "b = [1, 2]\n"
    with pytest.raises(ConfigError, match="is a object"):
        to_toml({"a": object()})


# --- points ----------------------------------------------------------------------------------------------------------


def point(parameters: int, accuracy: float, latency: float | None = None) -> Point:
    measured = Fake.measured(parameters, accuracy).to_dict()
    return Point(**measured, trial=parameters, budget=1000, settings={}, recipe=RECIPE, file="", latency_ratio=latency)


def test_the_front_has_what_nothing_beats() -> None:
    points = [point(*each) for each in ((100, 0.5), (200, 0.7), (150, 0.4), (300, 0.7), (400, 0.9), (200, 0.6))]
    found = front(points, ("parameters", "validation_accuracy"))
    assert [(p.parameters, p.validation_accuracy) for p in found] == [(100, 0.5), (200, 0.7), (400, 0.9)]
    assert front(points, ("validation_accuracy",)) == [points[4]]
    assert front([], ("parameters",)) == []


def test_a_point_that_lacks_a_measure_is_on_no_front_that_has_it() -> None:
    points = [point(100, 0.5), point(200, 0.4, 0.3)]
    assert front(points, ("latency_ratio", "validation_accuracy")) == [points[1]]


def test_twins_are_on_the_front_once() -> None:
    points = [point(100, 0.5), point(100, 0.5)]
    (one,) = front(points, ("parameters", "validation_accuracy"))
    assert one is points[0]


# --- what is told ----------------------------------------------------------------------------------------------------


def compared(searched: tuple[float | None, ...], default: tuple[float | None, ...], **given: Any) -> str:
    fields = {"budget": 700, "trial": "700-04", "same": False, "searched_parameters": 605, "default_parameters": 690}
    seconds = {"searched_seconds": 1.0, "default_seconds": 1.0}
    return verdict(Comparison(**{"searched": searched, "default": default} | fields | seconds | given))


@pytest.mark.parametrize(
    "given, words",
    [
        (((0.9, 0.92), (0.8, 0.81)), "difference +10.5 ± 0.7 points: the search gained."),
        (((0.8, 0.81), (0.9, 0.92)), "difference -10.5 ± 0.7 points: the search lost."),
        (((0.9, 0.7), (0.8, 0.81)), "no more than the seeds differ among themselves."),
        (((0.9,), (0.8,)), "one seed, which decides nothing."),
        (((0.9, 0.8), ()), "the default configuration does not fit, so there is nothing to compare with."),
        (((0.9, None, 0.8), (0.8, 0.8, 0.6)), "(1 trainings failed and are left out)."),
    ],
)
def test_the_verdict_goes_either_way(given: Any, words: str) -> None:
    assert compared(*given).endswith(words)


def test_the_verdict_says_when_the_search_found_nothing() -> None:
    assert "no trial was finished" in compared((), (0.5,), trial=None)
    assert "came back to the default" in compared((0.5, 0.6), (0.5, 0.6), same=True)


def test_the_summary_and_the_plot_have_the_front_and_what_comes_without_search(tmp_path: Path) -> None:
    options = SearchOptions(trials=6, budget=(250, 700), space=SPACE)
    outcome = run_search(RECIPE, options, tmp_path / "out", evaluator=Fake(tmp_path))
    text = search_markdown(outcome)
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert [row.split("|")[1].strip() for row in rows] == [p.name for p in outcome.front] + ["dense"]
    assert "Within 250 parameters" in text
    assert "Within 700 parameters" in text
    assert "absent: nothing is trained" in text
    assert "to train the default configuration once takes 2.0 s" in text
    pareto_plot(outcome, "a search", tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes()[:4] == b"\x89PNG"


# --- energy ----------------------------------------------------------------------------------------------------------


def test_energy_that_cannot_be_measured_is_said_to_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with measured_energy() as energy:
        pass
    assert energy.watt_hours is None
    assert "adntn[energy]" in energy.note


def test_energy_that_is_not_wanted_is_not_measured() -> None:
    with measured_energy(False) as energy:
        pass
    assert (energy.watt_hours, energy.note) == (None, "left out by energy = false")


@pytest.mark.slow
def test_energy_is_measured_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("codecarbon")
    with measured_energy() as energy:
        sum(i * i for i in range(3_000_000))
    assert capfd.readouterr() == ("", "")
    assert energy.watt_hours is None or energy.watt_hours > 0
    assert energy.note.startswith("codecarbon" if energy.watt_hours else "absent")


# --- who is there ----------------------------------------------------------------------------------------------------


def test_a_process_is_there_until_it_ends(tmp_path: Path) -> None:
    with Presence(tmp_path) as me:
        with Presence(tmp_path) as other:
            assert me.is_alive(other.name)
            assert me.is_alive(me.name)
        assert not me.is_alive(other.name)
        assert not me.is_alive(None)


@pytest.mark.parametrize(
    "before, after",
    [(b"", b""), (b"a\n", b"a\n"), (b"a\nbc", b"a\n"), (b"abc", b""), (b"a\n" + b"b" * 200_000, b"a\n")],
)
def test_half_a_line_is_dropped(tmp_path: Path, before: bytes, after: bytes) -> None:
    file = tmp_path / "journal"
    file.write_bytes(before)
    with file.open("r+b") as handle:
        _drop_half_line(handle.fileno())
    assert file.read_bytes() == after
