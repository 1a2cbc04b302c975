"""adntn.nn.MultiheadAttention: torch's own in everything but where its weights come from."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import adntn
from adntn import AdntnError, CompressionError, ConfigError, GeneratorConfig, ShapeError, compress_
from adntn.execution import factored
from adntn.nn import MultiheadAttention

pytestmark = pytest.mark.usefixtures("few_objects")

CONFIG = GeneratorConfig(topology="ttn", order="blocked", activation="elu", initialization="paper")
MERA = CONFIG.replace(topology="mera", latent_order=2)
WAYS = ("dense", "factored")
SIZE, HEADS = 32, 4

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "dropout": {"dropout": 0.4, "batch_first": True},
    "bias_kv": {"add_bias_kv": True},
    "bias_kv and zeros, batch first": {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
    "zeros": {"add_zero_attn": True, "bias": False},
    "other sizes": {"kdim": 24, "vdim": 40},
    "other values, no bias, batch first": {"vdim": 33, "bias": False, "batch_first": True, "add_bias_kv": True},
    "joint out": {"joint_out": True},
    "groups that cut through queries": {"config": CONFIG.replace(groups=2)},
    "three groups": {"config": CONFIG.replace(groups=3), "batch_first": True},
    "mera, joint out": {"config": MERA, "joint_out": True, "batch_first": True},
}
#: Where the config of a generator does not fit out_proj too.
OUT_PLAIN = ("three groups",)


def build(name: str = "plain", way: str = "auto", dtype: torch.dtype = torch.float64) -> MultiheadAttention:
    """Return an attention whose biases and disentanglers are not what they start as."""
    torch.manual_seed(0)
    options = {"config": CONFIG, **OPTIONS[name]}
    if name in OUT_PLAIN:
        model = nn.Sequential(nn.MultiheadAttention(SIZE, HEADS, batch_first=True, dtype=dtype))
        compress_(model, options["config"], "0", ignore="0.out_proj", execution=way)
        layer: MultiheadAttention = model[0]
    else:
        layer = MultiheadAttention(SIZE, HEADS, **options, execution=way, dtype=dtype)
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            if "bias" in key or "mix" in key:
                parameter.copy_(torch.randn_like(parameter) / 2)
    return layer


def inputs(layer: nn.MultiheadAttention, kind: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Return queries of length 5, keys and values of length 7, three of each where batched; ``"self"``: one of all."""
    generator = torch.Generator().manual_seed(1)

    def make(length: int, size: int) -> Tensor:
        shape = (length, 3, size) if kind != "unbatched" else (length, size)
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return x.transpose(0, 1).contiguous() if layer.batch_first and kind != "unbatched" else x

    if kind == "self":
        return (make(7, SIZE),) * 3
    query, key = make(5, SIZE), make(7, layer.kdim)
    return query, key, key if kind == "memory" else make(7, layer.vdim)


def masks(kind: str, length: int, batched: bool) -> dict[str, Any]:
    """Return arguments that mask something, but nothing of what only one query sees."""
    generator = torch.Generator().manual_seed(2)
    padding = torch.rand(3, 7, generator=generator) < 0.3
    padding[:, 0] = False
    plain = torch.rand(length, 7, generator=generator) < 0.3
    plain[:, 0] = False
    each = torch.rand(3 * HEADS, length, 7, generator=generator) < 0.3
    each[:, :, 0] = False
    return {
        "none": {},
        "padding": {"key_padding_mask": padding if batched else padding[0]},
        "mask": {"attn_mask": plain},
        "both": {"attn_mask": plain, "key_padding_mask": padding if batched else padding[0]},
        "float masks": {
            "attn_mask": torch.randn(length, 7, generator=generator, dtype=torch.float64),
            "key_padding_mask": torch.randn((3, 7) if batched else (7,), generator=generator, dtype=torch.float64),
        },
        "a mask each": {"attn_mask": each if batched else each[:HEADS]},
        "causal": {"attn_mask": torch.ones(length, 7).triu(1).bool(), "is_causal": True},
        "causal and padding": {
            "attn_mask": torch.ones(length, 7).triu(1).bool(),
            "is_causal": True,
            "key_padding_mask": padding if batched else padding[0],
        },
    }[kind]


MASKS = ("none", "padding", "mask", "both", "float masks", "a mask each", "causal", "causal and padding")


def close(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def kinds(name: str) -> tuple[str, ...]:
    sizes = {"kdim", "vdim"} & OPTIONS[name].keys()
    return ("cross", "unbatched") if sizes else ("self", "memory", "cross", "unbatched")


# --- the same as torch's ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, way", [*((name, "factored") for name in OPTIONS), *((n, "dense") for n in ("plain", "other sizes"))]
)
def test_it_gives_what_torchs_own_gives_with_the_generated_weights(name: str, way: str) -> None:
    layer = build(name, way)
    dense = layer.to_dense()
    assert type(dense) is nn.MultiheadAttention
    assert layer.way.name == way
    for kind in kinds(name):
        x = inputs(layer, kind)
        some = itertools.product((True, False), ("none", "both"), ("mean", "each", "none"))
        for mode, mask, weights in [*some, *((True, mask, w) for mask in MASKS for w in ("each", "none"))]:
            layer.train(mode)
            dense.train(mode)
            length = 7 if kind == "self" else 5
            options = masks(mask, length, kind != "unbatched")
            options |= {"need_weights": weights != "none", "average_attn_weights": weights == "mean"}
            results = []
            for module in (layer, dense):
                torch.manual_seed(3)  # of dropout
                results.append(module(*x, **options))
            close(*results)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["plain", "other sizes", "bias_kv and zeros, batch first", "mera, joint out"])
def test_gradients_are_those_through_the_weights(name: str, way: str) -> None:
    layer = build(name, way)
    dense = layer.to_dense()
    x = [t.requires_grad_() for t in inputs(layer, "cross")]
    probe = torch.randn(layer(*x)[0].shape, dtype=torch.float64)
    (layer(*x)[0] * probe).sum().backward()
    at_inputs = [t.grad.clone() for t in x]
    assert all(p.grad is not None for p in layer.parameters())
    for t in x:
        t.grad = None
    (dense(*x)[0] * probe).sum().backward()
    close([t.grad for t in x], at_inputs)
    for key in ("in_proj_bias", "bias_k"):
        if getattr(layer, key) is not None:
            close(getattr(layer, key).grad, getattr(dense, key).grad)
    # What reaches root and cores is the gradient at the weight, taken on through the generator.
    for key in layer.generated_names(dense):
        projection = layer.get_submodule(key.removesuffix("_weight"))
        given = [(getattr(layer, key) * getattr(dense, key).grad).sum()]
        if name == "mera, joint out":
            given.append((layer.out_proj.weight * dense.out_proj.weight.grad).sum())
        expected = torch.autograd.grad(given, list(projection.parameters()))
        close([p.grad for p in projection.parameters()], list(expected))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["plain", "joint out", "other sizes"])
def test_it_runs_in_bf16_and_under_autocast(name: str, way: str) -> None:
    layer = build(name, way, torch.float32)
    x = inputs(layer, "cross", torch.float32)
    expected, weights = layer(*x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, low_weights = layer(*x)
        fast, _ = layer(*x, need_weights=False)
        assert layer.in_proj_weight is None or layer.in_proj_weight.dtype == torch.float32
    assert low.dtype == fast.dtype == torch.bfloat16
    for y in (low, fast):
        assert (y.float() - expected).norm() < 0.03 * expected.norm()
    assert (low_weights.float() - weights).norm() < 0.03 * weights.norm()
    half = copy.deepcopy(layer).bfloat16()
    y, weights = half(*(t.bfloat16() for t in x))
    assert y.dtype == weights.dtype == torch.bfloat16
    assert (y.float() - expected).norm() < 0.05 * expected.norm()


def test_only_the_different_inputs_are_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    linear = factored.linear
    monkeypatch.setattr(factored, "linear", lambda x, f, b: rows.append(f[0].shape[1]) or linear(x, f, b))
    layer = build("plain", "factored")
    for kind, expected in (("self", [96]), ("memory", [32, 64]), ("cross", [32, 32, 32])):
        layer(*inputs(layer, kind))
        assert rows == [*expected, 32]
        rows.clear()


# --- inside torch's transformers --------------------------------------------------------------------------------------


prototype = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")


@prototype
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "not nested"])
@pytest.mark.parametrize("execution", ["dense", "auto"])
def test_an_encoder_gives_the_same_in_all_of_its_paths(nested: bool, execution: str) -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(SIZE, HEADS, 48, dropout=0.0, batch_first=True), 2, enable_nested_tensor=nested
    )
    compress_(encoder, CONFIG, r"re:.*self_attn", execution=execution)
    dense = adntn.materialize(encoder)
    x, padding = torch.randn(3, 6, SIZE), torch.arange(6) >= torch.tensor([[6], [4], [2]])
    kept = ~padding
    expected = dense.train()(x, src_key_padding_mask=padding)[kept]
    for mode in (True, False):
        for gradients in (True, False):
            encoder.train(mode)
            dense.train(mode)
            with torch.set_grad_enabled(gradients):
                close(encoder(x, src_key_padding_mask=padding)[kept], expected, 1e-4)
                close(encoder(x), dense(x), 1e-4)
                mask = nn.Transformer.generate_square_subsequent_mask(6)
                close(encoder(x, mask, is_causal=True), dense(x, mask, is_causal=True), 1e-4)
    with adntn.cached(encoder):
        close(encoder(x, src_key_padding_mask=padding)[kept], expected, 1e-4)


def test_a_decoder_layer_gives_the_same_with_memory() -> None:
    decoder = nn.TransformerDecoderLayer(SIZE, HEADS, 48, dropout=0.0, batch_first=True)
    compress_(decoder, CONFIG)
    assert isinstance(decoder.multihead_attn, MultiheadAttention)
    dense = adntn.materialize(decoder)
    x, memory = torch.randn(3, 5, SIZE), torch.randn(3, 7, SIZE)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    for mode in (True, False):
        decoder.train(mode)
        dense.train(mode)
        close(decoder(x, memory, mask, tgt_is_causal=True), dense(x, memory, mask, tgt_is_causal=True), 1e-4)


@prototype
def test_a_nested_input_takes_torchs_path() -> None:
    layer = build("batch first", dtype=torch.float32).eval()
    parts = [torch.randn(n, SIZE) for n in (3, 5)]
    with torch.no_grad():
        x = torch.nested.nested_tensor(parts)
        y, _ = layer(x, x, x, need_weights=False)
        for part, out in zip(parts, y.unbind(), strict=True):
            close(out, layer(part, part, part)[0], 1e-5)


def test_an_encoder_trains() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(SIZE, HEADS, 48, batch_first=True), 1)
    compress_(encoder)
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    x, y = torch.randn(4, 6, SIZE), torch.randn(4, 6, SIZE)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (encoder(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [name for name, p in encoder.named_parameters() if torch.equal(p, before[name])] == []


# --- what it holds ----------------------------------------------------------------------------------------------------


def test_its_state_has_the_generators_and_torchs_names_of_the_rest() -> None:
    state = build("bias_kv").state_dict()
    plain = {name for name in state if not name.startswith(("in_proj.", "out_proj."))}
    assert plain == {"in_proj_bias", "bias_k", "bias_v"}
    assert {"in_proj.root", "in_proj.expand.1", "out_proj.root", "out_proj.bias"} <= state.keys()
    assert not any(name.endswith("weight") for name in state)
    assert max(t.ndim for t in state.values()) == 3
    separate = build("other sizes").state_dict()
    assert {"q_proj.root", "k_proj.root", "v_proj.root", "out_proj.root"} <= separate.keys()
    assert not any(name.startswith("in_proj.") for name in separate)


def test_joint_out_is_one_generator_of_four_projections() -> None:
    layer = build("joint out")
    assert layer.in_proj.root is layer.out_proj.root
    assert layer.in_proj.blueprint.shape == (4 * SIZE, SIZE)
    whole = layer.in_proj.blueprint
    generated = {name: p for name, p in layer.named_parameters() if "bias" not in name}
    assert sum(p.numel() for p in generated.values()) == whole.num_parameters
    assert (layer.in_proj_weight.shape, layer.out_proj.weight.shape) == ((96, 32), (32, 32))


@pytest.mark.parametrize("name", ["in_proj_weight", "q_proj_weight"])
def test_weights_are_read_only(name: str) -> None:
    layer = build()
    with pytest.raises(AttributeError, match=f"the {name} .* read-only"):
        setattr(layer, name, nn.Parameter(torch.zeros(96, 32)))
    assert (layer.q_proj_weight is None, build("other sizes").in_proj_weight is None) == (True, True)


@pytest.mark.parametrize("topology", ["ttn", "mera"])
def test_it_starts_with_the_deviation_of_torchs(topology: str) -> None:
    layer = MultiheadAttention(64, 4, config=GeneratorConfig(topology=topology))
    dense = nn.MultiheadAttention(64, 4)
    for name in ("in_proj_weight", "out_proj.weight"):
        ours, theirs = (weight_of(module, name).detach().std() for module in (layer, dense))
        assert float(ours / theirs) == pytest.approx(1, abs=0.1), name
    assert not layer.in_proj_bias.any()
    assert not layer.out_proj.bias.any()


def weight_of(module: nn.Module, name: str) -> Tensor:
    for part in name.split("."):
        module = getattr(module, part)
    return module  # type: ignore[return-value]


def test_reset_draws_all_anew() -> None:
    layer = build("bias_kv")
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    layer._reset_parameters()
    constant = [name for name, p in layer.named_parameters() if torch.equal(p, before[name])]
    assert constant == []
    assert not layer.in_proj_bias.any()


@pytest.mark.parametrize("name", ["plain", "other sizes", "joint out"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_is_equal_and_on_its_own(name: str, how: str) -> None:
    layer = build(name).eval()
    x = inputs(layer, "cross")
    before = layer(*x)[0]
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = copy.deepcopy(layer) if how == "deepcopy" else pickle.loads(pickle.dumps(layer))
    assert torch.equal(twin(*x)[0], before)
    assert not twin.training
    assert name != "joint out" or twin.in_proj.root is twin.out_proj.root
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.5)
    assert torch.equal(layer(*x)[0], before)


def test_it_is_built_on_the_meta_device_and_filled_later() -> None:
    layer = MultiheadAttention(SIZE, HEADS, config=CONFIG, device="meta", add_bias_kv=True)
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    filled = layer.to_empty(device="cpu")
    filled._reset_parameters()
    x = torch.randn(4, 2, SIZE)
    assert filled(x, x, x)[0].isfinite().all()


def test_it_is_one_graph() -> None:
    torch._dynamo.reset()
    layer = build("batch first", "factored")
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for kind in ("self", "memory"):
        x = inputs(layer, kind)
        close(compiled(*x, need_weights=False)[0], layer(*x, need_weights=False)[0])
    torch._dynamo.reset()


def test_torch_func_goes_through_it() -> None:
    layer = build("batch first", "factored")
    x = inputs(layer, "self")[0]
    other = {name: 1.1 * p.detach() for name, p in layer.named_parameters()}
    twin = copy.deepcopy(layer)
    twin.load_state_dict(other)
    close(functional_call(layer, other, (x, x, x))[0], twin(x, x, x)[0])

    def run(x: Tensor) -> Tensor:
        return layer(x, x, x)[0]  # type: ignore[no-any-return]

    tangent, step = torch.randn_like(x), 1e-6
    _, moved = torch.func.jvp(run, (x,), (tangent,))
    close(moved, (run(x + step * tangent) - run(x - step * tangent)) / (2 * step), 1e-6)
    close(torch.func.vmap(run)(x[:, None])[:, 0], run(x))


# --- compress_ and back -----------------------------------------------------------------------------------------------


class Block(nn.Module):
    """An attention with everything around it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(SIZE, HEADS, **options)
        self.head = nn.Linear(SIZE, 5)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        result: Tensor = self.head(self.attn(x, memory, memory)[0])
        return result


def names(model: nn.Module) -> list[str]:
    return [row.name for row in adntn.describe(model).layers]


IN, OUT = "attn.in_proj_weight", "attn.out_proj"
Choice = tuple[dict[str, Any], list[str]]
CHOICES: dict[str, Choice] = {
    "by name": ({"targets": "attn"}, [IN, OUT]),
    "by pattern": ({"targets": "re:at.n"}, [IN, OUT]),
    "all": ({}, [IN, OUT, "head"]),
    "without out_proj": ({"targets": "attn", "ignore": "attn.out_proj"}, [IN]),
    "in_proj_weight alone": ({"targets": "attn.in_proj_weight"}, [IN]),
    "out_proj alone": ({"targets": "attn.out_proj"}, [OUT]),
    "joint": ({"targets": "attn", "shared": [("in_proj_weight", "out_proj")]}, [IN, OUT]),
    "joint by full names": ({"shared": [(IN, OUT)]}, [IN, OUT, "head"]),
    "ignored": ({"ignore": "attn"}, ["head"]),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_chosen_is_generated_and_goes_there_and_back(choice: str, tmp_path: Any) -> None:
    options, expected = CHOICES[choice]
    model = Block().eval()
    report = compress_(model, CONFIG, **options)
    assert names(model) == expected
    assert (isinstance(model.attn, MultiheadAttention), isinstance(model.attn.out_proj, adntn.nn.Linear)) == (
        IN in expected,
        OUT in expected,
    )
    x, memory = torch.randn(4, 2, SIZE), torch.randn(6, 2, SIZE)
    before = model(x, memory)
    dense = adntn.materialize(model)
    fresh = Block().eval()
    fresh.load_state_dict(dense.state_dict(), strict=True)
    close(fresh(x, memory), before, 1e-5)
    assert [type(m) for m in dense.modules()] == [type(m) for m in fresh.modules()]
    assert torch.equal(model(x, memory), before)

    path = adntn.save(model, tmp_path / "model.safetensors")
    loaded = adntn.load(Block().eval(), path)
    assert torch.equal(loaded(x, memory), before)
    assert adntn.describe(loaded) == report
    again = Block().eval()
    compress_(again, CONFIG, **options)
    assert torch.equal(adntn.load(again, path)(x, memory), before)
    with adntn.cached(model):
        for _ in range(2):
            close(model(x, memory), before, 1e-6)
    if choice.startswith("joint"):
        assert loaded.attn.in_proj.root is loaded.attn.out_proj.root
        assert sum(row.generated > 0 for row in report.layers if row.name != "head") == 1


def test_the_separate_form_goes_there_and_back(tmp_path: Any) -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(SIZE, HEADS, kdim=24, vdim=40, bias=False)})
    compress_(model, CONFIG)
    assert names(model) == [f"attn.{n}" for n in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj")]
    assert [row.shape for row in adntn.describe(model).layers] == [(32, 32), (32, 24), (32, 40), (32, 32)]
    x = inputs(model["attn"], "cross", torch.float32)
    path = adntn.save(model, tmp_path / "model.safetensors")
    fresh = nn.ModuleDict({"attn": nn.MultiheadAttention(SIZE, HEADS, kdim=24, vdim=40, bias=False)})
    assert torch.equal(adntn.load(fresh, path)["attn"](*x)[0], model["attn"](*x)[0])
    close(adntn.materialize(model)["attn"](*x)[0], model["attn"](*x)[0], 1e-5)


def test_one_of_three_separate_weights_is_a_parameter(tmp_path: Any) -> None:
    def make() -> nn.ModuleDict:
        return nn.ModuleDict({"attn": nn.MultiheadAttention(SIZE, HEADS, kdim=24)})

    model = make()
    compress_(model, CONFIG, "attn.k_proj_weight")
    assert names(model) == ["attn.k_proj_weight"]
    x = inputs(model["attn"], "cross", torch.float32)
    path = adntn.save(model, tmp_path / "model.safetensors")
    assert torch.equal(adntn.load(make(), path)["attn"](*x)[0], model["attn"](*x)[0])


def test_options_hooks_mode_dtype_and_config_are_kept() -> None:
    calls: list[str] = []
    model = Block(dropout=0.25, batch_first=True, add_zero_attn=True, dtype=torch.bfloat16).eval()
    model.attn.register_forward_hook(lambda *_: calls.append("hook"))
    bias = model.attn.in_proj_bias
    compress_(model, CONFIG, "attn", overrides={"attn.out_proj": MERA}, execution="dense")
    attn = model.attn
    assert (attn.dropout, attn.batch_first, attn.add_zero_attn, attn.training) == (0.25, True, True, False)
    assert attn.in_proj_bias is bias
    assert attn.in_proj_weight.dtype == attn.out_proj.weight.dtype == torch.bfloat16
    assert (attn.in_proj.config, attn.out_proj.config) == (CONFIG, MERA)
    assert attn.execution == attn.out_proj.execution == "dense"
    attn.execution = "factored"
    assert attn.way.name == attn.out_proj.way.name == "factored"
    x = torch.randn(2, 3, SIZE, dtype=torch.bfloat16)
    attn(x, x, x)
    assert calls == ["hook"]
    back = attn.to_dense()
    assert repr(back) == repr(nn.MultiheadAttention(SIZE, HEADS, 0.25, batch_first=True, add_zero_attn=True))
    assert back.out_proj.bias is not attn.out_proj.bias


def test_an_override_of_the_attention_is_one_of_its_out_proj() -> None:
    model = Block()
    compress_(model, CONFIG, overrides={"attn": MERA})
    assert (model.attn.in_proj.config, model.attn.out_proj.config, model.head.config) == (MERA, MERA, CONFIG)


def test_tied_attentions_stay_tied(tmp_path: Any) -> None:
    def make() -> nn.ModuleList:
        one, two = nn.MultiheadAttention(SIZE, HEADS), nn.MultiheadAttention(SIZE, HEADS)
        two.in_proj_weight, two.out_proj = one.in_proj_weight, one.out_proj
        return nn.ModuleList([one, two])

    model = make()
    with pytest.raises(CompressionError, match=r"'0' shares its weight with '1\.in_proj_weight'"):
        compress_(model, CONFIG, "0")
    compress_(model, CONFIG)
    assert model[0].in_proj.root is model[1].in_proj.root
    assert model[0].out_proj is model[1].out_proj
    dense = adntn.materialize(model)
    assert dense[0].in_proj_weight is dense[1].in_proj_weight
    assert dense[0].out_proj.weight is dense[1].out_proj.weight
    assert len(list(dense.parameters())) == len(list(make().parameters()))
    path = adntn.save(model, tmp_path / "model.safetensors")
    loaded = adntn.load(make(), path)
    assert loaded[0].in_proj.root is loaded[1].in_proj.root
    x = torch.randn(3, 2, SIZE)
    assert torch.equal(loaded[1](x, x, x)[0], model[1](x, x, x)[0])


# --- mistakes ---------------------------------------------------------------------------------------------------------

Mistake = tuple[Callable[[], object], type[AdntnError], str]


def call(name: str = "plain", *shapes: tuple[int, ...], **options: Any) -> Callable[[], object]:
    def run() -> object:
        return build(name)(*(torch.zeros(s, dtype=torch.float64) for s in shapes), **options)

    return run


MISTAKES: dict[str, Mistake] = {
    "heads": (lambda: MultiheadAttention(32, 5), ShapeError, "divisible by num_heads.*embed_dim=32, num_heads=5"),
    "no heads": (lambda: MultiheadAttention(32, 0), ShapeError, "greater than 0"),
    "joint out of other sizes": (
        lambda: MultiheadAttention(32, 4, kdim=16, joint_out=True),
        ConfigError,
        "joint_out=True needs .*kdim=16",
    ),
    "no split": (
        lambda: MultiheadAttention(32, 4, config=CONFIG.replace(order="paired"), execution="factored"),
        ConfigError,
        "order='paired' has no split",
    ),
    "groups": (lambda: MultiheadAttention(32, 4, config=CONFIG.replace(groups=5)), ShapeError, "groups=5"),
    "size of the keys": (call("plain", (4, 2, 32), (4, 2, 16), (4, 2, 32)), ShapeError, r"\(4, 2, 16\).*32, 32 and 32"),
    "length of the values": (
        call("plain", (4, 2, 32), (4, 2, 32), (5, 2, 32)),
        ShapeError,
        r"\(5, 2, 32\).*one length",
    ),
    "mask": (
        call("plain", *((4, 2, 32),) * 3, attn_mask=torch.zeros(3, 3)),
        ShapeError,
        r"attn_mask has shape \(3, 3\).*\(4, 4\), \(8, 4, 4\)",
    ),
    "padding": (
        call("plain", *((4, 2, 32),) * 3, key_padding_mask=torch.zeros(2, 3)),
        ShapeError,
        r"key_padding_mask has shape \(2, 3\), not \(2, 4\)",
    ),
    "causal without a mask": (call("plain", *((4, 2, 32),) * 3, is_causal=True), ConfigError, "give attn_mask"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name: str) -> None:
    run, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        run()
