"""What `steerling attach` does: opens model and texts, captures hidden rows, trains, evaluates and exports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from steerling_jax.autoencoders.bottleneck import check_can_be_attached
from steerling_jax.bundle import Bundle, check_weights
from steerling_jax.cli.console import note, stages
from steerling_jax.errors import UserError
from steerling_jax.io.autoencoders.bottleneck_file import BottleneckOrigin, save_bottleneck
from steerling_jax.loading import load
from steerling_jax.models.backbone import BOTTLENECK
from steerling_jax.models.steerling.fingerprint import fingerprint
from steerling_jax.train.attach.hidden_rows import capture_rows, discard_rows, text_windows
from steerling_jax.train.attach.run_config import AttachRun
from steerling_jax.train.attach.training import AttachTraining
from steerling_jax.train.autoencoders.loop import run_steps
from steerling_jax.train.autoencoders.text_tokens import open_tokens
from steerling_jax.train.run.display import display
from steerling_jax.train.run.events import Evaluated, RunFinished, RunStopped
from steerling_jax.train.run.run_folder import has_run, write_model_run


def load_model(model: str | None) -> Bundle:
    """The model that is to get a bottleneck. Raises `UserError` for one that takes none."""
    bundle = load(model, dtype="float32")  # differences of logits are small beside the logits themselves
    if BOTTLENECK in bundle.params:
        raise UserError(f"{bundle.name} has a bottleneck already; give the model that it was made for.")
    check_can_be_attached(bundle)
    check_weights(bundle.params, bundle.name)
    return bundle


def run_attach(
    run: AttachRun, bundle: Bundle, out: Path, stop: Callable[[], bool], *, tables: bool
) -> tuple[dict[str, Any], bool]:
    """(result for --json, whether the run was stopped before its end)."""
    identity = {"fingerprint": fingerprint(bundle.params, bundle.config)}
    known = has_run(out, run.to_json(), identity)
    with stages() as progress:
        training, held_out = open_tokens(run, bundle, out, progress, encoded=known)
        windows = text_windows(run, bundle, held_out, held_out=True)
        if not known:
            # Only now: a start that failed before would refuse the mended options.
            write_model_run(out, run.to_json(), identity)
        hidden = capture_rows(run, bundle, training, out, progress)
    result: dict[str, Any] = {"model": run.model, "folder": out, "rows": len(hidden.rows)}
    events = run_steps(run, AttachTraining(run, bundle, hidden, windows), out, stop)
    for event in display(events, run.steps, tables=tables):
        match event:
            case Evaluated():
                result["evaluation"] = event.results
                note(summary(event.results))
            case RunStopped():
                note(f"Stopped and saved at step {event.step}; run the same command to continue.")
                return {**result, "step": event.step, "stopped": True}, True
            case RunFinished():
                origin = BottleneckOrigin(run.model, identity["fingerprint"], result["evaluation"])
                save_bottleneck(event.params, out / "export", origin)
                discard_rows(out)
                result |= {"step": event.step, "clock": event.clock, "export": out / "export"}
    return result, False


def summary(figures: Mapping[str, Any]) -> str:
    """The figures in one line."""
    return (
        f"The bottleneck costs {figures['cost_nats']:.3f} ± {figures['cost_standard_error']:.3f} nats a token "
        f"({figures['loss_model']:.3f} to {figures['loss_bottleneck']:.3f}), KL {figures['divergence_nats']:.3f}; "
        f"the same likeliest token at {figures['agreement']:.1%} of the positions; {figures['dead']:.1%} of the "
        f"features unused. Other features would cost {figures['cost_other_features']:.2f} nats, the bias alone "
        f"{figures['cost_bias_alone']:.2f}."
    )
