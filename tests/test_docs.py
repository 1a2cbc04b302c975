"""What README and docs show is what the commands wrote, and their code runs."""

from __future__ import annotations

import ast
import doctest
import functools
import json
import math
import pkgutil
import re
import runpy
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import reproduce_makers
import torch
import typer

import adntn
from adntn.cli import app
from adntn.cli.options import split_names
from adntn.describe import generated_weights
from adntn.experiments.models import vgg16
from adntn.experiments.reproduce.job import experiment_rows
from adntn.experiments.reproduce.rows import Folder, chosen_rows
from adntn.experiments.reproduce.settings import Settings
from adntn.experiments.reproduce.whole import whole_rows
from adntn.experiments.runs import Row, Timing
from adntn.report.summary import markdown, summarize
from adntn.training.stages.grow import Grow
from adntn.training.stages.select import Select

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DEMO = DOCS / "results" / "demo"
SCRIPTS: dict[str, dict[str, Any]] = {
    name: runpy.run_path(str(DOCS / "scripts" / f"{name}.py")) for name in ("tables", "pages", "pictures", "hooks")
}
STAGES = {stage.kind: stage for stage in (Select, Grow)}
TABLES, PAGES = SCRIPTS["tables"]["TABLES"], SCRIPTS["pages"]["PAGES"]


def between(text: str, mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n(.*?)<!-- /{mark} -->", text, re.DOTALL)
    assert found is not None
    return found[1].strip()


def test_readme_shows_the_demo_runs_table() -> None:
    metrics = json.loads((DEMO / "metrics.json").read_text())
    rows = [Row(**row) for row in metrics["runs"]]
    table = markdown(summarize(rows, [Timing(**timing) for timing in metrics["forward_times"]]))
    assert between((ROOT / "README.md").read_text(), "demo") == table
    assert (DEMO / "table.md").read_text().strip() == table


def test_the_initialization_page_shows_the_studys_table() -> None:
    study = runpy.run_path(str(ROOT / "benchmarks" / "initialization.py"))
    page = (ROOT / "docs" / "initialization.md").read_text()
    assert between(page, "table") == study["table"]()


def test_the_ranks_page_shows_what_was_measured() -> None:
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "ranks.py"))
    page = (ROOT / "docs" / "ranks.md").read_text()
    assert between(page, "table") == benchmark["table"]()
    assert between(page, "cuts") == benchmark["cuts"]()


def test_the_fitting_page_shows_the_studys_tables() -> None:
    study = runpy.run_path(str(ROOT / "benchmarks" / "fitting.py"))
    page = (ROOT / "docs" / "fitting.md").read_text()
    assert between(page, "generators") == study["generators"]()
    assert between(page, "methods") == study["methods"]()


def test_the_quantization_page_shows_the_studys_tables() -> None:
    study = runpy.run_path(str(ROOT / "benchmarks" / "quantization.py"))
    page = (ROOT / "docs" / "quantization.md").read_text()
    assert between(page, "changes") == study["changes"]()
    assert between(page, "scales") == study["scales"]()


def test_the_warm_start_page_shows_the_studys_tables_and_its_code_runs() -> None:
    study = runpy.run_path(str(ROOT / "benchmarks" / "warm_start.py"))
    page = (ROOT / "docs" / "warm-start.md").read_text()
    for name in ("errors", "bends", "after_training"):
        assert between(page, name) == study[name]()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "warm-start.md", "exec"), {})


def test_the_blocks_page_shows_the_benchmarks_tables_and_its_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "blocks.py"))
    page = (DOCS / "blocks.md").read_text()
    assert between(page, "reached") == benchmark["reached"]()
    assert between(page, "rates") == benchmark["tried_rates"]()
    assert between(page, "workers") == benchmark["workers"]()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "blocks.md", "exec"), {})


def test_the_adjoint_page_shows_the_benchmarks_table_and_its_code_runs() -> None:
    page = (ROOT / "docs" / "adjoint.md").read_text()
    assert between(page, "table") == runpy.run_path(str(ROOT / "benchmarks" / "adjoint.py"))["table"]()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "adjoint.md", "exec"), {})


@pytest.mark.slow
def test_the_faithfulness_pages_code_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "faithfulness.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "faithfulness.md", "exec"), names)
    assert names["found"].teacher.accuracy > 0.8
    assert list(names["found"].similarity) == ["conv1", "conv2", "conv3", "head"]


def test_the_gpu_page_shows_the_benchmarks_table() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert between(page, "tiles") == runpy.run_path(str(ROOT / "benchmarks" / "tiles.py"))["table"]()


def test_the_training_page_shows_the_benchmarks_table_and_its_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "training.md").read_text()
    assert between(page, "traffic") == runpy.run_path(str(ROOT / "benchmarks" / "traffic.py"))["table"]()
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code.replace("epochs=20", "epochs=2"), "training.md", "exec"), names)
    assert names["fitted"].epochs == 2
    assert (tmp_path / "run" / "epoch.ckpt").is_file()


def test_the_reproduce_pages_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "reproduce.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "reproduce.md", "exec"), names)
    assert [each.name for each in names["results"]] == ["vgg16/dense"]
    assert (tmp_path / "run" / "models" / "vgg16" / "dense-seed0.safetensors").is_file()


@pytest.mark.slow
def test_the_settings_on_the_evidence_page_are_possible() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "evidence.md").read_text(), re.DOTALL)
    torch.manual_seed(0)
    names: dict[str, Any] = {"model": vgg16((3, 32, 32), 10, width=1 / 16)}
    exec(compile(code, "evidence.md", "exec"), names)
    assert sum(parameter.numel() for parameter in names["model"].parameters()) == names["plan"].after <= 20_000
    assert {group["lr"] for group in names["optimizer"].param_groups} == {1e-2, 2e-2}
    assert all(weight.config.bond_dim == 1 for weight in generated_weights(names["model"]).values())
    assert type(names["model"].get_submodule("features.0")) is torch.nn.Conv2d
    for name, weight in generated_weights(names["model"]).items():
        made, trained = weight.weight.detach(), names["teacher"].get_parameter(f"{name}.weight").detach()
        assert float((made * trained).sum() / made.norm() / trained.norm()) > 0.3, name


def test_the_commands_of_the_reproduce_and_evidence_pages_are_possible() -> None:
    group: Any = typer.main.get_command(app)
    pages = [
        "reproduce.md",
        "evidence.md",
        "resnet.md",
        *(page for _, page, _ in SCRIPTS["tables"]["EXPERIMENTS"].values()),
    ]
    text = "".join((DOCS / page).read_text() for page in pages)
    commands = re.findall(r"^(?:until )?adntn reproduce (\w+)(.*?)(?:; do.*)?$", text, re.MULTILINE)
    assert {name for name, _ in commands} == {"table3", "whole", "levers", "expressivity"}
    rows_of = functools.cache(lambda name, settings: experiment_rows(name, settings, (3, 32, 32), 10))
    for name, options in commands:
        asked = group.commands["reproduce"].commands[name].make_context(name, shlex.split(options)).params
        if asked.get("rows"):
            settings = Settings(width=asked["width"] or 1.0, teacher_epochs=asked["teacher_epochs"])
            chosen_rows(rows_of(name, settings), split_names(asked["rows"]) or ())
        if (file := ROOT / (asked["out"] or "") / "settings.json").is_file():  # it is the command that was run
            run = json.loads(file.read_text())
            keys = ("width", "epochs", "teacher_epochs", "held_out", "core_lr")
            said = {key: asked[key] if asked[key] is not None else getattr(Settings(), key) for key in keys}
            assert said == {key: run.get(key) for key in keys}, file
    parameters = [each for command in group.commands["reproduce"].commands.values() for each in command.params]
    known = {option for each in parameters for option in (*each.opts, *each.secondary_opts)}
    named = set(re.findall(r"`(--[a-z-]+)", (DOCS / "reproduce.md").read_text()))
    assert named <= known


def test_the_directions_of_a_generator_are_those_of_its_jacobian() -> None:
    study = runpy.run_path(str(ROOT / "benchmarks" / "tangents.py"))
    found = study["run"](study["CONFIGS"]["random subspace"] | {"subspace_dim": 4}, 0)
    assert found["numbers"] == 4
    assert found["directions"] == pytest.approx(4, rel=0.01)


def test_what_a_generator_can_do_lies_in_its_directions_whole_and_chance_in_their_share() -> None:
    study = runpy.run_path(str(ROOT / "benchmarks" / "turning.py"))
    torch.manual_seed(0)
    layer = adntn.nn.Conv2d(16, 16, 3, config=adntn.GeneratorConfig.kronecker((16, 16, 3, 3), terms=2))
    basis = study["directions"](layer)
    # Of each product, the scales of two matrices, a kernel and a root are one direction.
    assert basis.shape[1] == layer.num_parameters - 2 * 3
    assert study["share_within"](layer.weight.detach(), basis) == pytest.approx(1.0, abs=1e-4)
    shares = [study["share_within"](torch.randn(layer.shape), basis) for _ in range(50)]
    assert sum(shares) / 50 == pytest.approx(basis.shape[1] / basis.shape[0], rel=0.15)


def test_the_nearness_of_low_rank_is_what_singular_values_leave(tmp_path: Path) -> None:
    study = runpy.run_path(str(ROOT / "benchmarks" / "nearness.py"))
    rows = {row.name: row for row in whole_rows(Settings(width=1 / 16), (3, 32, 32), 10)}
    row = rows["vgg16/lowrank-taught-5500"]
    assert row.teacher is not None
    dense = row.teacher.make(0)
    file = Folder(tmp_path).model_file(row.teacher.name, 0)
    file.parent.mkdir(parents=True)
    adntn.save(dense, file)
    configs = {name: layer.config for name, layer in generated_weights(row.make(0)).items()}
    found = {each["layer"]: each["error"] for each in study["errors"](row, tmp_path, 0)}
    assert found.keys() == configs.keys() == set(row.layers)
    for name, error in found.items():
        squares = torch.linalg.svdvals(dense.get_parameter(f"{name}.weight").detach().flatten(1)).square()
        assert error == pytest.approx(math.sqrt(squares[configs[name].chi :].sum() / squares.sum()), abs=1e-4)


def test_the_budget_page_shows_the_studys_tables_and_the_plan_that_is_kept_and_a_possible_recipe() -> None:
    study = runpy.run_path(str(ROOT / "benchmarks" / "budget.py"))
    page = (ROOT / "docs" / "budget.md").read_text()
    assert between(page, "study") == study["table"]()
    assert between(page, "correlations") == study["correlations"]()
    assert between(page, "vgg16") == f"```text\n{study['vgg16_table']()}\n```"
    for stage in tomllib.loads(re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0])["stage"]:
        STAGES[stage.pop("kind")].from_dict(stage)


@pytest.mark.slow
def test_the_plan_on_the_budget_page_is_the_librarys_and_its_code_runs() -> None:
    study = runpy.run_path(str(ROOT / "benchmarks" / "budget.py"))
    kept, plan = json.loads(study["VGG16"].read_text()), study["plan_vgg16"]()
    assert [layer["name"] for layer in kept["layers"]] == [layer.name for layer in plan.layers]
    assert plan.after == pytest.approx(kept["after"], rel=0.02)  # ranks differ a little between machines
    page = (ROOT / "docs" / "budget.md").read_text()
    exec(compile(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], "budget.md", "exec"), {"print": str})


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "model.safetensors").is_file()
    assert isinstance(names["report"], adntn.CompressionReport)


def test_readme_and_docs_name_files_that_are_there() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md"), *DOCS.glob("tutorials/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} names {target}"


def test_readme_counts_are_the_librarys() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \| ([\d,]+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [name for name, _, _ in rows] == ["ttn", "attn", "mera"]
    for topology, linear, conv in rows:
        config = adntn.GeneratorConfig(topology=topology)
        assert f"{adntn.Generator((4096, 4096), config, device='meta').num_parameters:,}" == linear
        assert f"{adntn.Generator((512, 512, 3, 3), config, device='meta').num_parameters:,}" == conv


def test_the_docstring_of_generator_tells_the_truth() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(adntn.Generator, "Generator", globs={"adntn": adntn})
    assert doctest.DocTestRunner().run(example).failed == 0


# --- tables and code of the site --------------------------------------------------------------------------------------


def assert_alike(shown: str, made: str, **tolerance: float) -> None:
    """Compare texts word for word, and numbers with a decimal point, which vary between machines, with a tolerance."""
    number = r"\d+\.\d+"
    assert re.sub(number, "#", shown) == re.sub(number, "#", made)
    assert [float(n) for n in re.findall(number, shown)] == pytest.approx(
        [float(n) for n in re.findall(number, made)], **tolerance
    )


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_what_the_library_says(name: str) -> None:
    """If this fails after a change that is meant: python docs/scripts/tables.py."""
    pages = [page.read_text() for page in SCRIPTS["tables"]["PAGES"]]
    places = [between(text, name) for text in pages if f"<!-- {name} -->" in text]
    assert places
    for shown in places:
        if name == "starts":
            assert_alike(shown, TABLES[name](), rel=0.1, abs=0.15)
        else:
            assert shown == TABLES[name]()


@pytest.mark.parametrize("name", SCRIPTS["tables"]["EXPERIMENTS"])
def test_a_page_has_room_for_each_experiment_and_its_files_are_of_one_piece(name: str) -> None:
    """What stands between the marks is compared above, as soon as there are results."""
    shown = between((DOCS / SCRIPTS["tables"]["EXPERIMENTS"][name][1]).read_text(), name)
    folder = DOCS / "results" / name
    assert (shown != "") == (folder / "settings.json").is_file() == (name in TABLES)
    if shown:
        assert SCRIPTS["tables"]["EXPERIMENTS"][name][0](folder, 2) in (folder / "table.md").read_text()


def test_a_page_is_filled_from_an_experiments_folder(tmp_path: Path) -> None:
    rows = [reproduce_makers.result("vgg16-fc2", "ttn", 0, 0.9), reproduce_makers.deleted("vgg16-fc2", 0, 0.91)]
    folder = reproduce_makers.folder(tmp_path / "results" / "table3", "table3", rows)
    text = SCRIPTS["tables"]["experiment"]("table3", tmp_path)
    assert text.startswith("## VGG-16, FC2\n\n| network ")
    assert "figure5.png" not in text
    (folder / "figure5.png").touch()
    text = SCRIPTS["tables"]["experiment"]("table3", tmp_path)
    assert text.endswith("![Accuracies of all rows and controls](results/table3/figure5.png)")


@pytest.mark.parametrize("name", SCRIPTS["pictures"]["PICTURES"])
def test_pictures_are_drawn_from_the_plans(name: str) -> None:
    """If this fails after a change that is meant: python docs/scripts/pictures.py."""
    assert (DOCS / "assets" / name).read_text() == SCRIPTS["pictures"]["PICTURES"][name]()


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * (p.parent != DOCS)) for p in PAGES], ids=lambda p: p.stem
)
def test_code_on_the_pages_runs_and_prints_what_stands_below_it(page: Path) -> None:
    """If this fails after a change that is meant: python docs/scripts/pages.py."""
    blocks = list(SCRIPTS["pages"]["BLOCK"].finditer(page.read_text()))
    # Accuracies of short runs differ between machines, most of all those near chance; counts do not.
    for block, printed in zip(blocks, SCRIPTS["pages"]["run"](page), strict=True):
        assert_alike(block["output"] or "", printed, rel=0.1, abs=12.0 if page.parent != DOCS else 0.15)


def test_the_tutorials_reading_is_that_of_its_numbers() -> None:
    text = (DOCS / "tutorials" / "your-model.md").read_text()
    rows = re.findall(r"^(\w.*?) +[\d,]+ stored +([\d.]+) ±", text, re.MULTILINE)
    mean = {name: float(accuracy) for name, accuracy in rows}
    lost = mean["dense"] - mean["deleted"]
    assert lost > 20
    assert 0.35 < (mean["ttn"] - mean["deleted"]) / lost < 0.65
    assert (mean["frozen ttn"] - mean["deleted"]) / lost < 0.2
    assert abs(mean["frozen dense"] - mean["ttn"]) < 5
    assert mean["dense"] - max(mean["frozen dense"], mean["ttn"]) > 10


def rows_of(page: str, pattern: str) -> dict[str, list[float]]:
    """Return the numbers of a tutorial's printed table by their row's name."""
    found = re.findall(pattern, (DOCS / "tutorials" / page).read_text(), re.MULTILINE)
    return {name: [float(number) for number in numbers] for name, *numbers in found}


def test_the_transformers_reading_is_that_of_its_numbers() -> None:
    bits = {name: mean for name, (mean,) in rows_of("transformer.md", r"^(\w.*?) +[\d,]+ stored +([\d.]+) ±").items()}
    lost = bits["blocks deleted"] - bits["dense"]
    assert 0.2 < (bits["blocks deleted"] - bits["blocks generated"]) / lost < 0.45
    assert abs(bits["blocks frozen"] - bits["blocks deleted"]) < 0.05 * lost
    assert abs(bits["blocks generated, frozen"] - bits["blocks deleted"]) < 0.05 * lost
    assert bits["embedding generated too"] > bits["blocks deleted"] + lost
    text = (DOCS / "tutorials" / "transformer.md").read_text()
    (dense, stored), (embedding, its) = (
        re.findall(pattern, text, re.MULTILINE)[0]
        for pattern in (
            r"^these layers +([\d,]+) +[\d,]+ +([\d,]+) ",
            r"^embedding +128x128 +ttn +([\d,]+) +[\d,]+ +([\d,]+) ",
        )
    )
    dense, stored, embedding, its = (int(number.replace(",", "")) for number in (dense, stored, embedding, its))
    assert f"{stored - its:,} numbers in the place of the blocks' {dense - embedding:,}," in text


def test_the_reading_of_fits_and_growth_is_that_of_its_numbers() -> None:
    page = "grow-and-fit.md"
    tuned = rows_of(page, r"^(\w.*?) +([\d.]+) ± +[\d.]+ % +([\d.]+) ± +([\d.]+) %$")
    after = {name: mean for name, (_, mean, _) in tuned.items()}
    spread = max(deviation for _, _, deviation in tuned.values())
    assert max(after[name] for name in ("ttn, fitted", "ttn, random", "deleted")) - after["ttn, random"] < spread
    assert tuned["ttn, fitted"][0] < 15 < 95 < tuned["low rank, fitted"][0]
    final = {name: mean for name, (mean,) in rows_of(page, r"^(\w+) +[\d,]+ stored +([\d.]+) ±").items()}
    assert final["large"] > final["grown"] + 1
    study = (DOCS / "fitting.md").read_text()
    errors = re.findall(r"^\| (?:ttn|mera|ttn, bond 4) \| \d+ \| ([\d.]+)", study, re.MULTILINE)
    said = re.findall(r"([\d.]+) for a (?:ttn|mera)\b", (DOCS / "tutorials" / page).read_text())
    assert errors == said


def test_the_reading_of_what_generators_represent_is_that_of_its_fits() -> None:
    report, found = SCRIPTS["tables"]["expressivity"], {fits.target: fits for fits in SCRIPTS["tables"]["fits"]()}
    names, every = [*found], [*found.values()]
    reading = re.sub(r"\s+", " ", between((DOCS / "expressivity.md").read_text(), "reading"))

    def numbers(table: Any, *first: str) -> dict[str, float]:
        (row,) = [row[len(first) :] for row in table.rows if row[: len(first)] == first]
        return {
            n: float(cell.split(" (")[0].replace(",", "")) for n, cell in zip(names, row, strict=True) if cell != "–"
        }

    equal = {rank: report.equal_count_table(every, rank) for rank in (4, 16)}
    for rank, said in ((4, ("0.933", "0.935")), (16, ("0.809", "0.839"))):
        nearest = dict(zip(names, equal[rank].rows[-1][1:], strict=True))
        for name, error in zip(("trained-conv", "trained-fc"), said, strict=True):
            assert nearest[name] == "low rank"
            assert f"{numbers(equal[rank], 'low rank')[name]:.3f}" == error
            assert error in reading
    trees = ("ttn", "attn", "mera", "brickwall")
    assert f"leaves {min(numbers(equal[4], name)['lowrank'] for name in trees):.3f}." in reading
    assert numbers(equal[4], "low rank")["lowrank"] == 0.0
    assert numbers(equal[4], "low rank")["kronecker"] == 0.936
    assert all(found[name].facts["stable_rank"] < 30 for name in ("trained-conv", "trained-fc"))
    assert all(found[name].facts["stable_rank"] > 65 for name in ("gaussian-conv", "gaussian"))

    gains = report.gains_table(every)
    for name in ("ttn", "attn", "mera", "low rank"):
        assert all(1.45 < numbers(gains, name)[target] < 2.1 for target in ("gaussian-conv", "gaussian"))
    assert all(0.9 < gain < 1.1 for gain in numbers(gains, "subspace").values())
    own = report.own_count_table(every)
    for name in ("trained-conv", "trained-fc"):
        errors, shape = found[name].facts["svd_errors"], found[name].facts["shape"]
        ranks = [(cell, cell.numbers / (shape[0] + math.prod(shape[1:]))) for cell in found[name].cells]
        large = [(cell, *divmod(rank, 1)) for cell, rank in ranks if rank >= 2 and not cell.is_baseline]
        assert large
        for cell, rank, rest in large:
            left = (1 - rest) * errors[int(rank)] ** 2 + rest * errors[int(rank) + 1] ** 2
            assert cell.error**2 > left
    small = [numbers(own, name, size) for name in ("ttn", "attn") for size in ("base", "wide")]
    shares = [row[name] for row in small for name in ("trained-conv", "trained-fc")]
    assert (min(shares), max(shares)) == (pytest.approx(0.7, abs=0.03), pytest.approx(1.25, abs=0.03))
    assert numbers(own, "ttn", "base")["circulant"] == pytest.approx(40, abs=2)

    for name in ("ttn", "attn", "mera"):
        bond, terms = numbers(own, name, "bond"), numbers(own, name, "terms")
        assert all(bond[target] >= terms[target] for target in names)
    for name in ("ttn", "attn"):
        base, root = numbers(own, name, "base"), numbers(own, name, "root")
        assert all(root[target] < base[target] for target in names)

    activations = report.activations_table(every)
    sine, elu, fast = (numbers(activations, name) for name in ("sine(omega=3)", "elu", "sine(omega=10)"))
    assert all(1.0 <= sine[name] < 1.26 and elu[name] <= sine[name] + 0.01 for name in names)
    assert all(fast[name] <= sine[name] for name in names if name != "tree")
    assert 0.0 < fast["tree"] - sine["tree"] < 0.015
    paired = numbers(report.orders_table(every), "paired")
    assert paired["circulant"] == pytest.approx(4.5, abs=0.5)
    assert paired["kronecker"] == pytest.approx(1.5, abs=0.15)
    assert paired["trained-conv"] == pytest.approx(3 / 4, abs=0.02)
    assert paired["trained-fc"] == pytest.approx(13 / 14, abs=0.02)
    assert paired["lowrank"] == pytest.approx(0.4, abs=0.03)

    for fits in every:
        for cell in fits.cells:
            assert cell.rank <= (cell.linear_bound if cell.activation == "identity" else cell.rank_bound)
    (own_tree,) = [
        cell.error
        for cell in found["tree"].cells
        if (cell.size, cell.topology, cell.order, cell.activation) == ("base", "mera", "paired", "sine(omega=3)")
    ]
    assert f"its fit stopped at {own_tree:.2f}." in reading


def test_what_choosing_says_of_other_pages_is_what_stands_there() -> None:
    table = (DEMO / "table.md").read_text()
    trees = re.findall(r"^\| (?:ttn|attn|mera) \|.*?\| ([\d.]+) ± ([\d.]+) \|", table, re.MULTILINE)
    means, deviations = zip(*((float(mean), float(deviation)) for mean, deviation in trees), strict=True)
    assert len(means) == 3
    assert max(means) - min(means) < 1.2 * max(deviations)
    study = between((DOCS / "initialization.md").read_text(), "table")
    rows = re.findall(r"^\| (\w+) \| (.*?) \|[^|]*\|[^|]*\| ([\d.]+) ±", study, re.MULTILINE)
    mean = {(order, start): float(accuracy) for order, start, accuracy in rows}
    gains = [mean["paired", start] - mean["blocked", start] for order, start in mean if order == "paired"]
    assert (round(min(gains)), round(max(gains))) == (5, 11)


# --- the API ----------------------------------------------------------------------------------------------------------

DOCUMENTED = {
    name: page
    for page in DOCS.glob("api/*.md")
    for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)
}


def test_every_public_name_is_on_a_page() -> None:
    shown = {f"{name}.{each}" for name in DOCUMENTED for each in getattr(pkgutil.resolve_name(name), "__all__", ())}
    things = [pkgutil.resolve_name(name) for name in {*shown, *DOCUMENTED}]
    for name in set(adntn.__all__) - {"__version__"}:
        assert any(getattr(adntn, name) is thing for thing in things), f"adntn.{name} is on no page of docs/api"


def test_every_page_of_the_site_is_in_its_menu() -> None:
    menu = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())
    pages = [p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md") if "results" not in p.parts]
    assert sorted(menu) == sorted(pages)


@pytest.mark.parametrize(
    "html, refused",
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example/x.css">', True),
        ("see :class:<code>Level</code>", True),
        ('<a href="https://arxiv.org/abs/2606.00130">paper</a> <script src="assets/x.js"></script>', False),
    ],
)
def test_a_site_that_fetches_from_elsewhere_is_refused(tmp_path: Path, html: str, refused: bool) -> None:
    (tmp_path / "index.html").write_text(html)
    check = SCRIPTS["hooks"]["on_post_build"]
    if refused:
        with pytest.raises(SCRIPTS["hooks"]["PluginError"], match=r"index\.html (fetches|shows)"):
            check({"site_dir": str(tmp_path)})
    else:
        check({"site_dir": str(tmp_path)})


# --- from paper to code -----------------------------------------------------------------------------------------------

WALK = re.findall(
    r"^\| (\(\d+\)|(?:Algorithm|Definition|Figure|Table) \d) \| (.*) \| (.*) \| (.*) \|$",
    (DOCS / "paper-to-code.md").read_text(),
    re.MULTILINE,
)


def test_everything_numbered_in_the_paper_has_a_row_without_an_empty_cell() -> None:
    counts = {"Algorithm": 3, "Definition": 2, "Figure": 6, "Table": 3}
    expected = [f"({n})" for n in range(1, 68)]
    expected += [f"{kind} {n}" for kind, count in counts.items() for n in range(1, count + 1)]
    assert sorted(row[0] for row in WALK) == sorted(expected)
    for number, *cells in WALK:
        assert all(cell.strip() for cell in cells), f"{number} has an empty cell"
        assert "not built yet" not in " ".join(cells).lower(), number


def test_the_code_that_the_walk_names_is_there() -> None:
    for number, _, code, _ in WALK:
        objects = re.findall(r"\]\[(adntn[\w.]*)\]", code) + re.findall(r"`(torch\.[\w.]+)`", code)
        for name in objects:
            assert pkgutil.resolve_name(name) is not None, f"{number} names {name}"
        pages = [target for target in re.findall(r"\]\(([\w./-]+)\)", code) if (DOCS / target).is_file()]
        assert objects or pages or "`" in code or "#words" in code, f"{number} names no code"


def test_the_tests_that_the_walk_names_are_there() -> None:
    tests: dict[str, set[str]] = {}
    for number, _, _, named in WALK:
        found = re.findall(r"`([\w/]+\.py)::(\w+)`", named)
        assert found, f"{number} names no test"
        for file, name in found:
            if file not in tests:
                body = ast.parse((ROOT / "tests" / file).read_text()).body
                tests[file] = {node.name for node in body if isinstance(node, ast.FunctionDef)}
            assert name in tests[file], f"{number} names {file}::{name}"
