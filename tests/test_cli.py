"""The command line as a user meets it: what is printed where, what wins, and one line for every mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_models import SERIES
from safetensors import safe_open
from typer.testing import CliRunner, Result

from adntn import __version__
from adntn.cli import app
from adntn.cli.options import DEFAULT_EPOCHS, GENERATOR, make_job, parse_seeds, split_names
from adntn.compress import compress_
from adntn.errors import ConfigError
from adntn.experiments.runs import Job, RunFolder
from adntn.topology import TOPOLOGIES, TREES, GeneratorConfig

QUICK = ["--train-limit", "80", "--test-limit", "40", "--epochs", "1", "--seeds", "1"]
FEW = ["--topology", "ttn", "--controls", "deleted"]


def run(*arguments: str | Path, width: int = 80) -> Result:
    return CliRunner(env={"COLUMNS": str(width)}).invoke(app, [str(a) for a in arguments])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run folders land in a temporary folder, and the threads stay as they were."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the timing out, which takes most of a short run."""
    monkeypatch.setattr("adntn.experiments.job._time", lambda models, images: [])


def failed(result: Result, *words: str) -> str:
    """The command ended with 2, one line on stderr with these words, and no traceback."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line, line
    return line


# --- compress -------------------------------------------------------------------------------------------------------


def test_the_version_is_printed() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"adntn {__version__}, torch {torch.__version__}\n")


@pytest.mark.parametrize("arguments", [("--help",), ("compress", "--help"), ("inspect", "--help")], ids=str)
def test_help_is_there(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_a_run_shows_a_whole_table_and_where_everything_is(tmp_path: Path) -> None:
    result = run("compress", *QUICK, *FEW, "--out", "mine", width=40)  # the table is wider, and whole all the same
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines if re.match(r"\s+\d/3 ", line)] == ["dense", "ttn", "deleted"]
    (head,) = [line for line in lines if line.split()[:2] == ["network", "layers"]]
    assert head.split() == [
        "network",
        "layers",
        "ratio",
        "model",
        "bytes",
        "accuracy",
        "%",
        "Δ",
        "dense",
        "rank",
        "time",
    ]
    assert len(head) <= 80
    assert "…" not in result.stdout
    (dense,) = [line.split() for line in lines if line.startswith(" dense")]
    assert dense[1:4] == ["78,336", "–", "80,098"]
    (ttn,) = [line.split() for line in lines if line.startswith(" ttn")]
    assert ttn[1:4] == ["256", "306x", "2,018"]
    assert ttn[-1].endswith("x")
    (deleted,) = [line.split() for line in lines if line.startswith(" deleted")]
    assert deleted[1:4] == ["0", "–", "1,762"]
    assert "Everything is in mine:" in lines
    files = {path.relative_to("mine").as_posix() for path in Path("mine").rglob("*") if path.is_file()}
    assert files == {
        *("config.json", "environment.json", "metrics.json", "metrics.csv", "table.md"),
        *("plots/accuracy.png", "plots/weights.png"),
        *(f"models/{variant}-seed0.safetensors" for variant in ("dense", "ttn", "deleted")),
    }
    table = Path("mine/table.md").read_text().splitlines()
    assert len(table) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.usefixtures("untimed")
def test_json_is_all_that_stands_on_stdout() -> None:
    result = run("compress", *QUICK, *FEW, "--json", "--out", "mine")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert (content["folder"], content["runs"]) == ("mine", 3)
    assert [s["variant"] for s in content["summary"]] == ["dense", "ttn", "deleted"]
    metrics = json.loads(Path("mine/metrics.json").read_text())
    assert [s["accuracy"] for s in content["summary"]] == [r["accuracy"] for r in metrics["runs"]]
    assert "1/3" in result.stderr  # progress


@pytest.mark.usefixtures("untimed")
def test_the_run_folder_has_a_name_of_its_own_by_default() -> None:
    assert run("compress", *QUICK, "--topology", "none", "--controls", "none").exit_code == 0
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-digits-small-cnn", folder.name)
    assert RunFolder(folder).job().variants == ("dense",)


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_the_command_line_wins_over_the_config_file() -> None:
    Path("run.toml").write_text(
        'topology = ["ttn", "mera"]\ncontrols = "none"\nepochs = 7\nbatch-size = 20\nlr = 0.01\nseeds = [4]\n'
        'weight_decay = 0.0\norder = "paired"\ntargets = ["conv3"]\ntrain_limit = 80\ntest_limit = 40\n'
    )
    result = run("compress", "--config", "run.toml", "--epochs", "1", "--topology", "attn", "--out", "mine")
    assert result.exit_code == 0, result.output
    job = RunFolder(Path("mine")).job()
    assert (job.topologies, job.controls, job.seeds, job.targets) == (("attn",), (), (4,), ("conv3",))
    recipe = job.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (1, 20, 0.01, 0.0)
    assert job.config.order == "paired"


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_a_run_is_gone_on_with_by_its_folder_alone() -> None:
    assert run("compress", *QUICK, *FEW, "--out", "mine").exit_code == 0
    Path("mine/models/ttn-seed0.safetensors").unlink()
    result = run("compress", "--resume", "mine")
    assert result.exit_code == 0, result.output
    assert re.findall(r"\d/3 +(\S+)", result.stdout) == ["ttn"]
    assert Path("mine/models/ttn-seed0.safetensors").is_file()
    failed(run("compress", "--resume", "mine", "--epochs", "3"), "ConfigError", "--resume takes its settings")
    failed(
        run("compress", *QUICK, *FEW, "--lr", "0.5", "--out", "mine"),
        "RunFolderError",
        "other settings",
        "--resume mine",
    )


@pytest.mark.usefixtures("untimed")
def test_a_users_file_pattern_and_folder_are_shown_as_they_were_given() -> None:
    Path("my[bold]net.py").write_text(
        "from torch import nn\n"
        "def build(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))\n"
    )
    pattern = "re:[a-z1]{1,2}"
    options = ["--model", "my[bold]net.py:build", "--targets", pattern, "--out", "[red]out"]
    result = run("compress", *QUICK, "--topology", "ttn", "--controls", "none", *options, width=200)
    assert result.exit_code == 0, result.output
    for text in ("my[bold]net.py:build", pattern, "into [red]out", "Everything is in [red]out:"):
        assert text in result.stdout
    job = RunFolder(Path("[red]out")).job()
    assert job.targets == (pattern,)
    metrics = json.loads(Path("[red]out/metrics.json").read_text())
    assert metrics["runs"][0]["layer_stored"] == 64 * 16


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_a_users_model_of_all_families_is_compared_with_its_controls() -> None:
    Path("series.py").write_text(SERIES)
    targets = "conv,down,up,attention,rnn.weight_hh_l0"
    options = ["--model", "series.py:build", "--targets", targets, "--topology", "mera", "--train-limit", "40"]
    options += ["--out", "mine"]
    result = run("compress", *QUICK, *options, width=200)
    assert result.exit_code == 0, result.output
    runs = json.loads(Path("mine/metrics.json").read_text())["runs"]
    assert [row["variant"] for row in runs] == ["dense", "mera", "deleted", "frozen-dense", "frozen-tree"]
    assert [row["layer_trained"] > 0 for row in runs] == [True, True, False, False, False]
    assert Path("mine/plots/weights.png").is_file()


def test_ctrl_c_is_one_line_that_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adntn.experiments.job._train", stop)
    result = run("compress", *QUICK, *FEW, "--out", "mine")
    assert (result.exit_code, result.stderr) == (130, "stopped; go on with --resume\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("adntn.experiments.job._train", fail)
    assert isinstance(run("compress", *QUICK, *FEW, "--out", "mine").exception, RuntimeError)


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, names",
    [
        (None, None),
        ("none", ()),
        ("", ()),
        ("a", ("a",)),
        (" a , b,", ("a", "b")),
        ("re:x[a,b],y", ("re:x[a,b]", "y")),
        (r"re:features\.\d{1,2},classifier", (r"re:features\.\d{1,2}", "classifier")),
        ("re:(a,b|c[d,(]),e", ("re:(a,b|c[d,(]),e",)),
        ("re:(q,(k,v)),o", ("re:(q,(k,v))", "o")),
    ],
)
def test_a_comma_in_a_patterns_brackets_belongs_to_it(text: str | None, names: tuple[str, ...] | None) -> None:
    assert split_names(text) == names


@pytest.mark.parametrize(
    "given, seeds",
    [
        (3, (0, 1, 2)),
        ("3", (0, 1, 2)),
        ("0,1,7", (0, 1, 7)),
        ("5,", None),
        ([4, 2], (4, 2)),
        (True, None),
        ("a", None),
        (1.5, None),
    ],
)
def test_seeds_are_a_number_or_a_list(given: Any, seeds: tuple[int, ...] | None) -> None:
    if seeds is None:
        with pytest.raises(ConfigError, match="neither a number of seeds"):
            parse_seeds(given)
    else:
        assert parse_seeds(given) == seeds


@pytest.mark.parametrize("given", [0, "0", "-2", []])
def test_no_seed_at_all_is_an_error(given: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"seeds={given!r} is not possible; give at least one")):
        parse_seeds(given)


def test_without_options_the_job_is_the_demo() -> None:
    job = make_job({}, Job)
    assert (job.model, job.data, job.topologies, job.seeds) == ("small-cnn", "digits", TREES, (0, 1, 2))
    assert job.controls == ("deleted", "frozen-dense", "frozen-tree")
    assert (job.recipe.epochs, job.threads) == (DEFAULT_EPOCHS, 1)
    assert job.config == GeneratorConfig()
    assert make_job({"data": "fashion-mnist"}, Job).threads is None
    assert make_job({"threads": 4}, Job).threads == 4


@pytest.mark.parametrize(
    "own",
    [
        {"boundary_layers": 2, "gate": True, "terms": 2},
        {"topology": "ttn,brickwall", "columns": 4, "blocks": 1, "gate": True},
        {"topology": "tt,lowrank,subspace", "subspace_dim": 17},
    ],
    ids=str,
)
def test_every_generator_option_arrives(own: dict[str, Any]) -> None:
    options = {
        "radix": 3,
        "bond_dim": 2,
        "latent_order": 4,
        "groups": 2,
        "activation": "tanh",
        "initialization": "paper",
        "norm": "center",
        "order": "1,0,2",
        "kernel_radix": 5,
        **own,
    }
    config = make_job(options, Job).config
    arrived = options | {"order": (1, 0, 2)}
    arrived.pop("topology", None)
    assert {name: getattr(config, name) for name in arrived} == arrived


def test_the_options_of_a_command_are_those_of_a_config() -> None:
    # One that is missing on the command line could still be set in a TOML file, and nobody would know.
    for command in ("compress", "inspect"):
        shown = run(command, "--help", width=200).stdout
        for name in GENERATOR:
            if command == "inspect" and name in ("initialization", "norm"):
                continue  # these change no count
            assert f"--{name.replace('_', '-')} " in shown, name


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_other_topologies_and_their_options_go_from_the_command_line_into_the_layers() -> None:
    arguments = ["--topology", "ttn,brickwall,frozen", "--columns", "3", "--gate", "--kernel-radix", "3"]
    result = run("compress", *QUICK, "--controls", "none", *arguments, "--train-limit", "40", "--out", "mine")
    assert result.exit_code == 0, result.output
    with safe_open("mine/models/brickwall-seed0.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"conv2.gate.2.1", "conv2.gate.gate.1.2", "conv2.gate.level.1"} <= names
    assert any(name.endswith("_3x3") for name in names)
    with safe_open("mine/models/frozen-seed0.safetensors", "pt") as file:
        assert file.get_tensor("conv2.seed").dtype == torch.int64
        assert not torch.equal(file.get_tensor("conv2.seed"), file.get_tensor("conv3.seed"))
    # Another run of the same folder has nothing left to do.
    assert run("compress", "--resume", "mine").exit_code == 0


MISTAKES: list[tuple[list[str], tuple[str, ...]]] = [
    (["--topology", "tnt"], ("ConfigError", "Did you mean 'tt'?")),
    (["--topology", "ttn,mera", "--columns", "4"], ("ConfigError", "columns=4 needs topology='brickwall', not 'ttn'")),
    (
        ["--topology", "attn,brickwall", "--columns", "4", "--boundary-layers", "2"],
        ("columns=4 needs topology='brickwall'",),
    ),
    (["--topology", "tt", "--gate"], ("gate=True needs a tree",)),
    (["--topology", "ttn,ttn"], ("each once",)),
    (["--topology", "none", "--controls", "frozen-tree"], ("needs a topology",)),
    (["--controls", "delted"], ("Did you mean 'deleted'?",)),
    (["--order", "blokced"], ("Did you mean 'blocked'?",)),
    (["--order", "1,x"], ("order='1,x'",)),
    (["--activation", "gelo"], ("Did you mean 'gelu'?",)),
    (["--initialization", "papr"], ("Did you mean 'paper'?",)),
    (["--norm", "centre"], ("Did you mean 'center'?",)),
    (["--device", "cudaa"], ("Did you mean 'cuda'?",)),
    (["--model", "smal-cnn"], ("ModelError", "Did you mean 'small-cnn'?")),
    (["--model", "net.py:build"], ("ModelError", "no file 'net.py'")),
    (["--data", "digit"], ("DataError", "Did you mean 'digits'?")),
    (["--targets", "conv9"], ("CompressionError", "Did you mean 'conv")),
    (["--targets", "re:("], ("not a regular expression",)),
    (["--targets", "re:nothing.*"], ("CompressionError", "conv2")),
    (["--groups", "3"], ("ShapeError", "'conv2'", "groups=3")),
    (["--radix", "1"], ("radix=1",)),
    (["--epochs", "0"], ("epochs=0",)),
    (["--lr", "-1"], ("lr=-1.0",)),
    (["--seeds", "0"], ("at least one",)),
    (["--seeds", "x"], ("seeds='x'",)),
    (["--seeds", "1,-1"], ("seeds=(1, -1)",)),
    (["--threads", "0"], ("threads=0",)),
    (["--train-limit", "0"], ("train_limit=0",)),
    (["--train-limit", "5"], ("DataError", "train=5")),
    (["--resume", "nowhere"], ("ConfigError", "--resume")),
    (["--config", "nowhere.toml"], ("cannot read nowhere.toml",)),
    (["--out", "file"], ("RunFolderError", "cannot make the folder file")),
]


@pytest.mark.parametrize(
    "arguments, words", MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_one_line(arguments: list[str], words: tuple[str, ...]) -> None:
    Path("file").write_text("mine")
    failed(run("compress", *QUICK, *arguments), *words)
    assert not Path("runs").exists()


@pytest.mark.parametrize("folder", ["empty", "nowhere"])
def test_a_folder_without_a_run_cannot_be_gone_on_with(folder: str) -> None:
    Path("empty").mkdir()
    failed(run("compress", "--resume", folder), "RunFolderError", "no config.json")


@pytest.mark.parametrize(
    "text, words",
    [
        ("epoch = 1", ("run.toml", "no option 'epoch'", "Did you mean 'epochs'?")),
        ("x = ", ("run.toml is not TOML",)),
        ("targets = 3", ("targets=3",)),
        ("topology = [1]", ("topology=[1]",)),
        ("model = 3", ("model=3",)),
        ('epochs = "3"', ("epochs='3'",)),
        ("seeds = [0.5]", ("seeds=(0.5,)",)),
        ('threads = "a"', ("threads='a'",)),
        ("weight_decay = -1", ("weight_decay=-1",)),
        ("label_smoothing = 2", ("label_smoothing=2",)),
        ('augment = "yes"', ("augment='yes'",)),
        ("radix = 2.5", ("radix=2.5",)),
        ("order = 3", ("order=3",)),
        ("activation = 3", ("activation=3",)),
    ],
)
def test_a_mistake_in_the_config_file_is_one_line(text: str, words: tuple[str, ...]) -> None:
    Path("run.toml").write_text(text)
    failed(run("compress", "--config", "run.toml"), *words)


def test_a_config_file_that_is_no_text_is_one_line() -> None:
    Path("run.toml").write_bytes(b"\xff\xfe\x00")
    failed(run("compress", "--config", "run.toml"), "run.toml is not TOML")


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["compress", "--epochz", "1"], "--epochs"),
        (["comprss"], "compress"),
        (["compress", "--epochs", "x"], "--epochs"),
    ],
    ids=str,
)
def test_an_option_that_does_not_exist_names_the_nearest(arguments: list[str], word: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert word in result.stderr
    assert "Traceback" not in result.output


# --- inspect --------------------------------------------------------------------------------------------------------


def test_the_counts_are_those_of_the_papers_table_3() -> None:
    result = run("inspect", "vgg16", "--json")
    assert result.exit_code == 0, result.output
    layers = {row["name"]: row for row in json.loads(result.stdout)["layers"]}
    wide = [row for row in layers.values() if row.get("weight") == [512, 512, 3, 3]]
    assert len(wide) == 5
    for row in wide:
        assert row["stored"] == {"ttn": 204, "attn": 364, "mera": 508}
        assert (row["schedule"], row["dense"], row["padded"]) == ([5, 10, 11, 22], 512 * 512 * 9, 2**22)
        assert row["rank_bound"]["ttn"] == 32
    assert "BatchNorm2d" in layers["features.1"]["why_not"]
    assert len([row for row in layers.values() if row["kind"] == "Conv2d"]) == 13


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, options, topologies",
    [
        ([], {}, TREES),
        (["--order", "paired"], {"order": "paired"}, TREES),
        (
            ["--radix", "3", "--bond-dim", "2", "--groups", "2"],
            {"radix": 3, "bond_dim": 2, "groups": 2},
            TREES,
        ),
        (["--topology", ",".join(TOPOLOGIES)], {}, TOPOLOGIES),
        (
            ["--topology", "brickwall,tt,ttn", "--columns", "3", "--gate", "--terms", "2", "--kernel-radix", "3"],
            {"topology": "brickwall", "columns": 3, "gate": True, "terms": 2, "kernel_radix": 3},
            ("brickwall", "tt", "ttn"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_promised_is_what_compress_makes(
    arguments: list[str], options: dict[str, Any], topologies: tuple[str, ...]
) -> None:
    from adntn.experiments.models import small_cnn

    content = json.loads(run("inspect", "small-cnn", "--json", *arguments).stdout)
    stored = {row["name"]: row for row in content["layers"] if "stored" in row}
    assert list(stored) == ["conv1", "conv2", "conv3", "head"]
    assert list(content["whole_model"]) == ["dense", *topologies]
    for topology in topologies:
        model = small_cnn((1, 28, 28), 10)
        report = compress_(model, GeneratorConfig(**options).with_topology(topology))
        assert content["whole_model"][topology] == report.model_after
        assert content["whole_model"]["dense"] == report.model_before
        for layer in report.layers:
            row = stored[layer.name]
            assert row["stored"][topology] == layer.generated
            assert row["rank_bound"][topology] == layer.rank_bound
            assert (row["dense"], row["padded"], tuple(row["weight"])) == (layer.dense, layer.padded, layer.shape)


@pytest.mark.parametrize("width", [80, 30])
@pytest.mark.parametrize("model", ["small-cnn", "vgg16"])
def test_the_list_of_layers_is_whole_on_any_screen(model: str, width: int) -> None:
    result = run("inspect", model, width=width)
    assert result.exit_code == 0, result.output
    assert "…" not in result.stdout
    if model == "vgg16":
        rows = [line.split() for line in result.stdout.splitlines() if "512x512x3x3" in line]
        assert len(rows) == 5
        for row in rows:
            assert row[1:] == ["512x512x3x3", "2,359,296", "4,194,304", "204", "364", "508", "5-10-11-22", "32"]
        assert "14,722,890" in result.stdout  # one channel, ten classes


def test_a_users_file_can_be_inspected_without_data_and_targets_chosen() -> None:
    Path("net.py").write_text(
        "from torch import nn\n"
        "def build(in_channels, num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.Flatten(), nn.Linear(5408, num_classes))\n"
    )
    result = run("inspect", "net.py:build", "--targets", "re:[0,1]", "--json")
    assert result.exit_code == 0, result.output
    layers = {row["name"]: row for row in json.loads(result.stdout)["layers"]}
    assert layers["0"]["weight"] == [8, 1, 3, 3]
    assert (layers["2"]["parameters"], layers["2"]["why_not"]) == (54_090, "not among the targets")


def test_a_row_is_shown_for_each_weight_of_an_attention_and_for_a_parameter() -> None:
    Path("net.py").write_text(
        "from torch import nn\n"
        "def build(in_channels, num_classes):\n"
        "    return nn.ModuleDict({'attn': nn.MultiheadAttention(32, 4, kdim=16), 'rnn': nn.GRUCell(8, 16)})\n"
    )
    result = run("inspect", "net.py:build", "--targets", "attn,rnn.weight_hh", "--json")
    assert result.exit_code == 0, result.output
    layers = {row["name"]: row["weight"] for row in json.loads(result.stdout)["layers"] if "weight" in row}
    assert layers == {
        "attn.q_proj_weight": [32, 32],
        "attn.k_proj_weight": [32, 16],
        "attn.v_proj_weight": [32, 32],
        "attn.out_proj": [32, 32],
        "rnn.weight_hh": [48, 16],
    }
    assert run("inspect", "net.py:build").exit_code == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["smal-cnn"], ("ModelError", "Did you mean 'small-cnn'?")),
        (["net.py:build"], ("ModelError", "no file")),
        (["small-cnn", "--targets", "conv9"], ("CompressionError", "Did you mean 'conv")),
        (["small-cnn", "--order", "pared"], ("ConfigError", "Did you mean 'paired'?")),
        (["small-cnn", "--radix", "0"], ("radix=0",)),
    ],
    ids=str,
)
def test_a_mistake_in_inspect_is_one_line(arguments: list[str], words: tuple[str, ...]) -> None:
    failed(run("inspect", *arguments), *words)


def test_a_layer_that_a_config_does_not_fit_says_so_and_the_others_are_listed() -> None:
    content = json.loads(run("inspect", "small-cnn", "--groups", "16", "--json").stdout)
    layers = {row["name"]: row for row in content["layers"]}
    assert "groups=16" in layers["conv1"]["why_not"]
    assert layers["conv2"]["stored"]["ttn"] > 0
