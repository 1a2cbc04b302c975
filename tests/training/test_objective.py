"""The objective of a run: its options, its terms beside the losses they name, its hooks, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import adntn
from adntn import ConfigError, GeneratorConfig, ShapeError, losses
from adntn.describe import generated_weights
from adntn.training.objective import Losses, Objective
from adntn.training.terms import CrossEntropy, Distillation, FeatureMatching, Isometry

GATED = GeneratorConfig(topology="mera", gate=True, latent_order=2)


class Net(nn.Module):
    """A teacher: two convolutions, dropout, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 10, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(160, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv2(self.conv1(x).relu())).relu()
        result: Tensor = self.fc(self.drop(x.flatten(1)))
        return result


def networks(config: GeneratorConfig = GATED) -> tuple[Net, Net]:
    teacher = Net().eval().requires_grad_(False)
    model = copy.deepcopy(teacher).requires_grad_(True)
    adntn.compress_(model, config, targets=["conv2", "fc"])
    return model, teacher


INPUTS, LABELS = torch.randn(6, 3, 8, 8), torch.arange(6) % 4
LAYERS = ["conv1", "conv2"]
#: Every term, alone.
TERMS: dict[str, Any] = {
    "cross_entropy": {"weight": 1.0, "label_smoothing": 0.1},
    "distillation": {"weight": 0.5, "temperature": 4.0},
    "features": {"weight": 0.1, "layers": LAYERS, "normalize": True},
    "attention": {"weight": 2.0, "layers": LAYERS},
    "calibration": 0.3,
    "frobenius": {"layers": ["fc"]},
    "sampled_frobenius": {"samples": 50},
    "l1": 1,
    "huber": {"delta": 0.5},
    "isometry": 1e-3,
    "gate_sparsity": {"weight": 1e-3, "smooth": 0.1},
    "activation_scale": {"target": 2.0},
    "quantization": {"bits": 4},
    "hardware": {"weight": 0.2, "mode": "training"},
}


def only(name: str, **others: Any) -> Losses:
    return Losses.from_dict({"cross_entropy": 0, name: TERMS[name], **others})


def hooks(*models: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for model in models for m in model.modules())


# --- options --------------------------------------------------------------------------------------------------------

RECIPE = """
[losses]
cross_entropy = { weight = 1.0, label_smoothing = 0.1 }
distillation = { weight = 0.5, temperature = 4.0, delta = 1e-8 }
features = { weight = 0.1, layers = ["conv2"] }
isometry = 1e-3
gate-sparsity = 1e-3
"""


def test_a_recipes_table_is_read() -> None:
    read = Losses.from_dict(tomllib.loads(RECIPE)["losses"])
    assert read.cross_entropy == CrossEntropy(label_smoothing=0.1)
    assert read.distillation == Distillation(weight=0.5, temperature=4.0)
    assert read.features == FeatureMatching(weight=0.1, layers=("conv2",))
    assert read.isometry == Isometry(weight=1e-3)
    assert list(read.terms) == ["cross_entropy", "distillation", "features", "isometry", "gate_sparsity"]
    assert read.attention is None


def test_all_terms_go_to_json_and_back() -> None:
    every = Losses.from_dict(TERMS)
    assert set(every.terms) == set(TERMS)
    for each in (every, Losses(), only("l1")):
        assert Losses.from_dict(json.loads(json.dumps(each.to_dict()))) == each
        assert hash(each) == hash(Losses.from_dict(each.to_dict()))
    assert "l1" not in Losses().to_dict()


def test_the_page_lists_every_term_with_its_options() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api" / "losses.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE))
    assert list(rows) == [field.name for field in fields(Losses)]
    for name, options in rows.items():
        known = {f.name: f.default for f in fields(Losses.from_dict(TERMS).terms[name])}
        assert re.findall(r"`(\w+)`", options) == [option for option in known if option != "weight"], name
        for option, default in re.findall(r'`(\w+)` = "?([\w.-]+)"?', options):
            shown = str(known[option]).lower()
            assert default in (shown, "all") or float(default) == known[option], (name, option)


def test_cross_entropy_is_there_unless_its_weight_is_zero() -> None:
    assert list(Losses().terms) == ["cross_entropy"]
    assert list(Losses.from_dict({"isometry": 0.1}).terms) == ["cross_entropy", "isometry"]
    assert list(Losses.from_dict({"isometry": 0.1, "cross_entropy": 0}).terms) == ["isometry"]
    assert list(Losses(isometry=Isometry(weight=0.0)).terms) == ["cross_entropy"]
    assert not Losses().needs_teacher
    assert only("frobenius").needs_teacher


@pytest.mark.parametrize(
    "options, message",
    [
        ({"destillation": 1}, "has no option 'destillation'.*Did you mean 'distillation'"),
        ({"distillation": {"temprature": 2}}, "distillation has no option 'temprature'.*Did you mean 'temperature'"),
        ({"isometry": "much"}, "isometry='much' is not possible; give a number"),
        ({"isometry": True}, "weight=True"),
        ({"isometry": -1.0}, r"weight=-1\.0"),
        ({"cross_entropy": 0}, "nothing to train for"),
        ({"cross_entropy": {"label_smoothing": 1.0}}, r"label_smoothing=1\.0"),
        ({"distillation": {"temperature": 0}}, "temperature=0"),
        ({"distillation": {"delta": math.nan}}, "delta=nan"),
        ({"features": 1.0}, "features compares outputs of named modules; give layers="),
        ({"features": {"layers": [1]}}, r"layers=\(1,\) is not possible"),
        ({"features": {"layers": ["a"], "normalize": 1}}, "normalize=1"),
        ({"attention": {"layers": ["a"], "power": 0}}, "power=0"),
        ({"calibration": {"width": 0}}, "width=0"),
        ({"huber": {"delta": 0}}, "delta=0"),
        ({"sampled_frobenius": {"samples": 0}}, "samples=0"),
        ({"isometry": {"expansions": -1}}, "expansions=-1"),
        ({"gate_sparsity": {"smooth": -1}}, "smooth=-1"),
        ({"activation_scale": {"target": 0}}, "target=0"),
        ({"quantization": {"bits": 1}}, "bits=1"),
        ({"hardware": {"mode": "rebuild"}}, "mode='rebuild'.*Did you mean 'rebuilt'"),
        ({"hardware": {"width": 0}}, "width=0"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Losses.from_dict(options)


# --- terms ----------------------------------------------------------------------------------------------------------


def expected(name: str, model: Net, teacher: Net) -> Tensor:
    """The term by the function that it stands for, with every output and weight got at by hand."""
    outputs: dict[int, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda module, _, output: outputs.__setitem__(id(module), output))
        for net in (model, teacher)
        for module in (net.conv1, net.conv2)
    ]
    logits, wanted = model(INPUTS), teacher(INPUTS)
    for handle in handles:
        handle.remove()
    ours, theirs = ([outputs[id(net.conv1)], outputs[id(net.conv2)]] for net in (model, teacher))
    both = [*zip(ours, theirs, strict=True)]
    weights = [(model.conv2.weight, teacher.conv2.weight), (model.fc.weight, teacher.fc.weight)]
    generated: list[Any] = [model.conv2, model.fc]

    def relative(power: int) -> Tensor:
        entries = [(w - t).abs() / t.square().mean().sqrt() for w, t in weights]
        return torch.stack([e.pow(power).mean() for e in entries]).mean()

    def huber() -> Tensor:
        return torch.stack(
            [F.huber_loss((w - t) / t.square().mean().sqrt(), torch.zeros_like(t), delta=0.5) for w, t in weights]
        ).mean()

    return {
        "cross_entropy": lambda: F.cross_entropy(logits, LABELS, label_smoothing=0.1),
        "distillation": lambda: losses.distillation(logits, wanted, temperature=4.0),
        "features": lambda: sum(losses.feature_matching(*each, normalize=True) for each in both) / 2,
        "attention": lambda: sum(losses.attention_transfer(*each) for each in both) / 2,
        "calibration": lambda: losses.calibration(logits, LABELS),
        "frobenius": lambda: (weights[1][0] - weights[1][1]).square().sum() / weights[1][1].square().sum() / 2,
        "l1": lambda: relative(1),
        "huber": huber,
        "isometry": lambda: sum(map(losses.isometry, generated)),
        "gate_sparsity": lambda: sum(losses.gate_sparsity(layer, smooth=0.1) for layer in generated),
        "activation_scale": lambda: sum(losses.activation_scale(layer, target=2.0) for layer in generated),
        "quantization": lambda: sum(losses.quantization_penalty(layer, bits=4) for layer in generated) / 2,
        # 6 images of 4 by 4 places behind the stride, and 6 rows.
        "hardware": lambda: losses.predicted_time({model.conv2: 96, model.fc: 6}, mode="training"),  # type: ignore[dict-item]
    }[name]()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [name for name in TERMS if name != "sampled_frobenius"])
def test_a_term_is_the_loss_that_it_names_and_has_its_gradients(name: str) -> None:
    model, teacher = networks()
    model.eval()  # without chance
    wanted = expected(name, model, teacher)
    gradients = torch.autograd.grad(wanted, list(model.parameters()), allow_unused=True)
    objective = Objective(only(name), model, teacher)
    weight = objective.losses.terms[name].weight
    for _ in range(2):
        model.zero_grad()
        loss, values = objective(model, INPUTS, LABELS)
        loss.backward()
        assert list(values) == [name]
        assert not values[name].requires_grad
        torch.testing.assert_close(values[name], wanted.detach())
        torch.testing.assert_close(loss.detach(), weight * wanted.detach())
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            made = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(made, torch.zeros_like(made) if gradient is None else weight * gradient)
    objective.close()


def test_sampled_entries_estimate_the_whole_and_are_drawn_by_seed_and_step() -> None:
    model, teacher = networks()
    whole = float(Objective(only("frobenius", frobenius=1), model, teacher)(model, INPUTS)[1]["frobenius"])

    def run(seed: int, steps: int, first: int = 0) -> list[float]:
        objective = Objective(only("sampled_frobenius"), model, teacher, seed=seed)
        objective.step = first
        torch.rand(1)  # it is not torch's own random state that counts
        return [float(objective(model, INPUTS)[0].detach()) for _ in range(steps)]

    seen = run(3, 5)
    assert len(set(seen)) == 5
    assert run(3, 2, first=3) == seen[3:]
    assert run(4, 5) != seen
    many = run(0, 80)
    spread = torch.tensor(many).std().item() / 80**0.5
    assert abs(sum(many) / 80 - whole) < 4 * spread < 0.1 * whole


def test_the_whole_objective_is_the_weighted_sum_of_its_terms() -> None:
    model, teacher = networks()
    with Objective(Losses.from_dict(TERMS), model, teacher) as objective:
        loss, values = objective(model, INPUTS, LABELS)
        weights = {name: term.weight for name, term in objective.losses.terms.items()}
        assert set(values) == set(TERMS)
        total = sum(weights[name] * float(value) for name, value in values.items())
        assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert all(p.grad is None for p in teacher.parameters())


def test_layers_that_share_a_generator_count_once() -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24))
    adntn.compress_(model, GATED, shared=[("0", "1")], targets=["0", "1", "2"])
    layers: list[Any] = list(generated_weights(model).values())
    assert layers[0].shares_generator_with(layers[1])
    _, values = Objective(Losses.from_dict({"isometry": 1}), model)(model, torch.randn(3, 24), torch.arange(3))
    alone = losses.isometry(layers[0]) + losses.isometry(layers[2])
    torch.testing.assert_close(values["isometry"], alone.detach())


def test_parameters_of_other_modules_and_attentions_have_their_terms_too() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(16, 16, batch_first=True)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.rnn(x)
            x, _ = self.attention(x, x, x)
            result: Tensor = self.head(x.mean(1))
            return result

    teacher = Reader().requires_grad_(False)
    model = copy.deepcopy(teacher).requires_grad_(True)
    adntn.compress_(model, GATED, targets=["rnn.weight_hh_l0", "attention", "head"])
    table = {"l1": 1, "isometry": 1, "hardware": 1, "features": {"layers": ["rnn", "attention"]}}
    with Objective(Losses.from_dict(table), model, teacher) as objective:
        loss, values = objective(model, torch.randn(5, 7, 16), torch.arange(5) % 4)
    loss.backward()
    layers: dict[str, Any] = generated_weights(model)
    assert set(layers) == {"rnn.weight_hh_l0", "attention.in_proj_weight", "attention.out_proj", "head"}
    positions = {layers["attention.in_proj_weight"]: 35, layers["attention.out_proj"]: 35, layers["head"]: 5}
    torch.testing.assert_close(values["hardware"], losses.predicted_time(positions).detach())
    pairs = [
        (layers["rnn.weight_hh_l0"].weight, teacher.rnn.weight_hh_l0),
        (layers["attention.in_proj_weight"].weight, teacher.attention.in_proj_weight),
        (layers["attention.out_proj"].weight, teacher.attention.out_proj.weight),
        (layers["head"].weight, teacher.head.weight),
    ]
    l1 = torch.stack([(w - t).abs().mean() / t.square().mean().sqrt() for w, t in pairs]).mean()
    torch.testing.assert_close(values["l1"], l1.detach())


def test_a_single_layer_is_a_model_too() -> None:
    teacher = nn.Linear(20, 12).requires_grad_(False)
    layer = adntn.nn.Linear(20, 12)
    table = {"cross_entropy": 0, "frobenius": 1, "isometry": 1}
    loss, values = Objective(Losses.from_dict(table), layer, teacher)(layer, torch.randn(3, 20))
    loss.backward()
    relative = (layer.weight - teacher.weight).square().sum() / teacher.weight.square().sum() / 2
    torch.testing.assert_close(values["frobenius"], relative.detach())


def test_a_weight_of_zeros_in_the_teacher_is_no_division_by_nothing() -> None:
    model, teacher = networks()
    teacher.fc.weight.zero_()
    for name in ("l1", "huber", "sampled_frobenius"):
        assert Objective(only(name), model, teacher)(model, INPUTS)[0].isfinite()


# --- hooks, wrappers, the teacher -------------------------------------------------------------------------------------


def test_there_are_hooks_only_where_a_term_needs_them_until_it_is_closed() -> None:
    model, teacher = networks()
    Objective(Losses.from_dict({**TERMS, "features": None, "attention": None}), model, teacher)(model, INPUTS, LABELS)
    assert hooks(model, teacher) == 0
    objective = Objective(only("features", attention={"layers": ["conv2"]}), model, teacher)
    assert hooks(model, teacher) == 4
    objective(model, INPUTS)
    assert objective._ours._seen == objective._theirs._seen == {"conv1": [], "conv2": []}
    model(INPUTS)  # outside of it nothing is kept
    assert objective._ours._seen == {"conv1": [], "conv2": []}
    objective.close()
    objective.close()
    assert hooks(model, teacher) == 0


def test_the_teacher_runs_only_where_it_is_needed_without_gradients_and_in_evaluation() -> None:
    model, teacher = networks()
    calls: list[bool] = []
    teacher.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    for name in ("frobenius", "isometry", "cross_entropy"):
        Objective(only(name), model, teacher)(model, INPUTS, LABELS)
    assert calls == []
    teacher.train().requires_grad_(True)
    before = copy.deepcopy(teacher.state_dict())
    loss, _ = Objective(only("distillation"), model, teacher)(model, INPUTS)
    loss.backward()
    assert calls == [False]
    assert not teacher.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_looking_at_positions_leaves_the_model_as_it_was() -> None:
    model, _ = networks()
    model.train()
    model.conv1.eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with Objective(only("hardware"), model) as objective:
        objective(lambda x: x.flatten(1)[:, :4], INPUTS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert (model.training, model.conv1.training, model.conv2.training) == (True, False, True)
    assert hooks(model) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_compiled_model_gives_the_same(compiled_first: bool) -> None:
    model, teacher = networks(GeneratorConfig(topology="lowrank"))  # soon traced
    model.eval()
    table = Losses.from_dict({name: TERMS[name] for name in ("features", "attention", "distillation", "quantization")})
    with Objective(table, model, teacher) as objective:
        wanted, _ = objective(model, INPUTS, LABELS)
    gradients = torch.autograd.grad(wanted, list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    if compiled_first:
        compiled(INPUTS)
    with Objective(table, compiled if compiled_first else model, teacher) as objective:
        for _ in range(2):
            loss, _ = objective(compiled, INPUTS, LABELS)
            torch.testing.assert_close(loss, wanted)
            made = torch.autograd.grad(loss, list(model.parameters()))
            torch.testing.assert_close(made, gradients)
    compiled(INPUTS)
    assert objective._ours._seen == {"conv1": [], "conv2": []}


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_model_in_distributed_data_parallel_gives_the_same() -> None:
    model, teacher = networks()
    model.eval()
    table = Losses.from_dict(TERMS)
    with Objective(table, model, teacher) as objective:
        wanted, _ = objective(model, INPUTS, LABELS)
    gradients = torch.autograd.grad(wanted, list(model.parameters()))
    wrapped = nn.parallel.DistributedDataParallel(model)
    with Objective(table, wrapped, teacher) as objective:
        loss, _ = objective(wrapped, INPUTS, LABELS)
        loss.backward()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close([p.grad for p in model.parameters()], list(gradients))


def test_under_autocast_terms_on_weights_and_cores_stay_in_float32() -> None:
    model, teacher = networks()
    table = Losses.from_dict({name: TERMS[name] for name in TERMS if name not in ("features", "attention")})
    with Objective(table, model, teacher) as objective:
        wanted = objective(model.eval(), INPUTS, LABELS)[1]
        objective.step = 0
        with torch.autocast("cpu", torch.bfloat16):
            loss, values = objective(model, INPUTS, LABELS)
    loss.backward()
    assert loss.dtype == torch.float32
    for name in set(values) - {"cross_entropy", "distillation", "calibration"}:
        torch.testing.assert_close(values[name], wanted[name], rtol=1e-6, atol=1e-7)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["distillation", "features", "attention", "frobenius", "sampled_frobenius", "l1", "huber"]
)
def test_a_term_that_needs_a_teacher_says_so(name: str) -> None:
    model, _ = networks()
    with pytest.raises(ConfigError, match=f"{name}: a teacher is needed and there is none"):
        Objective(only(name), model)
    with pytest.raises(ConfigError, match=f"{name}: the teacher is the model itself"):
        Objective(only(name), model, model)
    assert hooks(model) == 0


@pytest.mark.parametrize(
    "name", ["frobenius", "isometry", "gate_sparsity", "activation_scale", "quantization", "hardware"]
)
def test_a_term_that_needs_generated_layers_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} needs generated layers, and the model has none"):
        Objective(Losses.from_dict({name: 1}), Net(), Net())


def test_layers_without_what_a_term_needs_are_passed_over_unless_named_or_alone() -> None:
    mixed = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    adntn.compress_(mixed, GATED, targets=["0"])
    adntn.compress_(mixed, GeneratorConfig(topology="lowrank"), targets=["1"])
    for name in ("isometry", "gate_sparsity", "activation_scale", "hardware"):
        Objective(Losses.from_dict({name: 1}), mixed)(mixed, torch.randn(2, 64), torch.arange(2))
    for name, wanted in (
        ("isometry", "trees or brick walls"),
        ("gate_sparsity", "gates"),
        ("activation_scale", "levels"),
        ("hardware", "gates"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            Objective(Losses.from_dict({name: {"layers": ["1"]}}), mixed)


def test_names_that_are_not_there_are_refused_with_the_nearest() -> None:
    model, teacher = networks()
    with pytest.raises(ConfigError, match=r"features: the model has no module 'conv3'; .*Did you mean 'conv"):
        Objective(only("features", features={"layers": ["conv3"]}), model, teacher)
    model.conv3 = nn.Identity()
    with pytest.raises(ConfigError, match="features: the teacher has no module 'conv3'"):
        Objective(only("features", features={"layers": ["conv3"]}), model, teacher)
    with pytest.raises(ConfigError, match="frobenius: 'conv1' is no generated layer of the model; conv2, fc are"):
        Objective(only("frobenius", frobenius={"layers": ["conv1"]}), model, teacher)
    del teacher.fc
    with pytest.raises(ConfigError, match="l1: the teacher has no weight 'fc'"):
        Objective(only("l1"), model, teacher)
    assert hooks(model, teacher) == 0


def test_what_does_not_fit_the_teacher_is_refused() -> None:
    model, teacher = networks()
    teacher.fc = nn.Linear(160, 5)
    with pytest.raises(ShapeError, match=r"l1: 'fc' has a weight of shape \(4, 160\) .* of shape \(5, 160\)"):
        Objective(only("l1"), model, teacher)
    with pytest.raises(ShapeError, match=r"\(6, 4\) and \(6, 5\)"):
        Objective(only("distillation"), model, teacher)(model, INPUTS)
    table = {"layers": ["drop"]}
    teacher.drop = nn.Sequential(nn.Dropout(), nn.Linear(160, 160))
    with Objective(only("features", features=table), model, teacher) as objective:
        objective(model, INPUTS)
        with pytest.raises(ConfigError, match="'drop' was not called in the forward pass"):
            objective(lambda x: model.fc(x.flatten(1)[:, :160]), INPUTS)
        with pytest.raises(ShapeError, match="'drop' is called 2 times in the model and 1 times"):
            objective(lambda x: model.fc(model.drop(model.drop(x.flatten(1)[:, :160]))), INPUTS)
        objective(model, INPUTS)  # it goes on as if nothing had been


def test_labels_are_needed_only_where_a_term_looks_at_them() -> None:
    model, teacher = networks()
    Objective(only("distillation"), model, teacher)(model, INPUTS)
    with pytest.raises(ConfigError, match="cross_entropy, calibration: labels are needed"):
        Objective(Losses.from_dict({"calibration": 1}), model)(model, INPUTS)
