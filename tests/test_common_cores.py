"""Cores in common: fewer numbers, the same layers, in files and copies too; what would change others is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import adntn
from adntn.describe import generated_weights, stored_bytes
from adntn.errors import CheckpointError, CompressionError, ConfigError, ShapeError
from adntn.topology import GeneratorConfig

KRONECKER = GeneratorConfig.kronecker((24, 20, 3, 3), terms=3)


def build() -> nn.Sequential:
    """Convolutions of two shapes in turns, sides no powers of anything, the first without a bias."""
    pairs = [(20, 24), (24, 20), (20, 24), (24, 20)]
    layers: list[nn.Module] = [nn.Conv2d(*pair, 3, bias=place > 0) for place, pair in enumerate(pairs)]
    return nn.Sequential(*layers[:3], nn.ReLU(), layers[3])


def shared(config: GeneratorConfig = KRONECKER, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    model = build().to(dtype)
    adntn.compress_(model, config)
    adntn.share_cores_(model)
    return model


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 20, 12, 12, generator=torch.Generator().manual_seed(1)).to(dtype)


CONFIGS = {
    "kronecker": KRONECKER,
    "ttn": GeneratorConfig(),
    "mera with a learned activation": GeneratorConfig(topology="mera", activation="prelu", groups=2, order="paired"),
    "sum with gates": GeneratorConfig(topology="attn", gate=True, terms=2),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_layers_of_one_shape_have_all_but_the_root_in_common(config: GeneratorConfig) -> None:
    model = shared(config)
    weights = generated_weights(model)
    assert [*weights] == ["0", "1", "2", "4"]
    for one, other in (("0", "2"), ("1", "4")):
        mine, theirs = (dict(weights[name].generator_parameters()) for name in (one, other))
        assert {name for name in mine if mine[name] is theirs[name]} == mine.keys() - {"root"}
        assert not torch.equal(weights[one].weight, weights[other].weight)
    assert weights["0"].get_core("expand.1") is not weights["1"].get_core("expand.1")
    model(inputs()).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_numbers_and_bytes_are_counted_once() -> None:
    torch.manual_seed(0)
    model = build()
    before = adntn.compress_(model, KRONECKER)
    after = adntn.share_cores_(model)
    biases = sum(parameter.numel() for name, parameter in model.named_parameters() if name.endswith("bias"))
    assert after.model_after == sum(p.numel() for p in model.parameters()) == after.generated + biases
    assert [row.generated for row in after.layers] == [row.generated for row in before.layers[:2]] + [3, 3]
    assert sum(row.generated_bytes for row in after.layers) == 4 * after.generated
    assert stored_bytes(model) == 4 * after.model_after
    assert after.model_before == before.model_before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_file_has_the_cores_once_and_they_are_in_common_again(
    config: GeneratorConfig, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = shared(config, dtype)
    adntn.save(model, tmp_path / "model.safetensors")
    loaded = adntn.load(build().to(dtype), tmp_path / "model.safetensors")
    torch.testing.assert_close(loaded(inputs(dtype)), model(inputs(dtype)), rtol=0, atol=0)
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]
    adntn.save(loaded, tmp_path / "again.safetensors")
    assert stored_bytes(loaded) == stored_bytes(model)
    adntn.load(loaded, tmp_path / "again.safetensors")  # into what is so already
    torch.testing.assert_close(loaded(inputs(dtype)), model(inputs(dtype)), rtol=0, atol=0)
    with pytest.raises(CompressionError, match="in common with others already"):
        adntn.share_cores_(loaded)


def test_cores_that_are_apart_and_cores_in_common_do_not_mix(tmp_path: Path) -> None:
    apart = build()
    adntn.compress_(apart, KRONECKER)
    adntn.save(apart, tmp_path / "apart.safetensors")
    with pytest.raises(CheckpointError, match="one tensor in the model and two different ones in the file"):
        adntn.load(shared(), tmp_path / "apart.safetensors")
    model = shared()
    adntn.save(model, tmp_path / "common.safetensors")
    adntn.load(apart, tmp_path / "common.safetensors")  # its cores may have an optimiser: they stay its own
    torch.testing.assert_close(apart(inputs()), model(inputs()), rtol=0, atol=0)
    assert len([*apart.parameters()]) > len([*model.parameters()])


def test_a_state_dict_a_copy_and_a_step_of_training_keep_them_in_common() -> None:
    model, other = shared(), shared()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    other.load_state_dict(model.state_dict())
    copied = copy.deepcopy(model)
    for each in (other, copied):
        assert len([*each.parameters()]) == len([*model.parameters()])
        optimizer = torch.optim.SGD(each.parameters(), lr=1e-3)
        each(inputs()).square().sum().backward()
        optimizer.step()
        weights = generated_weights(each)
        assert weights["0"].get_core("expand.1") is weights["2"].get_core("expand.1")
    torch.testing.assert_close(other(inputs()), copied(inputs()))
    assert not torch.equal(copied(inputs()), model(inputs()))
    torch.testing.assert_close(adntn.materialize(copied)(inputs()), copied(inputs()))


def test_factored_is_dense_and_nothing_kept_is_stale() -> None:
    model = shared()
    wanted = adntn.materialize(model)(inputs())
    for way in ("factored", "dense"):
        for weight in generated_weights(model).values():
            weight.execution = way
        torch.testing.assert_close(model(inputs()), wanted, rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    late = build()
    adntn.compress_(late, KRONECKER)
    with adntn.cached(late):
        before = late(inputs())
        adntn.share_cores_(late)
        assert not torch.equal(late(inputs()), before)
        torch.testing.assert_close(late(inputs()), wanted, rtol=1e-4, atol=1e-5)


def test_what_would_change_the_others_is_refused() -> None:
    model = shared()
    before = model(inputs())
    with pytest.raises(CompressionError, match="in common with others"):
        adntn.grow_(model[0], terms=4)
    with pytest.raises(CompressionError, match="in common with others"):
        adntn.prune_(model)
    with pytest.raises(CompressionError, match="in common with others"):
        adntn.quantize_(model)
    torch.testing.assert_close(model(inputs()), before, rtol=0, atol=0)


def test_what_cannot_be_in_common_is_an_error_that_says_why() -> None:
    model = build()
    adntn.compress_(model, KRONECKER)
    with pytest.raises(CompressionError, match=r"no two of the targets .*'0' \(24, 20, 3, 3\), '1' \(20, 24, 3, 3\)"):
        adntn.share_cores_(model, ["0", "1"])
    with pytest.raises(CompressionError, match="no generated weight of the model has the name '7'"):
        adntn.share_cores_(model, ["7"])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(CompressionError, match="Call share_cores_ first, then build the optimiser"):
        adntn.share_cores_(model)
    del optimizer
    rootless = build()
    adntn.compress_(rootless, GeneratorConfig(topology="brickwall"))
    with pytest.raises(CompressionError, match="a tree has one, and a brick wall"):
        adntn.share_cores_(rootless)
    quantized = build()
    adntn.compress_(quantized, KRONECKER)
    adntn.quantize_(quantized)
    with pytest.raises(CompressionError, match="'0' is quantised"):
        adntn.share_cores_(quantized)


def test_layers_of_another_config_keep_their_own() -> None:
    model = build()
    adntn.compress_(model, KRONECKER, overrides={"4": KRONECKER.replace(terms=2)})
    adntn.share_cores_(model)
    weights = generated_weights(model)
    assert weights["0"].get_core("expand.1") is weights["2"].get_core("expand.1")
    assert weights["1"].get_core("expand.1") is not weights["4"].get_core("expand.1")
    assert [weight.has_common_cores for weight in weights.values()] == [True, False, True, False]


class Attentive(nn.Module):
    """Two attentions, a recurrent layer of two levels, and tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.MultiheadAttention(16, 2), nn.MultiheadAttention(16, 2)
        self.rnn = nn.LSTM(16, 16, num_layers=2)
        self.embedding, self.head = nn.Embedding(40, 16), nn.Linear(16, 40)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = self.first(x, x, x)[0]
        x = self.second(x, x, x)[0]
        logits: Tensor = self.head(self.rnn(x)[0])
        return logits


def test_attentions_parameters_and_tied_layers_take_part(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, tokens = Attentive(), torch.arange(6).view(3, 2)
    targets = ["first", "second", "embedding", "head", r"re:rnn\.weight_.*"]
    adntn.compress_(model, GeneratorConfig(order="paired"), targets)
    apart = sum(p.numel() for p in model.parameters())
    adntn.share_cores_(model)
    weights = generated_weights(model)
    names = ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.weight_ih_l1", "rnn.weight_hh_l1")
    assert len({id(weights[name].get_core("expand.1")) for name in names}) == 1
    assert weights["first.in_proj_weight"].get_core("expand.1") is weights["second.in_proj_weight"].get_core("expand.1")
    assert weights["embedding"]._network is weights["head"]._network
    assert sum(p.numel() for p in model.parameters()) < apart
    adntn.save(model, tmp_path / "model.safetensors")
    loaded = adntn.load(Attentive(), tmp_path / "model.safetensors")
    torch.testing.assert_close(loaded(tokens), model(tokens), rtol=0, atol=0)
    assert len([*loaded.parameters()]) == len([*model.parameters()])


@pytest.mark.slow
def test_it_compiles() -> None:
    model = shared()
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(inputs()), model(inputs()), rtol=1e-4, atol=1e-5)


def targets_of(model: nn.Sequential, names: tuple[str, ...], seed: int = 3) -> list[Tensor]:
    """Weights that cores in common can make but for noise, each of a scale of its own."""
    other = copy.deepcopy(model)
    torch.manual_seed(seed)
    weights = generated_weights(other)
    with torch.no_grad():
        for weight in weights.values():
            for _, parameter in weight.generator_parameters():
                parameter.copy_(torch.randn_like(parameter))
    made = [weights[name].weight.detach() for name in names]
    return [10.0**n * (w / w.std() + 0.1 * torch.randn_like(w)) for n, w in enumerate(made)]


def test_cores_in_common_are_fitted_to_all_weights_together() -> None:
    model = shared()
    weights, names = generated_weights(model), ("0", "2")
    targets = targets_of(model, names)
    untouched = weights["1"].weight.detach().clone()
    layers = [weights[name] for name in names]
    reports = adntn.fit_together_(layers, targets, steps=300, polish=100, progress=False)
    for report, layer, target in zip(reports, layers, targets, strict=True):
        error = float((layer.weight.detach() - target).norm() / target.norm())
        assert report.relative_error == pytest.approx(error, rel=1e-4)
        assert report.relative_error < 0.6 < report.start_error
    for one, other in zip(*(dict(layer.generator_parameters()).items() for layer in layers), strict=True):
        assert (one[1] is other[1]) == (one[0] != "root")
    assert torch.equal(weights["1"].weight, untouched)
    assert reports[0].steps == reports[1].steps > 0


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fit_together_never_ends_above_its_start(config: GeneratorConfig, dtype: torch.dtype) -> None:
    model = shared(config, dtype)
    layers = [generated_weights(model)[name] for name in ("0", "2")]
    targets = [torch.randn(24, 20, 3, 3), torch.zeros(24, 20, 3, 3) + 0.1]
    reports = adntn.fit_together_(layers, targets, steps=10, polish=5, progress=False)
    assert sum(r.relative_error**2 for r in reports) <= sum(r.start_error**2 for r in reports)
    assert all(p.dtype == dtype for layer in layers for _, p in layer.generator_parameters())


def test_one_alone_is_neither_fitted_nor_decomposed_for_others_would_change() -> None:
    layer = generated_weights(shared())["0"]
    target = torch.randn(layer.shape)
    for change in (adntn.fit_, adntn.warm_start_):
        with pytest.raises(CompressionError, match=r"in common with others .* alone; adntn\.fit_together_ fits all"):
            change(layer, target)


def test_what_cannot_be_fitted_together_is_said() -> None:
    weights = generated_weights(shared())
    zero, one, two = (weights[name] for name in ("0", "1", "2"))
    target = torch.randn(zero.shape)
    with pytest.raises(ConfigError, match="2 modules and 1 targets are given"):
        adntn.fit_together_([zero, two], [target])
    with pytest.raises(ConfigError, match="0 modules and 0 targets"):
        adntn.fit_together_([], [])
    with pytest.raises(ConfigError, match=r"do not have the same cores and a root each"):
        adntn.fit_together_([zero, one], [target, torch.randn(one.shape)])
    with pytest.raises(ConfigError, match=r"do not have the same cores and a root each"):
        adntn.fit_together_([zero, zero], [target, target])
    with pytest.raises(ShapeError, match="cannot be fitted to a target of shape"):
        adntn.fit_together_([zero, two], [target, torch.randn(one.shape)])
    with pytest.raises(ConfigError, match="NaN or infinite"):
        adntn.fit_together_([zero, two], [target, target / 0.0])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_compressing_with_common_cores_is_compressing_and_sharing(config: GeneratorConfig) -> None:
    torch.manual_seed(0)
    model = build()
    report = adntn.compress_(model, config, share_cores=True)
    expected = shared(config)
    assert report.generated == adntn.describe(expected).generated
    for (name, one), (other, two) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(one, two), name
    assert all(weight.has_common_cores for weight in generated_weights(model).values())


def test_layers_compressed_with_common_cores_start_fitted_together() -> None:
    torch.manual_seed(0)
    model = build()
    dense = [layer.weight.detach().clone() for layer in model if isinstance(layer, nn.Conv2d)]
    options = adntn.FitOptions(steps=30, polish=0)
    report = adntn.compress_(model, KRONECKER, share_cores=True, init="fit", fit=options, progress=False)
    assert [row.fit is not None for row in report.layers] == [True] * 4
    before = [row.fit.relative_error for row in report.layers if row.fit is not None]
    made = [weight.weight.detach() for weight in generated_weights(model).values()]
    errors = [float((mine - wanted).norm() / wanted.norm()) for mine, wanted in zip(made, dense, strict=True)]
    assert before == pytest.approx(errors, rel=1e-4)
    assert sum(before) < 0.99 * 4


def test_generators_that_are_shared_may_have_their_cores_in_common_too() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList(nn.ModuleDict({name: nn.Linear(24, 20) for name in ("q", "k")}) for _ in range(3))
    alone = copy.deepcopy(model)
    apart = adntn.compress_(alone, shared=[("q", "k")])
    report = adntn.compress_(model, shared=[("q", "k")], share_cores=True)
    assert model[0]["q"].blueprint.shape == (40, 24)
    assert model[0]["q"].root is model[0]["k"].root is not model[1]["q"].root
    assert model[0]["k"].get_core("expand.1") is model[2]["q"].get_core("expand.1")
    assert report.generated < apart.generated


def test_what_cannot_be_in_common_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(24, 20), nn.Linear(20, 30))
    for error, message, options in (
        (CompressionError, r"no two of the targets .*: '0' \(20, 24\), '1' \(30, 20\)", {"share_cores": True}),
        (ConfigError, "use 'random' or 'fit'", {"share_cores": True, "init": "svd"}),
        (ConfigError, "share_cores='all'", {"share_cores": "all"}),
    ):
        with pytest.raises(error, match=message):
            adntn.compress_(model, **options)
        assert all(type(layer) is nn.Linear for layer in model)
