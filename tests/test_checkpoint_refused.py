"""What load refuses, and that the model is left as it was."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CONFIG, MERA, Net, compressed, rewrite, same, state, with_layers
from safetensors.torch import save_file
from torch import Tensor, nn

import adntn
from adntn import CheckpointError, compress_, load, save

pytestmark = pytest.mark.usefixtures("few_objects")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture(params=["dense", "compressed"])
def given(request: pytest.FixtureRequest) -> Net:
    return Net() if request.param == "dense" else compressed()


def refuse(model: nn.Module, path: Path, message: str) -> None:
    """Check that a file is refused, and that the model is exactly as it was."""
    before, modules = state(model), dict(model.named_modules())
    executions = [layer.execution for layer in modules.values() if isinstance(layer, adntn.nn.GeneratedLayer)]
    with pytest.raises(CheckpointError, match=message):
        load(model, path)
    assert same(state(model), before)
    assert dict(model.named_modules()) == modules
    after = [layer.execution for layer in model.modules() if isinstance(layer, adntn.nn.GeneratedLayer)]
    assert after == executions


def test_a_file_that_is_not_there_is_refused(given: Net, tmp_path: Path) -> None:
    refuse(given, tmp_path / "nothing.safetensors", r"no file .*nothing\.safetensors")
    refuse(given, tmp_path, "no file")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(given: Net, path: Path, share: float) -> None:
    save(compressed(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refuse(given, path, "not a whole safetensors file")


def test_every_cut_through_the_header_is_refused(path: Path) -> None:
    save(with_layers("a"), path)
    content, model = path.read_bytes(), with_layers("a")
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        refuse(model, path, "not a whole safetensors file")


@pytest.mark.parametrize(
    "content",
    [b"once upon a time", b"\0" * 64, b"\xff" * 64, b"{}", pickle.dumps({"a": 1}), b"\x10\0\0\0\0\0\0\0" + b"[" * 16],
    ids=["text", "zeros", "ones", "json", "pickle", "brackets"],
)
def test_a_file_of_another_kind_is_refused(given: Net, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refuse(given, path, "not a whole safetensors file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"adntn": "{}"}, {"adntn.sha256": "0"}], ids=str)
def test_safetensors_of_someone_else_are_refused(given: Net, path: Path, metadata: dict[str, str] | None) -> None:
    save_file(state(compressed()), path, metadata)
    refuse(given, path, "not one that adntn.save wrote")


class Bomb:
    """What makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch"])
def test_nothing_is_ever_unpickled(given: Net, path: Path, kind: str) -> None:
    marker = path.parent / "exploded"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        torch.save({"conv.weight": Bomb(marker)}, path, _use_new_zipfile_serialization=kind == "torch")
    refuse(given, path, "not a whole safetensors file")
    assert not marker.exists()
    with path.open("rb") as file:
        if kind == "pickle":
            pickle.load(file)
            assert marker.exists()  # it would have


@pytest.mark.parametrize(
    "what, old, new",
    [
        ("a config", rb"\"latent_order\": 5", rb"\"latent_order\": 4"),
        ("a tensor's name", b'"conv.bias"', b'"conv.bibs"'),
        ("a tensor's type", b'"dtype":"I64"', b'"dtype":"F64"'),
        ("the digest", b'"adntn.sha256":"', b'"adntn.sha256":" '),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_changed_header_is_refused(given: Net, path: Path, what: str, old: bytes, new: bytes) -> None:
    save(compressed(), path)
    content = path.read_bytes()
    assert old in content, what
    changed = content.replace(old, new, 1)
    length = int.from_bytes(content[:8], "little") + len(new) - len(old)
    path.write_bytes(length.to_bytes(8, "little") + changed[8:])
    refuse(given, path, "does not match")


@pytest.mark.parametrize("position", [-1, -500, 0])
def test_a_changed_byte_of_a_tensor_is_refused(given: Net, path: Path, position: int) -> None:
    save(compressed(), path)
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + position if position >= 0 else position] ^= 1
    path.write_bytes(content)
    refuse(given, path, "digest does not match")


Edit = Callable[[dict[str, Any], dict[str, Tensor]], None]


def set_in(*keys: str, to: object) -> Edit:
    def edit(header: dict[str, Any], _: dict[str, Tensor]) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = to

    return edit


def set_tensor(name: str, change: Callable[[Tensor], Tensor]) -> Edit:
    def edit(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors[name])

    return edit


def nan_at_the_end(tensor: Tensor) -> Tensor:
    tensor.view(-1)[-1] = float("nan")
    return tensor


ROOT = "conv.root"
THREE = CONFIG.replace(latent_order=3).to_dict()

WELL_SIGNED: dict[str, tuple[Edit, str]] = {
    "newer format": (set_in("format", to=5), "format 5, newer than the 4"),
    "format is no number": (set_in("format", to="1"), "did not write"),
    "format is true": (set_in("format", to=True), "did not write"),
    "newer config": (set_in("layers", "conv", "config", "version", to=99), "version 99, newer than the .*upgrade"),
    "unknown option": (set_in("layers", "conv", "config", "colour", to="red"), "no option 'colour'"),
    "impossible option": (set_in("layers", "conv", "config", "radix", to=1), "radix=1"),
    "config that needs other tensors": (
        set_in("layers", "conv", "config", to=THREE),
        "conv.*(in the model|missing)",
    ),
    "groups that do not divide": (set_in("layers", "conv", "config", "groups", to=3), "(groups|in the model)"),
    "enormous bond": (set_in("layers", "conv", "config", "bond_dim", to=10**6), "in the model"),
    "layers is a list": (set_in("layers", to=[]), "did not write"),
    "layer is a number": (set_in("layers", "conv", to=3), "did not write"),
    "layer without config": (set_in("layers", "conv", to={}), "did not write"),
    "unknown execution": (set_in("layers", "conv", "execution", to="fast"), "not one that this library writes"),
    "other shape": (set_in("layers", "conv", "shape", to=[8, 27]), r"\(8, 27\).*\(8, 3, 3, 3\)"),
    "shape is text": (set_in("layers", "conv", "shape", to="8333"), "not one that this library writes"),
    "layer that is not there": (
        lambda header, _: header["layers"].update(tail=header["layers"].pop("conv")),
        "no module of that name",
    ),
    "layer that cannot be one": (
        lambda header, _: header["layers"].update(norm=header["layers"].pop("conv")),
        "'norm', which cannot be one",
    ),
    "shared with nothing": (set_in("shared", to={"conv": "tail"}), "did not write"),
    "shared with itself": (set_in("shared", to={"conv": "conv"}), "did not write"),
    "shared in a circle": (set_in("shared", to={"conv": "head.0", "head.0": "conv"}), "did not write"),
    "shared across shapes": (set_in("shared", to={"conv": "head.0"}), "did not write"),
    "shared is a list": (set_in("shared", to=[1, 2]), "did not write"),
    "shared with a list": (set_in("shared", to={"conv": ["head.0"]}), "did not write"),
    "alias of nothing": (set_in("aliases", to={"x": "y"}), "did not write"),
    "alias of a list": (set_in("aliases", to={"x": []}), "did not write"),
    "alias over a tensor": (set_in("aliases", to={"conv.bias": "norm.bias"}), "did not write"),
    "unexpected alias": (set_in("aliases", to={"x": "norm.bias"}), "x is not in the model"),
    "missing tensor": (lambda _, tensors: tensors.pop(ROOT), f"{ROOT} is missing from the file"),
    "missing buffer": (lambda _, tensors: tensors.pop("norm.running_var"), "norm.running_var is missing"),
    "unexpected tensor": (lambda _, tensors: tensors.update(extra=torch.ones(1)), "extra is not in the model"),
    "other tensor shape": (set_tensor(ROOT, lambda t: t[:, 1:].clone()), r"root has shape \(1, 31\) .* \(1, 32\)"),
    "same size, other shape": (set_tensor("conv.bias", lambda t: t.reshape(2, 4)), r"\(2, 4\).*\(8,\)"),
    "whole numbers": (set_tensor(ROOT, lambda t: t.to(torch.int32)), r"root is torch\.int32"),
    "fractions in a counter": (
        set_tensor("norm.num_batches_tracked", lambda t: t + 0.5),
        r"float32 in the file and torch\.int64 in the model",
    ),
    "complex numbers": (set_tensor("conv.bias", lambda t: t.to(torch.complex64)), "complex64"),
    "too large": (set_tensor("conv.bias", lambda t: t.double() + 1e300), "conv.bias has .*too large for torch.float32"),
    "eight bits": (set_tensor(ROOT, lambda t: nan_at_the_end(t).to(torch.float8_e4m3fn)), f"{ROOT} has NaN"),
    "NaN": (set_tensor(ROOT, nan_at_the_end), f"{ROOT} has NaN"),
    "NaN in a dense layer": (set_tensor("head.2.weight", nan_at_the_end), "head.2.weight has NaN"),
}


@pytest.mark.parametrize("name", WELL_SIGNED)
def test_a_well_signed_file_that_does_not_fit_is_refused(given: Net, path: Path, name: str) -> None:
    edit, message = WELL_SIGNED[name]
    save(compressed(), path)
    rewrite(path, lambda *_: None)
    load(compressed(), path)  # the digest is right, and so were the file as it stood
    rewrite(path, edit)
    refuse(given, path, message)


def test_many_problems_are_listed_in_part(path: Path) -> None:
    save(Net(), path)
    refuse(
        nn.Sequential(*(nn.Linear(2, 2) for _ in range(9))), path, r"0\.bias is missing from the file; .*and \d+ more"
    )


def test_an_execution_that_is_not_possible_is_refused(path: Path) -> None:
    config = CONFIG.replace(order="paired")
    models = [nn.Sequential(nn.Linear(32, 32)) for _ in range(3)]
    compress_(models[0], config)
    compress_(models[1], config)
    save(models[0], path)
    rewrite(path, set_in("layers", "0", "execution", to="factored"))
    for model in models[1:]:
        refuse(model, path, "execution='factored' is not possible")


def other_config() -> Net:
    return compressed(MERA)


def other_size() -> Net:
    model = Net()
    model.head[0] = nn.Linear(32, 12)
    return model


def other_kind() -> Net:
    model = Net()
    model.conv = nn.Bilinear(8, 3, 3)  # type: ignore[assignment]
    return model


def without_norm() -> Net:
    model = Net()
    model.norm = nn.Identity()  # type: ignore[assignment]
    return model


def with_more() -> Net:
    model = Net()
    model.head.append(nn.Linear(4, 4))
    return model


def without_bias() -> Net:
    model = Net()
    model.conv = nn.Conv2d(3, 8, 3, bias=False)
    return model


def more_generated() -> Net:
    model = Net()
    compress_(model, CONFIG)
    return model


def on_meta() -> Net:
    return Net().to("meta")


@pytest.mark.parametrize(
    "build, message",
    [
        (other_config, r"'conv' is generated with .*topology='ttn'.* in the file, .*topology='mera'.* in the model"),
        (other_size, r"'head\.0' is a Linear with a weight of shape \(16, 32\) in the file, a Linear with \(12, 32\)"),
        (other_kind, "'conv', which cannot be one in this model: it is a Bilinear"),
        (without_norm, r"norm\.bias is not in the model"),
        (with_more, r"head\.3\.bias is missing"),
        (without_bias, r"conv\.bias is not in the model"),
        (more_generated, r"head\.2\.root is missing.*head\.2\.weight is not in the model"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), "'conv', and the model has no module of that name"),
    ],
    ids=["config", "size", "kind", "without norm", "with more", "without bias", "more generated", "other model"],
)
def test_a_file_of_another_model_is_refused(path: Path, build: Callable[[], nn.Module], message: str) -> None:
    save(compressed(), path)
    refuse(build(), path, message)


def test_a_model_on_the_meta_device_is_refused(path: Path) -> None:
    save(compressed(), path)
    model = Net().to("meta")
    with pytest.raises(CheckpointError, match=r"meta device in the model .*to_empty"):
        load(model, path)
    assert type(model.conv) is nn.Conv2d
    load(model.to_empty(device="cpu"), path)


def test_two_values_for_one_tensor_are_refused(path: Path) -> None:
    save(with_layers("a", "b"), path)
    refuse(
        with_layers("a", "b", tied=True), path, "a.weight and b.weight are one tensor in the model and two different"
    )
    model = with_layers("a", "b")
    compress_(model, CONFIG)
    save(model, path)
    tied = with_layers("a", "b", tied=True)
    compress_(tied, CONFIG)
    refuse(tied, path, "are one tensor in the model")


def test_two_layers_for_one_module_are_refused(path: Path) -> None:
    model = with_layers("a", "b")
    compress_(model, CONFIG)
    save(model, path)
    layer = nn.Linear(8, 8)
    refuse(nn.ModuleDict({"a": layer, "b": layer}), path, "are one tensor in the model")


def test_an_optimiser_that_would_train_what_is_gone_is_refused(path: Path) -> None:
    save(compressed(), path)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    refuse(model, path, "SGD optimiser already holds the weight of 'conv', 'head.0'.*Load the file first")
    assert optimizer.param_groups
    ready = compressed()
    kept = torch.optim.SGD(ready.parameters(), lr=0.1)
    load(ready, path)
    assert kept.param_groups


@pytest.mark.parametrize("in_place", [True, False])
def test_a_layer_compiled_on_its_own_is_refused(path: Path, in_place: bool) -> None:
    save(compressed(), path)
    model = Net()
    if in_place:
        model.conv.compile(backend="eager")
    else:
        model.conv = torch.compile(model.conv, backend="eager")  # type: ignore[assignment]
    refuse(model, path, "'conv' is compiled on its own already; load the file first")


def test_nan_in_a_weight_that_goes_is_no_obstacle(path: Path) -> None:
    save(compressed(), path)
    model = Net()
    model.conv.weight.data.fill_(float("nan"))
    assert load(model, path).conv.weight.isfinite().all()
