"""Whole models of odd layers go through everything that models go through."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import torch
from odd_models import CONFIGS, MODELS, OddModel, VisionTransformer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import adntn

pytestmark = pytest.mark.usefixtures("few_objects")

TESTS = Path(__file__).parent
Model = OddModel | VisionTransformer
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(adntn.__file__).parents[1]), str(TESTS)]),
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(params=[(name, config) for name in MODELS for config in CONFIGS], ids=lambda p: f"{p[0]}-{p[1]}")
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    name, config = request.param
    return name, config


@pytest.fixture
def model(case: tuple[str, str]) -> Model:
    name, config = case
    model = MODELS[name]()
    model.compress(CONFIGS[config])
    return model


def close(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> None:
    largest = float(other.detach().abs().max())
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * max(1.0, largest))


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    loss().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing, missing
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return model(*inputs).square().mean()  # type: ignore[no-any-return]


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_every_family_of_the_odd_model_is_generated() -> None:
    model = OddModel()
    report = model.compress()
    kinds = {row.name: row.kind for row in report.layers}
    assert set(kinds) >= {
        *("embedding", "conv1", "conv2", "conv3", "unpool", "up", "fuse", "mix", "head", "attention.out_proj"),
        *("rnn.weight_ih_l0", "rnn.weight_hh_l0"),
    }
    # What is left beside generators: biases and the norm.
    plain = [name for name, p in model.named_parameters() if p.ndim == 1]
    assert set(plain) == {"mix.bias", "norm.weight", "norm.bias"}


def test_the_tied_head_of_the_odd_model_is_the_embedding() -> None:
    model = OddModel()
    model.compress()
    assert model.head.shares_generator_with(model.embedding)
    assert torch.equal(model.head.weight, model.embedding.weight)
    dense = adntn.materialize(model)
    assert dense.head.weight is dense.embedding.weight


def test_the_projections_of_the_transformer_are_three_views_of_one_generator() -> None:
    model = VisionTransformer()
    model.compress()
    for block in model.blocks:
        a = block.attention
        assert a.q_proj.shares_generator_with(a.k_proj)
        assert a.q_proj.shares_generator_with(a.v_proj)
        assert not torch.equal(a.q_proj.weight, a.k_proj.weight)
    assert not model.blocks[0].attention.q_proj.shares_generator_with(model.blocks[1].attention.q_proj)


# --- forward and backward ---------------------------------------------------------------------------------------------


def test_every_parameter_gets_a_finite_gradient_at_every_step(model: Model) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(2):
        found = gradients(model, lambda: loss_of(model, model.inputs()))
        assert all(g.isfinite().all() for g in found.values())
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        # A smaller gradient's step is lost in rounding.
        still = [n for n, p in model.named_parameters() if torch.equal(p, before[n]) and found[n].abs().max() > 1e-4]
        assert not still


def test_materialized_it_is_plain_torch_and_gives_the_same(model: Model) -> None:
    dense = adntn.materialize(model)
    assert not [m for m in dense.modules() if type(m).__module__.startswith("adntn")]
    close(dense(*model.inputs()), model(*model.inputs()))
    fresh = type(model)()
    fresh.load_state_dict(dense.state_dict())
    assert torch.equal(fresh(*model.inputs()), dense(*model.inputs()))


def test_cached_it_gives_the_same_and_follows_the_parameters(model: Model) -> None:
    inputs = model.inputs()
    with adntn.cached(model):
        close(model(*inputs), model(*inputs))
        first = model(*inputs)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        second = model(*inputs)
    assert not torch.allclose(first, second)
    close(second, model(*inputs))


def test_gradient_checkpointing_gives_equal_gradients(model: Model) -> None:
    expected = gradients(model, lambda: loss_of(model, model.inputs()))
    found = gradients(model, lambda: checkpoint(model, *model.inputs(), use_reentrant=False).square().mean())
    for name, gradient in expected.items():
        close(found[name], gradient)


def test_an_averaged_model_averages_generators(model: Model) -> None:
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    processes.train(model, [model.inputs()])
    averaged.update_parameters(model)
    for name, parameter in averaged.module.named_parameters():
        close(parameter, (first[name] + model.get_parameter(name)) / 2)
    assert averaged(*model.inputs()).isfinite().all()


# --- copies and files -------------------------------------------------------------------------------------------------


def test_a_copy_is_equal_and_on_its_own(model: Model) -> None:
    twin = copy.deepcopy(model)
    expected = model(*model.inputs())
    assert torch.equal(twin(*model.inputs()), expected)
    processes.train(twin, [model.inputs()])
    assert torch.equal(model(*model.inputs()), expected)
    assert not torch.equal(twin(*model.inputs()), expected)


def test_a_state_dict_travels_with_weights_only(model: Model, case: tuple[str, str], tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert max(t.dim() for n, t in model.state_dict().items() if n != "place" and n != "summary") <= 3
    torch.manual_seed(9)
    other = MODELS[case[0]]()
    other.compress(CONFIGS[case[1]])
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(*model.inputs()), model(*model.inputs()))


READ = """
import sys, torch, adntn
from odd_models import MODELS
model = adntn.load(MODELS[sys.argv[1]](), sys.argv[2])
torch.save(model(*model.inputs()), sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_file_is_read_in_a_fresh_process(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    model.compress()
    processes.train(model, [model.inputs()])
    adntn.save(model, tmp_path / "model.safetensors")
    arguments = [name, str(tmp_path / "model.safetensors"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-c", READ, *arguments], check=True, env=ENVIRONMENT, timeout=120)
    close(torch.load(tmp_path / "out.pt", weights_only=True), model(*model.inputs()), 1e-6)


# --- formats ----------------------------------------------------------------------------------------------------------


def test_to_another_dtype(model: Model) -> None:
    inputs = model.inputs()
    expected = model(*inputs)
    double = copy.deepcopy(model).to(torch.float64)
    close(double(*(x.double() if x.is_floating_point() else x for x in inputs)).float(), expected)
    half = copy.deepcopy(model).to(torch.bfloat16)
    result = half(*(x.bfloat16() if x.is_floating_point() else x for x in inputs))
    assert result.dtype == torch.bfloat16
    assert (result.float() - expected).norm() < 0.1 * expected.norm()


def test_bf16_autocast(model: Model) -> None:
    expected = model(*model.inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, model.inputs())
        result = model(*model.inputs())
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert (result.float() - expected).norm() < 0.1 * expected.norm()


def test_channels_last_changes_nothing(model: Model) -> None:
    expected = model(*model.inputs())
    model.to(memory_format=torch.channels_last)
    inputs = tuple(x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in model.inputs())
    close(model(*inputs), expected)


def test_to_another_device_and_back(model: Model) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(*model.inputs())
    model.to("meta")
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    model.load_state_dict(state)
    assert torch.equal(model(*model.inputs()), expected)


# --- compilers --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_it_trains_as_the_plain_one(model: Model) -> None:
    torch._dynamo.reset()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="aot_eager")
    close(compiled(*model.inputs()), model(*model.inputs()))
    expected = gradients(model, lambda: loss_of(model, model.inputs()))
    found = gradients(twin, lambda: loss_of(compiled, model.inputs()))
    for name, gradient in expected.items():
        close(found[name], gradient)
    torch._dynamo.reset()


@pytest.mark.slow
def test_exported_it_gives_the_same(model: Model) -> None:
    model.eval()
    with torch.no_grad():
        program = torch.export.export(model, model.inputs())
        again = model.inputs(seed=2)
        close(program.module()(*again), model(*again))
    kept = sum(t.numel() for t in program.state_dict.values())
    assert kept < sum(p.numel() for p in adntn.materialize(model).parameters())


# --- two processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_train_as_one(how: str, case: tuple[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(TESTS / "processes.py"), how, *case, str(tmp_path / "state.pt")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    alone = processes.build(*case)
    processes.train(alone, [alone.inputs(4, seed=step) for step in range(processes.STEPS)])
    together = torch.load(tmp_path / "state.pt", weights_only=True)
    expected = alone.state_dict()
    assert together.keys() == expected.keys()
    for name, tensor in expected.items():
        close(together[name], tensor, 1e-3)
