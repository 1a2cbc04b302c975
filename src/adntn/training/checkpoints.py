"""What a run keeps so that it can go on: written whole or not at all, read without unpickling code.

Two files in the run's folder: ``epoch.ckpt`` after each epoch, and ``pause.ckpt`` where a run was asked to end within
one. The one that is further counts. Both are Lightning's checkpoints with an entry ``"adntn"``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  (only the name of an error)
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import nn

from adntn.describe import generated_weights
from adntn.errors import CheckpointError, ConfigError
from adntn.savefile import writing
from adntn.training.data import TrainingData
from adntn.training.optimization import Optimization

__all__ = ["EPOCH", "PAUSE", "Keeper", "Position", "fingerprint"]

EPOCH, PAUSE = "epoch.ckpt", "pause.ckpt"
ENTRY = "adntn"
_FORMAT = 1


@dataclass
class Position:
    """How far a run is.

    Attributes:
        epoch: epochs done.
        batch: batches done of the next one.
        step: steps done; what was taken back is not counted.
        seconds: of training, looks left out.
        lowered: how often the rate was lowered.
        sent: bytes of gradients handed to the all-reduce.
        sums: of loss and terms over the images of this epoch, and ``"images"``.
        rows: metrics of the epochs that are done.
        finished: whether the run is over.
        stopped_early: whether it ended by its patience.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    lowered: int = 0
    sent: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    finished: bool = False
    stopped_early: bool = False

    @property
    def curve(self) -> tuple[float, ...]:
        return tuple(row["validation_accuracy"] for row in self.rows)


class Keeper(CheckpointIO):
    """Writes and reads the checkpoints of a run; the plugin through which Lightning does.

    Args:
        folder: of the run; None keeps them in memory.
        mark: what makes this run another than others, as :func:`fingerprint` says.
    """

    def __init__(self, folder: Path | None, mark: Mapping[str, Any]) -> None:
        super().__init__()
        self.folder, self.mark = folder, dict(mark)
        self.failure: CheckpointError | None = None
        self._memory: dict[str, dict[str, Any]] = {}

    def path(self, name: str) -> Path:
        return (self.folder or Path("memory")) / name

    def tidy(self) -> None:
        """Make the folder, and take away what a write that was cut off has left."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (EPOCH, PAUSE):
                for part in self.folder.glob(f".{name}.*.part"):
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot write into {self.folder}: {error.strerror or error}.") from error

    def newest(self, name: str | None = None) -> dict[str, Any] | None:
        """Return the checkpoint that is further, or the one of a name; None where there is none.

        Raises:
            CheckpointError: a file is truncated or foreign, or belongs to another run.
        """
        found = [self._read(each) for each in (EPOCH, PAUSE) if name in (None, each)]
        return max(
            (each for each in found if each is not None),
            key=lambda each: (each[ENTRY]["position"]["lowered"], each[ENTRY]["position"]["step"]),
            default=None,
        )

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path(name)
        if self.folder is None:
            return deepcopy(self._memory.get(name))
        if not path.exists():
            return None
        content = self.load_checkpoint(path)
        if not isinstance(content, dict) or ENTRY not in content:
            raise CheckpointError(f"{path} is a checkpoint, but not of this library; take it out of the folder.")
        entry = content[ENTRY]
        if entry.get("format") != _FORMAT:
            raise CheckpointError(f"{path} was written by a newer adntn; upgrade adntn.")
        for key, now in self.mark.items():
            then = entry["mark"].get(key)
            if then != now:
                raise CheckpointError(
                    f"{path} belongs to another run: {_difference(key, then, now)}. "
                    "Go on with the same settings, or take another folder."
                )
        return content

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; a failure is kept in :attr:`failure`, so that all processes can hear of it."""
        path = Path(path)
        checkpoint[ENTRY] |= {"format": _FORMAT, "mark": self.mark}
        if self.folder is None:
            self._memory[path.name] = deepcopy(checkpoint)
            return
        # In memory first: torch's own writer ends the process where a disk is full.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            with writing(path) as temporary:
                temporary.write_bytes(content.getbuffer())
        except CheckpointError as error:
            self.failure = error

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = True) -> Any:
        """Read a checkpoint, onto the CPU.

        Raises:
            CheckpointError: it is truncated, or would need code to be run to be read.
        """
        try:
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251  (tensors and plain values)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{path} is truncated or no checkpoint of this library ({reason[:200]}); "
                "take it out of the folder to begin anew, or put a copy of it there."
            ) from None

    def remove_checkpoint(self, path: Any) -> None:
        self._memory.pop(Path(path).name, None)
        if self.folder is not None:
            with contextlib.suppress(OSError):
                Path(path).unlink(missing_ok=True)


def fingerprint(
    model: nn.Module, data: TrainingData, how: Optimization, seed: int, objective: object
) -> dict[str, Any]:
    """Return what must be the same for a run to go on, as plain values."""
    structure = {
        name: f"{tuple(t.shape)} {t.dtype}{' trained' if t.requires_grad else ''}"
        for name, t in [*model.named_parameters(), *model.named_buffers()]
    }
    configs = {name: str(weight.config.to_dict()) for name, weight in generated_weights(model).items()}
    losses = getattr(objective, "losses", None)
    try:
        terms = repr(losses.to_dict()) if losses is not None else "cross-entropy"
    except (AttributeError, ConfigError):
        terms = repr(losses)
    return {
        "options": how.to_dict(),
        "seed": seed,
        "model": structure,
        "generators": configs,
        "images": [len(data.train), len(data.validation), data.num_classes],
        "objective": terms if objective is not None else "none",
    }


def _difference(key: str, then: Any, now: Any) -> str:
    if isinstance(then, dict) and isinstance(now, dict):
        for name in [*then, *now]:
            if then.get(name) != now.get(name):
                return f"{key} {name!r} was {then.get(name)!r} and is {now.get(name)!r}"
    return f"{key} was {then!r} and is {now!r}"


def keep(position: Position) -> dict[str, Any]:
    """Return a position as plain values."""
    return asdict(position)
