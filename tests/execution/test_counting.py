"""Operations on the meta device are counted as those of a real run."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from conformance_layers import LayerCase, some_layers
from torch import Tensor

from adntn.execution import counting
from adntn.execution.counting import Op, Tally, tensors_in

one_of_each_and_mera = some_layers(
    "linear, mera, padded",
    "linear, 3 groups",
    "linear, gate, two terms, layer norm",
    "conv, 4 groups, generator of 2",
    "conv, flat and padded",
    "conv, brickwall",
    "conv1d, reflect, no bias",
    "transposed, output_padding, mera",
    "linear, tt",
)


def made(module: torch.nn.Module) -> Counter[Op]:
    with torch.no_grad(), Tally() as tally:
        module.generate()
        module.factors()
    return Counter(dict(tally.count().ops))


@one_of_each_and_mera
def test_the_meta_device_counts_what_is_done_for_real(layer: LayerCase) -> None:
    module = layer.build()
    assert made(module._on_meta()) == made(module)


@one_of_each_and_mera
def test_what_is_known_by_itself_is_what_torch_says(layer: LayerCase, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = layer.build()._on_meta()
    known = made(twin)
    monkeypatch.setattr(counting, "_on_meta", lambda *_: None)
    assert made(twin) == known


def test_memory_is_counted_while_it_is_held() -> None:
    with Tally() as tally:
        a = torch.empty(100)
        b = a + 1
        del a
        c = b.view(10, 10).T @ torch.ones(10, 10)
        del b
        torch.zeros(10)
    assert tally.count().peak == 4 * 300
    assert tally.count(without=[c]).peak == 4 * 200


def test_views_move_nothing_and_expanded_arrays_are_as_large_as_what_they_were() -> None:
    x = torch.ones(4, 1)
    with Tally() as tally:
        y = x.expand(4, 100).unsqueeze(0)
        y.sum()
        x.add_(1)
    assert [op.kind for op in tally.ops] == ["view", "view", "move", "move"]
    assert [(op.read, op.written) for op in tally.ops[2:]] == [(16, 4), (16, 16)]


@pytest.mark.parametrize(
    "run, sizes",
    [
        (lambda x: x @ x.mT, (1, 6, 4, 6)),
        (lambda x: torch.addmm(x, x, torch.ones(4, 4)), (1, 6, 4, 4)),
        (lambda x: x.view(2, 3, 4) @ torch.ones(2, 4, 5), (2, 3, 4, 5)),
        (lambda x: x @ torch.ones(4), (1, 6, 4, 1)),
    ],
)
def test_products_say_their_sizes(run: object, sizes: tuple[int, ...]) -> None:
    with Tally() as tally:
        run(torch.ones(6, 4))  # type: ignore[operator]
    (op,) = [op for op in tally.ops if op.kind == "product"]
    items, m, k, n = sizes
    assert (op.sizes, op.flops) == (sizes, 2 * items * m * k * n)


def test_tensors_are_found_at_any_depth() -> None:
    x: list[Tensor] = [torch.ones(n) for n in range(4)]
    assert [len(t) for t in tensors_in((x[0], [x[1], {"a": x[2]}], None, 3, "x", (x[3],)))] == [0, 1, 2, 3]
