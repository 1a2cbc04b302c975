"""``adntn.nn.Embedding``: a torch embedding in every respect but where its table comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adntn
from adntn import GeneratorConfig
from adntn.errors import CompressionError, ConfigError, ShapeError
from adntn.nn import GENERATED, Embedding, GeneratedLayer, Linear

CONFIG = GeneratorConfig(topology="mera", order="blocked")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padding": {"padding_idx": 3},
    "padding from the end": {"padding_idx": -1},
    "norm_type": {"norm_type": 1.0},
}
DESCRIPTION = (
    "num_embeddings",
    "embedding_dim",
    "padding_idx",
    "max_norm",
    "norm_type",
    "scale_grad_by_freq",
    "sparse",
)
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
both_ways = pytest.mark.parametrize("execution", ["dense", "factored"])


@every_option
def test_it_describes_itself_as_torchs_does(options: dict[str, Any]) -> None:
    layer, torchs = Embedding(40, 20, **options), nn.Embedding(40, 20, **options)
    assert isinstance(layer, nn.Embedding)
    assert isinstance(layer, GeneratedLayer)
    assert GENERATED[nn.Embedding] is Embedding
    assert layer.weight.shape == torchs.weight.shape
    for name in DESCRIPTION:
        assert getattr(layer, name) == getattr(torchs, name), name
    assert repr(layer).startswith(repr(torchs).removesuffix(")"))


def test_its_arguments_stand_where_torchs_do() -> None:
    layer = Embedding(40, 20, 3, None, 2.0, False, False, CONFIG, dtype=torch.float64)
    assert layer.padding_idx == 3
    assert layer.config == CONFIG
    assert layer(torch.tensor([1, 2])).dtype == torch.float64


@every_option
@pytest.mark.parametrize("training", [True, False])
def test_from_dense_keeps_everything_but_the_table(options: dict[str, Any], training: bool) -> None:
    dense = nn.Embedding(40, 20, dtype=torch.float64, **options).train(training)
    layer = Embedding.from_dense(dense, CONFIG)
    assert layer.training is training
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    for name in DESCRIPTION:
        assert getattr(layer, name) == getattr(dense, name), name


@every_option
def test_to_dense_is_a_plain_layer_with_the_table_as_it_is(options: dict[str, Any]) -> None:
    layer = Embedding(40, 20, dtype=torch.float64, **options).eval()
    dense, torchs = layer.to_dense(), nn.Embedding(40, 20, **options)
    assert type(dense) is nn.Embedding
    assert not dense.training
    assert set(vars(dense)) == set(vars(torchs))
    assert set(dense._parameters) == set(torchs._parameters)
    assert repr(dense) == repr(torchs)
    assert torch.equal(dense.weight, layer.weight)
    index = torch.arange(40)
    torch.testing.assert_close(dense(index), layer(index), rtol=1e-12, atol=1e-12)


def test_the_table_starts_as_torchs_does() -> None:
    layer, dense = Embedding(1000, 100, config=CONFIG), Embedding.from_dense(nn.Embedding(1000, 100), CONFIG)
    for each in (layer, dense):
        assert float(each.weight.detach().std()) == pytest.approx(1.0, rel=1e-2)
        each.reset_parameters()
        assert float(each.weight.detach().std()) == pytest.approx(1.0, rel=1e-2)
    # Linear layers of the same shape start as they did.
    assert float(Linear(100, 1000, config=CONFIG).weight.detach().std()) == pytest.approx(300**-0.5, rel=1e-2)


@both_ways
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (2, 0), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_indices_may_have_any_shape(shape: tuple[int, ...], dtype: torch.dtype, execution: str) -> None:
    layer = Embedding(40, 20, config=CONFIG, execution=execution, dtype=torch.float64)
    index = torch.randint(40, shape, dtype=dtype)
    torch.testing.assert_close(layer(index), F.embedding(index, layer.weight), rtol=1e-12, atol=1e-12)


@both_ways
def test_what_torch_refuses_is_refused_in_the_same_words(execution: str) -> None:
    layer = Embedding(40, 20, execution=execution)
    for wrong in (torch.tensor([40]), torch.tensor([-1]), torch.tensor([1.0])):
        with pytest.raises((IndexError, RuntimeError)) as theirs:
            nn.Embedding(40, 20)(wrong)
        with pytest.raises(type(theirs.value)) as ours:
            layer(wrong)
        assert str(ours.value) == str(theirs.value)


@both_ways
def test_half_precision_rows_are_close_to_the_tables(execution: str) -> None:
    layer = Embedding(300, 100, config=CONFIG, execution=execution, dtype=torch.bfloat16)
    for count in (20, 300):
        rows, table = layer(torch.arange(count)).detach(), layer.weight[:count].detach()
        assert rows.dtype == torch.bfloat16
        assert float((rows.float() - table.float()).norm() / table.float().norm()) < 1e-2


@both_ways
def test_rows_are_kept_in_the_block_of_cached(execution: str) -> None:
    model = nn.Sequential(Embedding(300, 100, 7, config=CONFIG, execution=execution))
    index = torch.arange(20)
    expected = model(index)
    with adntn.cached(model):
        for _ in range(2):
            torch.testing.assert_close(model(index), expected)
        model[0].root.mul_(1.5)
        assert not torch.allclose(model(index), expected)
        assert not model(torch.tensor(7)).any()


def test_few_rows_are_made_one_by_one_and_a_kept_table_is_cut_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def record(name: str) -> None:
        make = getattr(Embedding, name)
        monkeypatch.setattr(Embedding, name, lambda *given: (made.append(name), make(*given))[1])

    record("_whole_factors")
    record("factors_at")
    layer = Embedding(300, 100, 7, config=CONFIG, execution="factored")
    layer(torch.arange(299))
    layer(torch.arange(300))
    assert made == ["factors_at", "_whole_factors"]
    with adntn.cached(nn.Sequential(layer)):
        layer(torch.arange(2))
        layer(torch.arange(3))
    assert made == ["factors_at", "_whole_factors", "_whole_factors"]


# --- padding ----------------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("groups", [1, 2])
def test_the_row_of_padding_is_zero_and_stays_zero(groups: int, execution: str) -> None:
    layer = Embedding(40, 20, -3, config=CONFIG.replace(groups=groups), execution=execution)
    index = torch.tensor([[0, 37], [37, 1]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        y = layer(index)
        assert torch.equal(y == 0, (index == 37).unsqueeze(-1).expand_as(y))
        assert torch.equal((layer.weight == 0).all(1), torch.arange(40) == 37)
        optimizer.zero_grad()
        (y - 1).square().sum().backward()
        optimizer.step()


@both_ways
def test_padding_gives_no_gradient(execution: str) -> None:
    layer = Embedding(40, 20, 3, execution=execution)
    layer(torch.full((4,), 3)).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in layer.parameters())


@both_ways
def test_a_table_that_is_not_finite_is_still_zero_at_padding(execution: str) -> None:
    layer = Embedding(40, 20, 3, execution=execution)
    with torch.no_grad():
        layer.root.fill_(float("nan"))
    assert layer.weight[4].isnan().all()
    assert not layer.weight[3].any()


# --- refused ----------------------------------------------------------------------------------------------------------

REFUSED: dict[str, dict[str, Any]] = {
    "max_norm": {"max_norm": 1.0},
    "scale_grad_by_freq": {"scale_grad_by_freq": True},
    "sparse": {"sparse": True},
}


@pytest.mark.parametrize("option", REFUSED)
def test_options_that_a_generated_table_cannot_have_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"Embedding cannot be generated: it has {option}="):
        Embedding(40, 20, **REFUSED[option])
    dense = nn.Embedding(40, 20, **REFUSED[option])
    with pytest.raises(ConfigError, match=rf"it has {option}="):
        Embedding.from_dense(dense)
    model = nn.Sequential(dense, nn.Linear(20, 20))
    with pytest.raises(CompressionError, match=rf"'0' cannot be generated: it has {option}=.*Possible are '1'"):
        adntn.compress_(model, targets="0")
    assert [row.name for row in adntn.compress_(model).layers] == ["1"]  # a pattern passes over it


def test_impossible_tables_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(0, 20\)"):
        Embedding(0, 20)
    with pytest.raises(ShapeError, match="groups=3 does not divide the 40 rows"):
        Embedding(40, 20, config=GeneratorConfig(groups=3))
    for wrong in (40, -41):
        with pytest.raises(ConfigError, match=f"padding_idx={wrong} is not one of the 40 rows"):
            Embedding(40, 20, wrong)
    with pytest.raises(ConfigError, match="cannot take over given rows"):
        Embedding.from_pretrained(torch.randn(40, 20))


# --- tied with a language model's head --------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """An embedding and a head that share one weight."""

    def __init__(self, padding_idx: int | None = None, *, head_first: bool = False) -> None:
        super().__init__()
        if head_first:
            self.head = nn.Linear(20, 40)
        self.table = nn.Embedding(40, 20, padding_idx)
        self.mix = nn.Linear(20, 20)
        if not head_first:
            self.head = nn.Linear(20, 40)
        self.head.weight = self.table.weight

    def forward(self, index: Tensor) -> Tensor:
        result: Tensor = self.head(self.mix(self.table(index)))
        return result


def tied(padding_idx: int | None = None, execution: str = "auto", *, head_first: bool = False) -> LanguageModel:
    model = LanguageModel(padding_idx, head_first=head_first).double()
    adntn.compress_(model, CONFIG, "re:table|head", execution=execution)
    return model


INDEX = torch.tensor([[0, 3, 39], [17, 3, 3]])


@pytest.mark.parametrize("head_first", [False, True])
def test_a_tied_pair_has_one_generator(head_first: bool) -> None:
    model = tied(head_first=head_first)
    assert isinstance(model.table, Embedding)
    assert isinstance(model.head, Linear)
    assert model.table.root is model.head.root
    assert torch.equal(model.table.weight, model.head.weight)
    # The deviation is that of the first of them.
    assert float(model.head.weight.detach().std()) == pytest.approx(60**-0.5 if head_first else 1.0, rel=2e-2)
    stored = sum(p.numel() for p in model.parameters())
    assert stored == model.head.num_parameters + 40 + 20 * 20 + 20


@both_ways
@pytest.mark.parametrize("head_first", [False, True])
def test_a_tied_pair_agrees_on_the_row_of_padding(head_first: bool, execution: str) -> None:
    model = tied(3, execution, head_first=head_first)
    assert isinstance(model.head, Linear)
    assert model.head.bias is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(2):
        assert torch.equal(model.table.weight, model.head.weight)
        assert not model.head.weight[3].any()
        y = model(INDEX)
        assert torch.equal(y[..., 3], model.head.bias[3].expand(2, 3))
        optimizer.zero_grad()
        y.square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("head_first", [False, True])
def test_a_tied_pair_becomes_a_tied_pair_of_torchs(head_first: bool) -> None:
    model = tied(3, head_first=head_first)
    dense = adntn.materialize(model)
    assert isinstance(dense, LanguageModel)
    assert dense.table.weight is dense.head.weight
    assert type(dense.table) is nn.Embedding
    assert dense.table.padding_idx == 3
    torch.testing.assert_close(dense(INDEX), model(INDEX), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_tied_pair_goes_through_a_file(tmp_path: Path, head_first: bool, compressed: bool) -> None:
    model = tied(3, head_first=head_first)
    path = adntn.save(model, tmp_path / "model.safetensors")
    fresh = tied(3, head_first=head_first) if compressed else LanguageModel(3, head_first=head_first).double()
    loaded = adntn.load(fresh, path)
    assert isinstance(loaded.head, Linear)
    assert loaded.table.root is loaded.head.root  # type: ignore[comparison-overlap]
    assert torch.equal(loaded(INDEX), model(INDEX))
    assert not loaded.head.weight[3].any()


def test_a_head_of_two_tables_is_zero_where_either_pads() -> None:
    first = Linear(20, 40, config=CONFIG)
    tables = [
        Embedding.from_dense(nn.Embedding(40, 20, padding), share=first, execution="factored")
        for padding in (3, None, 5)
    ]
    for layer in (first, *tables):
        assert torch.equal((layer.weight == 0).all(1).nonzero().flatten(), torch.tensor([3, 5]))
    assert not tables[1](torch.tensor([3, 5])).any()


def test_half_of_a_tied_pair_is_refused() -> None:
    with pytest.raises(CompressionError, match=r"'table' shares its weight with 'head\.weight'"):
        adntn.compress_(LanguageModel(), targets="table")


def test_a_report_counts_a_tied_pair_once() -> None:
    report = adntn.compress_(LanguageModel(), CONFIG, ["table", "head"])
    assert [(row.kind, row.shape, row.generated > 0) for row in report.layers] == [
        ("Embedding", (40, 20), True),
        ("Linear", (40, 20), False),
    ]
