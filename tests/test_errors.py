"""The same mistakes with every family of layers: each is the library's own error, and says what would work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_models import CONFIG
from torch import nn

import adntn
from adntn.errors import CheckpointError, CompressionError, ConfigError, GeneratorTooLargeError, ShapeError

pytestmark = pytest.mark.usefixtures("few_objects")

FAMILIES: dict[str, tuple[Callable[[int], nn.Module], str, str]] = {
    # A layer of a size, what is a target of it, and the parameter that is generated.
    "conv1d": (lambda size: nn.Conv1d(4, size, 3), "x", "weight"),
    "conv3d": (lambda size: nn.Conv3d(4, size, 2), "x", "weight"),
    "transposed": (lambda size: nn.ConvTranspose2d(size, 4, 2), "x", "weight"),
    "embedding": (lambda size: nn.Embedding(size, 8), "x", "weight"),
    "attention": (lambda size: nn.MultiheadAttention(size, 2), "x", "in_proj_weight"),
    "separate": (lambda size: nn.MultiheadAttention(size, 2, kdim=4), "x", "q_proj_weight"),
    "lstm": (lambda size: nn.LSTM(4, size), "x.weight_hh_l0", "weight_hh_l0"),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def build(family: str, size: int = 8) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"x": FAMILIES[family][0](size)})


def target(family: str) -> str:
    return FAMILIES[family][1]


@every_family
def test_a_target_that_is_not_there_brings_the_nearest(family: str) -> None:
    with pytest.raises(CompressionError, match=rf"no module '{target(family)}y'.*Did you mean '{target(family)}'\?"):
        adntn.compress_(build(family), CONFIG, target(family) + "y")


@every_family
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(family: str, value: float) -> None:
    model = build(family)
    model["x"].get_parameter(FAMILIES[family][2]).data[0, 0] = value
    with pytest.raises(CompressionError, match=f"'{re.escape(target(family))}' cannot be generated: .*NaN or infinite"):
        adntn.compress_(model, CONFIG, target(family))


@every_family
def test_an_optimiser_that_is_there_already_is_refused(family: str) -> None:
    model = build(family)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        CompressionError, match=r"SGD optimiser already holds.*first, then build the optimiser"
    ) as caught:
        adntn.compress_(model, CONFIG, target(family))
    assert optimizer.param_groups
    assert str(caught.value).count(f"'{target(family)}'") == 1


@every_family
def test_a_layer_that_is_compiled_already_is_refused(family: str) -> None:
    model = build(family)
    model["x"].compile(backend="eager")
    with pytest.raises(CompressionError, match="is compiled on its own already; call compress_ first"):
        adntn.compress_(model, CONFIG, target(family))


@every_family
def test_what_does_not_fit_into_memory_is_refused(family: str) -> None:
    config = CONFIG.replace(bond_dim=10**6)
    with pytest.raises(GeneratorTooLargeError, match=f"'{re.escape(target(family))}': .*GiB are free. A smaller"):
        adntn.compress_(build(family), config, target(family))


@every_family
def test_groups_that_do_not_divide_the_rows_are_refused(family: str) -> None:
    with pytest.raises(ShapeError, match=r"groups=7 does not divide the \d+ rows.*possible are \[1, 2"):
        adntn.compress_(build(family), CONFIG.replace(groups=7), target(family))


@every_family
def test_the_factored_way_is_refused_where_there_is_none(family: str) -> None:
    with pytest.raises(ConfigError, match="execution='factored' is not possible: "):
        adntn.compress_(build(family), CONFIG.replace(order="paired"), target(family), execution="factored")


@every_family
@pytest.mark.parametrize("into", ["dense", "compressed", "another layer"])
def test_a_file_of_another_shape_is_refused(family: str, into: str, tmp_path: Path) -> None:
    model = build(family)
    adntn.compress_(model, CONFIG, target(family))
    path = adntn.save(model, tmp_path / "model.safetensors")
    other = nn.ModuleDict({"x": nn.LayerNorm(8)}) if into == "another layer" else build(family, 12)
    if into == "compressed":
        adntn.compress_(other, CONFIG, target(family))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"{path.name}.*'x") as caught:
        adntn.load(other, path)
    if into != "another layer":
        assert len(set(re.findall(r"\(\d+, \d+[\d, ]*\)", str(caught.value)))) >= 2  # both shapes
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@every_family
def test_a_model_that_is_not_finite_is_not_saved(family: str, tmp_path: Path) -> None:
    model = build(family)
    adntn.compress_(model, CONFIG, target(family))
    name, parameter = next(item for item in model.named_parameters() if "root" in item[0])
    parameter.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=f"'{re.escape(name)}' has NaN or infinite entries"):
        adntn.save(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
