"""Metrics as files: a CSV table and TensorBoard's events, a row an epoch."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adntn.errors import CheckpointError

__all__ = ["Metrics"]


class Metrics:
    """Writes ``metrics/metrics.csv`` and ``metrics/events.*`` into a folder, by Lightning's loggers.

    The files are begun anew each time with the rows that are known, so that after an interruption no row is there twice
    and none is lost.

    Args:
        folder: to write into; None writes nothing.
        rows: of the epochs that are done, each with its ``"step"``.

    Raises:
        CheckpointError: the files cannot be written.
    """

    def __init__(self, folder: Path | None, rows: Sequence[Mapping[str, float]] = ()) -> None:
        self._folder = folder
        if folder is None:
            return
        from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

        try:
            shutil.rmtree(folder / "metrics", ignore_errors=True)
            self._loggers = (
                CSVLogger(folder, name="metrics", version="", flush_logs_every_n_steps=1),
                TensorBoardLogger(folder, name="metrics", version="", default_hp_metric=False),
            )
        except OSError as error:
            raise self._failed(error) from error
        for row in rows:
            self.write(row)

    def write(self, row: Mapping[str, float]) -> None:
        """Write the row of an epoch.

        Raises:
            CheckpointError: the files cannot be written.
        """
        if self._folder is None:
            return
        values: dict[str, Any] = {name: value for name, value in row.items() if name != "step"}
        try:
            with warnings.catch_warnings():
                # The folder is there already when the second of the two begins.
                warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
                for logger in self._loggers:
                    logger.log_metrics(values, int(row["step"]))
                    logger.save()
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the files."""
        if self._folder is not None:
            self._loggers[1].finalize("success")

    def _failed(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"cannot write the metrics in {self._folder}: {error.strerror or error}. The checkpoint there is whole."
        )
