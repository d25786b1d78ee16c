"""Brute-force search equals a sort of all scores, on one device and on several."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from steerling_jax.attribution.index.retrieval import best_rows, best_signatures, shard_block, shard_rows
from steerling_jax.attribution.index.signatures import concept_weights, dequantise, quantise


def test_rows_of_several_blocks():
    draw = np.random.default_rng(0)
    blocks = [draw.standard_normal((n, 24)).astype(np.float16) for n in (1500, 3, 40)]  # as the index stores them
    query = draw.standard_normal(24).astype(np.float32)
    best = best_rows([shard_rows(block) for block in blocks], query, 20)
    scores = np.concatenate([block.astype(np.float32) @ query for block in blocks])
    order = np.argsort(-scores)[:20]
    np.testing.assert_allclose(best.values, scores[order], rtol=1e-5)
    offsets = np.array([0, 1500, 1503])
    assert (offsets[best.blocks] + best.numbers).tolist() == order.tolist()


def test_signatures_of_several_blocks():
    draw = np.random.default_rng(1)
    C, K = 50, 6
    ids = np.stack([draw.permutation(C)[:K] for _ in range(300)])
    ids[draw.random(ids.shape) < 0.1] = -1
    codes = quantise(draw.random(ids.shape))
    dense = concept_weights(ids, dequantise(codes), C)
    stored = np.where(ids < 0, C, ids).astype(np.uint16)
    blocks = [shard_block([stored[a:b], codes[a:b]]) for a, b in ((0, 120), (120, 300))]
    query = dense[7]
    best = best_signatures(blocks, query, 10)
    scores = dense @ query
    np.testing.assert_allclose(best.values, np.sort(scores)[::-1][:10], rtol=1e-5)
    assert np.allclose(scores[best.blocks * 120 + best.numbers], best.values)


@pytest.mark.parametrize("k", [1, 5, 50])
def test_fewer_chunks_than_k(k: int):
    rows = np.eye(3, dtype=np.float32)
    best = best_rows([shard_rows(rows)], rows[1], k)
    assert len(best.values) == min(k, 3)
    assert best.numbers[0] == 1
    assert best_rows([], rows[1], k).values.size == 0


SHARDED = """
import numpy as np, jax
from steerling_jax.attribution.index.retrieval import best_rows, shard_rows
assert len(jax.devices()) == 8
rows = np.random.default_rng(0).standard_normal((9000, 16)).astype(np.float32)
block = shard_rows(rows)
assert len(block.arrays[0].sharding.device_set) == 8
best = best_rows([block], rows[1234], 7)
assert best.numbers.tolist() == np.argsort(-(rows @ rows[1234]))[:7].tolist()
"""


def test_over_eight_devices():
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
