"""What `steerling train` does for a config of autoencoders: opens model and texts, trains, evaluates and exports."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.cli.console import note, stages
from steerling_jax.errors import UserError, require
from steerling_jax.io.autoencoders.save import save_autoencoder
from steerling_jax.loading import load
from steerling_jax.parallel.sharding import make_mesh
from steerling_jax.train.autoencoders.layers import LayersTraining, check_sizes
from steerling_jax.train.autoencoders.loop import run_steps
from steerling_jax.train.autoencoders.pictures import PICTURE, draw_run
from steerling_jax.train.autoencoders.run_config import AutoencoderRun
from steerling_jax.train.autoencoders.text_tokens import open_tokens
from steerling_jax.train.run.display import display
from steerling_jax.train.run.events import Evaluated, RunFinished, RunStopped
from steerling_jax.train.run.processes import is_first_process, run_on_first_process
from steerling_jax.train.run.run_folder import has_run, write_model_run

EXPORT = "export"  # folder of a run's result
FORMAT = "sparsify"  # of the export: it keeps the layer in the folder's name, and other libraries read it


def run_autoencoders(
    run: AutoencoderRun, out: Path, stop: Callable[[], bool], *, tables: bool
) -> tuple[dict[str, Any], bool]:
    """(result for --json, whether the run was stopped before its end)."""
    require(
        run.mesh is not None or jax.process_count() == 1,
        f"The config {run.name!r} has no mesh, so it trains on one device; give it mesh=MeshShape(…) for several "
        "processes.",
        "mesh",
    )
    mesh = None if run.mesh is None else make_mesh(run.mesh)
    if mesh is not None:
        check_sizes(run, mesh)
    # In float32: first positions may have norms beyond bfloat16's accuracy.
    bundle = load(run.model, dtype="float32", sharding=mesh)
    for layer in run.layers:
        if not 0 <= layer < bundle.backbone.n_layers:
            last = bundle.backbone.n_layers - 1
            raise UserError(f"layers has {layer}, but the blocks of {bundle.name} are 0 to {last}.")
    run_on_first_process(lambda: _open_folder(run, bundle, out))
    tokens = open_tokens(run, bundle, out, encoded=True)
    result: dict[str, Any] = {"config": run.name, "folder": out}
    events = run_steps(run, LayersTraining(run, bundle, tokens), out, stop)
    for event in display(events, run.steps, tables=tables) if is_first_process() else events:
        match event:
            case Evaluated():
                result["evaluation"] = event.results
                for name, figures in event.results.items() if is_first_process() else ():
                    note(_summary(name, figures))
            case RunStopped():
                if is_first_process():
                    note(f"Stopped and saved at step {event.step}; run the same command to continue.")
                return {**result, "step": event.step, "stopped": True}, True
            case RunFinished():
                result |= {"step": event.step, "clock": event.clock, "export": out / EXPORT}
                run_on_first_process(partial(_export, out, event.params))
                if (out / PICTURE).is_file():
                    result["picture"] = out / PICTURE
    return result, False


def _open_folder(run: AutoencoderRun, bundle: Bundle, out: Path) -> None:
    """Writes the run's file and its tokens, unless an earlier start of the same run did."""
    # Runs of earlier versions had one device, used each row once, and began with random features.
    known = has_run(out, run.to_json(), earlier={"mesh": None, "visits": 1, "from_rows": False})
    with stages() as progress:
        open_tokens(run, bundle, out, progress, encoded=known)
    if not known:
        # Only now: a start that failed before would refuse the mended config.
        write_model_run(out, run.to_json())


def _summary(name: str, figures: dict[str, Any]) -> str:
    """A layer's figures in one line."""
    return (
        f"{name}: unexplained variance {figures['unexplained']:.3f}, {figures['l0']:.1f} latents a row, "
        f"{figures['dead']:.1%} dead; loss recovered {figures['loss_recovered_against_zero']:.1%} against zero, "
        f"{figures['loss_recovered_against_mean']:.1%} against the mean"
    )


def _export(out: Path, autoencoders: dict[int, Autoencoder]) -> None:
    """Writes the autoencoders and the picture of the run."""
    for layer, autoencoder in autoencoders.items():
        save_autoencoder(autoencoder, out / EXPORT / f"layers.{layer}", format=FORMAT)
    draw_run(out)
