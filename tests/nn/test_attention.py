"""adntn.nn.MultiheadAttention: torch's own in everything but where its weights come from."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import pytest
import torch
from attentions import CONFIG, HEADS, MASKS, OPTIONS, SIZE, WAYS, build, close, inputs, kinds, masks
from torch import Tensor, nn
from torch.func import functional_call

import adntn
from adntn import GeneratorConfig, compress_
from adntn.execution import factored
from adntn.nn import MultiheadAttention

pytestmark = pytest.mark.usefixtures("few_objects")

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
    monkeypatch.setattr(factored, "linear", lambda x, f, b, *r: rows.append(f[0].shape[1]) or linear(x, f, b))
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


@pytest.mark.slow
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
