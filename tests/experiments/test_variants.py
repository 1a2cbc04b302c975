"""The networks that are compared: what starts equal in them, and what is trained."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from adntn.compress import compress_
from adntn.errors import CompressionError
from adntn.experiments.deleted import Deleted
from adntn.experiments.models import alexnet, small_cnn
from adntn.experiments.variants import KINDS, Variant
from adntn.nn import Conv2d
from adntn.topology import GeneratorConfig

CONFIG = GeneratorConfig(topology="mera")
VARIANTS = {kind: Variant(f"my {kind}", kind, CONFIG) for kind in KINDS}
LAYERS = ("conv2", "conv3")
build = functools.partial(small_cnn, (1, 8, 8), 10)


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    "make, layers",
    [(build, LAYERS), (functools.partial(alexnet, (3, 32, 32), 10, 1 / 16), ("features.3", "features.10"))],
    ids=["small-cnn", "alexnet"],
)
def test_what_is_not_replaced_starts_equal_in_all_variants_of_a_seed(
    make: functools.partial[nn.Module], layers: tuple[str, ...], seed: int
) -> None:
    torch.manual_seed(seed + 100)  # whatever was drawn before
    dense = VARIANTS["dense"].make(make, layers, seed).state_dict()
    kept = {name for name in dense if name.rpartition(".")[0] not in layers}
    assert 0 < len(kept) < len(dense)
    for variant in VARIANTS.values():
        torch.rand(3)
        state = variant.make(make, layers, seed).state_dict()
        assert {name for name in state if not name.startswith(layers)} == {n for n in kept if not n.startswith(layers)}
        assert all(torch.equal(state[name], dense[name]) for name in kept), variant.name
    other = VARIANTS["dense"].make(make, layers, seed + 1).state_dict()
    assert not all(torch.equal(other[name], dense[name]) for name in kept)


def test_each_kind_is_what_it_says() -> None:
    made = {kind: variant.make(build, LAYERS, 0) for kind, variant in VARIANTS.items()}
    trained = {kind: {n for n, p in model.named_parameters() if p.requires_grad} for kind, model in made.items()}
    rest = {name for name, _ in build().named_parameters() if not name.startswith(LAYERS)}
    assert trained["deleted"] == trained["frozen"] == trained["frozen-dense"] == rest
    assert trained["dense"] == rest | {f"{name}.weight" for name in LAYERS}
    assert trained["generated"] > rest
    for name in LAYERS:
        kinds = {kind: model.get_submodule(name) for kind, model in made.items()}
        assert type(kinds["dense"]) is type(kinds["frozen-dense"]) is nn.Conv2d
        assert isinstance(kinds["deleted"], Deleted)
        for kind in ("generated", "frozen"):
            assert isinstance(kinds[kind], Conv2d)
            assert kinds[kind].config == CONFIG
        assert torch.equal(kinds["frozen"].weight, kinds["generated"].weight)
        assert torch.equal(kinds["frozen-dense"].weight, kinds["dense"].weight)


def test_it_is_what_compress_makes_with_the_same_seed() -> None:
    other = GeneratorConfig(topology="lowrank", bond_dim=3)
    torch.manual_seed(4)
    expected = build()
    compress_(expected, CONFIG, list(LAYERS), overrides={"conv3": other})
    made = Variant("mixed", config=CONFIG, overrides={"conv3": other}).make(build, LAYERS, 4)
    assert made.get_submodule("conv3").config == other
    state = expected.state_dict()
    assert made.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in made.state_dict().items())


def test_a_layer_that_is_not_there_is_named() -> None:
    for kind in ("deleted", "frozen-dense", "generated"):
        with pytest.raises(CompressionError, match=r"'conv9'.*conv"):
            VARIANTS[kind].make(build, ("conv9",), 0)
