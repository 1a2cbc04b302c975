"""compress_(shared=...): several layers whose weights are rows of what one generator makes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import CONFIG, OTHER, names
from torch import Tensor, nn
from torch.func import functional_call

import adntn
from adntn import (
    AdntnError,
    CheckpointError,
    CompressionError,
    ConfigError,
    Generator,
    GeneratorConfig,
    ShapeError,
    compress_,
)
from adntn.execution import cache
from adntn.execution.plan import multiply_adds

pytestmark = pytest.mark.usefixtures("few_objects")

QKV = ("q_proj", "k_proj", "v_proj")
SIZE = 32


class Attention(nn.Module):
    """Four linear layers, as most transformers outside torch have them; fewer keys and values than queries."""

    def __init__(self, outputs: int = SIZE) -> None:
        super().__init__()
        self.q_proj = nn.Linear(SIZE, SIZE)
        self.k_proj = nn.Linear(SIZE, 16, bias=False)
        self.v_proj = nn.Linear(SIZE, 16)
        self.o_proj = nn.Linear(SIZE, outputs)

    def forward(self, x: Tensor) -> Tensor:  # shape: (batch, length, SIZE)
        q, k, v = self.q_proj(x), self.k_proj(x).repeat(1, 1, 2), self.v_proj(x).repeat(1, 1, 2)
        result: Tensor = self.o_proj((q @ k.mT).softmax(-1) @ v)
        return result


class Net(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attention(), Attention()])
        self.head = nn.Linear(SIZE, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        result: Tensor = self.head(x)
        return result


X = torch.randn(2, 5, SIZE, generator=torch.Generator().manual_seed(0))


def compressed(config: GeneratorConfig = CONFIG, shared: Any = (QKV,), **options: Any) -> Net:
    torch.manual_seed(0)
    model = Net()
    compress_(model, config, **{"targets": r"re:blocks.*", **options}, shared=shared)
    return model.eval()


# --- what is shared ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", ["dense", "factored"])
def test_the_weights_are_rows_of_one(execution: str) -> None:
    block = compressed(execution=execution).blocks[0]
    whole = Generator((64, SIZE), CONFIG)
    whole.load_state_dict({k: v for k, v in block.q_proj.state_dict().items() if k != "bias"})
    q, k, v = (layer.weight for layer in (block.q_proj, block.k_proj, block.v_proj))
    assert torch.equal(torch.cat([q, k, v]), whole())
    assert [layer.rows for layer in (block.q_proj, block.k_proj, block.v_proj)] == [(0, 32), (32, 48), (48, 64)]
    for layer in (block.q_proj, block.k_proj, block.v_proj):
        assert layer.way.name == execution
        assert layer.shape == layer.weight.shape == (layer.out_features, layer.in_features)
        expected = nn.functional.linear(X, layer.weight, layer.bias)
        torch.testing.assert_close(layer(X), expected, rtol=1e-4, atol=1e-5)
        assert layer.rank_bound() <= min(8, layer.out_features)
    assert "rows 32 to 48 of 64" in repr(block.k_proj)
    assert block.o_proj.rows is None


def test_the_factors_of_a_layer_are_of_its_rows_only() -> None:
    layer = compressed().blocks[0].k_proj
    a, c, b = layer.factors()
    assert a.shape[1] == 16
    torch.testing.assert_close(a[0] @ c[0] @ b[0].T, layer.weight, rtol=1e-4, atol=1e-5)


def test_biases_stay_their_own_and_the_generator_is_one_set_of_parameters() -> None:
    model = Net()
    biases = [model.blocks[0].q_proj.bias, model.blocks[0].v_proj.bias]
    report = compress_(model, CONFIG, r"re:blocks.*", shared=[QKV])
    block = model.blocks[0]
    assert [block.q_proj.bias, block.v_proj.bias] == biases
    assert block.k_proj.bias is None
    one = Generator((64, SIZE), CONFIG).num_parameters
    own = {id(p) for name, p in block.named_parameters() if "_proj" in name and "o_proj" not in name}
    assert sum(p.numel() for p in block.parameters() if id(p) in own) == one + 32 + 16
    rows = {row.name: row for row in report.layers}
    assert [rows[f"blocks.0.{n}"].generated for n in QKV] == [one, 0, 0]
    assert [rows[f"blocks.1.{n}"].dense for n in QKV] == [1024, 512, 512]
    assert report.model_after == sum(p.numel() for p in model.parameters())
    assert report.model_before == sum(p.numel() for p in Net().parameters())
    assert str(report).count("shared") == 4


def test_gradients_of_all_reach_the_one_generator() -> None:
    model = compressed().double()
    dense = adntn.materialize(model)
    block, plain = model.blocks[1], dense.blocks[1]
    x = X.double()
    model(x).square().sum().backward()
    dense(x).square().sum().backward()
    whole = torch.cat([layer.weight for layer in (block.q_proj, block.k_proj, block.v_proj)])
    given = torch.cat([layer.weight.grad for layer in (plain.q_proj, plain.k_proj, plain.v_proj)])
    parameters = [p for _, p in block.q_proj.generator_parameters()]
    expected = torch.autograd.grad((whole * given).sum(), parameters)
    for p, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


# --- how groups are found ---------------------------------------------------------------------------------------------

Groups = list[tuple[str, ...]]
FOUND: dict[str, tuple[Groups, list[list[str]]]] = {
    "by suffix": ([QKV], [["blocks.0.q_proj", "blocks.0.k_proj", "blocks.0.v_proj"]]),
    "all four": ([(*QKV, "o_proj")], [[f"blocks.0.{n}" for n in (*QKV, "o_proj")]]),
    "by full names": ([("blocks.0.q_proj", "blocks.1.q_proj")], [["blocks.0.q_proj", "blocks.1.q_proj"]]),
    "as compiled": ([("_orig_mod.blocks.0.q_proj", "blocks.1.q_proj")], [["blocks.0.q_proj", "blocks.1.q_proj"]]),
    "by longer suffixes": ([("0.q_proj", "1.q_proj")], [["blocks.0.q_proj", "blocks.1.q_proj"]]),
    "by one pattern": ([(r"re:.*\.[qk]_proj",)], [["blocks.0.q_proj", "blocks.0.k_proj"]]),
    "by patterns": ([(r"re:.*0\.v_proj", r"re:.*\.q_.*")], [["blocks.0.v_proj", "blocks.0.q_proj"]]),
    "a pattern and a suffix": ([("v_proj", r"re:.*\.q_.*")], [["blocks.0.v_proj", "blocks.0.q_proj"]]),
    "two groups": ([("q_proj", "o_proj"), ("k_proj", "v_proj")], [["blocks.0.q_proj", "blocks.0.o_proj"]]),
    "the weights' names": (
        [("q_proj.weight", "k_proj.weight")],
        [["blocks.0.q_proj", "blocks.0.k_proj"]],
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_groups_are_found(case: str) -> None:
    shared, expected = FOUND[case]
    model = compressed(shared=shared)
    for group in expected:
        layers = [model.get_submodule(name) for name in group]
        assert len({id(layer.root) for layer in layers}) == 1
        starts = [layer.rows[0] for layer in layers]
        assert starts == sorted(starts)
        assert starts[0] == 0
        assert layers[-1].rows[1] == layers[0].blueprint.shape[0]
    across = any("blocks.0" in name for group in expected for name in group) and any(
        "blocks.1" in name for group in expected for name in group
    )
    assert (model.blocks[0].q_proj.root is model.blocks[1].q_proj.root) == across
    roots = {id(m.root) for m in model.modules() if isinstance(m, adntn.nn.GeneratedLayer)}
    assert len(roots) < 8


def test_full_names_are_taken_as_such_although_others_end_in_them() -> None:
    model = nn.ModuleDict({"q": nn.Linear(8, 8), "k": nn.Linear(8, 8)})
    model["inner"] = nn.ModuleDict({"q": nn.Linear(8, 8), "k": nn.Linear(8, 8)})
    compress_(model, CONFIG, shared=[("q", "k")])
    assert model["q"].root is model["k"].root
    assert model["inner"]["q"].rows is None


def test_parents_without_all_of_a_group_or_without_targets_are_passed_over() -> None:
    model = Net()
    model.blocks.append(nn.ModuleDict({"q_proj": nn.Linear(8, 8)}))
    report = compress_(model, CONFIG, r"re:blocks\.[02].*", shared=[QKV])
    assert names(report) == [*(f"blocks.0.{n}" for n in (*QKV, "o_proj")), "blocks.2.q_proj"]
    assert model.blocks[2]["q_proj"].rows is None


def test_a_layer_tied_to_one_of_a_group_is_tied_to_its_rows(tmp_path: Path) -> None:
    def make() -> Net:
        model = Net()
        model.blocks[1].o_proj.weight = model.blocks[0].q_proj.weight
        return model

    model = make()
    report = compress_(model, CONFIG, r"re:blocks.*", shared=[("q_proj", "v_proj")])
    tied, owner = model.blocks[1].o_proj, model.blocks[0].q_proj
    assert (tied.root is owner.root, tied.rows) == (True, owner.rows)
    assert torch.equal(tied.weight, owner.weight)
    assert {row.name: row.dense for row in report.layers}["blocks.1.o_proj"] == 0
    dense = adntn.materialize(model)
    assert dense.blocks[1].o_proj.weight is dense.blocks[0].q_proj.weight
    assert dense.blocks[0].v_proj.weight is not dense.blocks[0].q_proj.weight
    loaded = adntn.load(make().eval(), adntn.save(model, tmp_path / "model.safetensors"))
    assert torch.equal(loaded(X), model(X))


@pytest.mark.parametrize("groups", [2, 4])
def test_rows_within_one_generators_group_or_of_whole_ones_are_factored(groups: int) -> None:
    block = compressed(CONFIG.replace(groups=groups), execution="auto").blocks[0]
    expected = {2: [1, 1, 1], 4: [2, 1, 1]}[groups]
    for layer, count in zip((block.q_proj, block.k_proj, block.v_proj), expected, strict=True):
        assert layer.factors()[0].shape[0] == count
        layer.execution = "factored"
        torch.testing.assert_close(layer(X), nn.functional.linear(X, layer.weight, layer.bias), rtol=1e-4, atol=1e-5)


def test_rows_that_cut_through_groups_run_dense() -> None:
    model = nn.ModuleDict({"a": nn.Linear(64, 48), "b": nn.Linear(64, 16)})
    compress_(model, CONFIG.replace(groups=2), shared=[("a", "b")])
    assert [model[name].way.name for name in "ab"] == ["dense", "factored"]  # b's rows are in one group
    assert model["a"].way.reason == "its rows 0 to 48 cut through the generator's groups of 32, which have factors each"
    assert model["b"].split_obstacle is None
    with pytest.raises(ConfigError, match=r"execution='factored' is not possible: its rows 0 to 48 cut.* or 'dense'"):
        model["a"].execution = "factored"
    assert model["a"].factors() is None
    x = torch.randn(3, 64)
    for layer in model.values():
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_an_order_without_split_is_the_reason_before_the_rows() -> None:
    model = nn.ModuleDict({"a": nn.Linear(64, 48), "b": nn.Linear(64, 16)})
    compress_(model, CONFIG.replace(groups=2, order="paired"), shared=[("a", "b")])
    assert {model[name].way.reason for name in "ab"} == {"order='paired' has no split into factors"}


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_the_arithmetic_of_a_view_is_that_of_its_own_groups(groups: int) -> None:
    model = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 16), "c": nn.Linear(64, 48)})
    compress_(model, CONFIG.replace(groups=groups, latent_order=2), shared=[("a", "b", "c")])
    for layer in model.values():
        factors = layer.factors()
        if factors is None:
            continue
        a, c, b = factors  # each is met once by a row of the input
        assert multiply_adds(layer).factored == a.numel() + c.numel() + b.numel()
        assert layer.factored_groups == len(a)


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("into", ["dense", "compressed"])
def test_a_file_holds_the_generator_once(tmp_path: Path, into: str) -> None:
    model = compressed(OTHER)
    path = adntn.save(model, tmp_path / "model.safetensors")
    assert [n for n in load_file(path) if n.endswith("root") and "o_proj" not in n] == [
        "blocks.0.q_proj.root",
        "blocks.1.q_proj.root",
    ]
    loaded = adntn.load(Net().eval() if into == "dense" else compressed(OTHER), path)
    assert torch.equal(loaded(X), model(X))
    assert adntn.describe(loaded) == adntn.describe(model)
    block = loaded.blocks[1]
    assert block.q_proj.root is block.k_proj.root is block.v_proj.root


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shared": ()}, r"shape \(16, 32\), rows \(32, 48\) of \(64, 32\), .* in the file, with shape \(16, 32\) and"),
        ({"shared": [("k_proj", "q_proj", "v_proj")]}, r"rows \(32, 48\) of \(64, 32\).*rows \(0, 16\) of \(64, 32\)"),
    ],
)
def test_a_file_of_other_rows_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = adntn.save(compressed(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        adntn.load(compressed(**options), path)


def test_materialized_layers_have_weights_of_their_own() -> None:
    model = compressed()
    dense = adntn.materialize(model)
    assert {type(m) for m in dense.modules()} == {type(m) for m in Net().modules()}
    fresh = Net().eval()
    fresh.load_state_dict(dense.state_dict(), strict=True)
    torch.testing.assert_close(fresh(X), model(X), rtol=1e-4, atol=1e-5)
    assert len(list(dense.parameters())) == len(list(Net().parameters()))


@pytest.mark.parametrize("execution", ["dense", "factored"])
def test_under_cached_the_generator_runs_once(execution: str) -> None:
    model = compressed(CONFIG.replace(latent_order=2), execution=execution)
    expected = model(X).detach()
    made: list[int] = []
    block = model.blocks[0]
    for activation in block.q_proj.activation.values():
        activation.register_forward_hook(lambda *_: made.append(1))
    levels = len(block.q_proj.activation)
    with adntn.cached(model):
        for _ in range(2):
            torch.testing.assert_close(model(X), expected)
        assert len(cache._KEPT) == 4  # two groups, two output projections
        assert len(made) == levels
    model(X)
    assert len(made) == 4 * levels  # without, once for each of the three layers


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_shares_among_its_own(how: str) -> None:
    model = compressed()
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(X), model(X))
    block = twin.blocks[0]
    assert block.q_proj.root is block.v_proj.root
    assert block.q_proj.root is not model.blocks[0].q_proj.root


def test_a_state_dict_and_functional_call_go_through() -> None:
    model, other = compressed(), compressed()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    expected = model(X)
    torch.testing.assert_close(functional_call(other, dict(model.named_parameters()), (X,)), expected)
    other.load_state_dict(state, strict=True)
    assert torch.equal(other(X), expected)


def test_shared_layers_train_and_an_optimiser_sees_them_once() -> None:
    model = compressed(GeneratorConfig())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (model(X) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    block = model.blocks[0]
    assert block.q_proj.root is block.k_proj.root


def test_ddp_takes_a_model_with_shared_layers(tmp_path: Path) -> None:
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        model = compressed()
        wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped(X).square().sum().backward()
        assert all(p.grad is not None for p in model.blocks.parameters())
        dist.barrier()
    finally:
        dist.destroy_process_group()


# --- mistakes ---------------------------------------------------------------------------------------------------------

Mistake = tuple[type[AdntnError], str, dict[str, Any]]


def without_rows() -> Net:
    model = Net()
    model.blocks[0].k_proj = nn.Linear(16, 16)
    return model


def tied() -> Net:
    model = Net()
    model.blocks[0].v_proj.weight = model.blocks[0].k_proj.weight
    return model


def of_two_types() -> Net:
    model = Net()
    model.blocks[0].k_proj.double()
    return model


def with_convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))


MISTAKES: dict[str, tuple[Callable[[], nn.Module], Mistake]] = {
    "not there": (
        Net,
        (
            CompressionError,
            r"no parent .*\('q_proj', 'k_prj'\).*Did you mean 'k_proj'",
            {"shared": [("q_proj", "k_prj")]},
        ),
    ),
    "of one": (Net, (CompressionError, "at least two", {"shared": [("q_proj",)]})),
    "no group": (Net, (CompressionError, r"is not a list of groups", {"shared": QKV})),
    "a string": (Net, (CompressionError, r"is not a list of groups", {"shared": "q_proj"})),
    "not a pattern": (Net, (CompressionError, "not a regular expression", {"shared": [("re:(", "q_proj")]})),
    "in part a target": (
        Net,
        (
            CompressionError,
            r"'blocks\.0\.k_proj' beside 'blocks\.0\.q_proj', 'blocks\.0\.v_proj' is not among the targets",
            {"shared": [QKV], "ignore": "blocks.0.k_proj"},
        ),
    ),
    "full name that is no target": (
        Net,
        (
            CompressionError,
            r"'blocks\.1\.q_proj' of .* is not among the targets",
            {"shared": [("blocks.0.q_proj", "blocks.1.q_proj")], "targets": r"re:blocks\.0.*"},
        ),
    ),
    "in two groups": (
        Net,
        (CompressionError, r"'blocks\.0\.k_proj' is in two groups", {"shared": [QKV, ("k_proj", "o_proj")]}),
    ),
    "twice in a group": (
        Net,
        (CompressionError, "twice in one", {"shared": [("blocks.0.q_proj", "blocks.0.q_proj.weight")]}),
    ),
    "other inputs": (
        without_rows,
        (ShapeError, r"'blocks\.0\.q_proj', \(32, 32\), and 'blocks\.0\.k_proj', \(16, 16\)", {"shared": [QKV]}),
    ),
    "one weight": (tied, (CompressionError, "have one and the same weight already", {"shared": [QKV]})),
    "two types": (of_two_types, (CompressionError, r"torch\.float32 .* torch\.float64", {"shared": [QKV]})),
    "two configs": (
        Net,
        (
            CompressionError,
            "one generator, so they need one config",
            {"shared": [QKV], "overrides": {"blocks.0.v_proj": OTHER}},
        ),
    ),
    "convolutions": (
        with_convolutions,
        (CompressionError, r"'0' has weights of shapes \[\(4, 4, 3, 3\)\]", {"shared": [("0", "1")]}),
    ),
    "groups do not divide": (
        Net,
        (
            ShapeError,
            r"'blocks\.0\.q_proj': groups=5 .* 64 rows",
            {"config": CONFIG.replace(groups=5), "shared": [QKV]},
        ),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_changes_nothing(name: str) -> None:
    make, (error, message, options) = MISTAKES[name]
    model = make()
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    options = {"config": CONFIG, **options}
    if make is Net and name != "full name that is no target":
        options.setdefault("targets", r"re:blocks.*")
    with pytest.raises(error, match=message):
        compress_(model, **options)
    assert dict(model.named_modules()) == modules
    assert all(p is parameters[key] for key, p in model.named_parameters())


def test_an_embedding_cannot_be_one_of_a_group() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(8, 8), "head": nn.Linear(8, 8)})
    with pytest.raises(ShapeError, match=r"'table': an embedding looks up all rows"):
        compress_(model, CONFIG, shared=[("table", "head")])
    assert type(model["table"]) is nn.Embedding
