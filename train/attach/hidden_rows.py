"""The hidden rows after a model's final norm that a bottleneck is trained on, captured once and kept in files.

Both stages read the same rows many times, and reading text with the model costs more than a step, so the rows are
captured before training. A capture that was killed goes on with the first file that is missing.

Legend: B windows of a pass, T tokens of a window, R rows, D width, V vocabulary, m top tokens of a row.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steerling_jax.autoencoders.encoding import best
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError, require
from steerling_jax.io.atomic import atomic_path
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.progress import Progress, no_progress
from steerling_jax.train.attach.run_config import AttachRun
from steerling_jax.train.autoencoders.activations import mask_windows
from steerling_jax.train.data.epoch_order import epoch_order

FOLDER = "hidden"
_FILE_WINDOWS = 64  # windows whose rows are in one file
_HALF_LIMIT = 3e4  # numbers beyond it would overflow float16, and are kept in float32
_ORDER, _TRAINING_MASKS, _HELD_OUT_MASKS = 0, 1, 2  # random streams of a run


class Windows(NamedTuple):
    """Text as the model reads it: tokens (n, T), what each position predicts, and which positions count, (n, T)."""

    tokens: np.ndarray
    targets: np.ndarray
    counted: np.ndarray


def text_windows(run: AttachRun, bundle: Bundle, tokens: np.ndarray, *, held_out: bool = False) -> Windows:
    """Windows of tokens (n,). A diffusion model predicts the masks of its window, at a rate drawn for each; other
    models predict at each position the token after it, and read the ids first that every text begins with."""
    prefix = bundle.tokenizer.prefix if not isinstance(bundle.config, ModelConfig) else ()
    size = run.seq_len - len(prefix)
    require(size >= 2, f"seq_len is {run.seq_len}, but it must be at least {2 + len(prefix)}.", "seq_len")
    count = len(tokens) // size // run.windows * run.windows
    require(count > 0, f"The texts have {len(tokens):,} tokens where at least {size * run.windows:,} are needed, for "
            f"training and in held_out each; add texts, or lower seq_len or windows.")  # fmt: skip
    windows = np.asarray(tokens[: count * size]).reshape(count, size)
    windows = np.concatenate([np.tile(np.asarray(prefix, np.int32), (count, 1)), windows], axis=1)
    if isinstance(bundle.config, ModelConfig):
        seen = mask_windows(bundle, windows, [run.seed, _HELD_OUT_MASKS if held_out else _TRAINING_MASKS])
        return Windows(seen, windows, seen != windows)
    counted = np.ones(windows.shape, bool)
    counted[:, -1] = False  # what follows a window's last token is not in it
    counted[:, : max(0, len(prefix) - 1)] = False
    return Windows(windows, np.roll(windows, -1, axis=1), counted)


class HiddenRows(NamedTuple):
    """rows (R, D) float16, after the final norm. top (R, m) int32: the tokens that each gives the largest logits."""

    rows: np.ndarray
    top: np.ndarray

    def batch(self, seed: int, stage: int, step: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows and top tokens of a step: each epoch of a stage has an order of its own."""
        chosen = epoch_order([seed, _ORDER, stage], step * size, size, len(self.rows))
        return self.rows[chosen], self.top[chosen]


def capture_rows(
    run: AttachRun, bundle: Bundle, tokens: np.ndarray, folder: Path, progress: Progress = no_progress
) -> HiddenRows:
    """The hidden rows of tokens (n,), from files in `folder` where an earlier start of this run wrote them.

    Raises `UserError` if the model's hidden rows contain NaN, or the disk is full.
    """
    windows = text_windows(run, bundle, tokens)
    count = len(windows.tokens)
    size = max(run.windows, _FILE_WINDOWS // run.windows * run.windows)
    files = [(start, folder / FOLDER / f"{start:08}.npz") for start in range(0, count, size)]
    for start, path in files:
        progress("capturing hidden rows", start, count)
        if path.is_file():
            continue
        part = slice(start, start + size)
        rows, top = _capture(run, bundle, windows.tokens[part], windows.counted[part])
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as scratch, scratch.open("wb") as file:
            np.savez(file, rows=rows, top=top)
    progress("capturing hidden rows", count, count)
    loaded = [np.load(path) for _, path in files]
    return HiddenRows(*(np.concatenate([part[name] for part in loaded]) for name in ("rows", "top")))


def discard_rows(folder: Path) -> None:
    """Removes the captured rows of a finished run."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _capture(run: AttachRun, bundle: Bundle, tokens: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows and top tokens of the positions that count, of windows (n, T)."""
    rows, top = [], []
    for start in range(0, len(tokens), run.windows):
        part = slice(start, start + run.windows)
        found = _captured(bundle.params, jnp.asarray(tokens[part]), backbone=bundle.backbone, m=run.top)
        hidden, ids = (np.asarray(a)[counted[part]] for a in jax.device_get(found))
        if not np.isfinite(hidden).all():
            raise UserError(
                f"The hidden states of {bundle.name} contain NaN or infinite values; the model is damaged, or needs "
                "another dtype."
            )
        rows.append(hidden)
        top.append(ids)
    hidden = np.concatenate(rows)
    dtype = np.float16 if np.abs(hidden).max(initial=0.0) < _HALF_LIMIT else np.float32
    return hidden.astype(dtype), np.concatenate(top)


@partial(jax.jit, static_argnames=("backbone", "m"))
def _captured(params: Params, tokens: jax.Array, *, backbone: Backbone, m: int) -> tuple[jax.Array, jax.Array]:
    """tokens (B, T) to hidden rows (B, T, D) float32 and the m tokens of largest logit (B, T, m)."""
    hidden = backbone.run(params, backbone.embed(params, tokens)).hidden

    def top(rows: jax.Array) -> jax.Array:
        return best(backbone.logits(params, rows), min(m, backbone.vocab_size))[1].astype(jnp.int32)

    return hidden.astype(jnp.float32), lax.map(top, hidden)  # a window's logits (T, V) at a time
