"""The last stage: the model as files that others can use, each read back before it is believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adntn.checkpoint import load, save
from adntn.compress import materialize
from adntn.describe import plain_name
from adntn.errors import CheckpointError
from adntn.options import check_flag, check_number, check_whole
from adntn.savefile import writing
from adntn.training.modes import evaluating, in_its_dtype
from adntn.training.stages.base import Event, Outcome, Stage, State

__all__ = ["CORES", "DENSE", "Finish"]

CORES, DENSE = "cores.safetensors", "dense.safetensors"


@dataclass(frozen=True, kw_only=True)
class Finish(Stage):
    """Write the model in two forms, read both back, and compare what they give with what the model gives.

    ``cores.safetensors`` is for :func:`adntn.load`: root and cores. ``dense.safetensors`` is a plain ``state_dict`` of
    the model with torch's own layers, for ``safetensors.torch.load_file`` and ``load_state_dict``: it needs no adntn.

    Attributes:
        dense: whether to write the dense form, which is as large as the dense model.
        images: validation images to compare on, the first ones.
        tolerance: largest difference between logits, as a share of the largest logit, that is no error; or sixteen
            roundings of the model's dtype, where these are more.

    Raises:
        ConfigError: an option is impossible.
    """

    kind: ClassVar[str] = "finish"
    what = "a finish stage"

    dense: bool = True
    images: int = 256
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        check_flag("dense", self.dense)
        check_whole("images", self.images, 1)
        check_number("tolerance", self.tolerance, above=0)

    def run(self, state: State) -> Outcome:
        """Write and compare.

        Raises:
            CheckpointError: a file cannot be written, or what it gives differs from what the model gives.
        """
        forms: list[tuple[str, str, Callable[[nn.Module, Path], nn.Module]]] = [("cores", CORES, _through_cores)]
        if self.dense:
            forms.append(("dense", DENSE, _through_dense))
        images = state.data.validation.images[: self.images]
        inputs = state.data.normalized(images.to(state.device))
        meant = _outputs(state.model, inputs)
        outcome: Outcome = {"images": len(images)}
        for done, (name, file, through) in enumerate(forms):
            state.tell(Event(done, len(forms), f"writing {file}"))
            path = state.folder / file
            found = _outputs(through(state.model, path), inputs)
            outcome[name] = {
                "file": file,
                "bytes": path.stat().st_size,
                "difference": self._difference(path, meant, found),
            }
        state.tell(Event(len(forms), len(forms), "files agree"))
        return outcome

    def _difference(self, path: Path, meant: Tensor, found: Tensor) -> float:
        """Return the largest difference as a share of the largest logit."""
        scale = float(meant.abs().max()) or 1.0
        difference = float((meant - found).abs().max()) / scale
        tolerance = max(self.tolerance, 16 * torch.finfo(meant.dtype).eps)
        if not difference <= tolerance:  # NaN is not within it either
            raise CheckpointError(
                f"{path} was read back and gives other outputs than the model: they differ by {difference:.2g} of the "
                f"largest logit, more than the tolerance of {tolerance:.2g}."
            )
        return difference


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with evaluating(model):
        logits: Tensor = model(in_its_dtype(model, inputs))
    return logits


def _through_cores(model: nn.Module, path: Path) -> nn.Module:
    save(model, path)
    return load(_emptied(materialize(model)), path)


def _through_dense(model: nn.Module, path: Path) -> nn.Module:
    plain = materialize(model)
    # Tied weights stand under each of their names, so that the file loads into the plain model by itself.
    tensors = {
        plain_name(name): tensor.detach().cpu().contiguous().clone() for name, tensor in plain.state_dict().items()
    }
    with writing(path) as temporary:
        save_file(tensors, temporary, {"format": "pt"})
    read = load_file(path)
    emptied = _emptied(plain)
    emptied.load_state_dict({name: read[plain_name(name)] for name in emptied.state_dict()})
    return emptied


@torch.no_grad()
def _emptied(model: nn.Module) -> nn.Module:
    """Set everything that a file should bring back to zero, in place."""
    for tensor in model.state_dict(keep_vars=True).values():
        tensor.zero_()
    return model
