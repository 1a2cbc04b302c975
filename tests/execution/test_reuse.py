"""The first stage with zero and equal sub-vectors left out, against the plain product; and when it is chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from allocations import Allocations
from torch import Tensor

from adntn import ConfigError, GeneratorConfig
from adntn.execution import reuse
from adntn.execution.reuse import decide, first_stage
from adntn.nn import Linear

SIZE, COLUMNS = 24, 7


def make(name: str, rows: int = 200, size: int = SIZE, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(rows, size, dtype=dtype)
    if name == "padded":
        x[rows // 2 :] = 0.0
    elif name == "zero":
        x.zero_()
    elif name == "one-hot":
        x = torch.zeros(rows * size, dtype=dtype).index_fill_(0, torch.arange(0, rows * size, 10 * size), 1.0)
        x = x.view(rows, size)
    elif name == "few kinds":
        x = x[torch.randint(5, (rows,))]
    elif name == "one kind":
        x = x[:1].expand(rows, -1)
    elif name == "strided":
        x = make("few kinds", rows, 2 * size, dtype)[:, ::2]
    return x


every_input = pytest.mark.parametrize(
    "name", ["dense", "padded", "zero", "one-hot", "few kinds", "one kind", "strided"]
)


@every_input
@pytest.mark.parametrize("kind", ["zeros", "distinct"])
def test_both_kinds_are_the_plain_product_with_its_gradients(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "decide", lambda *_, **__: kind)
    x, matrix = make(name).requires_grad_(), torch.randn(SIZE, COLUMNS, dtype=torch.float64, requires_grad=True)
    made, expected = first_stage(x, matrix, "on"), x @ matrix
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(made)
    ours = torch.autograd.grad((made * probe).sum(), (x, matrix))
    theirs = torch.autograd.grad((expected * probe).sum(), (x, matrix))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["zeros", "distinct"])
@pytest.mark.parametrize("name", ["padded", "few kinds"])
def test_derivatives_of_first_and_second_order(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "decide", lambda *_, **__: kind)
    x, matrix = make(name, 6, 3), torch.randn(3, 2, dtype=torch.float64)
    # A row that moves off the others by a finite difference would be another kind: only the matrix is moved.
    assert torch.autograd.gradcheck(lambda m: first_stage(x, m, "on"), (matrix.requires_grad_(),))
    x.requires_grad_()

    def second(product: object) -> tuple[Tensor, ...]:
        y = first_stage(x, matrix, "on") if product is first_stage else x @ matrix
        first = torch.autograd.grad(y.sin().sum(), (x, matrix), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, matrix))

    for one, other in zip(second(first_stage), second(None), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def products(x: Tensor, matrix: Tensor, how: str) -> list[int]:
    """Return how many rows each product has that is made."""
    with Allocations() as seen:
        first_stage(x, matrix, how)
    return [shape[0] for name, shape in seen.made if name == "aten.mm.default"]


def test_zero_rows_are_left_out_and_equal_rows_computed_once() -> None:
    matrix = torch.randn(SIZE, COLUMNS, dtype=torch.float64)
    assert products(make("padded"), matrix, "on") == [100]
    assert products(make("zero"), matrix, "on")[0] <= 1
    assert products(make("few kinds"), matrix, "on") == [5]
    assert products(make("few kinds"), matrix, "off") == [200]
    assert products(make("few kinds"), matrix, "auto") == [200]  # too little to be worth a look


def test_auto_reuses_where_it_pays_and_only_there() -> None:
    large = {name: make(name, 1 << 14, 64, torch.float32) for name in ("dense", "padded", "one-hot", "few kinds")}
    chosen = {"dense": "plain", "padded": "plain", "one-hot": "zeros", "few kinds": "plain"}
    assert {name: decide(x, 64) for name, x in large.items()} == chosen
    large["padded"][1 << 12 :] = 0.0
    wide = {"dense": "plain", "padded": "zeros", "one-hot": "zeros", "few kinds": "distinct"}
    assert {name: decide(x, 256) for name, x in large.items()} == wide
    assert {decide(x, 8) for x in large.values()} == {"plain"}  # so small a product is cheaper than to look
    assert decide(large["one-hot"][:100], 256) == "plain"
    assert decide(large["one-hot"].bfloat16(), 256) == "plain"
    assert decide(large["dense"], 256, forced=True) == "zeros"
    assert decide(large["few kinds"], 8, forced=True) == "distinct"


def test_the_sample_sees_more_than_one_part_of_every_vector() -> None:
    # 64 parts of each of 256 inputs, of which all but the first are zero: rows 0, 64, 128 ... are not.
    x = torch.zeros(256, 64, 64)
    x[:, 0] = torch.randn(256, 64)
    assert decide(x.view(-1, 64), 128) == "zeros"


def test_what_is_not_a_number_stays_so_and_hashes_that_meet_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    x, matrix = make("few kinds"), torch.randn(SIZE, COLUMNS, dtype=torch.float64)
    odd = x.clone()
    odd[3, 1], odd[5] = float("nan"), float("inf")
    for kind in ("zeros", "distinct"):
        monkeypatch.setattr(reuse, "decide", lambda *_, kind=kind, **__: kind)
        torch.testing.assert_close(first_stage(odd, matrix, "on"), odd @ matrix, equal_nan=True)
    monkeypatch.setattr(reuse, "_hashes", lambda x: torch.zeros(len(x), dtype=torch.int64))
    assert torch.equal(first_stage(x, matrix, "on"), x @ matrix)


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one(rows: int) -> None:
    x, matrix = torch.randn(rows, SIZE), torch.randn(SIZE, COLUMNS)
    for how in reuse.REUSES:
        torch.testing.assert_close(first_stage(x, matrix, how), x @ matrix)


def test_half_precision_and_autocast() -> None:
    x, matrix = make("few kinds", dtype=torch.float32), torch.randn(SIZE, COLUMNS, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made, expected = first_stage(x, matrix, "on"), x @ matrix
    assert made.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(made, expected)
    made.sum().backward()
    assert matrix.grad is not None
    assert matrix.grad.dtype == torch.float32
    torch.testing.assert_close(first_stage(x.bfloat16(), matrix.bfloat16(), "on"), x.bfloat16() @ matrix.bfloat16())


@pytest.mark.usefixtures("no_graphs")
def test_where_shapes_cannot_depend_on_numbers_the_product_is_plain() -> None:
    x, matrix = make("few kinds"), torch.randn(SIZE, COLUMNS, dtype=torch.float64)
    expected = x @ matrix
    compiled = torch.compile(first_stage, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, matrix, "on"), expected)
    torch.testing.assert_close(torch.func.vmap(lambda m: first_stage(x, m, "on"))(matrix[None])[0], expected)
    made, tangent = torch.func.jvp(lambda m: first_stage(x, m, "on"), (matrix,), (matrix,))
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(tangent, expected)
    assert first_stage(x.to("meta"), matrix.to("meta"), "on").shape == expected.shape


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="reuse='always' is not known; choose one of auto, on, off"):
        first_stage(torch.zeros(2, 3), torch.zeros(3, 4), "always")


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, size, met",
    [
        ({"topology": "ttn"}, 1024, (40 * 64, 16)),  # sub-vectors of 16
        ({"topology": "ttn"}, 256, (40, 256)),  # one stage: whole rows
        ({"topology": "attn"}, 1024, None),  # a disentangler joins the stages
        ({"topology": "ttn", "groups": 2}, 1024, None),
        ({"topology": "ttn", "groups": 2}, 256, (40, 256)),
        ({"topology": "lowrank", "bond_dim": 3}, 50, (40, 50)),
    ],
    ids=str,
)
def test_a_layer_meets_equal_sub_vectors_once(
    options: dict[str, Any], size: int, met: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    decide = reuse.decide
    monkeypatch.setattr(reuse, "decide", lambda x, *a, **k: seen.append(tuple(x.shape)) or decide(x, *a, **k))
    layer = Linear(size, 96, config=GeneratorConfig(**options), execution="factored", dtype=torch.float64)
    x = torch.zeros(40, size, dtype=torch.float64)
    x[::3, 5] = 1.0
    x[7] = x[1] = torch.randn(size, dtype=torch.float64)
    found = []
    for layer.reuse in ("off", "on"):
        given = x.clone().requires_grad_()
        y = layer(given)
        y.square().sum().backward()
        found.append([y, given.grad, *(p.grad for p in layer.parameters())])
        layer.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert seen == ([] if met is None else [met])
    assert "reuse" not in vars(layer.to_dense())
