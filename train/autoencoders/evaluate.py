"""Held-out figures of autoencoders: unexplained variance, sparsity, dead latents, and what they cost the model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.metrics import Reconstruction, SplicedLosses, loss_with_output, reconstruction
from steerling_jax.bundle import Bundle
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.train.autoencoders.activations import capture_windows, mask_windows
from steerling_jax.train.autoencoders.run_config import AutoencoderRun

DENSITY_BINS = tuple(
    10.0 ** np.arange(-5, 0.5, 0.5)
)  # of the densities' histogram; latents below the first are in it, too
_MASKS = 3  # a random stream of its own


def evaluate(
    run: AutoencoderRun,
    bundle: Bundle,
    autoencoders: dict[int, Autoencoder],
    limits: dict[int, float],
    tokens: np.ndarray,
    on_layer: Callable[[int, Reconstruction], None] | None = None,
    *,
    on_mesh: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Any]:
    """Figures of each layer on the held-out tokens (n,), as JSON values by `layerN`.

    limits: by layer, the largest norm of a row that counts. Rows beyond it were left out of training: here, too, and
    the model keeps them as they are where its other outputs are replaced. on_layer: called with the figures of each
    layer's latents. on_mesh: enters the mesh over which the model is sharded; the autoencoders are on one device.
    """
    size = run.windows
    count = max(size, len(tokens) // run.seq_len // size * size)
    windows = np.resize(tokens[: len(tokens) // run.seq_len * run.seq_len], (count, run.seq_len))
    seen = mask_windows(bundle, windows, [run.seed, _MASKS])
    with on_mesh():
        captured = list(capture_windows(bundle, seen, run.layers, size))
    spliced = _SplicedModel(run, bundle, windows, seen, on_mesh)
    plain = spliced.loss(0, np.zeros((seen.size, bundle.backbone.width), np.float32))  # the same for all layers
    found = {}
    for layer, autoencoder in autoencoders.items():
        rows = np.concatenate([part[layer] for part in captured])
        within = np.linalg.norm(rows, axis=1) <= limits[layer]
        figures = reconstruction(autoencoder, rows[within])
        if on_layer is not None:
            on_layer(layer, figures)
        # Rows that do not count go on as they are.
        outputs = {"reconstructed": figures.output, "zero": np.zeros(1), "mean": rows[within].mean(axis=0)}
        pushes = {name: np.zeros_like(rows) for name in outputs}
        for name, output in outputs.items():
            pushes[name][within] = output - rows[within]
        losses = SplicedLosses(plain, **{name: spliced.loss(layer, push) for name, push in pushes.items()})
        found[f"layer{layer}"] = {
            "unexplained": figures.unexplained,
            "l0": figures.l0,
            "dead": figures.dead,
            "loss_recovered_against_zero": losses.recovered(losses.zero),
            "loss_recovered_against_mean": losses.recovered(losses.mean),
            "losses": losses._asdict(),
            "left_out": float(1 - within.mean()),
            "density_histogram": np.histogram(np.maximum(figures.density, DENSITY_BINS[0]), DENSITY_BINS)[0].tolist(),
        }
    return found


class _SplicedModel:
    """The model's loss on windows (n, T), seen by it as `seen`, with changes to a block's output."""

    def __init__(
        self,
        run: AutoencoderRun,
        bundle: Bundle,
        windows: np.ndarray,
        seen: np.ndarray,
        on_mesh: Callable[[], AbstractContextManager[Any]],
    ):
        self._bundle, self._on_mesh = bundle, on_mesh
        if isinstance(bundle.config, ModelConfig):
            targets, counted = windows, seen != windows  # the masked tokens
        else:
            targets, counted = np.roll(windows, -1, axis=1), np.ones(windows.shape, bool)
            counted[:, -1] = False  # what follows a window's last token is not in it
        self._parts = [a.reshape(-1, run.windows, run.seq_len) for a in (seen, targets, counted.astype(np.float32))]
        self._count = max(1, int(counted.sum()))

    def loss(self, layer: int, push: np.ndarray) -> float:
        """The mean loss in nats with `push` (n · T, D) added to the output of block `layer`."""
        params, backbone = self._bundle.params, self._bundle.backbone
        parts = zip(*self._parts, push.reshape(*self._parts[0].shape, -1), strict=True)
        with self._on_mesh():
            losses = [float(loss_with_output(params, *part, np.int32(layer), backbone=backbone)) for part in parts]
        return sum(losses) / self._count
