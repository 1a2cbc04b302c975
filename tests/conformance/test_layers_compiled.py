"""Layers of the table under torch.compile and torch.export."""

from __future__ import annotations

import io

import pytest
import torch
from conformance_cases import (
    assert_equal,
    relative_error,
)
from conformance_layers import (
    LAYERS,
    LayerCase,
    one_of_each,
    some_layers,
)

# --- torch.compile --------------------------------------------------------------------------------


def check_compiled(layer: LayerCase, way: str, backend: str) -> None:
    torch._dynamo.reset()
    eager, module = layer.build(way), layer.build(way)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for batch in (3, 5):
        x = layer.make_input(batch=batch)
        for each in (eager, compiled):
            each.zero_grad()
            each(x).square().sum().backward()
        assert_equal(compiled(x), eager(x), tolerance=1e-9)
        for (name, ours), theirs in zip(module.named_parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, way",
    [
        ("linear, mera, padded", "dense"),
        ("conv, generator of 2 groups", "factored"),
        ("embedding, radix 3", "factored"),
    ],
)
def test_a_layer_is_one_graph(name: str, way: str) -> None:
    check_compiled(LAYERS[name], way, backend="aot_eager")


@pytest.mark.slow
@some_layers(
    "linear, attn of two layers",
    "linear, paired",
    "linear, block_paired",
    "linear, 3 groups",
    "linear, prelu, centred",
    "linear, rational, 2 groups",
    "conv, same",
    "conv, reflect",
    "conv, 4 groups, generator of 2",
    "conv, flat and padded",
    "conv1d",
    "conv3d, replicate, 2 groups",
    "transposed, output_padding, mera",
    "transposed, 2 groups, generator of 4",
    "transposed 3d",
    "embedding, 2 groups, padding",
    "embedding, paired, padding",
    "linear, gate, two terms, layer norm",
    "linear, tt",
    "linear, lowrank, 2 groups",
    "conv, brickwall",
    "conv, subspace, 4 groups",
    "linear, Kronecker, rows",
    "conv, Kronecker, 2 groups of the generator",
    "conv1d, Kronecker with the kernel",
)
def test_every_kind_of_layer_is_one_graph(layer: LayerCase) -> None:
    check_compiled(layer, layer.way, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["dense", "factored"])
@some_layers(
    "linear, mera, padded",
    "linear, prelu, centred",
    "conv, generator of 2 groups",
    "conv, reflect",
    "transposed 1d",
    "embedding, radix 3",
    "conv, Kronecker",
)
def test_a_layer_compiles_to_machine_code(layer: LayerCase, way: str) -> None:
    check_compiled(layer, way, backend="inductor")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["dense", "factored"])
@one_of_each
def test_a_layer_is_exported(layer: LayerCase, way: str) -> None:
    module, x = layer.build(way), layer.make_input()
    exported = torch.export.export(module, (x,), strict=False)
    assert relative_error(exported.module()(x), module(x)) < 1e-12
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    assert relative_error(torch.export.load(file).module()(x), module(x)) < 1e-12


@pytest.mark.slow
@some_layers("linear, subspace")
def test_a_hash_is_the_same_in_machine_code(layer: LayerCase) -> None:
    # A product over 64 bits let the compiler drop a loop's end: it wrote past the weight.
    check_compiled(layer, "dense", backend="inductor")


def test_a_compiled_layer_follows_its_parameters() -> None:
    torch._dynamo.reset()
    layer = LAYERS["linear"]
    module, x = layer.build(), layer.make_input()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    before = compiled(x)
    with torch.no_grad():
        module.root.mul_(1.5)
    assert not torch.allclose(compiled(x), before)
    assert_equal(compiled(x), module(x))
