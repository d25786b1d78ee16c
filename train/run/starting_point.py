"""The state that a run starts from: its newest checkpoint, else initial weights, else a random initialisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from steerling_jax.io.checkpoints.training import RestoredCheckpoint, TrainingCheckpoints
from steerling_jax.io.checkpoints.training_folder import check_start, record_start
from steerling_jax.models.backbone import Params
from steerling_jax.models.families import AnyConfig
from steerling_jax.models.steerling.fingerprint import fingerprint
from steerling_jax.objectives.language_tuning import LanguageObjective
from steerling_jax.objectives.training_step import TrainState, state_shardings
from steerling_jax.train.run.config_difference import flatten
from steerling_jax.train.run.initial_weights import InitialWeights
from steerling_jax.train.run.metrics import METRICS_FILE
from steerling_jax.train.run.processes import is_first_process
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.step import abstract_state, init_state


@dataclass(frozen=True)
class StartingPoint:
    """The state after `step`, from which training goes on.

    base: the parameters under adapters (`RunConfig.lora`); None without adapters.
    sources: one sentence each on where parameters, optimizer state, data and metrics come from.
    unreadable: newer checkpoints that were skipped, as (step, reason).
    clock: the clock of the checkpoint; None for a new run.
    """

    state: TrainState
    base: Params | None
    step: int
    sources: tuple[str, ...]
    unreadable: tuple[tuple[int, str], ...] = ()
    clock: Mapping[str, Any] | None = None


def restore_or_initialise(
    run: RunConfig,
    mesh: jax.sharding.Mesh,
    checkpoints: TrainingCheckpoints,
    folder: Path,
    initial: InitialWeights | None,
) -> StartingPoint:
    """Restores the newest checkpoint in `folder`; without one, starts from `initial` or from the seed.

    Raises `UserError` where there are checkpoints but none can be read, where `initial` has changed since the run
    started from it, or where the objective has features of another model.
    """
    restored = checkpoints.restore(abstract_state(run, mesh))
    sources, params = [], None
    # Adapters are saved without the parameters under them, which are read again at each start.
    if initial is not None and (restored is None or run.lora is not None):
        params = initial.read(run.model, mesh)
        identity = fingerprint(params, initial.config)
        if isinstance(run.objective, LanguageObjective):
            run.objective.check_start(identity, str(initial.folder))
        _check_unchanged(folder, initial, identity)
        name = "parameters" if run.lora is None else "parameters under the adapters"
        changes = _changes(initial.config, run.model)
        sources.append(f"{name}: {initial.folder}, fingerprint {identity}{changes}")
        if initial.without:
            sources.append(f"new parameters: {', '.join(sorted(initial.without))}")
    base = None if run.lora is None else params
    if restored is not None:
        sources += [_checkpoint_source(checkpoints.folder, restored), *_data_sources(run, restored.step)]
        return StartingPoint(restored.state, base, restored.step, tuple(sources), restored.unreadable, restored.clock)
    shardings = state_shardings(run, mesh)
    if params is None or base is not None:
        # Compiled with the shardings, so that no device ever holds the whole state.
        state = jax.jit(partial(init_state, run), out_shardings=shardings)()
        sources.append(f"{'parameters' if base is None else 'adapters'}: random, seed {run.seed}")
    else:
        state = jax.jit(partial(_init_with, run), donate_argnums=0, out_shardings=shardings)(params)
    return StartingPoint(state, base, 0, (*sources, "optimizer: new state", *_data_sources(run, 0)))


def _init_with(run: RunConfig, params: Params) -> TrainState:
    """An initial state with these parameters. Under jit, XLA removes the random initialisation that they replace."""
    state = init_state(run)
    return state.replace(params={**state.params, **params})  # type: ignore[attr-defined]


def _check_unchanged(folder: Path, initial: InitialWeights, identity: str) -> None:
    """Compares with the weights that the run started from, and records them in run.json on the first start."""
    start = {"folder": str(initial.folder), "fingerprint": identity}
    check_start(folder, start)
    if is_first_process():
        record_start(folder, start)


def _checkpoint_source(folder: Path, restored: RestoredCheckpoint) -> str:
    unverified = "" if restored.verified else " (not verified: the run ended before its digests were written)"
    return f"state and clock, step {restored.step}: {folder / str(restored.step)}{unverified}"


def _data_sources(run: RunConfig, step: int) -> list[str]:
    """The data needs no state of its own: a step takes one batch, and the order of batches follows from the seed."""
    data = f"data: from batch {step} on, in the order of seed {run.seed}"
    return [data, f"{METRICS_FILE}: lines up to step {step}"] if step else [data]


def _changes(theirs: AnyConfig, ours: AnyConfig) -> str:
    """Names of the fields that differ. They leave the shapes of parameters alone, but not the computation."""
    old, new = (dict(flatten(dataclasses.asdict(config))) for config in (theirs, ours))
    names = [name for name in new if old.get(name) != new[name]]
    return f" (changed here: {', '.join(names)})" if names else ""
