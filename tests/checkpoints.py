"""Models, and changes to files, that the tests of save and load share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import adntn
from adntn import GeneratorConfig, compress_, savefile

CONFIG = GeneratorConfig(topology="ttn", order="blocked", activation="elu", initialization="paper")
MERA = CONFIG.replace(topology="mera", activation="prelu", latent_order=2)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(adntn.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
X = torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4)


class Net(nn.Module):
    """A convolution, a norm with scalar buffers, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.conv(x.to(self.head[2].bias.dtype))).flatten(1))
        return result


def compressed(config: GeneratorConfig = CONFIG, **options: Any) -> Net:
    """Return a model with two generated layers and a dense one, whose norm has seen something."""
    model = Net()
    compress_(model, config, ["conv", "head.0"], **options)
    model(X)
    return model.eval()


def with_layers(*names: str, tied: bool = False) -> nn.ModuleDict:
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in names})
    if tied:
        for layer in model.values():
            layer.weight = model[names[0]].weight
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    if one.keys() != other.keys():
        return False
    return all(other[name].dtype == tensor.dtype and torch.equal(tensor, other[name]) for name, tensor in one.items())


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        values: dict[str, Any] = json.loads(file.metadata()["adntn"])
    return values


def rewrite(path: Path, edit: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Edit the header and tensors of a file, and sign it anew as ``save`` would."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["adntn"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    edit(header, tensors)
    text = json.dumps(header, sort_keys=True)
    save_file(tensors, path, {"format": "pt", "adntn": text, "adntn.sha256": savefile.digest(text, tensors)})
