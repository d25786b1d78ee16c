"""Where a run's numbers go: `metrics.jsonl` always, TensorBoard when asked for."""

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
    """Appends to `metrics.jsonl` in the run's folder, from `step` on: what a lost stretch had written later is cut off,
    so that each step stands there once.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = False):
        self.path = folder / METRICS_FILE
        self._cut(step)
        self._board = _board(folder, step) if tensorboard else None
        try:
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"Cannot write {self.path}: {error.strerror}.") from error

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line, `{"kind": …, "step": …, …}`, on disk (for this machine's life) when it returns."""
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"Cannot write {self.path}: {error.strerror}; free some space, then run the same command again."
            ) from error
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> None:
        """To the disk itself: before a checkpoint, which must not outlive the lines that led to it."""
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def _cut(self, step: int) -> None:
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"Cannot read {self.path}: {error.strerror}.") from error
        kept = [line for line in lines if _belongs(line, step)]
        if len(kept) < len(lines):
            with atomic_path(self.path) as path:
                path.write_text("".join(kept), encoding="utf-8")


def _belongs(line: str, step: int) -> bool:
    """Whether a line is whole and not of a step after `step`."""
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def check_tensorboard() -> None:
    """Raises `UserError` where the package that writes for TensorBoard is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError("--tensorboard needs tensorboardX: pip install 'steerling-jax[tensorboard]'.")


def _board(folder: Path, step: int) -> Any:
    check_tensorboard()
    module = importlib.import_module("tensorboardX")  # an extra: by name, so that no check asks for it
    return module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
