"""What a worker needs of a block: made one block at a time, so that no more is in memory than is at work."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from safetensors.torch import save as write_tensors
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adntn.describe import plain_name
from adntn.errors import CompressionError, ConfigError
from adntn.nn import GeneratedWeight
from adntn.training.blocks.find import Block
from adntn.training.blocks.jobs import BlockFit, Calls, Job, Number, Task, Weight
from adntn.training.data import TrainingData
from adntn.training.parallel import pack
from adntn.training.seeds import derive_seed

__all__ = ["Maker", "threads"]


class Maker:
    """Makes jobs of blocks.

    Args:
        teacher: dense, with the modules' names of the model, in evaluation mode.
        data: to calibrate and train on.
        how: blocks are fitted.
        seed: of all.
        device: to work on.
        until: of :func:`time.time`; None means never.

    Attributes:
        bytes: of the largest job so far, as it is sent to a worker.
    """

    def __init__(
        self,
        teacher: nn.Module,
        data: TrainingData,
        how: BlockFit,
        *,
        seed: int,
        device: str = "cpu",
        until: float | None = None,
    ) -> None:
        self.teacher, self.data, self.how, self.seed, self.device, self.until = teacher, data, how, seed, device, until
        self.modules: dict[str, nn.Module] = {}
        for name, module in teacher.named_modules(remove_duplicate=False):
            self.modules[plain_name(name)] = module
        self.bytes = 0
        self._images: bytes | None = None

    def calibration(self) -> list[Tensor]:  # shapes: (about batch_size, C, H, W)
        """Return the calibration images in batches of nearly one size, as a model takes them."""
        return [self.data.normalized(self.data.train.images[index]).to(self.device) for index in self._calibration()]

    def _calibration(self) -> tuple[Tensor, ...]:
        chosen = self._drawn("calibration", self.how.calibration)
        # No batch of one image, whose variance may be none: a norm of a single pixel.
        batches = min(-(-len(chosen) // self.how.batch_size), len(chosen) // 2)
        return chosen.tensor_split(max(1, batches))

    def _drawn(self, what: str, most: int) -> Tensor:
        random = torch.Generator().manual_seed(derive_seed(self.seed, what))
        return torch.randperm(len(self.data.train), generator=random)[:most]

    def obstacle(self, blocks: Sequence[Block]) -> str | None:
        """Return why the jobs of some blocks cannot be sent to other processes, or None if they can."""
        if self.how.objective == "weight":
            return None
        everything = [(repr(block.name), block.module) for block in blocks]
        if self.how.objective == "task":
            everything.append(("the teacher", self.teacher))
        for name, module in everything:
            try:
                pack(module)
            except ConfigError:
                raise
            except Exception as error:
                said = " ".join(str(error).split())
                return (
                    f"{name} cannot be sent to another process ({type(error).__name__}: {said}). With workers=1 "
                    "blocks are fitted one after the other in this one, to the same numbers; objective='weight' sends "
                    "no module at all"
                )
        return None

    def job(self, block: Block, *, stays: bool) -> Job:
        """Return what a worker is given of a block.

        Args:
            block: the model's.
            stays: whether it is fitted in this process.

        Raises:
            CompressionError: the teacher has no such block, or never runs it.
        """
        makers: dict[str, Callable[[Block, bool], Weight | Calls | Task]]
        makers = {"weight": self._weight, "outputs": self._calls, "task": self._task}
        with threads(self.how.threads), torch.no_grad():
            what = makers[self.how.objective](block, stays)
        self.bytes = max(self.bytes, sum(len(each) for each in vars(what).values() if isinstance(each, bytes)))
        return Job(block.name, what, self.how, derive_seed(self.seed, block.name), self.device, self.until)

    # --- the weight -------------------------------------------------------------------------------------------------

    def _weight(self, block: Block, stays: bool) -> Weight:
        layer = block.module
        assert isinstance(layer, GeneratedWeight)
        tensors = {**layer.bare_copy().state_dict(), "target": self._target(block)}
        return Weight(layer.blueprint.shape, layer.config.to_dict(), _written(tensors))

    def _target(self, block: Block) -> Tensor:
        """Return what a generator is to make: the teacher's weights, where they are several one below the other."""
        dense = {plain_name(name): p for name, p in self.teacher.named_parameters(remove_duplicate=False)}
        parts: dict[tuple[int, int], Tensor] = {}
        for name, weight in block.weights.items():
            target = dense.get(name, dense.get(f"{name}.weight"))
            if target is None or tuple(target.shape) != tuple(weight.shape):
                has = "none" if target is None else f"one of shape {tuple(target.shape)}"
                raise CompressionError(f"{name!r} is a weight of shape {tuple(weight.shape)}; the teacher has {has}.")
            parts[weight.rows or (0, weight.shape[0])] = target.detach()
        whole = torch.cat([parts[rows] for rows in sorted(parts)])
        shape = next(iter(block.weights.values())).blueprint.shape
        if tuple(whole.shape) != shape:
            raise CompressionError(
                f"the generator of {', '.join(map(repr, block.weights))} makes a weight of shape {shape}, and all that "
                f"the teacher has of it is of shape {tuple(whole.shape)}."
            )
        return whole

    # --- outputs ----------------------------------------------------------------------------------------------------

    def _calls(self, block: Block, stays: bool) -> Calls:
        theirs = self._theirs(block)
        recorded = _Recorded(theirs)
        with recorded:
            for batch in self.calibration():
                self.teacher(batch)
        if not recorded.forms:
            raise CompressionError(f"the teacher never runs {block.name!r}, so there are no outputs to fit to.")
        return Calls(block.module if stays else pack(block.module), recorded.forms, _written(recorded.tensors))

    def _theirs(self, block: Block) -> nn.Module:
        if block.name not in self.modules:
            raise CompressionError(f"the teacher has no module {block.name!r}, by which that of the model is fitted.")
        return self.modules[block.name]

    # --- the task ---------------------------------------------------------------------------------------------------

    def _task(self, block: Block, stays: bool) -> Task:
        model = _with_block(self.teacher, self._theirs(block), block.module)
        if self._images is None:
            self._images = self._task_images()
        return Task(model if stays else pack(model), self._name_in_teacher(block), self._images)

    def _name_in_teacher(self, block: Block) -> str:
        theirs = self.modules[block.name]
        name: str = next(name for name, module in self.teacher.named_modules() if module is theirs)
        return name

    def _task_images(self) -> bytes:
        """Return as many training images as the steps have use for, those of the calibration first."""
        index = self._drawn("calibration", max(self.how.calibration, self.how.steps * self.how.batch_size))
        part, data = self.data.train, self.data
        tensors = {"images": part.images[index], "labels": part.labels[index]}
        tensors |= {"mean": data.mean.view(1, -1, 1, 1), "std": data.std.view(1, -1, 1, 1)}
        if self.how.distillation:
            batches = tensors["images"].split(self.how.batch_size)
            logits = [self.teacher(data.normalized(batch).to(self.device)) for batch in batches]
            tensors["teacher"] = torch.cat(logits)
        return _written(tensors)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use so many threads, or sums would be rounded otherwise in a worker than here."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Recorded:
    """What goes into a module and comes out of it, while this is entered.

    Attributes:
        forms: for each call its arguments, named arguments and outputs, with numbers in the place of tensors.
        tensors: by their numbers; what stands in two places of a call has one number.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forms: list[Any] = []
        self.tensors: dict[str, Tensor] = {}
        self._given: list[Any] = []

    def __enter__(self) -> None:
        # Copies, before the module or who comes after it writes into them. The first hook and the last.
        self._hooks = [
            self.module.register_forward_pre_hook(self._before, with_kwargs=True),
            self.module.register_forward_hook(self._after, with_kwargs=True),
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._given.append(self._numbered((args, kwargs)))

    def _after(self, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        self.forms.append((*self._given.pop(), self._numbered(outputs)))

    def _numbered(self, tree: Any) -> Any:
        met: dict[int, Number] = {}

        def number(tensor: Tensor) -> Number:
            if id(tensor) not in met:
                met[id(tensor)] = Number(len(self.tensors))
                self.tensors[str(met[id(tensor)].value)] = tensor.detach().to("cpu", copy=True)
            return met[id(tensor)]

        return pytree.tree_map_only(Tensor, number, tree)


def _with_block(teacher: nn.Module, theirs: nn.Module, ours: nn.Module) -> nn.Module:
    """Return a copy of the teacher with another module in all places of one of its own."""
    known = {id(theirs): copy.deepcopy(ours)}
    return copy.deepcopy(teacher, known)


def _written(tensors: dict[str, Tensor]) -> bytes:
    return write_tensors({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
