"""A small published model with random weights, and checks of its files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.io.weights.published_layout import find_tensors
from steerling_jax.io.weights.safetensors_format import same_bytes
from steerling_jax.models.steerling.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.model import param_shapes

BARE = ModelConfig(
    interpretable=False,
    n_layers=2,
    n_head=4,
    n_embd=64,
    n_kv_heads=2,
    block_size=64,
    diff_block_size=16,
    intermediate_size=32,
    vocab_size=96,
    concept=None,
    pad_token_id=91,
    bos_token_id=92,
    eos_token_id=90,
    endofchunk_token_id=93,
    mask_token_id=94,
)


def same_tensors(a: Path, b: Path) -> bool:
    ours, theirs = find_tensors(a), find_tensors(b)
    return ours.keys() == theirs.keys() and all(same_bytes(ours[name], theirs[name]) for name in ours)


def filled(config: ModelConfig, seed: int = 0, dtype: str = "float32") -> Params:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(jnp.dtype(dtype)), param_shapes(config))


def child(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
