from __future__ import annotations

import pytest
import torch
from block_models import Rows, compressed, data, teacher
from safetensors.torch import load
from torch import Tensor, nn

from adntn.errors import CompressionError
from adntn.training.blocks import BlockFit, Maker, find_blocks
from adntn.training.blocks.jobs import Calls, Number, Task, Weight

HOW = BlockFit(calibration=21, batch_size=10)


def make(dense: nn.Module, model: nn.Module, name: str, how: BlockFit = HOW) -> Weight | Calls | Task:
    (block,) = find_blocks(model, how, [name], [])
    return Maker(dense, data(), how, seed=3).job(block, stays=True).what


def test_calibration_images_are_some_of_the_training_images_in_even_batches() -> None:
    batches = Maker(teacher(), data(), HOW, seed=3).calibration()
    assert [len(each) for each in batches] == [7, 7, 7]
    images = data().normalized(data().train.images)
    assert all(any(torch.equal(one, other) for other in images) for one in torch.cat(batches))
    few = Maker(teacher(), data(5), BlockFit(batch_size=1), seed=3).calibration()
    assert [len(each) for each in few] == [3, 2]


def test_calls_are_recorded_as_they_were_before_anything_wrote_into_them() -> None:
    dense = teacher()
    what = make(dense, compressed(dense, ["first.2"]), "first.2")
    assert isinstance(what, Calls)
    tensors = load(what.tensors)
    batches = Maker(dense, data(), HOW, seed=3).calibration()
    with torch.no_grad():
        for batch, ((given,), named, made) in zip(batches, what.forms, strict=True):
            inputs = dense.first[:2](dense.stem(batch))
            assert named == {}
            assert torch.equal(tensors[str(given.value)], inputs)
            assert torch.equal(tensors[str(made.value)], dense.first[2](inputs))  # the next layer writes into it
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in dense.modules())


def test_what_is_given_twice_is_one_tensor() -> None:
    dense = teacher(Rows)
    what = make(dense, compressed(dense, ["attention"]), "attention")
    assert isinstance(what, Calls)
    (query, key), named, (made, weights) = what.forms[0]
    assert query == key == named["value"] == Number(0)
    assert (made, weights, named["need_weights"]) == (Number(1), None, False)


def test_a_module_that_never_runs_is_told() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(24, 3), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x.flatten(1))
            return out

    dense = teacher(Idle)
    with pytest.raises(CompressionError, match="the teacher never runs 'idle'"):
        make(dense, compressed(dense, ["idle"]), "idle")


def test_a_task_has_only_the_images_that_its_steps_will_see() -> None:
    dense = teacher()
    model = compressed(dense, ["head"])
    for steps, count in ((1, 21), (3, 30), (100, 40)):
        how = BlockFit(objective="task", steps=steps, batch_size=10, calibration=21, distillation=1.0)
        what = make(dense, model, "head", how)
        assert isinstance(what, Task)
        tensors = load(what.tensors)
        assert len(tensors["images"]) == len(tensors["labels"]) == len(tensors["teacher"]) == count
        assert tensors["images"].dtype == torch.uint8
        with torch.no_grad():
            assert torch.allclose(tensors["teacher"], dense(data().normalized(tensors["images"])), atol=1e-5)
