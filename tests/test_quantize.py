"""``quantize_``: whatever is made is made of numbers on the grid, trained through it, stored packed."""

from __future__ import annotations

import copy
import doctest
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CONFIG, MERA, Net, compressed, header, rewrite, same, state
from conformance_cases import BASELINES, EVERYTHING, PLAIN, assert_equal, put_on_grid, scramble
from safetensors import safe_open
from torch import Tensor, nn

import adntn
from adntn import Generator, GeneratorConfig, grow_, load, quantize_, save
from adntn.adjoint import weight_adjoint
from adntn.describe import generated_weights, stored_bytes
from adntn.errors import CheckpointError, CompressionError, ConfigError
from adntn.quantization import Quantization

pytestmark = pytest.mark.usefixtures("few_objects")
both = pytest.mark.parametrize("bits", [8, 4])


def built(topology: str = "mera", dtype: torch.dtype = torch.float64, **options: Any) -> Generator:
    options = {**PLAIN, "groups": 2, "latent_order": 2, **EVERYTHING[topology], **options}
    gen: Generator = scramble(Generator((12, 10), GeneratorConfig(**options), dtype=dtype))
    return gen


def on_grid(gen: Generator) -> Generator:
    """Return a generator that is not quantised, of the numbers on the grid."""
    plain = copy.deepcopy(gen)
    put_on_grid(plain)
    quantize_(plain, None)
    return plain


# --- what is made -----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("topology", EVERYTHING)
def test_all_that_is_made_is_made_of_numbers_on_the_grid(topology: str, bits: int) -> None:
    gen = built(topology)
    before, numbers = gen().detach(), state(gen)
    quantize_(gen, bits)
    plain = on_grid(gen)
    assert same(state(gen), numbers)
    if topology != "frozen":  # which stores one number a group
        assert not torch.equal(gen(), before)
    index = torch.stack([torch.randint(size, (7,)) for size in gen.shape], -1)
    assert torch.equal(gen(), plain())
    with torch.no_grad():
        assert_equal(gen.generate(out=torch.empty(gen.shape, dtype=gen.dtype)), plain(), tolerance=1e-12)
    assert torch.equal(gen.entries(index), plain.entries(index))
    assert torch.equal(gen.rows_at(index[:, 0]), plain.rows_at(index[:, 0]))
    pairs = [(gen.factors(), plain.factors()), (gen.factors_at(index[:, 0]), plain.factors_at(index[:, 0]))]
    for ours, theirs in pairs:
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    if topology not in BASELINES:
        assert torch.equal(gen.hidden(), plain.hidden())
    quantize_(gen, None)
    assert torch.equal(gen(), before)


def test_gates_and_what_activations_learn_stay_as_they_are() -> None:
    gen = built(gate=True, terms=2, activation="prelu")
    quantize_(gen, 4)
    used = gen.used_parameters()
    changed = {name for name, parameter in gen.generator_parameters() if not torch.equal(used[name], parameter)}
    assert changed
    assert not any(name.startswith(("gate.", "activation.")) for name in changed)
    assert all(used[name] is parameter for name, parameter in gen.generator_parameters() if name not in changed)


@both
@pytest.mark.parametrize("topology", EVERYTHING)
def test_derivatives_go_straight_through(topology: str, bits: int) -> None:
    gen = built(topology)
    quantize_(gen, bits)
    plain, probe = on_grid(gen), torch.randn(gen.shape, dtype=gen.dtype)
    for each in (gen, plain):
        (each() * probe).sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in gen.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad)
    if topology in BASELINES:
        return
    by_hand = weight_adjoint(gen, probe)
    for name, parameter in gen.named_parameters():
        assert_equal(by_hand[name], parameter.grad)
    gen.zero_grad()
    gen.backward = "adjoint"
    (gen() * probe).sum().backward()
    for name, parameter in gen.named_parameters():
        assert_equal(parameter.grad, expected[name].grad)


def test_forward_derivatives_and_vmap_go_through() -> None:
    gen = built()
    quantize_(gen, 8)
    plain = on_grid(gen)
    values = {name: p.detach() for name, p in gen.named_parameters()}
    tangents = {name: torch.randn_like(value) for name, value in values.items()}

    def weight(module: Generator) -> Any:
        return lambda named: torch.func.functional_call(module, named)

    made, tangent = torch.func.jvp(weight(gen), (values,), (tangents,))
    fixed = {name: p.detach() for name, p in plain.named_parameters()}
    expected = torch.func.jvp(weight(plain), (fixed,), (tangents,))
    assert_equal(made, expected[0])
    assert_equal(tangent, expected[1])
    stacked = {name: torch.stack([value, 3 * value]) for name, value in values.items()}
    stack = torch.func.vmap(weight(gen))(stacked)
    assert_equal(stack[1], weight(gen)({name: 3 * value for name, value in values.items()}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@both
def test_numbers_on_the_grid_are_of_the_parameters_type(bits: int, dtype: torch.dtype) -> None:
    gen = built(dtype=dtype)
    quantize_(gen, bits)
    weight = gen()
    assert weight.dtype == dtype
    put_on_grid(gen)
    assert torch.equal(gen(), weight)


def test_a_layer_moves_and_copies() -> None:
    layer = adntn.nn.Linear(32, 32, config=MERA)
    quantize_(layer, 8)
    copied = copy.deepcopy(layer)
    assert copied.quantization == Quantization(8)
    quantize_(copied, None)
    assert layer.quantization == Quantization(8)
    assert "8 bits" in repr(layer)
    assert "bits" not in repr(copied)
    assert layer.to("meta").weight.is_meta
    assert copied.double().weight.dtype == torch.float64


@pytest.mark.slow
def test_a_compiled_layer_sees_it_being_set(no_graphs: None) -> None:
    layer, x = adntn.nn.Linear(32, 32, config=MERA, dtype=torch.float64), torch.randn(3, 32, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    before = compiled(x)
    for bits in (4, 8, None):
        quantize_(layer, bits)
        assert_equal(compiled(x), layer(x))
        assert torch.allclose(layer(x), before) == (bits is None)


def test_what_is_kept_is_never_stale() -> None:
    model = nn.Sequential(adntn.nn.Linear(64, 64, config=CONFIG))
    x = torch.randn(2, 64)
    with adntn.cached(model):
        before = model(x)
        quantize_(model, 4)
        after = model(x)
        assert not torch.equal(before, after)
        assert torch.equal(after, model(x))
        quantize_(model, None)
        assert torch.equal(model(x), before)
    quantize_(model, 4)
    assert torch.equal(model(x), after)
    with adntn.cached(model):
        assert torch.equal(model(x), after)
    dense = adntn.materialize(model)
    assert type(dense[0]) is nn.Linear
    assert not hasattr(dense[0], "_quantization")
    assert torch.equal(dense[0].weight, model[0].weight)


def test_training_moves_the_float_numbers_and_lowers_the_loss_on_the_grid() -> None:
    layer = adntn.nn.Linear(16, 16, config=CONFIG)
    target = adntn.nn.Linear(16, 16, config=CONFIG).weight.detach()
    quantize_(layer, 4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (layer.weight - target).square().sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert min(losses[-10:]) < 0.8 * losses[0]


# --- which ------------------------------------------------------------------------------------------------------------


def test_targets_choose_and_sharers_come_along() -> None:
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("q", "k", "o")})
    model["rnn"] = nn.LSTM(8, 8)
    adntn.compress_(model, CONFIG, ["q", "k", "o", "rnn.weight_hh_l0"], shared=[("q", "k")])
    report = quantize_(model, 8, ["k", "rnn.weight_hh_l0"])
    assert [row.name for row in report.layers] == ["q", "k", "rnn.weight_hh_l0"]
    assert model["q"].quantization == model["k"].quantization == Quantization(8)
    assert model["o"].quantization is None
    shared = {row.name: row for row in report.layers}
    assert (shared["k"].numbers, shared["k"].bytes_after) == (0, 0)
    assert shared["k"].relative_change > 0
    quantize_(model, 4, ignore="re:q|k")
    assert [model[name].quantization.bits for name in ("q", "k", "o")] == [8, 8, 4]


def test_mistakes_are_told_and_change_nothing() -> None:
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("q", "k", "o")})
    adntn.compress_(model, CONFIG, ["q", "k"], shared=[("q", "k")])
    for options, error, message in (
        ({"bits": 3}, ConfigError, "8 or 4 bits"),
        ({"targets": "qq"}, CompressionError, "no generated weight of the model has the name 'qq'.*Did you mean 'q'"),
        ({"targets": ["q", "o"]}, CompressionError, "no generated weight .*'o'; there are 'q', 'k'"),
        ({"targets": "re:("}, CompressionError, "not a regular expression"),
        ({"ignore": "k"}, CompressionError, "'k' shares its generator with 'q'"),
    ):
        with pytest.raises(error, match=message):
            quantize_(model, **options)
        assert model["q"].quantization is None
    with pytest.raises(CompressionError, match="no generated weight"):
        quantize_(nn.Linear(2, 2))


def test_the_report_counts_bytes_as_they_are_stored() -> None:
    model = compressed(MERA)
    plain = adntn.describe(model)
    report = quantize_(model, 8)
    described = adntn.describe(model)
    assert [row.bytes_before for row in report.layers] == [row.generated_bytes for row in plain.layers]
    assert [row.bytes_after for row in report.layers] == [row.generated_bytes for row in described.layers]
    dense = report.model_bytes_before - report.bytes_before
    assert report.model_bytes_after - report.bytes_after == dense
    assert dense == sum(
        t.nbytes for name, t in model.state_dict().items() if not name.startswith(("conv", "head.0"))
    ) + (model.conv.bias.nbytes + model.head[0].bias.nbytes)
    assert all(0 < row.relative_change < 1 and row.quantized < row.numbers for row in report.layers)
    assert "8 bits: model of" in str(report)
    assert "head.0" in str(report)
    back = quantize_(model, None)
    assert back.bytes_after == report.bytes_before
    assert [row.relative_change for row in back.layers] == pytest.approx(
        [row.relative_change for row in report.layers], rel=0.5
    )
    meta = quantize_(adntn.nn.Linear(8, 8, device="meta"), 4)
    assert meta.layers[0].relative_change != meta.layers[0].relative_change


def test_the_example_runs() -> None:
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for test in finder.find(quantize_, "quantize_", globs={"adntn": adntn}):
        assert runner.run(test).failed == 0


# --- growth -----------------------------------------------------------------------------------------------------------


def test_a_quantised_generator_grows_by_its_float_numbers_and_stays_quantised() -> None:
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("q", "k")})
    adntn.compress_(model, CONFIG, shared=[("q", "k")])
    floats = copy.deepcopy(model)["k"].weight.detach()
    quantize_(model, 8)
    report = grow_(model["q"], topology="mera", exact=True)
    assert report.exact
    assert model["q"].quantization == model["k"].quantization == Quantization(8)
    assert 0 <= report.relative_error < 0.1
    quantize_(model, None)
    torch.testing.assert_close(model["k"].weight.detach(), floats)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


class Everything(nn.Module):
    """A layer of every topology and kind, two that share a generator, one that is not generated."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name.replace(",", ""): nn.Linear(12, 10) for name in EVERYTHING})
        self.attention = nn.MultiheadAttention(8, 2)
        self.table, self.rnn, self.plain = nn.Embedding(9, 8, padding_idx=0), nn.LSTM(8, 8), nn.Linear(3, 3)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 4)
        self.again = self.q

    @classmethod
    def compressed(cls) -> Everything:
        model = cls()
        configs = {
            f"layers.{name.replace(',', '')}": GeneratorConfig(**{**PLAIN, "latent_order": 2, "groups": 2, **options})
            for name, options in EVERYTHING.items()
        }
        targets = [*configs, "attention", "table", "rnn.weight_hh_l0", "q", "k"]
        adntn.compress_(model, MERA, targets, overrides=configs, shared=[("q", "k")])
        scramble(model)
        return model


def digest(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        signed: str = file.metadata()["adntn.sha256"]
    return signed


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_loaded_makes_the_weights_that_were_saved_to_the_last_bit(
    path: Path, bits: int, dtype: torch.dtype
) -> None:
    model = Everything.compressed().to(dtype)
    quantize_(model, bits, ignore="rnn.weight_hh_l0")
    generated = generated_weights(model)
    weights = {name: weight.weight.detach() for name, weight in generated.items()}
    save(model, path)
    assert header(path)["format"] == 4
    for into in (Everything().to(dtype), Everything.compressed().to(dtype)):
        load(into, path)
        loaded = generated_weights(into)
        assert loaded.keys() == generated.keys()
        for name, weight in loaded.items():
            assert weight.quantization == generated[name].quantization
            assert torch.equal(weight.weight, weights[name]), name
        assert into.q.root is into.k.root
        assert into.q.users() >= {into.q, into.k}
        # What is on the grid is saved as it was read.
        again = save(into, path.with_suffix(".again"))
        assert digest(again) == digest(path)
    with safe_open(path, framework="pt") as file:
        assert sum(file.get_tensor(name).nbytes for name in file.keys()) == stored_bytes(model)  # noqa: SIM118


def test_files_are_smaller_and_older_formats_stay(path: Path) -> None:
    model = compressed(MERA)
    sizes = {}
    for bits in (None, 8, 4):
        quantize_(model, bits)
        sizes[bits] = save(model, path).stat().st_size
        assert header(path)["format"] == (3 if bits is None else 4)
        assert ("packed" in header(path)) == (bits is not None)
    assert sizes[4] < sizes[8] < sizes[None]


def test_loading_says_whether_it_is_on(path: Path) -> None:
    floats, quantised = compressed(), compressed()
    save(floats, path)
    quantize_(quantised, 8)
    load(quantised, path)
    assert quantised.conv.quantization is None
    assert same(state(quantised), state(floats))
    quantize_(quantised, 4, "conv")
    save(quantised, path)
    loaded = load(Net(), path)
    assert loaded.conv.quantization == Quantization(4)
    assert loaded.head[0].quantization is None


def test_parameters_that_are_tied_by_hand_stay_floats(path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    adntn.compress_(model, CONFIG)
    model["b"].root = model["a"].root
    quantize_(model, 8)
    weights = [model[name].weight.detach() for name in "ab"]
    save(model, path)
    assert header(path)["packed"].keys() == {"a.packed"}
    other = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    adntn.compress_(other, CONFIG)
    other["b"].root = other["a"].root
    load(other, path)
    assert torch.equal(other["a"].weight, weights[0])
    assert torch.equal(other["b"].weight, weights[1])


Edits = dict[str, tuple[Any, str]]


def _set(*keys: str, to: object) -> Any:
    def edit(values: dict[str, Any], _: dict[str, Tensor]) -> None:
        for key in keys[:-1]:
            values = values[key]
        if to is None:
            del values[keys[-1]]
        else:
            values[keys[-1]] = to

    return edit


def _tensor(change: Any) -> Any:
    def edit(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors["conv.packed"] = change(tensors["conv.packed"])

    return edit


def _outside(tensor: Tensor) -> Tensor:
    tensor[0] = 0x80
    return tensor


def _no_scale(tensor: Tensor) -> Tensor:
    tensor[-4:] = 0
    return tensor


MALFORMED: Edits = {
    "too short": (_tensor(lambda t: t[:-1]), r"'conv.packed' is torch.uint8 of shape .* instead of"),
    "too long": (_tensor(lambda t: torch.cat([t, t])), "instead of"),
    "other type": (_tensor(lambda t: t.view(torch.int8)), "torch.int8 of shape"),
    "other dimensions": (_tensor(lambda t: t.view(1, -1)), "instead of"),
    "outside of the grid": (_tensor(_outside), "'root' lies outside of the grid"),
    "no scale": (_tensor(_no_scale), "a scale is no positive number"),
    "no tensor": (lambda _, tensors: tensors.pop("conv.packed"), "did not write"),
    "floats too": (lambda _, tensors: tensors.update({"conv.root": torch.zeros(1, 4)}), "stored beside that"),
    "no entry": (_set("packed", "conv.packed", "layer", to="nobody"), "did not write"),
    "no list": (_set("packed", to=[1]), "did not write"),
    "an entry of floats": (_set("layers", "conv", "bits", to=None), "cannot be packed"),
    "other bits": (_set("layers", "conv", "bits", to=4), "instead of torch.uint8"),
    "impossible bits": (_set("layers", "conv", "bits", to=7), "8 or 4 bits"),
    "other dtype": (_set("packed", "conv.packed", "dtype", to="int64"), "cannot be packed"),
    "wider dtype": (_set("packed", "conv.packed", "dtype", to="float64"), "instead of torch.uint8"),
    "no type": (_set("packed", "conv.packed", "dtype", to=["float32"]), "cannot be packed"),
    "nothing packed": (_set("packed", to=None), "conv.carry.1 is missing|conv.expand.1 is missing"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_packed_numbers_are_refused(path: Path, what: str) -> None:
    edit, message = MALFORMED[what]
    model = compressed(MERA)
    quantize_(model, 8)
    save(model, path)
    rewrite(path, edit)
    for given in (Net(), compressed(MERA)):
        before = state(given)
        with pytest.raises(CheckpointError, match=message):
            load(given, path)
        assert same(state(given), before)
        assert getattr(given.conv, "quantization", None) is None
