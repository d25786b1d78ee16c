"""Writes the metrics of a run to `metrics.jsonl`, and to TensorBoard on request."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends to `metrics.jsonl` in the folder of a run that goes on after `step`.

    Lines of later steps are removed first: these steps were lost when the process was killed and are done again, so
    that each step is in the file once.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = False):
        self.path = folder / METRICS_FILE
        self._remove_after(step)
        self._board = _open_tensorboard(folder, step) if tensorboard else None
        try:
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"Cannot write {self.path}: {error.strerror}; check its permissions.") from error

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line, `{"kind": …, "step": …, …}`, and hands it to the operating system: it survives a killed
        process, though not a power failure (`sync`)."""
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"Cannot write {self.path}: {error.strerror}; free some space and run the same command again."
            ) from error
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> None:
        """Flushes the file to the disk. Call it before saving a checkpoint: a run that is restored from that does not
        write the lines of earlier steps again."""
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def _remove_after(self, step: int) -> None:
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"Cannot read {self.path}: {error.strerror}; check its permissions.") from error
        remaining = [line for line in lines if _is_up_to(line, step)]
        if len(remaining) < len(lines):
            with atomic_path(self.path) as path:
                path.write_text("".join(remaining), encoding="utf-8")


def _is_up_to(line: str, step: int) -> bool:
    """Whether a line is complete and of a step up to `step`. The last line of a killed process may be cut off."""
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def check_tensorboard() -> None:
    """Raises `UserError` where the package that writes TensorBoard files is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError("--tensorboard needs tensorboardX: pip install 'steerling-jax[tensorboard]'.")


def _open_tensorboard(folder: Path, step: int) -> Any:
    check_tensorboard()
    module = importlib.import_module("tensorboardX")  # by name: an optional dependency, which type checkers would miss
    return module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
