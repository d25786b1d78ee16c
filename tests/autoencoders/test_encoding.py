"""Encoding and decoding against plain NumPy, and the same numbers on a mesh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steerling_jax as sj
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.encoding import best, encode_rows
from steerling_jax.autoencoders.weights import Settings, Weights
from steerling_jax.models.edits import apply_edits
from tests.worlds.autoencoders import LATENTS as S
from tests.worlds.autoencoders import WIDTH as D
from tests.worlds.autoencoders import make_autoencoder as make
from tests.worlds.paths import REPOSITORY


def plain(autoencoder: Autoencoder, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dense latents and reconstruction of x (N, D), in float64 and row by row."""
    w, settings = autoencoder.weights, autoencoder.weights.settings
    W_enc, W_dec, b_enc, b_dec = (np.asarray(a, np.float64) for a in (w.W_enc, w.W_dec, w.b_enc, w.b_dec))
    norms = np.linalg.norm(W_dec, axis=1) if settings.rescale_by_decoder_norm else np.ones(len(W_dec))
    latents, outputs = [], []
    for original in np.asarray(x, np.float64):
        row, mean, scale = original, 0.0, 1.0
        if settings.normalise == "layer_norm":
            mean, scale = row.mean(), row.std(ddof=1)
            row = (row - mean) / (scale + 1e-5)
        pre = ((row - b_dec if settings.subtract_b_dec else row) @ W_enc + b_enc) * norms
        if w.threshold is not None:
            pre = np.where(pre > np.asarray(w.threshold), pre, 0)
        pre = np.maximum(pre, 0)
        kept = np.zeros_like(pre)
        if settings.activation == "topk":
            chosen = np.argsort(-pre, kind="stable")[: settings.k]
        elif settings.activation == "groupmax":
            assert settings.k is not None
            size = len(pre) // settings.k
            chosen = np.array([size * g + pre[size * g : size * (g + 1)].argmax() for g in range(settings.k)])
        else:
            chosen = np.arange(len(pre))
        kept[chosen] = pre[chosen]
        out = ((kept / norms) @ W_dec + b_dec) * scale + mean
        latents.append(kept)
        outputs.append(out if w.W_skip is None else out + original @ np.asarray(w.W_skip, np.float64))
    return np.array(latents), np.array(outputs)


CASES = {
    "topk": make(Settings("topk", 5)),
    "topk, centred and rescaled": make(Settings("topk", 5, subtract_b_dec=True, rescale_by_decoder_norm=True)),
    "topk, layer norm": make(Settings("topk", 5, normalise="layer_norm")),
    "group-max": make(Settings("groupmax", 8, subtract_b_dec=True)),
    "JumpReLU": make(Settings("threshold"), threshold=3.0),
    "JumpReLU, thresholds below 0": make(Settings("threshold"), threshold=-3.0),
    "ReLU": make(Settings("threshold", subtract_b_dec=True)),
    "skip": make(Settings("topk", 5), skip=True),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(D,), (7, D), (2, 9, D)])
def test_latents_and_output_are_those_of_numpy(name: str, shape: tuple[int, ...]):
    autoencoder = CASES[name]
    x = np.random.default_rng(1).normal(0, 2, shape).astype(np.float32)
    latents, output = plain(autoencoder, x.reshape(-1, D))
    largest = np.abs(latents).max()
    dense = np.asarray(autoencoder.encode(x, dense=True)).reshape(-1, S)
    np.testing.assert_allclose(dense, latents, atol=1e-5 * largest)
    values, indices = autoencoder.encode(x)
    assert values.shape == indices.shape == (*shape[:-1], autoencoder.k or (latents > 0).sum(axis=1).max())
    spread = np.zeros_like(latents)
    rows = np.arange(len(latents))[:, None]
    np.add.at(spread, (rows, np.asarray(indices).reshape(len(rows), -1)), np.asarray(values).reshape(len(rows), -1))
    np.testing.assert_allclose(spread, latents, atol=1e-5 * largest)
    largest_first = np.asarray(values)[..., :-1] >= np.asarray(values)[..., 1:]
    assert largest_first.all()
    np.testing.assert_allclose(
        np.asarray(autoencoder.reconstruct(x)).reshape(-1, D), output, atol=1e-5 * np.abs(output).max()
    )


@pytest.mark.parametrize("name", ["topk, centred and rescaled", "JumpReLU"])
def test_sparse_and_dense_latents_decode_to_the_same(name: str):
    autoencoder = CASES[name]
    x = np.random.default_rng(2).normal(0, 2, (5, D)).astype(np.float32)
    output = np.asarray(autoencoder.reconstruct(x))
    atol = 1e-5 * np.abs(output).max()
    np.testing.assert_allclose(autoencoder.decode(autoencoder.encode(x)), output, atol=atol)
    np.testing.assert_allclose(autoencoder.decode(autoencoder.encode(x, dense=True)), output, atol=atol)


def test_more_rows_than_one_piece():
    """1,100 rows are three chunks of two programs; each row's result is that of the row alone."""
    autoencoder = CASES["topk"]
    x = np.random.default_rng(3).normal(size=(1100, D)).astype(np.float32)
    values, indices = autoencoder.encode(x)
    for row in (0, 255, 256, 1023, 1024, 1099):
        alone, where = autoencoder.encode(x[row])
        np.testing.assert_allclose(values[row], alone, rtol=1e-5)
        np.testing.assert_array_equal(indices[row], where)


def test_no_rows():
    values, indices = CASES["topk"].encode(np.zeros((0, D), np.float32))
    assert values.shape == indices.shape == (0, 5)


@given(st.integers(1, 8), st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None, max_examples=30)
def test_selection_by_groups_equals_top_k(k: int, seed: int, tied: bool):
    rng = np.random.default_rng(seed)
    pre = jnp.asarray(rng.integers(0, 4, (6, 512)) if tied else rng.normal(size=(6, 512)), jnp.float32)
    for ours, theirs in zip(best(pre, k), jax.lax.top_k(pre, k), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_no_array_of_rows_and_latents():
    """The largest temporary array of 4,096 rows and 8,192 latents is that of one chunk of rows."""
    weights = Weights(
        W_enc=jnp.zeros((16, 8192)), W_dec=jnp.zeros((8192, 16)), b_enc=jnp.zeros(8192), b_dec=jnp.zeros(16),
        settings=Settings("topk", 4),
    )  # fmt: skip
    compiled = encode_rows.lower(weights, jnp.zeros((4096, 16)), 4).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 4096 * 8192 * 4 / 4


def test_with_many_latents_a_chunk_has_fewer_rows():
    """1,024 rows and 131,072 latents: their pre-activations would be 537 MB, and those of 256 rows 134."""

    def shape(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    weights = Weights(shape(64, 131_072), shape(131_072, 64), shape(131_072), shape(64), settings=Settings("topk", 50))
    analysis = encode_rows.lower(weights, shape(1024, 64), 50).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 100e6


def test_a_mesh_gives_the_same():
    """On eight devices, in a process of its own: latents over four of them, rows over two."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-m", "tests.worlds.sharded_encoding"]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == dict.fromkeys(("topk", "JumpReLU", "group-max"), "equal")


def test_a_feature_is_added_to_one_layer():
    autoencoder = CASES["topk"]
    x = jnp.ones((1, 3, D))
    edit = sj.feature_edit(autoencoder, feature=7, alpha=2.0)
    direction = np.broadcast_to(autoencoder.weights.W_dec[7], x.shape)
    np.testing.assert_allclose(apply_edits(x, 1, [edit]) - x, 2 * direction, rtol=1e-5)
    for other in (0, 2, 5):
        np.testing.assert_array_equal(apply_edits(x, other, [edit]), x)
    elsewhere = sj.feature_edit(autoencoder, feature=7, alpha=2.0, layer=0)
    assert float(jnp.abs(apply_edits(x, 0, [elsewhere]) - x).max()) > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a.encode(np.zeros((2, D + 1))), r"reads \(…, 12\)"),
        (lambda a: a.encode(np.full((2, D), np.nan)), "contain NaN"),
        (lambda a: a.decode(np.zeros((2, S + 1))), r"give \(…, 96\)"),
        (lambda a: a.decode((np.zeros((2, 5)), np.zeros((2, 4), int))), "one shape"),
        (lambda a: CASES["skip"].decode(np.zeros((2, S))), "skip connection"),
        (lambda a: CASES["topk, layer norm"].decode(np.zeros((2, S))), "normalises its input"),
        (lambda a: sj.feature_edit(a, feature=S, alpha=1.0), "no feature 96"),
        (lambda a: sj.feature_edit(a, feature=-1, alpha=1.0), "no feature -1"),
        (lambda a: sj.feature_edit(a, feature=0, alpha=float("nan")), "finite"),
        (lambda a: sj.feature_edit(a, feature=0, alpha=1.0, layer=-2), "counted from 0"),
    ],
)
def test_refusals(call, message: str):
    with pytest.raises(sj.UserError, match=message):
        call(CASES["topk"])


def test_it_prints_as_one_line():
    assert repr(CASES["topk"]) == "Autoencoder(width 12, 96 latents, k=5, layer 1)"
    assert "JumpReLU" in repr(CASES["JumpReLU"])
