"""Model FLOPs against numbers computed by hand and against XLA's own count, and the peak rates of devices."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling import heads
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.flops import (
    block_causal_pairs,
    decoding_flops,
    forward_flops,
    peak_flops,
    training_flops,
)
from steerling_jax.models.steerling.head_view import discovered_spec, known_spec
from steerling_jax.models.steerling.model import param_shapes
from steerling_jax.objectives.noise import NoiseConfig, expected_masked_share, noise_levels
from steerling_jax.objectives.pretraining import ObjectiveConfig, loss_fn
from tests.worlds.attention_masks import two_copy_mask

SMALL = ModelConfig(
    n_layers=1,
    n_head=4,
    n_kv_heads=2,
    n_embd=128,
    block_size=64,
    diff_block_size=64,
    vocab_size=512,
    pad_token_id=507,
    bos_token_id=508,
    eos_token_id=509,
    endofchunk_token_id=510,
    mask_token_id=511,
    interpretable=False,
    concept=None,
)
CONCEPTS = ConceptConfig(
    n_concepts=256,
    n_unknown_concepts=1024,
    concept_dim=128,
    topk_known=8,
    topk_known_features=8,
    factorize_rank=32,
    unknown_topk=8,
    block_size=4096,
)


def counted_by_xla(function, *shapes) -> float:
    """FLOPs of the program before XLA changes it; element-wise work is in it, a scan's body counts once."""
    analysis = jax.jit(function).lower(*shapes).cost_analysis()
    assert isinstance(analysis, dict)
    return analysis["flops"]


def shape(*sizes: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_training_by_hand() -> None:
    model = dataclasses.replace(SMALL, n_layers=2, diff_block_size=16, interpretable=True, concept=CONCEPTS)
    found = training_flops(model, batch_size=3, seq_len=64, clean_context=True, masked_share=0.5)
    # A layer: (128 + 2·2·32)·128 + 128·128 + 3·512·128 weights; 3·64·2 positions; 2 layers; 2 a product, 3 times.
    assert found.layers == 6 * 2 * 384 * (256 * 128 + 128 * 128 + 3 * 512 * 128)
    # 4 blocks of 16: a query of block i sees 16·i positions. Both copies, 3 sequences, 2 layers.
    assert found.attention == 12 * 2 * 128 * 3 * 2 * (16 * (16 + 32 + 48 + 64))
    rows = 96
    assert found.known == rows * 6 * (128 * 256 + 8 * 128)
    by_product = 4 * 128 * 32 + 2 * 32 * 1024 + 4 * 32 * 8 + 6 * (8 * 32 + 32 * 128) + 4 * 128 * 128
    assert found.discovered == rows * by_product
    assert found.output == 6 * rows * 128 * 512
    frozen = training_flops(model, batch_size=3, seq_len=64, clean_context=True, masked_share=0.5, frozen=True)
    assert (frozen.layers, frozen.attention) == (found.layers * 2 / 3, found.attention)
    assert found.total == found.layers + found.attention + found.concepts + found.output


def test_pairs_are_those_of_the_mask() -> None:
    for length, block in ((64, 16), (50, 16), (7, 16)):
        q, k = np.indices((length, length)) // block
        assert block_causal_pairs(length, block) == np.sum(q >= k)
    assert 2 * block_causal_pairs(64, 16) == np.sum(np.asarray(two_copy_mask(64, 16)))


@pytest.mark.parametrize("clean_context", [False, True])
def test_a_training_step_against_xla(clean_context: bool) -> None:
    """One layer and one block: no scan to miss, no pair that is masked out."""
    B, T = 2, SMALL.block_size
    objective = ObjectiveConfig(noise=NoiseConfig(clean_context=clean_context))
    loss = partial(loss_fn, config=SMALL, compute=Compute(), objective=objective)
    batch = {"tokens": shape(B, T), "chunk_index": shape(B, T), "chunk_labels": shape(B, 4, 16)}

    def gradient(params, batch, key, progress):
        return jax.grad(loss, has_aux=True)(params, batch, key, progress)[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    xla = counted_by_xla(gradient, param_shapes(SMALL), batch, key, shape(dtype="float32"))
    ours = training_flops(SMALL, batch_size=B, seq_len=T, clean_context=clean_context, masked_share=1.0)
    if clean_context:  # that program computes scores of pairs that may not see each other, and computes them twice
        waste = B * T * T * 4 * SMALL.n_embd
        assert ours.total < xla < 1.06 * (ours.total + 4 * waste)
    else:
        assert ours.total == pytest.approx(xla, rel=0.06)
    assert ours.total < xla


def test_decoding_and_forward_against_xla() -> None:
    from steerling_jax.models.steerling.model import forward

    tokens = shape(2, 64)
    xla = counted_by_xla(
        lambda params, tokens: forward(params, tokens, config=SMALL).logits, param_shapes(SMALL), tokens
    )
    assert forward_flops(SMALL, batch_size=2, seq_len=64, rows=128).total == pytest.approx(xla, rel=0.06)
    # A window of two blocks is a text of two blocks, plus what it looks back at.
    window = dataclasses.replace(SMALL, diff_block_size=32)
    whole = forward_flops(window, batch_size=2, seq_len=64, rows=32)
    assert decoding_flops(window, batch_size=2, cached=0, candidates=16) == whole
    further = decoding_flops(window, batch_size=2, cached=100, candidates=16)
    assert further.attention - whole.attention == 4 * 128 * 2 * 64 * 100
    back = forward_flops(window, batch_size=2, seq_len=64, rows=32, gradient="inputs")
    assert (back.layers, back.attention) == (2 * whole.layers, 3 * whole.attention)


def test_heads_against_xla() -> None:
    """Scores and query. A head of one block mixes the selected concepts by a dense product, which is not counted."""
    model = dataclasses.replace(SMALL, interpretable=True, concept=CONCEPTS)
    found = forward_flops(model, batch_size=1, seq_len=64, rows=64)
    params, rows = param_shapes(model), shape(64, 128, dtype="float32")
    discovered = discovered_spec(CONCEPTS)
    assert discovered is not None
    for name, spec, ours, width in (
        ("known_head", known_spec(CONCEPTS), found.known, 128),
        ("unknown_head", discovered, found.discovered, 32),
    ):
        xla = counted_by_xla(lambda p, x, spec=spec: heads.run_head(p, x, spec, Compute()).features, params[name], rows)
        dense = 2 * 64 * width * (spec.n_concepts - 8)
        assert ours + dense == pytest.approx(xla, rel=0.06)


@pytest.mark.parametrize("noise", [NoiseConfig(), NoiseConfig(distribution="gaussian"), NoiseConfig(floor=0.3)])
def test_the_share_of_masked_positions_is_the_mean_noise(noise: NoiseConfig) -> None:
    drawn = [
        np.mean(np.asarray(noise_levels(jax.random.key(i), (16, 16), jnp.float32((i + 0.5) / 20), noise)))
        for i in range(20)
    ]
    assert expected_masked_share(noise) == pytest.approx(np.mean(drawn), abs=0.005)


def test_known_peaks() -> None:
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") is None
    assert peak_flops("cpu") is None


def test_the_published_shape() -> None:
    """8.4 G parameters: a forward pass needs about two FLOPs a token for each, and the concepts cost little."""
    model = ModelConfig()
    one = forward_flops(model, batch_size=1, seq_len=4096, rows=4096)
    weights = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(model)))
    tables = 2 * 33_744 * 4096 + 2 * 101_200 * 256
    assert (one.layers + one.output) / 4096 == pytest.approx(2 * (weights - tables), rel=0.001)
    step = training_flops(model, batch_size=1, seq_len=4096, clean_context=False, masked_share=0.5)
    assert 0.005 < step.concepts / step.total < 0.02
