"""Training runs without a model's computation: everything around the training step, in milliseconds."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.models.steerling.model import init_params
from steerling_jax.parallel.sharding import MeshShape, make_mesh
from steerling_jax.train.run import loop
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.events import (
    Event,
)
from steerling_jax.train.run.initial_weights import find_initial_weights
from steerling_jax.train.run.loop import LoopOptions
from steerling_jax.train.run.processes import ProcessShare
from steerling_jax.train.run.run_folder import open_folder
from tests.worlds.training_world import CONFIG, make_corpus


class CountingRuns:
    """Runs of a small config and corpus whose training step only counts, with losses that a test makes up."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch):
        (root / "small.py").write_text(CONFIG)
        self.whole = load_config(root / "small.py")
        # Without concepts and with one layer, as most of the time goes into compiling the initialisation.
        bare = dataclasses.replace(self.whole.model, n_layers=1, interpretable=False, concept=None)
        self.config = dataclasses.replace(self.whole, model=bare)
        self.store, self.patch = CorpusStore(make_corpus(root / "corpus")), patch
        self.model = root / "model"
        self.params = self.draw(7)
        write_published(self.model, self.config.model, self.params)

    def draw(self, seed: int) -> Any:
        return jax.jit(partial(init_params, self.config.model))(jax.random.key(seed))

    def train(self, out: Path, loss: Callable[[int], float] = lambda step: 3.0, **settings: Any) -> Iterator[Event]:
        """Events of a run whose step only counts; a loss that is not finite is skipped. settings: of the run, and
        `stop`, `profile` and `evaluate`."""
        options = {name: settings.pop(name) for name in ("stop", "profile", "evaluate") if name in settings}
        run = dataclasses.replace(self.config, checkpoint_every=1000, **settings)

        def step(state: Any, batch: Any, base: Any) -> tuple[Any, dict[str, jax.Array]]:
            value = loss(int(state.step) + 1)
            skipped = state.skipped + (not math.isfinite(value))
            new = state.replace(step=state.step + 1, skipped=skipped)
            return new, {"loss": jnp.float32(value), "skipped": skipped}

        self.patch.setattr(loop, "compile_step", lambda *_: step)
        open_folder(run, self.store, out)
        share = ProcessShare(make_mesh(MeshShape()), run.data.batch_size)
        return loop.train(run, self.store, out, share, LoopOptions(initial=find_initial_weights(run), **options))


def metrics_lines(out: Path, kind: str) -> list[dict]:
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in entries if line["kind"] == kind]
