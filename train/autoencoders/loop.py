"""The training loop of autoencoders: a generator that captures rows, updates every layer's autoencoder, and saves.

A run that is killed at any moment and started again reaches the same autoencoders, bit for bit: the rows of a step
depend on (seed, step) alone, and a checkpoint holds everything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.training_step import AutoencoderState, init_state, update
from steerling_jax.bundle import Bundle
from steerling_jax.io.checkpoints.training import TrainingCheckpoints
from steerling_jax.train.autoencoders.activations import Activations
from steerling_jax.train.autoencoders.evaluate import evaluate
from steerling_jax.train.autoencoders.run_config import AutoencoderRun
from steerling_jax.train.run.clock import Clock
from steerling_jax.train.run.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    RunFinished,
    RunStarted,
    RunStopped,
    StepDone,
)
from steerling_jax.train.run.metrics import MetricsLog
from steerling_jax.train.run.processes import SaveTimer

_SAMPLE = 8192  # rows from which the initial bias and the limit of norms are taken

States = dict[str, AutoencoderState]  # by the layer's number, as text


def train_autoencoders(
    run: AutoencoderRun,
    bundle: Bundle,
    tokens: tuple[np.ndarray, np.ndarray],
    folder: Path,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Trains in `folder`, from its newest checkpoint if it has one, and ends with `RunStopped` or `RunFinished`, whose
    params are the autoencoders by layer. tokens: (training, held-out)."""
    clock = Clock()
    with ExitStack() as stack:
        checkpoints = stack.enter_context(TrainingCheckpoints(folder, keep=run.keep))
        activations = Activations(run, bundle, tokens[0])
        with clock.phase("init"):
            states, step, unreadable = _restore_or_initialise(run, activations, checkpoints, clock)
        yield RunStarted(step, (f"{bundle.name}: layers {', '.join(map(str, run.layers))}",), unreadable)
        log = stack.enter_context(MetricsLog(folder, step))
        timer = SaveTimer(run.checkpoint_minutes)
        advance = jax.jit(partial(update, recipe=run.recipe), donate_argnums=0)
        while step < run.steps:
            started = time.perf_counter()
            with clock.phase("data"):
                rows = activations.batch(step)
            with clock.phase("step"):
                metrics = {}
                for layer in run.layers:
                    states[str(layer)], found = advance(states[str(layer)], jnp.asarray(rows[layer]))
                    metrics |= {f"layer{layer}/{name}": value for name, value in found.items()}
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            step += 1
            values["loss"] = float(np.mean([values[f"layer{layer}/loss"] for layer in run.layers]))
            if step == 1 or step % run.log_every == 0 or step == run.steps:
                log.write("step", step, values)
            yield StepDone(step, values, run.recipe.batch_rows / (time.perf_counter() - started), None)
            stopping = stop() and step < run.steps
            if stopping or step == run.steps or step % run.checkpoint_every == 0 or timer.is_due():
                log.sync()
                with clock.phase("save"):
                    checkpoints.save(step, states, clock.to_json())
                timer.restart()
            if stopping:
                checkpoints.wait()
                yield CheckpointSaved(step)
                yield RunStopped(step, clock.to_json())
                return
            if (saved := checkpoints.finished()) is not None:
                yield CheckpointSaved(saved)
        found = autoencoders(run, states)
        with clock.phase("eval"):
            limits = {layer: float(states[str(layer)].limit) for layer in run.layers}
            results = evaluate(run, bundle, found, limits, tokens[1])
        log.write("evaluation", step, results)
        yield Evaluated(step, results)
        checkpoints.wait()
        yield RunFinished(step, found, clock.to_json())


def autoencoders(run: AutoencoderRun, states: Mapping[str, AutoencoderState]) -> dict[int, Autoencoder]:
    """The autoencoders of these states, by layer."""
    return {
        layer: Autoencoder(states[str(layer)].trained.weights(run.recipe.k), layer, f"{run.name}, layer {layer}")
        for layer in run.layers
    }


def _restore_or_initialise(
    run: AutoencoderRun, activations: Activations, checkpoints: TrainingCheckpoints, clock: Clock
) -> tuple[States, int, tuple[tuple[int, str], ...]]:
    """(states, step, checkpoints that could not be read)."""
    key = jax.random.key(run.seed)

    def initial(samples: Any) -> States:
        return {
            str(layer): init_state(run.recipe, samples[layer], jax.random.fold_in(key, layer)) for layer in run.layers
        }

    first = activations.batch(0)
    sample = {layer: jnp.asarray(rows[:_SAMPLE]) for layer, rows in first.items()}
    restored = checkpoints.restore(jax.eval_shape(initial, sample))
    if restored is None:
        return initial(sample), 0, ()
    clock.add(restored.clock)
    return restored.state, restored.step, restored.unreadable
