"""Fitting one block: what a worker is given, does and gives back. Nothing here knows of other blocks."""

from __future__ import annotations

import copy
import math
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adntn.errors import AdntnError, ConfigError, check_choice
from adntn.fit import FitOptions, fit_
from adntn.generator import Generator
from adntn.losses import distillation
from adntn.nn import GeneratedParameter, StandIn
from adntn.options import Options, check_flag, check_number, check_whole
from adntn.topology import GeneratorConfig
from adntn.training.blocks.descent import Descent
from adntn.training.data import Batches, Part
from adntn.training.parallel import unpack

__all__ = [
    "OBJECTIVES",
    "BlockFit",
    "Calls",
    "Done",
    "Job",
    "Number",
    "Task",
    "Weight",
    "run_job",
    "trained_parameters",
]

OBJECTIVES = ("weight", "outputs", "task")

# Adam's learning rate, of which benchmarks/blocks.py tries others, and L-BFGS iterations.
_USUAL = {"weight": (FitOptions().lr, FitOptions().polish), "outputs": (3e-2, 0), "task": (3e-2, 0)}


@dataclass(frozen=True, kw_only=True)
class BlockFit(Options):
    """How a block is fitted, with nothing else of the model being trained.

    Attributes:
        objective: ``"weight"``, its generators to the dense weights (Eq. 28); ``"outputs"``, what it makes of the
            teacher's inputs to what the teacher's block makes of them; ``"task"``, the teacher's loss with this one
            block in place of the teacher's.
        steps: of Adam, the learning rate falling to zero along a cosine.
        lr: Adam's learning rate at the start; None means 0.06 for weights, else 0.03.
        polish: iterations of L-BFGS after that, on all calibration images at once; None means 100 for weights and 0
            for outputs; the task's batches have no use for it.
        batch_size: images a step, of ``"outputs"`` and ``"task"``.
        calibration: training images by which ``"outputs"`` are compared, errors of ``"task"`` measured, and norms
            recalibrated.
        dense: whether other parameters of a block are trained too, such as dense layers and norms; else root, cores and
            what else a generated layer has, its bias.
        distillation: factor of the divergence from the teacher's outputs (Eq. 34), beside the cross-entropy of
            ``"task"``.
        temperature: of the distillation.
        threads: of torch in each worker, and in this process while blocks are fitted. With another number sums are
            rounded differently.

    Raises:
        ConfigError: an option is impossible.
    """

    objective: str = "outputs"
    steps: int = 400
    lr: float | None = None
    polish: int | None = None
    batch_size: int = 64
    calibration: int = 512
    dense: bool = False
    distillation: float = 0.0
    temperature: float = 2.0
    threads: int = 1

    what = "a block-wise fit"

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, OBJECTIVES)
        check_whole("steps", self.steps, 0)
        check_whole("batch_size", self.batch_size, 1)
        check_whole("calibration", self.calibration, 2)
        check_whole("threads", self.threads, 1)
        check_flag("dense", self.dense)
        check_number("distillation", self.distillation, least=0)
        check_number("temperature", self.temperature, above=0)
        if self.lr is not None:
            check_number("lr", self.lr, above=0)
        if self.polish is not None:
            check_whole("polish", self.polish, 0)
            if self.polish and self.objective == "task":
                raise ConfigError(
                    f"polish={self.polish} is not possible with objective='task': L-BFGS needs one loss, not one a "
                    "batch. Leave it out."
                )
        if self.distillation and self.objective != "task":
            raise ConfigError(f"distillation={self.distillation:g} needs objective='task', not {self.objective!r}.")

    @property
    def rate(self) -> float:
        return _USUAL[self.objective][0] if self.lr is None else self.lr

    @property
    def iterations(self) -> int:
        return _USUAL[self.objective][1] if self.polish is None else self.polish


# --- what a worker is given ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weight:
    """A generator, and what it is to make.

    Attributes:
        shape: of all that it makes.
        config: of it.
        tensors: ``target`` and the generator's parameters and buffers, as safetensors.
    """

    shape: tuple[int, ...]
    config: dict[str, Any]
    tensors: bytes

    def fit(self, job: Job) -> Done:
        tensors = _read(self.tensors)
        target = tensors.pop("target")
        dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), target.dtype)
        generator = Generator(self.shape, GeneratorConfig.from_dict(self.config), device="meta", dtype=dtype)
        generator.to_empty(device="cpu")
        generator.load_state_dict(tensors)
        generator.to(job.device)
        how = job.how
        options = FitOptions(steps=how.steps, lr=how.rate, polish=how.iterations)
        report = fit_(generator, target.to(job.device), options, progress=False)
        made = dict(generator.generator_parameters())
        return Done.of(job.name, made, report.start_error, report.relative_error, report.steps)


@dataclass(frozen=True)
class Calls:
    """A block, and what the teacher's block made of what it was given.

    Attributes:
        module: packed, or as it is where it stays in this process.
        forms: for each call the structure of arguments, named arguments and outputs, with a :class:`Number` for each
            tensor.
        tensors: by their numbers, as safetensors.
    """

    module: bytes | nn.Module
    forms: list[Any]
    tensors: bytes

    def fit(self, job: Job) -> Done:
        module = _module(self.module, job.device).eval()
        tensors = {int(name): tensor.to(job.device) for name, tensor in _read(self.tensors).items()}
        calls = [pytree.tree_map_only(Number, lambda number: tensors[number.value], form) for form in self.forms]
        wanted = [_floating(outputs) for _, _, outputs in calls]
        energy = sum(float(each.double().square().sum()) for outputs in wanted for each in outputs)
        work = torch.float64 if any(each.dtype == torch.float64 for each in wanted[0]) else torch.float32

        def error(number: int) -> Tensor:
            """Return a call's share of the squared relative error."""
            args, kwargs = copy.deepcopy(calls[number][:2])  # a module may write into what it is given
            made = _floating(module(*args, **kwargs))
            parts = [(m.to(work) - w.to(work)).square().sum() for m, w in zip(made, wanted[number], strict=True)]
            return torch.stack(parts).sum() / max(energy, torch.finfo(torch.float32).tiny)

        @torch.no_grad()
        def measure() -> float:
            return math.sqrt(sum(float(error(number)) for number in range(len(calls))))

        order = _orders(len(calls), job.seed)
        trained = _only_trained(module, trained_parameters(module, dense=job.how.dense))
        descent = Descent(list(trained.values()), measure, job.pause)
        descent.adam(lambda: error(next(order)) * len(calls), job.how.steps, job.how.rate)
        descent.polish([partial(error, number) for number in range(len(calls))], job.how.iterations)
        return Done.of(job.name, trained, descent.before, descent.best, descent.steps)


@dataclass(frozen=True)
class Number:
    """Stands for a tensor in the structure of a call."""

    value: int


@dataclass(frozen=True)
class Task:
    """The teacher with a block in it, and images.

    Attributes:
        model: packed, or as it is where it stays in this process.
        name: of the block in it.
        tensors: ``images``, ``labels``, ``mean``, ``std``, and ``teacher``, its logits, as safetensors.
    """

    model: bytes | nn.Module
    name: str
    tensors: bytes

    def fit(self, job: Job) -> Done:
        model = _module(self.model, job.device).eval()
        block = model.get_submodule(self.name)
        tensors = {name: tensor.to(job.device) for name, tensor in _read(self.tensors).items()}
        mean, std, how = tensors["mean"], tensors["std"], job.how
        # A batch finds its images, labels and the teacher's logits by their numbers.
        numbers = torch.arange(len(tensors["labels"]))
        batches = Batches(Part(numbers, numbers), how.batch_size, job.seed)

        def loss(index: Tensor) -> Tensor:
            images = tensors["images"][index]
            scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
            logits = model((scaled - mean) / std)
            total = F.cross_entropy(logits, tensors["labels"][index])
            if how.distillation:
                total = total + how.distillation * distillation(
                    logits, tensors["teacher"][index], temperature=how.temperature
                )
            return total

        looked_at = numbers[: how.calibration].split(how.batch_size)

        @torch.no_grad()
        def measure() -> float:
            return sum(float(loss(index)) * len(index) for index in looked_at) / sum(map(len, looked_at))

        drawn = _epochs(batches)
        trained = _only_trained(model, trained_parameters(block, dense=how.dense))
        descent = Descent(list(trained.values()), measure, job.pause)
        descent.adam(lambda: loss(next(drawn)[0]), how.steps, how.rate)
        return Done.of(job.name, trained, descent.before, descent.best, descent.steps)


@dataclass(frozen=True)
class Job:
    """A block to be fitted.

    Attributes:
        name: of the block.
        what: is given.
        how: to fit it.
        seed: of this block.
        device: to work on.
        until: when to stop, of :func:`time.time`; None means never.
    """

    name: str
    what: Weight | Calls | Task
    how: BlockFit
    seed: int
    device: str = "cpu"
    until: float | None = None

    def pause(self) -> None:
        """Raise if the time is up."""
        if self.until is not None and time.time() >= self.until:
            raise OutOfTime


@dataclass(frozen=True)
class Done:
    """What came of a job.

    Attributes:
        name: of the block.
        tensors: what it trained, by name, as safetensors; empty where it was not finished.
        before: the error, relative for weights and outputs, the loss for the task.
        after: the same at the end; never more.
        steps: passes forward and backward.
        seconds: wall time.
        problem: what went wrong: the error's type and its message; ``("time", "")`` where time was up.
        trace: of what went wrong, where it was nothing that this library raises.
    """

    name: str
    tensors: bytes = b""
    before: float = math.nan
    after: float = math.nan
    steps: int = 0
    seconds: float = 0.0
    problem: tuple[str, str] | None = None
    trace: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        trained: Mapping[str, Tensor],
        before: float,
        after: float,
        steps: int,
        seconds: float = 0.0,
    ) -> Done:
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in trained.items()}
        return cls(name, write_tensors(tensors), before, after, steps, seconds)

    def read(self) -> dict[str, Tensor]:
        return _read(self.tensors)


class OutOfTime(Exception):
    """The deadline has come."""


def run_job(job: Job) -> Done:
    """Fit a block; what goes wrong comes back instead of being raised, so that it can be told which block it was."""
    threads, began = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(job.how.threads)
    try:
        job.pause()
        devices = [torch.device(job.device)] if job.device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            torch.manual_seed(job.seed)
            done = job.what.fit(job)
    except OutOfTime:
        return Done(job.name, problem=("time", ""))
    except AdntnError as error:
        return Done(job.name, problem=(type(error).__name__, str(error)))
    except Exception as error:
        return Done(job.name, problem=(type(error).__name__, str(error)), trace=traceback.format_exc())
    finally:
        torch.set_num_threads(threads)
    return replace(done, seconds=time.perf_counter() - began)


def trained_parameters(block: nn.Module, *, dense: bool) -> dict[str, nn.Parameter]:
    """Return what of a block is trained, by name: what generated layers have, or with ``dense`` all; nothing frozen."""
    layers = [module for module in block.modules() if isinstance(module, (StandIn, GeneratedParameter))]
    own = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return {name: p for name, p in block.named_parameters() if p.requires_grad and (dense or id(p) in own)}


def _only_trained(model: nn.Module, trained: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    model.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def _module(given: bytes | nn.Module, device: str) -> nn.Module:
    return (unpack(given) if isinstance(given, bytes) else copy.deepcopy(given)).to(device)


def _read(content: bytes) -> dict[str, Tensor]:
    # Copies, each in memory of its own: sums over memory that begins elsewhere may be rounded otherwise.
    return {name: tensor.clone() for name, tensor in read_tensors(content).items()}


def _floating(outputs: Any) -> list[Tensor]:
    """Return the tensors of outputs that can be compared."""
    return [each for each in pytree.tree_leaves(outputs) if isinstance(each, Tensor) and each.is_floating_point()]


def _epochs(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in count():
        batches.set_epoch(epoch)
        yield from batches


def _orders(calls: int, seed: int) -> Iterator[int]:
    """Yield the numbers of calls without end, each time in another order."""
    random = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(calls, generator=random).tolist()
