"""Held-out figures of autoencoders: unexplained variance, sparsity, dead latents, and what they cost the model."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.metrics import SplicedLosses, loss_with_output, reconstruction
from steerling_jax.bundle import Bundle
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.train.autoencoders.activations import capture_windows, mask_windows
from steerling_jax.train.autoencoders.run_config import AutoencoderRun

_BINS = tuple(10.0 ** np.arange(-5, 0.5, 0.5))  # of the densities' histogram; latents below the first are in it, too
_MASKS = 3  # a random stream of its own


def evaluate(
    run: AutoencoderRun,
    bundle: Bundle,
    autoencoders: dict[int, Autoencoder],
    limits: dict[int, float],
    tokens: np.ndarray,
) -> dict[str, Any]:
    """Figures of each layer on the held-out tokens (n,), as JSON values by `layerN`.

    limits: by layer, the largest norm of a row that counts. Rows beyond it were left out of training: here, too, and
    the model keeps them as they are where its other outputs are replaced.
    """
    size = run.windows
    count = max(size, len(tokens) // run.seq_len // size * size)
    windows = np.resize(tokens[: len(tokens) // run.seq_len * run.seq_len], (count, run.seq_len))
    seen = mask_windows(bundle, windows, [run.seed, _MASKS])
    captured = list(capture_windows(bundle, seen, run.layers, size))
    found = {}
    for layer, autoencoder in autoencoders.items():
        rows = np.concatenate([part[layer] for part in captured])
        within = np.linalg.norm(rows, axis=1) <= limits[layer]
        figures = reconstruction(autoencoder, rows[within])
        losses = _losses(run, bundle, autoencoder, layer, windows, seen, rows, within)
        found[f"layer{layer}"] = {
            "unexplained": figures.unexplained,
            "l0": figures.l0,
            "dead": figures.dead,
            "loss_recovered_against_zero": losses.recovered(losses.zero),
            "loss_recovered_against_mean": losses.recovered(losses.mean),
            "losses": losses._asdict(),
            "left_out": float(1 - within.mean()),
            "density_histogram": np.histogram(np.maximum(figures.density, _BINS[0]), _BINS)[0].tolist(),
        }
    return found


def _losses(
    run: AutoencoderRun,
    bundle: Bundle,
    autoencoder: Autoencoder,
    layer: int,
    windows: np.ndarray,
    seen: np.ndarray,
    rows: np.ndarray,
    within: np.ndarray,
) -> SplicedLosses:
    """Losses with the block's output (n · T, D) replaced where `within`."""
    if isinstance(bundle.config, ModelConfig):
        targets, counted = windows, seen != windows  # the masked tokens
    else:
        targets, counted = np.roll(windows, -1, axis=1), np.ones(windows.shape, bool)
        counted[:, -1] = False  # what follows a window's last token is not in it
    shape = (-1, run.windows, *windows.shape[1:])
    mean = rows[within].mean(axis=0)
    totals = dict.fromkeys(SplicedLosses._fields, 0.0)
    for part, (tokens, target, count) in enumerate(
        zip(seen.reshape(shape), targets.reshape(shape), counted.reshape(shape), strict=True)
    ):
        chosen = slice(part * tokens.size, (part + 1) * tokens.size)
        x, replaced = rows[chosen], within[chosen, None]
        outputs = {"model": x, "reconstructed": np.asarray(autoencoder.reconstruct(x)), "zero": 0.0 * x, "mean": mean}
        for name, output in outputs.items():
            push = np.where(replaced, output - x, 0.0).reshape(*tokens.shape, -1).astype(np.float32)
            totals[name] += float(
                loss_with_output(
                    bundle.params,
                    jnp.asarray(tokens),
                    jnp.asarray(target),
                    jnp.asarray(count, jnp.float32),
                    jnp.asarray(push),
                    backbone=bundle.backbone,
                    layer=layer,
                )
            )
    return SplicedLosses(**{name: total / max(1, counted.sum()) for name, total in totals.items()})
