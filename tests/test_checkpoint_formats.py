"""Files of earlier formats, written by the versions that had them, are still read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import header
from torch import Tensor, nn

import adntn
from adntn import GeneratorConfig, savefile
from adntn.describe import generated_weights

pytestmark = pytest.mark.usefixtures("few_objects")

DATA = Path(__file__).parent / "data"


class First(nn.Module):
    """What ``format1.safetensors`` was saved from, compressed; with an input and the output that it had."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(32, 5)
        self.register_buffer("given", torch.zeros(2, 3, 4, 4))
        self.register_buffer("expected", torch.zeros(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).flatten(1)
        result: Tensor = self.head(self.second(torch.relu(self.first(x))))
        return result


@pytest.mark.parametrize("compressed", [False, True], ids=["dense", "compressed"])
def test_a_file_of_format_1_loads_and_is_written_anew(tmp_path: Path, compressed: bool) -> None:
    model = First().eval()
    if compressed:
        ttn = GeneratorConfig(topology="ttn", order="blocked", activation="elu", initialization="paper")
        conv = ttn.replace(topology="mera", activation="prelu", latent_order=2, groups=2)
        adntn.compress_(model, ttn, ["conv", "first", "second"], overrides={"conv": conv})
    adntn.load(model, DATA / "format1.safetensors")
    assert [type(m) for m in (model.conv, model.first, model.head)] == [adntn.nn.Conv2d, adntn.nn.Linear, nn.Linear]
    assert model.second.root is model.first.root
    assert (model.conv.config.topology, model.conv.config.groups, model.first.execution) == ("mera", 2, "factored")
    assert model.expected.any()
    torch.testing.assert_close(model(model.given), model.expected)

    again = adntn.save(model, tmp_path / "model.safetensors")
    old, new = (savefile.read(path) for path in (DATA / "format1.safetensors", again))
    without = {name: replace(entry, choices=None) for name, entry in new.entries.items()}
    assert (old.entries, old.shared, old.aliases) == (without, new.shared, new.aliases)
    assert header(DATA / "format1.safetensors")["format"] == 1
    assert header(again)["format"] == 3
    for weight in generated_weights(model).values():
        weight.execution = "dense"  # so that there are no choices
    assert header(adntn.save(model, again))["format"] == 1
    assert all(torch.equal(tensor, new.tensors[name]) for name, tensor in old.tensors.items())
