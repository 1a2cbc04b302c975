"""The file that processes share, and who is still there to finish what it began."""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from adntn.errors import ConfigError

if TYPE_CHECKING:
    from optuna.storages.journal import JournalStorage

__all__ = ["Presence", "open_storage"]


class Presence:
    """Says that a process is alive, for as long as it is, by a lock on a file of its own.

    Args:
        folder: of all such files; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = uuid.uuid4().hex[:12]
        self._path = folder / self.name

    def __enter__(self) -> Presence:
        self._file = self._path.open("a")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
        self._file.close()

    def is_alive(self, name: object) -> bool:
        """Return whether the process of that name still runs; a dead one's file is cleared away."""
        path = self._path.with_name(str(name))
        if name == self.name:
            return True
        try:
            with path.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            pass
        return False


def open_storage(path: Path) -> JournalStorage:
    """Open the journal of a search, or begin one.

    Raises:
        ConfigError: Optuna is not installed, or the file is no journal.
    """
    try:
        from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage
    except ImportError as error:  # pragma: no cover - the extra is there in every environment that runs the tests
        raise ConfigError(f"a search needs Optuna ({error.name} is missing): pip install 'adntn[search]'.") from None

    class Lock(JournalFileSymlinkLock):
        """A lock that ends with its process, and mends what a killed process left half written.

        Optuna's own is a file that a killed process leaves behind, and the next line would be appended to half a line.
        """

        def acquire(self) -> bool:
            self._handle = path.open("r+b")
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            _drop_half_line(self._handle.fileno())
            return True

        def release(self) -> None:
            self._handle.close()

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=Lock(str(path))))
    except OSError as error:
        raise ConfigError(f"cannot use {path} as the storage: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no journal of a search: {error}.") from None


def _drop_half_line(handle: int) -> None:
    end = os.fstat(handle).st_size
    kept = end
    while kept:
        size = min(kept, 65536)
        at = os.pread(handle, size, kept - size).rfind(b"\n")
        if at >= 0:
            kept = kept - size + at + 1
            break
        kept -= size
    if kept < end:
        os.ftruncate(handle, kept)
