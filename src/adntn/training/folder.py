"""The folder of a run: what was asked, where it ran, what each stage came to. Every file is whole at any time.

recipe.json environment.json run.json report.*
00-teacher/ 01-select/ ...   model.safetensors, result.json, and what the stage itself keeps
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from adntn._version import __version__
from adntn.checkpoint import writing
from adntn.errors import AdntnError
from adntn.training.recipe import Recipe

__all__ = ["RunFolder", "RunFolderError", "claim_folder", "describe_machine", "read_json", "write_json"]


class RunFolderError(AdntnError, RuntimeError):
    """A run folder cannot be used as asked."""


class RunFolder:
    """A run's folder.

    Args:
        path: of the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def claim(self, recipe: Recipe, environment: Mapping[str, Any]) -> None:
        """Make the folder this recipe's, or make sure that it is.

        Raises:
            RunFolderError: it holds the run of another recipe, or something else.
        """
        if claim_folder(self.path, "run", "recipe.json", lambda: self.recipe() == recipe):
            return
        write_json(self.path / "environment.json", environment)
        write_json(self.path / "recipe.json", recipe.to_dict())

    def recipe(self) -> Recipe:
        """Read the recipe that the folder was made for.

        Raises:
            RunFolderError: the folder holds no run.
        """
        file = self.path / "recipe.json"
        if not file.is_file():
            raise RunFolderError(f"{self.path} is no run folder: it has no recipe.json.")
        try:
            return Recipe.from_dict(read_json(file))
        except AdntnError as error:
            raise RunFolderError(f"{file} cannot be read: {error}") from None

    def stage(self, number: int, kind: str) -> Path:
        """Return a stage's folder, made if it is not there yet."""
        folder = self.path / f"{number:02}-{kind}"
        folder.mkdir(exist_ok=True)
        return folder


def claim_folder(folder: Path, what: str, file: str, is_same: Callable[[], bool]) -> bool:
    """Make a folder for a run or a search, or make sure that it is the one that is meant.

    Args:
        folder: new, empty, or claimed before.
        what: ``"run"`` or ``"search"``.
        file: in which it says what was asked for, and which marks it as claimed.
        is_same: whether what was asked for then is what is asked for now.

    Returns:
        Whether it was claimed before.

    Raises:
        RunFolderError: it holds something else, or cannot be made.
    """
    claimed = (folder / file).is_file()
    if claimed and not is_same():
        raise RunFolderError(
            f"{folder} holds a {what} with other settings (see its {file}); choose another --out, or go on with it by "
            f"--resume {folder}."
        )
    if not claimed and folder.is_dir() and any(folder.iterdir()):
        raise RunFolderError(f"{folder} is not empty and is no {what} folder; choose another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot make the folder {folder}: {error.strerror}.") from None
    return claimed


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RunFolderError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from None


def describe_machine() -> dict[str, Any]:
    """Return where a run takes place: versions, processor, threads, revision, time."""
    return {
        "adntn": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "revision": _revision(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _revision() -> str | None:
    """Return the git commit of the source that runs, if it is in a checkout."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
