"""Where a run's time goes, and how fast its steps are."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from steerling_jax.models.steerling.flops import Flops, peak_flops, training_flops
from steerling_jax.objectives.noise import expected_masked_share
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.train.run.run_config import RunConfig

PHASES = ("init", "compile", "data", "step", "eval", "save")
OTHER = "other"  # showing, writing lines, waiting for whoever drives the loop


class Clock:
    """Seconds by phase, over restarts. Time between the last save and a kill is lost, as are the steps made in it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.starts = 1
        self._begin, self._before = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts what happens inside towards `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def add(self, saved: Mapping[str, Any]) -> None:
        """Goes on from the clock of a checkpoint."""
        self.starts += int(saved["starts"])
        for name, seconds in saved["seconds"].items():
            self._before += float(seconds)
            if name != OTHER:
                self.seconds[name] = self.seconds.get(name, 0.0) + float(seconds)

    def to_json(self) -> dict[str, Any]:
        """`starts` of the run, and `seconds` by phase, which add up to its time."""
        everything = self._before + time.perf_counter() - self._begin
        seconds = {**self.seconds, OTHER: everything - sum(self.seconds.values())}
        return {"starts": self.starts, "seconds": {name: round(value, 3) for name, value in seconds.items()}}


class Speed:
    """Over the last 32 steps, data and compute, without evaluating and saving."""

    def __init__(self, run: RunConfig, clock: Clock):
        self._flops = step_flops(run).total
        peak = peak_flops(jax.devices()[0].device_kind)
        self._peak = None if peak is None else peak * jax.device_count()
        self._tokens, self._clock = run.tokens_per_step, clock
        self._busy: collections.deque[float] = collections.deque(maxlen=33)

    def step_done(self) -> None:
        self._busy.append(self._clock.seconds["data"] + self._clock.seconds["step"])

    @property
    def steps_per_second(self) -> float | None:
        """None before two steps were done."""
        span = self._busy[-1] - self._busy[0]
        return (len(self._busy) - 1) / span if span > 0 else None

    @property
    def tokens_per_second(self) -> float | None:
        speed = self.steps_per_second
        return None if speed is None else speed * self._tokens

    @property
    def flops_per_second(self) -> float | None:
        """Model FLOPs (`steerling_jax/models/steerling/flops.py`), of all devices."""
        speed = self.steps_per_second
        return None if speed is None else speed * self._flops

    @property
    def mfu(self) -> float | None:
        """Model FLOPs as a share of what all devices could do at most; None where that is not known, as on CPUs."""
        flops = self.flops_per_second
        return None if self._peak is None or flops is None else flops / self._peak

    def to_json(self) -> dict[str, float]:
        """For a line of metrics, what is known of it: each step's is of the steps before it."""
        found = {
            "tokens_per_second": (self.tokens_per_second, 1),
            "model_flops_per_second": (self.flops_per_second, None),
            "mfu": (self.mfu, 4),
        }
        return {name: round(value, digits) for name, (value, digits) in found.items() if value is not None}


def step_flops(run: RunConfig) -> Flops:
    """Model FLOPs of one step of a run."""
    noise, data, model = run.objective.noise, run.data, run.model
    if isinstance(run.objective, SteeringObjective):  # of the heads it asks for one score a row, which is left out
        model = dataclasses.replace(model, interpretable=False, concept=None)
    share = expected_masked_share(noise)
    if data.messages is not None:  # one block of each sequence
        share *= model.diff_block_size / data.seq_len
    return training_flops(
        model,
        batch_size=data.batch_size,
        seq_len=data.seq_len,
        clean_context=noise.clean_context,
        masked_share=share,
        frozen=run.lora is not None,
    )
