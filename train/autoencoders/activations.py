"""Hidden rows of a model, captured as training needs them: a buffer at a time, shuffled, the same after a restart.

A buffer's windows of text, masks and order depend on (seed, number of the buffer) alone, so a resumed run captures the
buffer of its step again and needs nothing saved.

Legend: B windows of a pass, T tokens of a window, R rows of a buffer, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.parallel.sharding import to_host
from steerling_jax.train.autoencoders.run_config import AutoencoderRun
from steerling_jax.train.data.epoch_order import epoch_order

_ORDER, _MASKS, _ROWS, _VISITS = 0, 1, 2, 4  # random streams of a run; 3 is that of the evaluation


class Activations:
    """The rows that a run trains on. tokens: (n,) int32, of all texts, without those that are held out."""

    def __init__(self, run: AutoencoderRun, bundle: Bundle, tokens: np.ndarray):
        self._run, self._bundle = run, bundle
        self._windows = tokens[: len(tokens) // run.seq_len * run.seq_len].reshape(-1, run.seq_len)
        self._buffer: tuple[int, dict[int, np.ndarray]] | None = None

    def batch(self, step: int) -> dict[int, np.ndarray]:
        """The rows of step `step`, counted from 0, by layer: each (batch_rows, D) float32."""
        run, rows = self._run, self._run.recipe.batch_rows
        visit, place = divmod(step, run.buffer_rows // rows)
        number, repeat = divmod(visit, run.visits)
        if self._buffer is None or self._buffer[0] != number:
            self._buffer = None  # before the next one is captured, so that memory holds one
            self._buffer = (number, self._capture(number))
        part: slice | np.ndarray = slice(place * rows, (place + 1) * rows)
        if repeat:  # the rows are in random order already, but each visit has other batches
            part = np.random.default_rng([run.seed, _VISITS, number, repeat]).permutation(run.buffer_rows)[part]
        return {layer: values[part] for layer, values in self._buffer[1].items()}

    def _capture(self, number: int) -> dict[int, np.ndarray]:
        """The rows of a buffer, by layer: each (R, D) float32, in random order."""
        run = self._run
        count = run.buffer_rows // run.seq_len
        chosen = epoch_order([run.seed, _ORDER], number * count, count, len(self._windows))
        windows = self._windows[chosen]
        windows = mask_windows(self._bundle, windows, [run.seed, _MASKS, number])
        order = np.random.default_rng([run.seed, _ROWS, number]).permutation(run.buffer_rows)
        place = np.empty_like(order)
        place[order] = np.arange(run.buffer_rows)
        width = self._bundle.backbone.width
        buffer = {layer: np.empty((run.buffer_rows, width), np.float32) for layer in run.layers}
        at = 0
        for captured in capture_windows(self._bundle, windows, run.layers, run.windows):
            size = run.windows * run.seq_len
            for layer, values in captured.items():
                buffer[layer][place[at : at + size]] = values
            at += size
        return buffer


def mask_windows(bundle: Bundle, windows: np.ndarray, seed: Sequence[int]) -> np.ndarray:
    """Windows (n, T) as the model reads them: a diffusion model's have masks, at a rate drawn for each window; an
    autoregressive model's have none."""
    if not isinstance(bundle.config, ModelConfig):
        return windows
    rng = np.random.default_rng(seed)
    masked = rng.random(windows.shape) < rng.random((len(windows), 1))
    return np.where(masked, np.int32(bundle.config.mask_token_id), windows)


def capture_windows(
    bundle: Bundle, windows: np.ndarray, layers: tuple[int, ...], size: int
) -> Iterator[dict[int, np.ndarray]]:
    """The outputs of blocks for windows (n, T), `size` windows at a time: by layer, each (size · T, D) float32."""
    for start in range(0, len(windows), size):
        # Every process has all windows, and gets the rows of all: a buffer is then the same for any number of them.
        tokens = windows[start : start + size]
        captured = to_host(_captured(bundle.params, tokens, backbone=bundle.backbone, layers=layers))
        yield {
            layer: np.asarray(values, np.float32).reshape(-1, values.shape[-1]) for layer, values in captured.items()
        }


@partial(jax.jit, static_argnames=("backbone", "layers"))
def _captured(
    params: Params, tokens: jax.Array | np.ndarray, *, backbone: Backbone, layers: tuple[int, ...]
) -> dict[int, jax.Array]:
    return backbone.run(params, backbone.embed(params, jnp.asarray(tokens)), capture=layers).captured
