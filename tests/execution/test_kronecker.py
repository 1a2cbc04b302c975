"""Layers run through sums of Kronecker products, against the whole weight."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance_cases import PLAIN, assert_equal, relative_error, scramble
from torch import Tensor

import adntn
from adntn import Generator, GeneratorConfig
from adntn.errors import ConfigError, ShapeError
from adntn.execution import kronecker
from adntn.execution.cost import applying_seconds
from adntn.execution.counting import Count, Op, Tally
from adntn.execution.machine import shipped, using
from adntn.execution.plan import multiply_adds
from adntn.nn import Conv1d, Conv2d, Conv3d, ConvTranspose2d, Embedding, GeneratedLayer, Linear, MultiheadAttention
from adntn.nn import _generated as generated

MakeLayer = Callable[..., GeneratedLayer]


def config(**options: Any) -> GeneratorConfig:
    return GeneratorConfig(**{**PLAIN, "order": "paired", "bond_dim": 1, "kernel_radix": 3, "terms": 2, **options})


def make(kind: Any, *sizes: Any, radix: int = 6, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    chosen = {name: options.pop(name) for name in ("terms", "groups_of_rows", "gate") if name in options}
    chosen = {"groups" if name == "groups_of_rows" else name: value for name, value in chosen.items()}
    layer = kind(*sizes, config=config(radix=radix, **chosen), execution="factored", dtype=dtype, **options)
    return scramble(layer)


def dense(layer: Any) -> Any:
    plain = copy.deepcopy(layer)
    plain.execution = "dense"
    return plain


def gradients(layer: Any, x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    y = layer(x)
    probe = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return (y, *torch.autograd.grad(y, [x, *layer.parameters()], probe))


CONVOLUTIONS: list[tuple[Any, int, dict[str, Any]]] = [
    (Conv2d, 3, {"padding": 1}),
    (Conv2d, 3, {"stride": (2, 1), "dilation": (1, 2), "padding": (0, 1), "groups_of_rows": 2}),
    (Conv2d, 3, {"padding": "same", "terms": 1, "bias": False}),
    (Conv2d, 1, {"padding": (1, 0), "stride": (1, 3)}),
    (Conv1d, 9, {"padding": 2, "padding_mode": "reflect"}),
    (Conv3d, 3, {"padding": 1, "stride": (1, 2, 1), "radix": 9}),
]


@pytest.mark.parametrize("channels", [(36, 36), (25, 34), (34, 7)], ids=str)
@pytest.mark.parametrize("kind, size, options", CONVOLUTIONS, ids=lambda v: str(v) if isinstance(v, dict) else None)
def test_a_kernel_channel_by_channel_is_the_kernel_with_the_trailing_digits(
    kind: Any, size: int, options: dict[str, Any], channels: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make(kind, *channels[:1], channels[1] // 2 * 2, size, **options)
    x = torch.randn(2, channels[0], *(7, 6, 5)[: len(layer.kernel_size)], dtype=torch.float64)
    expected = gradients(dense(layer), x)
    for merged in (True, False):
        monkeypatch.setattr(generated, "merges", lambda *_, merged=merged: merged)
        for ours, theirs in zip(gradients(layer, x), expected, strict=True):
            assert_equal(ours, theirs)


def test_processors_meet_a_kernel_of_float64_with_the_trailing_digits() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert kronecker.merges(cpu, torch.float64)
    assert kronecker.merges(cpu, torch.float32) is not torch.backends.mkldnn.is_available()
    assert not kronecker.merges(cuda, torch.float64)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)], ids=str)
def test_other_precisions(dtype: torch.dtype, tolerance: float) -> None:
    for layer, shape in (
        (make(Linear, 36, 40, radix=7, dtype=dtype), (5, 36)),
        (make(Conv2d, 36, 25, 3, padding=1, dtype=dtype), (2, 36, 4, 4)),
    ):
        x = torch.randn(shape, dtype=dtype)
        assert layer(x).dtype == dtype
        for ours, theirs in zip(gradients(layer, x), gradients(dense(layer), x), strict=True):
            assert relative_error(ours.double(), theirs.double()) < tolerance


def test_autocast() -> None:
    for layer, shape in (
        (make(Linear, 36, 40, radix=7, dtype=torch.float32), (5, 36)),
        (make(Conv2d, 36, 25, 3, padding=1, dtype=torch.float32), (2, 36, 4, 4)),
    ):
        x = torch.randn(shape)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
            y.float().sum().backward()
        assert y.dtype == torch.bfloat16
        assert relative_error(y.double(), layer(x).double()) < 5e-2
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


# --- pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 600, 900])
def test_a_large_batch_goes_through_in_pieces(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer, shape in (
        (make(Linear, 36, 40, radix=7), (2, 7, 36)),
        (make(Conv2d, 25, 36, 3, padding=1), (7, 25, 3, 3)),
    ):
        x = torch.randn(shape, dtype=torch.float64)
        expected = gradients(layer, x)
        with Tally() as before:
            layer(x)
        with monkeypatch.context() as patched:
            patched.setattr(kronecker, "_PIECE", piece)
            with Tally() as tally:
                layer(x)
            assert len(tally.ops) > len(before.ops)
            for ours, theirs in zip(gradients(layer, x), expected, strict=True):
                assert_equal(ours, theirs)
            assert layer(x[:0]).shape == (0, *expected[0].shape[1:])


@pytest.mark.slow
def test_an_exported_layer_takes_any_batch() -> None:
    batch = torch.export.Dim("batch", min=1, max=512)
    for layer, shape in (
        (make(Linear, 36, 40, radix=7), (36,)),
        (make(Conv2d, 25, 36, 3, padding=1), (25, 4, 4)),
    ):
        program = torch.export.export(
            layer, (torch.randn(20, *shape, dtype=torch.float64),), dynamic_shapes=({0: batch},)
        )
        for size in (1, 3, 512):
            x = torch.randn(size, *shape, dtype=torch.float64)
            assert_equal(program.module()(x), layer(x))


def test_outputs_are_contiguous_where_rows_are_cropped() -> None:
    for bias in (True, False):
        assert make(Linear, 36, 40, radix=7, bias=bias)(torch.randn(3, 36, dtype=torch.float64)).is_contiguous()
        assert make(Conv2d, 36, 40, 3, radix=7, bias=bias)(
            torch.randn(3, 36, 4, 4, dtype=torch.float64)
        ).is_contiguous()


def test_examples_one_by_one_give_the_same() -> None:
    for layer, shape in (
        (make(Linear, 36, 40, radix=7), (3, 36)),
        (make(Conv2d, 36, 25, 3, padding=1), (3, 36, 4, 4)),
    ):
        x = torch.randn(shape, dtype=torch.float64)
        assert_equal(torch.func.vmap(layer)(x), layer(x))


def test_maps_come_out_in_the_memory_format_of_the_input() -> None:
    layer = make(Conv2d, 25, 36, 3, padding=1)
    x = torch.randn(2, 25, 4, 5, dtype=torch.float64)
    last = layer(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous()
    assert_equal(last, layer(x))
    assert_equal(layer(x.transpose(2, 3)), dense(layer)(x.transpose(2, 3)))


# --- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, shape",
    [
        (lambda **how: Linear(1024, 1024, **how), (4, 1024)),
        (lambda **how: Conv2d(256, 256, 3, padding=1, **how), (2, 256, 4, 4)),
        (lambda **how: Conv1d(256, 256, 3, padding=1, **how), (2, 256, 8)),
    ],
    ids=["linear", "conv2d", "conv1d"],
)
def test_the_weight_is_never_made(build: MakeLayer, shape: tuple[int, ...]) -> None:
    layer = build(config=config(radix=32 if len(shape) == 2 else 16), execution="factored", device="meta")
    with Tally() as tally:
        layer(torch.empty(shape, device="meta").requires_grad_()).sum().backward()
    assert max(op.written for op in tally.ops) <= 4 * layer.blueprint.size // 8


@pytest.mark.parametrize("channels", [(32, 32), (16, 32), (32, 18)], ids=str)
@pytest.mark.parametrize("radix, kernel_radix, groups", [(6, 2, 1), (7, 2, 2), (8, 4, 1)])
def test_multiply_adds_are_those_that_a_layer_does(
    radix: int, kernel_radix: int, groups: int, channels: tuple[int, int]
) -> None:
    options = config(radix=radix, kernel_radix=kernel_radix, groups=groups, terms=3)
    layer = Conv2d(*channels, 2, stride=2, bias=False, config=options, execution="factored", device="meta")
    made = layer.kronecker_matrices(merged=False)
    object.__setattr__(layer, "_keep", lambda *_: made)
    with torch.no_grad(), Tally() as tally:
        layer(torch.empty(2, channels[0], 8, 8, device="meta"))
    assert sum(op.flops for op in tally.ops) == 2 * 2 * 16 * multiply_adds(layer, stride=4).factored


def test_multiply_adds_of_a_linear_layer() -> None:
    # Of each term: 16 times 64 x 64 before, 64 times 64 x 16 behind.
    layer = Linear(4096, 1000, config=config(radix=64, terms=3), device="meta")
    assert layer._work() is not None
    assert multiply_adds(layer).factored == 3 * (16 * 64 * 64 + 16 * 64 * 64)
    assert multiply_adds(layer).dense == 4096 * 1000
    some = Linear.from_dense(torch.nn.Linear(4096, 64, device="meta"), share=layer, rows=(128, 192))
    assert multiply_adds(some).factored == 3 * (64 * 64 + 64 * 64)


def test_what_is_kept_is_small() -> None:
    layer = make(Conv2d, 36, 36, 3, padding=1, dtype=torch.float32)
    x, made = torch.randn(2, 36, 4, 4), []
    with torch.no_grad(), adntn.cached(layer):
        expected = layer(x)
        layer.kronecker_matrices = lambda **_: made.append(None)
        assert torch.equal(layer(x), expected)
        assert not made
        del layer.kronecker_matrices
        layer.root.mul_(2.0)
        assert not torch.allclose(layer(x), expected)
    kept = adntn.plan(layer, (2, 36, 4, 4), mode="kept")
    rebuilt = adntn.plan(layer, (2, 36, 4, 4), mode="rebuilt")
    assert {row.way for row in kept.rows} == {"factored", "dense"}
    assert next(row for row in kept.rows if row.taken).calls < next(row for row in rebuilt.rows if row.taken).calls
    numbers = sum(m.numel() for m in layer.kronecker_matrices(merged=False))
    assert numbers <= layer.num_parameters


def test_auto_takes_it_where_it_is_faster() -> None:
    with using(shipped()):
        large = Conv2d(256, 256, 3, padding=1, config=config(radix=16))
        many = Conv2d(64, 64, 3, padding=1, config=config(radix=8, terms=40))
        linear = Linear(1024, 1024, config=config(radix=32))
    assert {large.way_for(4096, mode) for mode in ("training", "rebuilt", "kept")} == {"factored"}
    assert {many.way_for(4096, mode) for mode in ("training", "rebuilt", "kept")} == {"dense"}
    assert linear.way_for(512) == "factored"
    assert "multiply-adds a position factored" in large.way.reason


# --- with what else there is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_cores(bits: int) -> None:
    layer = make(Conv2d, 36, 36, 3, padding=1)
    x = torch.randn(2, 36, 4, 4, dtype=torch.float64)
    before = layer(x)
    adntn.quantize_(layer, bits=bits)
    assert layer.way.name == "factored"
    assert not torch.allclose(layer(x), before)
    assert_equal(layer(x), dense(layer)(x))


def test_the_adjoint() -> None:
    layer = make(Linear, 36, 40, radix=7, gate=True)
    x = torch.randn(3, 36, dtype=torch.float64)
    expected = gradients(layer, x)
    layer.backward = "adjoint"
    for ours, theirs in zip(gradients(layer, x), expected, strict=True):
        assert_equal(ours, theirs)


def test_what_is_saved_runs_so_again(tmp_path: Any) -> None:
    def model() -> torch.nn.Sequential:
        return torch.nn.Sequential(torch.nn.Conv2d(36, 49, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(49, 36, 3))

    saved, x = model(), torch.randn(2, 36, 5, 5)
    adntn.compress_(saved, config(radix=7), execution="factored")
    adntn.save(saved, tmp_path / "model.safetensors")
    loaded = adntn.load(model(), tmp_path / "model.safetensors")
    assert all(layer.way.name == "factored" for layer in (loaded[0], loaded[2]))
    assert torch.equal(loaded(x), saved(x))
    torch.testing.assert_close(adntn.materialize(loaded)(x), saved(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups, runs", [(1, "factored"), (3, "factored"), (2, "factored")])
def test_an_attention_projects_by_it(groups: int, runs: str) -> None:
    options = config(radix=7, groups=groups)
    attention = MultiheadAttention(36, 4, batch_first=True, config=options, execution="factored", dtype=torch.float64)
    x, keys = torch.randn(2, 5, 36, dtype=torch.float64), torch.randn(2, 7, 36, dtype=torch.float64)
    plain = copy.deepcopy(attention)
    for part in (plain.in_proj, plain.out_proj):
        part.execution = "dense"
    assert attention.in_proj.way.name == runs
    # Of two groups the keys' rows would have a part of each, and the weight is made.
    for args in ((x, x, x), (x, keys, keys)):
        assert_equal(attention(*args)[0], plain(*args)[0])


def test_growing_keeps_it_and_what_would_end_it_is_refused() -> None:
    layer, x = make(Linear, 36, 36, terms=1), torch.randn(3, 36, dtype=torch.float64)
    before = layer(x)
    adntn.grow_(layer, terms=2)
    assert (layer.config.terms, layer.way.name) == (2, "factored")
    assert_equal(layer(x), before)
    with pytest.raises(ConfigError, match="execution='factored' was asked for, and order='paired' has no split"):
        adntn.grow_(layer, bond_dim=2)
    layer.execution = "auto"
    adntn.grow_(layer, bond_dim=2)
    assert layer.way.name == "dense"


# --- what stands in the way -------------------------------------------------------------------------------------------


def test_what_cannot_run_so_runs_dense_and_says_why() -> None:
    options = config(radix=7)
    for layer in (
        Embedding(49, 40, config=options),
        ConvTranspose2d(49, 40, 3, config=options),
        Conv2d(98, 98, 3, groups=2, config=options),
    ):
        assert layer.way.name == "dense"
        assert layer.way.reason.startswith(
            "order='paired' has no split into factors, and its sum of Kronecker products"
        )
        with pytest.raises(ConfigError, match="for linear layers and convolutions without groups; use"):
            layer.execution = "factored"
    whole = Generator((98, 49), config(radix=7, groups=2))
    across = Linear.from_dense(torch.nn.Linear(49, 40), share=whole, rows=(30, 70))
    assert (across.way.name, across.kronecker) == ("dense", None)
    assert "cut through the generator's groups" in across.way.reason
    two = config(bond_dim=2)
    assert Linear(36, 36, config=two).way.reason == "order='paired' has no split into factors"


def test_a_row_of_padding_is_zero_in_a_tied_layer() -> None:
    for padding_first in (True, False):
        table = Embedding(49, 40, 3 if padding_first else None, config=config(radix=7))
        head = Linear.from_dense(torch.nn.Linear(40, 49, bias=False), share=table)
        if not padding_first:
            assert head.way.name == "factored"
            Embedding.from_dense(torch.nn.Embedding(49, 40, 3), share=head)
        else:
            assert "rows of its sum of Kronecker products are zero" in head.way.reason
        x = torch.randn(5, 40)
        assert not head(x)[:, 3].any()
        torch.testing.assert_close(head(x), x @ head.weight.T)


@pytest.mark.parametrize("shape", [(2, 35, 4, 4), (36, 4), (2, 2, 36, 4, 4)], ids=str)
def test_an_input_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        make(Conv2d, 36, 36, 3)(torch.randn(shape, dtype=torch.float64))
    with pytest.raises(ShapeError, match="cannot be multiplied"):
        make(Linear, 36, 36)(torch.randn(2, 35, dtype=torch.float64))


def test_every_part_of_the_rows() -> None:
    # Within a group, and of whole groups, of a sum with leading digits that some rows have none of.
    for groups in (1, 3):
        layer = make(Linear, 36, 60, radix=7, groups_of_rows=groups)
        x = torch.randn(4, 36, dtype=torch.float64)
        whole, run = dense(layer)(x), layer._kronecker()
        size = 60 // groups
        for start, stop in itertools.combinations(range(0, 61, 4), 2):
            part, own = run.rows(start, stop), None if layer.bias is None else layer.bias[start:stop]
            if part is None:
                assert (stop - 1) // size != start // size
                assert start % size or stop % size
                continue
            assert_equal(part.linear(x, own), whole[:, start:stop])
            if stop - start > 8:
                within = part.rows(4, 8)
                assert_equal(within.linear(x, None if own is None else own[4:8]), whole[:, start + 4 : start + 8])


def test_a_convolution_channel_by_channel_takes_as_long_as_one_of_a_vectors_channels() -> None:
    profile, flops = shipped(), 1 << 24

    def seconds(sizes: tuple[int, int, int, int], flops: int = flops) -> float:
        count = Count(((Op("kernel", flops, sizes=sizes, images=16), 1),))
        return applying_seconds(count, profile, torch.float32, training=False)

    call = 4 * profile.convolutions
    assert seconds((256, 512, 1, 1), 0) == call
    assert seconds((256, 512, 1, 1)) - call == pytest.approx(seconds((1, 512, 16, 16)) - profile.convolutions)
    assert seconds((8, 512, 1, 1)) > seconds((256, 512, 1, 1))
