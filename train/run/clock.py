"""Time of a run by phase, and the speed of its steps."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.flops import training_flops as decoder_training_flops
from steerling_jax.models.steerling.flops import Flops, peak_flops, training_flops
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.noise import expected_masked_share
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.train.run.run_config import RunConfig

PHASES = ("init", "compile", "data", "step", "eval", "save")
OTHER = "other"  # writing metrics, and the program that handles the events


class Clock:
    """Seconds by phase, summed over restarts. It is saved with each checkpoint, so the time of steps that are lost when
    a process is killed is not counted."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.starts = 1
        self._start, self._before = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside the `with` block to phase `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def add(self, saved: Mapping[str, Any]) -> None:
        """Adds the clock of a checkpoint (`to_json`)."""
        self.starts += int(saved["starts"])
        for name, seconds in saved["seconds"].items():
            self._before += float(seconds)
            if name != OTHER:
                self.seconds[name] = self.seconds.get(name, 0.0) + float(seconds)

    def to_json(self) -> dict[str, Any]:
        """`starts`: how often the run was started; `seconds` by phase, which sum to the run's time."""
        total = self._before + time.perf_counter() - self._start
        seconds = {**self.seconds, OTHER: total - sum(self.seconds.values())}
        return {"starts": self.starts, "seconds": {name: round(value, 3) for name, value in seconds.items()}}


class Speed:
    """Speed over the last 32 steps: time for data and for steps, without evaluations and saves."""

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
        """None before the second step."""
        span = self._busy[-1] - self._busy[0]
        return (len(self._busy) - 1) / span if span > 0 else None

    @property
    def tokens_per_second(self) -> float | None:
        speed = self.steps_per_second
        return None if speed is None else speed * self._tokens

    @property
    def flops_per_second(self) -> float | None:
        """Model FLOPs (`step_flops`) a second, of all devices."""
        speed = self.steps_per_second
        return None if speed is None else speed * self._flops

    @property
    def mfu(self) -> float | None:
        """Model FLOPs over the peak of all devices (MFU); None where the peak is unknown, as on CPUs."""
        flops = self.flops_per_second
        return None if self._peak is None or flops is None else flops / self._peak

    def to_json(self) -> dict[str, float]:
        """The values that are known, for a line of metrics. They are of the steps before the line's."""
        values = {
            "tokens_per_second": (self.tokens_per_second, 1),
            "model_flops_per_second": (self.flops_per_second, None),
            "mfu": (self.mfu, 4),
        }
        return {name: round(value, digits) for name, (value, digits) in values.items() if value is not None}


def step_flops(run: RunConfig) -> Flops:
    """Model FLOPs of one step of a run."""
    noise, data, model = run.objective.noise, run.data, run.model
    if isinstance(model, DecoderConfig):
        return decoder_training_flops(
            model, batch_size=data.batch_size, seq_len=data.seq_len, frozen=run.lora is not None
        )
    # These do not run the concept heads, except for one score a row in steering training, which is not counted.
    if isinstance(run.objective, SteeringObjective | NextTokenObjective):
        model = dataclasses.replace(model, interpretable=False, concept=None)
    share = 1.0 if isinstance(run.objective, NextTokenObjective) else expected_masked_share(noise)
    if data.messages is not None:  # only one block of each sequence is masked
        share *= model.diff_block_size / data.seq_len
    return training_flops(
        model,
        batch_size=data.batch_size,
        seq_len=data.seq_len,
        clean_context=noise.clean_context,
        masked_share=share,
        frozen=run.lora is not None,
        heads_only=isinstance(run.objective, DictionaryObjective) and run.objective.heads_only,
    )
