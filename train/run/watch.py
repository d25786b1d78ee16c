"""Looks at each step's numbers: a loss that leaps is reported, numbers that stay non-finite end the run."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.json_files import write_json
from steerling_jax.train.data.batches import Batches
from steerling_jax.train.run.events import Spike
from steerling_jax.train.run.processes import is_first

MOST_SKIPPED = 50  # updates in a row
NON_FINITE_FILE = "nonfinite.json"

WINDOW, LEAST = 128, 32  # losses to compare with: at most, at least
SPREADS = 6.0  # a spike is so many spreads above the median
SMALLEST_SPREAD = 0.002  # of the median: below this nothing is unusual


class SpikeRule:
    """A loss far above the ones before it.

    The spread is the median absolute deviation, times 1.4826, which makes it the standard deviation of normal noise:
    neither it nor the median minds a few spikes among the losses. Of spikes in a row the first one counts. What the
    rule has seen is not saved: after a restart it begins anew.
    """

    def __init__(self) -> None:
        self._losses: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self._high = False

    def median_below(self, loss: float) -> float | None:
        """The median that `loss`, the next one, stands far above; None where it does not. Non-finite ones are
        skipped."""
        if not math.isfinite(loss):
            return None
        before = tuple(self._losses)
        self._losses.append(loss)
        if len(before) < LEAST:
            return None
        median = statistics.median(before)
        spread = 1.4826 * statistics.median(abs(value - median) for value in before)
        was_high, self._high = self._high, loss > median + SPREADS * max(spread, SMALLEST_SPREAD * abs(median))
        return median if self._high and not was_high else None


class Watch:
    """One for a run: told of every step, in order."""

    def __init__(self, batches: Batches, folder: Path, skipped: int):
        """skipped: updates, before the first step that it is told of."""
        self._batches, self._folder = batches, folder
        self._rule, self._skipped, self._in_a_row = SpikeRule(), skipped, 0

    def look(self, step: int, metrics: Mapping[str, float]) -> Spike | None:
        """Raises `UserError` when too many updates in a row were skipped; their batches are then written down."""
        skipped = int(metrics["skipped"])
        self._in_a_row = self._in_a_row + 1 if skipped > self._skipped else 0
        self._skipped = skipped
        if self._in_a_row >= MOST_SKIPPED:
            self._give_up(step)
        median = self._rule.median_below(metrics["loss"])
        if median is None:
            return None
        sequences = self._batches.contents(step)["sequences"] if is_first() else ()
        return Spike(step, metrics["loss"], median, tuple(sequences))

    def _give_up(self, step: int) -> None:
        path = self._folder / NON_FINITE_FILE
        if is_first():
            steps = range(step - self._in_a_row + 1, step + 1)
            write_json(path, [self._batches.contents(number) for number in steps])
        raise UserError(
            f"The loss or its gradient has not been finite for {self._in_a_row} steps (now step {step}): look at the "
            f"sequences and chunks they read, in {path}, lower optimizer.peak_rate, or raise compute precision, and "
            "start in a new folder."
        )
