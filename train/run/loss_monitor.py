"""Monitors the loss of each step: reports spikes, and ends a run whose updates stay non-finite."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.json_files import write_json
from steerling_jax.train.data.batches import Batches
from steerling_jax.train.run.events import LossSpike
from steerling_jax.train.run.processes import is_first_process

MAX_SKIPPED = 50  # consecutive updates
NON_FINITE_FILE = "nonfinite.json"

WINDOW, MIN_LOSSES = 128, 32  # the number of previous losses that a loss is compared with: at most, and at least
SPREADS = 6.0  # a spike is this many spreads above the median
MIN_SPREAD = 0.002  # times the median, so that a loss which hardly varies has no spikes


class SpikeDetector:
    """Detects losses that are far above the previous ones.

    The spread is the median absolute deviation times 1.4826, which for normal noise is the standard deviation. Median
    and spread are robust: the spikes in the window do not move them, as they would move a mean and a standard
    deviation, and so do not hide the next spike. Of consecutive high losses only the first is a spike. The window is
    not saved in checkpoints: after a restart nothing is detected in the first `MIN_LOSSES` steps.
    """

    def __init__(self) -> None:
        self._losses: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self._high = False

    def check(self, loss: float) -> float | None:
        """Adds the next loss. The median of the previous losses where it is a spike, else None. Non-finite losses are
        ignored: their updates are skipped (`training_step.update`)."""
        if not math.isfinite(loss):
            return None
        previous = tuple(self._losses)
        self._losses.append(loss)
        if len(previous) < MIN_LOSSES:
            return None
        median = statistics.median(previous)
        spread = 1.4826 * statistics.median(abs(value - median) for value in previous)
        was_high, self._high = self._high, loss > median + SPREADS * max(spread, MIN_SPREAD * abs(median))
        return median if self._high and not was_high else None


class LossMonitor:
    """Checks the metrics of every step of a run, in order.

    All processes run it on the same metrics, so that they raise together: one that went on alone would wait for ever in
    the next collective. Only the first process reads the data for a report.
    """

    def __init__(self, batches: Batches, folder: Path, skipped: int):
        """folder: of the run. skipped: the number of skipped updates before the first step that is checked."""
        self._batches, self._folder = batches, folder
        self._detector, self._skipped, self._consecutive = SpikeDetector(), skipped, 0

    def check(self, step: int, metrics: Mapping[str, float]) -> LossSpike | None:
        """The spike at `step`, if any. Raises `UserError` after `MAX_SKIPPED` consecutive skipped updates, and writes
        the numbers of their sequences and chunks to `nonfinite.json`."""
        skipped = int(metrics["skipped"])
        self._consecutive = self._consecutive + 1 if skipped > self._skipped else 0
        self._skipped = skipped
        if self._consecutive >= MAX_SKIPPED:
            self._raise_non_finite(step)
        median = self._detector.check(metrics["loss"])
        if median is None:
            return None
        sequences = self._batches.contents(step)["sequences"] if is_first_process() else ()
        return LossSpike(step, metrics["loss"], median, tuple(sequences))

    def _raise_non_finite(self, step: int) -> None:
        path = self._folder / NON_FINITE_FILE
        if is_first_process():
            steps = range(step - self._consecutive + 1, step + 1)
            write_json(path, [self._batches.contents(number) for number in steps])
        raise UserError(
            f"The loss or its gradient was not finite in the last {self._consecutive} steps, up to step {step}: check "
            f"the sequences and chunks of these steps, listed in {path}; lower optimizer.peak_rate or raise the "
            "compute precision, and start in a new folder."
        )
