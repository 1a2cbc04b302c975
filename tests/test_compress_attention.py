"""Attentions into generated ones and back, and what is refused of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attentions import CONFIG, HEADS, MERA, SIZE, build, close, inputs
from torch import Tensor, nn

import adntn
from adntn import AdntnError, CompressionError, ConfigError, ShapeError, compress_
from adntn.nn import MultiheadAttention

pytestmark = pytest.mark.usefixtures("few_objects")

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
    "four dimensions": (call("plain", *((4, 2, 2, 32),) * 3), ShapeError, "batched 3D tensor but received 4-D query"),
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
