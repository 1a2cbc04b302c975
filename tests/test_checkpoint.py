"""save and load: what comes back, and under which names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import CONFIG, ENVIRONMENT, MERA, Net, X, compressed, same, state, with_layers
from safetensors.torch import load_file
from torch import nn

import adntn
from adntn import CheckpointError, GeneratorConfig, compress_, load, save

pytestmark = pytest.mark.usefixtures("few_objects")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("into", ["dense", "compressed"])
@pytest.mark.parametrize(
    "config",
    [CONFIG, MERA, CONFIG.replace(groups=2, bond_dim=3), CONFIG.replace(order="flat"), CONFIG.replace(radix=3)],
    ids=["ttn", "mera", "groups", "flat", "radix"],
)
def test_a_model_comes_back(path: Path, config: GeneratorConfig, into: str) -> None:
    model = compressed(config)
    assert save(model, str(path)) == path
    given = Net() if into == "dense" else compressed(config)
    given.eval()
    assert load(given, str(path)) is given
    assert same(state(given), state(model))
    assert torch.equal(given(X), model(X))
    assert adntn.describe(given) == adntn.describe(model)
    assert given.conv.config == config
    assert type(given.head[2]) is nn.Linear


def test_a_model_comes_back_in_a_fresh_process(path: Path) -> None:
    model = compressed(MERA)
    torch.save(model(X).detach(), path.with_suffix(".expected"))
    save(model, path)
    script = """
import sys, torch, adntn
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_checkpoint import Net, X
model = adntn.load(Net().eval(), sys.argv[2])
assert torch.equal(model(X), torch.load(sys.argv[3], weights_only=True))
assert model.conv.config.topology == "mera"
"""
    arguments = [str(Path(__file__).parent), str(path), str(path.with_suffix(".expected"))]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_comes_back_in_its_own_type(path: Path, dtype: torch.dtype) -> None:
    model = compressed().to(dtype)
    save(model, path)
    given = load(Net().to(dtype).eval(), path)
    assert same(state(given), state(model))
    assert given.conv.weight.dtype == dtype
    assert torch.equal(given(X), model(X))


@pytest.mark.parametrize("into", ["dense", "compressed"])
def test_the_type_of_the_given_model_is_kept(path: Path, into: str) -> None:
    save(compressed().double(), path)
    given = (Net() if into == "dense" else compressed()).bfloat16()
    load(given, path)
    floating = {tensor.dtype for tensor in given.state_dict().values() if tensor.is_floating_point()}
    assert floating == {torch.bfloat16}
    assert given.conv.weight.dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_of_the_given_model_is_kept(path: Path) -> None:
    model = compressed()
    save(model.cuda(), path)
    given = load(Net().eval(), path)
    assert {p.device.type for p in given.parameters()} == {"cpu"}
    assert {p.device.type for p in load(Net().cuda(), path).parameters()} == {"cuda"}
    assert same(state(given), state(model.cpu()))


def test_scalar_and_whole_number_buffers_come_back(path: Path) -> None:
    model = compressed()
    model.train()
    for _ in range(4):
        model(X)
    save(model, path)
    given = load(Net(), path)
    assert given.norm.num_batches_tracked.item() == 5
    assert given.norm.num_batches_tracked.dtype == torch.int64
    assert torch.equal(given.norm.running_var, model.norm.running_var)


def test_infinite_buffers_are_kept(path: Path) -> None:
    model, given = (nn.Sequential(nn.Linear(8, 8)) for _ in range(2))
    model.register_buffer("mask", torch.full((3, 3), float("-inf")))
    given.register_buffer("mask", torch.zeros(3, 3))
    save(model, path)
    assert torch.equal(load(given, path).mask, model.mask)


def test_a_model_without_generated_layers_comes_back(path: Path) -> None:
    model = Net()
    save(model, path)
    assert same(state(load(Net(), path)), state(model))


def test_a_generated_layer_as_the_model_comes_back(path: Path) -> None:
    layer = adntn.nn.Linear(8, 8, config=CONFIG)
    save(layer, path)
    assert same(state(load(adntn.nn.Linear(8, 8, config=CONFIG), path)), state(layer))
    with pytest.raises(CheckpointError, match="Linear on its own has no place"):
        load(nn.Linear(8, 8), path)


@pytest.mark.parametrize("into", ["dense", "compressed"])
@pytest.mark.parametrize("execution", ["dense", "factored", "auto"])
def test_the_execution_comes_back(path: Path, execution: str, into: str) -> None:
    save(compressed(execution=execution), path)
    given = load(Net() if into == "dense" else compressed(execution="dense"), path)
    assert given.conv.execution == given.head[0].execution == execution
    assert given.conv.way == compressed(execution=execution).conv.way


def test_what_is_frozen_stays_frozen_and_a_new_generator_trains(path: Path) -> None:
    save(compressed(), path)
    dense = load(Net().requires_grad_(False), path)
    trained = {name for name, p in dense.named_parameters() if p.requires_grad}
    assert trained == {
        name for name, _ in dense.named_parameters() if name.startswith(("conv.", "head.0.")) and "bias" not in name
    }
    frozen = load(compressed().requires_grad_(False), path)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_mode_and_hooks_of_the_given_model_are_kept(path: Path) -> None:
    save(compressed(), path)
    given, calls = Net(), []
    given.conv.register_forward_hook(lambda *_: calls.append(1))
    load(given, path)(X)
    assert calls == [1]
    assert given.conv.training


# --- names in several places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("a", "b"), ("z", "a"), ("9", "10")], ids="-".join)
def test_a_shared_generator_is_stored_once_and_shared_again(path: Path, names: tuple[str, str]) -> None:
    model = with_layers(*names, tied=True)
    compress_(model, CONFIG)
    save(model, path)
    assert sum(name.endswith("root") for name in load_file(path)) == 1
    for tied in (True, False):
        given = load(with_layers(*names, tied=tied), path)
        assert given[names[0]].root is given[names[1]].root
        assert same(state(given), state(model))
    again = with_layers(*names, tied=True)
    compress_(again, CONFIG)
    assert same(state(load(again, path)), state(model))


def test_a_shared_dense_weight_is_stored_once(path: Path) -> None:
    model = with_layers("a", "b", "c", tied=True)
    save(model, path)
    assert set(load_file(path)) == {"a.weight", "a.bias", "b.bias", "c.bias"}
    given = load(with_layers("a", "b", "c", tied=True), path)
    assert given["a"].weight is given["c"].weight
    assert same(state(given), state(model))


def test_a_module_in_two_places_comes_back(path: Path) -> None:
    def build() -> nn.Sequential:
        block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        return nn.Sequential(block, nn.Linear(8, 8), block)

    model = build()
    compress_(model, CONFIG, ["0.0"])
    save(model, path)
    for given in (build(), build()):
        load(given, path)
        assert isinstance(given[2][0], adntn.nn.Linear)
        assert given[0] is given[2]
        assert same(state(given), state(model))
        load(given, path)  # and once more into what is generated now


def test_views_of_one_memory_are_stored(path: Path) -> None:
    model = nn.Module()
    memory = torch.arange(6.0)
    model.register_buffer("front", memory[:4])
    model.register_buffer("back", memory[2:])
    model.register_buffer("across", torch.arange(6.0).reshape(2, 3).T)
    save(model, path)
    assert same(load_file(path), state(model))


@pytest.mark.parametrize("file", ["compiled", "plain"])
@pytest.mark.parametrize("into", ["compiled", "plain"])
def test_names_are_those_of_the_model_that_was_compiled(path: Path, file: str, into: str) -> None:
    model = compressed()
    save(torch.compile(model, backend="eager") if file == "compiled" else model, path)
    assert set(load_file(path)) == set(model.state_dict())
    given = Net().eval()
    load(torch.compile(given, backend="eager") if into == "compiled" else given, path)
    assert same(state(given), state(model))


def test_a_compiled_model_that_has_run_gives_the_new_outputs(path: Path) -> None:
    torch._dynamo.reset()
    model = compressed()
    save(model, path)
    given = torch.compile(Net().eval(), backend="eager")
    with torch.no_grad():
        given(X)
        torch.testing.assert_close(load(given, path)(X), model(X))
    torch._dynamo.reset()
