"""What `steerling train` does for a config of autoencoders: opens model and texts, trains, evaluates and exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.cli.console import note, stages
from steerling_jax.errors import UserError
from steerling_jax.io.autoencoders.save import save_autoencoder
from steerling_jax.io.checkpoints.parameters import RUN_FILE
from steerling_jax.io.json_files import read_json_object, write_json
from steerling_jax.loading import load
from steerling_jax.parallel.sharding import make_mesh
from steerling_jax.train.autoencoders.layers import LayersTraining, check_sizes
from steerling_jax.train.autoencoders.loop import run_steps
from steerling_jax.train.autoencoders.pictures import draw_run
from steerling_jax.train.autoencoders.run_config import AutoencoderRun
from steerling_jax.train.autoencoders.text_tokens import open_tokens
from steerling_jax.train.run.display import display
from steerling_jax.train.run.events import Evaluated, RunFinished, RunStopped
from steerling_jax.train.run.run_folder import check_same_run

FORMAT = "sparsify"  # of the export: it keeps the layer in the folder's name, and other libraries read it


def run_autoencoders(
    run: AutoencoderRun, out: Path, stop: Callable[[], bool], *, tables: bool
) -> tuple[dict[str, Any], bool]:
    """(result for --json, whether the run was stopped before its end)."""
    mesh = None if run.mesh is None else make_mesh(run.mesh)
    if mesh is not None:
        check_sizes(run, mesh)
    # In float32: first positions may have norms beyond bfloat16's accuracy.
    bundle = load(run.model, dtype="float32", sharding=mesh)
    for layer in run.layers:
        if not 0 <= layer < bundle.backbone.n_layers:
            last = bundle.backbone.n_layers - 1
            raise UserError(f"layers has {layer}, but the blocks of {bundle.name} are 0 to {last}.")
    saved = read_json_object(out / RUN_FILE).get("run", {}) if (out / RUN_FILE).is_file() else None
    if saved is not None:
        # Runs of earlier versions had one device, and used each row once.
        saved = {"mesh": None, "visits": 1, **saved}
    check_same_run(saved, run.to_json(), out)
    with stages() as progress:
        tokens = open_tokens(run, bundle, out, progress, encoded=saved is not None)
    if saved is None:
        # Only now: a start that failed before would refuse the mended config.
        write_json(out / RUN_FILE, {"kind": "autoencoders", "format_version": 1, "run": run.to_json()})
    result: dict[str, Any] = {"config": run.name, "folder": out}
    training = LayersTraining(run, bundle, tokens)
    for event in display(run_steps(run, training, out, stop), run.steps, tables=tables):
        match event:
            case Evaluated():
                result["evaluation"] = event.results
                for name, figures in event.results.items():
                    note(_summary(name, figures))
            case RunStopped():
                note(f"Stopped and saved at step {event.step}; run the same command to continue.")
                return {**result, "step": event.step, "stopped": True}, True
            case RunFinished():
                result |= {"step": event.step, "clock": event.clock, "export": _export(out, event.params)}
                if (picture := draw_run(out)) is not None:
                    result["picture"] = picture
    return result, False


def _summary(name: str, figures: dict[str, Any]) -> str:
    """A layer's figures in one line."""
    return (
        f"{name}: unexplained variance {figures['unexplained']:.3f}, {figures['l0']:.1f} latents a row, "
        f"{figures['dead']:.1%} dead; loss recovered {figures['loss_recovered_against_zero']:.1%} against zero, "
        f"{figures['loss_recovered_against_mean']:.1%} against the mean"
    )


def _export(out: Path, autoencoders: dict[int, Autoencoder]) -> Path:
    for layer, autoencoder in autoencoders.items():
        save_autoencoder(autoencoder, out / "export" / f"layers.{layer}", format=FORMAT)
    return out / "export"
