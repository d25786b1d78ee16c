"""What passes of decoders promise: caches, rows at different positions, causality, gradients, meshes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.models.decoder.parameters import logical_axes, parameter_shapes
from steerling_jax.models.edits import from_layer, inject
from tests.worlds.decoders import DECODERS, GOLDEN_DECODERS, golden_decoder
from tests.worlds.paths import REPOSITORY

# Together they have every kind of layer: sliding and full attention, DeltaNet, experts.
FAMILIES = ["gemma3", "qwen3_5_moe"]


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request: pytest.FixtureRequest) -> sj.Bundle:
    return sj.load(GOLDEN_DECODERS / request.param)


def embeddings(bundle: sj.Bundle, rows: int, length: int) -> jax.Array:
    ids = golden_decoder("llama").arrays["input_ids"][:rows, :length]  # all of the cases have a vocabulary of 64
    return bundle.backbone.embed(bundle.params, jnp.asarray(ids))


def test_two_passes_with_a_cache_are_one(bundle: sj.Bundle):
    """Also with an edit of some layers, and where the first pass is of the chunked form and the second is not."""
    backbone, x = bundle.backbone, embeddings(bundle, 2, 30)
    vector = jnp.linspace(-0.5, 0.5, backbone.width)[None, None]
    edits = (inject(vector, layers=from_layer(2, backbone.n_layers)),)
    run = jax.jit(partial(backbone.run, edits=edits, capture=(1,)))
    whole = run(bundle.params, x)
    first = run(bundle.params, x[:, :23], cache=backbone.empty_cache(2, 40))
    second = run(bundle.params, x[:, 23:], start=jnp.int32(23), cache=first.cache)
    np.testing.assert_allclose(second.hidden, whole.hidden[:, 23:], atol=2e-4)
    np.testing.assert_allclose(second.captured[1], whole.captured[1][:, 23:], atol=2e-4)
    assert whole.cache is None


def test_rows_at_different_positions_are_rows_of_their_own(bundle: sj.Bundle):
    """Padding after a row's tokens leaves no trace, a row of length 0 stays as it is, and each row has its start."""
    backbone, x, lengths = bundle.backbone, embeddings(bundle, 2, 20), jnp.array([5, 17])
    run = jax.jit(backbone.run)
    together = run(bundle.params, x, cache=backbone.empty_cache(2, 40), lengths=lengths)
    paused = run(bundle.params, x[:, :3], start=lengths, lengths=jnp.array([0, 0]), cache=together.cache)
    after = run(bundle.params, x[:, :3], start=lengths, cache=paused.cache).hidden
    for row in range(2):
        own = jnp.concatenate([x[row : row + 1, : int(lengths[row])], x[row : row + 1, :3]], axis=1)
        np.testing.assert_allclose(after[row], run(bundle.params, own).hidden[0, -3:], atol=2e-4)


def test_no_token_sees_a_later_one(bundle: sj.Bundle):
    """By the gradient of a position's hidden state with respect to all embeddings; all earlier ones matter."""
    backbone, at = bundle.backbone, 11

    def value(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(backbone.run(bundle.params, x).hidden[:, at]))

    gradient = np.asarray(jax.jit(jax.grad(value))(embeddings(bundle, 1, 20)))[0]
    assert np.all(gradient[at + 1 :] == 0)
    assert np.all(np.abs(gradient[: at + 1]).max(axis=-1) > 1e-7)


def test_rematerialised_layers_have_the_same_gradients():
    bundle = sj.load(GOLDEN_DECODERS / "qwen3_moe")

    def value(params: Any, bundle: sj.Bundle) -> jax.Array:
        return jnp.sum(jnp.sin(bundle.backbone.run(params, embeddings(bundle, 1, 20)).hidden))

    plain, again = (
        jax.jit(jax.grad(partial(value, bundle=replace(bundle, compute=sj.Compute(remat=remat)))))(bundle.params)
        for remat in (False, True)
    )
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * largest), plain, again)


@pytest.mark.parametrize("name", DECODERS)
def test_every_parameter_has_axes_of_its_rank(name: str):
    for path, shape in parameter_shapes(sj.load(GOLDEN_DECODERS / name).config).items():
        assert len(logical_axes(path)) == len(shape), f"{'/'.join(path)}: see LOGICAL_AXES in models/decoder"


@pytest.mark.slow
def test_every_mesh_gives_what_one_device_gives():
    """Logits of decoders that are loaded into their shardings on eight devices, gradients, likelihoods, and losses of
    training steps, whose layers are a loop there, to 2e-5 of their size (2e-4 with DeltaNet, whose states amplify
    rounding); greedy texts to a token."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", str(REPOSITORY / "tests" / "worlds" / "sharded_decoders.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert (len(found["differences"]), len(found["same texts"])) == (27, 9)
    for name, difference in found["differences"].items():
        assert difference < (2e-4 if "qwen3_5" in name else 2e-5), f"{name}: {difference:.1e}"
    assert all(found["same texts"].values()), found["same texts"]
