"""What `steerling train` does for a config of rollouts: opens model, texts and reward, trains, exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from steerling_jax.bundle import Bundle, check_weights
from steerling_jax.cli.console import note, stages
from steerling_jax.errors import require
from steerling_jax.io.weights.decoder_writer import write_decoder
from steerling_jax.io.weights.published_layout import companion_files
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.loading import load
from steerling_jax.models.backbone import BOTTLENECK
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.steerling.fingerprint import fingerprint
from steerling_jax.train.autoencoders.loop import run_steps
from steerling_jax.train.autoencoders.text_tokens import open_tokens
from steerling_jax.train.rollouts.prompts import Prompts
from steerling_jax.train.rollouts.rewards import load_reward
from steerling_jax.train.rollouts.run_config import RolloutRun
from steerling_jax.train.rollouts.sampling import fault_edits
from steerling_jax.train.rollouts.training import RolloutTraining
from steerling_jax.train.run.display import display
from steerling_jax.train.run.events import Evaluated, RunFinished, RunStopped
from steerling_jax.train.run.run_folder import has_run, write_model_run


def run_rollouts(run: RolloutRun, out: Path, stop: Callable[[], bool], *, tables: bool) -> tuple[dict[str, Any], bool]:
    """(result for --json, whether the run was stopped before its end)."""
    reward = load_reward(run.reward)
    bundle = _load_model(run)
    edits = () if run.fault is None else fault_edits(run.fault, bundle, run.seed)
    identity = {"fingerprint": fingerprint(bundle.params, bundle.config)}
    known = has_run(out, run.to_json(), identity)
    with stages() as progress:
        tokens = open_tokens(run, bundle, out, progress, encoded=known)
    prompts = Prompts(run, bundle, tokens)
    if not known:
        # Only now: a start that failed before would refuse the mended config.
        write_model_run(out, run.to_json(), identity)
    result: dict[str, Any] = {"config": run.name, "folder": out}
    training = RolloutTraining(run, bundle, reward, prompts, tokens[1], edits)
    for event in display(run_steps(run, training, out, stop), run.steps, tables=tables):
        match event:
            case Evaluated():
                result["evaluation"] = event.results
            case RunStopped():
                note(f"Stopped and saved at step {event.step}; run the same command to continue.")
                return {**result, "step": event.step, "stopped": True}, True
            case RunFinished():
                result |= {"step": event.step, "clock": event.clock, "export": _export(out, event.params)}
    return result, False


def _load_model(run: RolloutRun) -> Bundle:
    """The model that is trained, in float32: updates are small beside the parameters."""
    bundle = load(run.model, dtype="float32")
    require(
        bundle.folder is not None and BOTTLENECK not in bundle.params,
        f"{bundle.name} is a GGUF file or has a bottleneck, which are not trained further; give a model's folder, a "
        "bundled model or a Hub id.",
    )
    check_weights(bundle.params, bundle.name)
    return bundle


def _export(out: Path, bundle: Bundle) -> Path:
    """Writes the trained model as a folder of its family."""
    assert bundle.folder is not None
    files = companion_files(bundle.folder)
    if isinstance(bundle.config, DecoderConfig):
        files = [path for path in files if path.name != "concepts.json"]  # it has no concept heads
        write_decoder(out / "export", bundle.config, bundle.params, files=files)
    else:
        extras = bundle.extras
        write_published(
            out / "export",
            bundle.config,
            bundle.params,
            layout=extras.layout,
            carried=extras.carried,
            dtype="float32",
            files=files,
        )
    return out / "export"
