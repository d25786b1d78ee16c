"""The losses that train concepts: presence of known concepts in chunks, residual and independence of discovered ones.

Source of the terms: the Steerling authors' posts, as collected in docs/design/training.md.

Legend: B sequences, M rows (masked positions), R rows of a sequence, D width, C concepts, S chunks of a sequence, K
labels of a chunk; k̂ known features, û discovered features, sg stop_gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.bottleneck import ConceptBlock
from steerling_jax.models.steerling.concept_shards import on_own_concepts, sum_over_all
from steerling_jax.models.steerling.head_view import HeadView
from steerling_jax.objectives.rows import MaskedRows, at_rows, chunk_of, masked_chunks


def label_features(view: HeadView, labels: jax.Array, chunk: jax.Array, compute: Compute) -> jax.Array:
    """The known features that the labels give, `Σ_{c in labels} E_c` of each row's chunk, (M, D).

    labels (B, S, K) int32, −1 unused; chunk (M,) int32, the number of each row's chunk, −1 gives zeros.
    """
    B, S, K = labels.shape
    C = view.n_concepts
    index = jnp.where(labels >= 0, labels, C).reshape(B * S, K)  # in one block, `mix_concepts` leaves C out
    per_chunk = bn.mix_concepts(view, index, jnp.ones(index.shape), C, compute)
    of_row = at_rows(per_chunk.reshape(B, S, -1), jnp.maximum(chunk, 0).reshape(B, -1))
    return jnp.where((chunk >= 0)[:, None], of_row, 0.0)


def presence_loss(view: HeadView, rows: MaskedRows, labels: jax.Array, block: int, operands: str) -> jax.Array:
    """Binary cross-entropy of the labels against `P_c = 1 − Π_t (1 − k_ct)`, t over the chunk's masked tokens.

    Summed over concepts, averaged over the chunks that have a masked token, () float32. labels (B, S, K) int32 are the
    positive concepts, −1 unused. Concepts are streamed in blocks, and everything is computed in log space from each
    chunk's evidence `−log(1 − P)`, because P itself rounds to 1 after a few confident tokens.
    """
    B, S, _ = labels.shape
    chunk = rows.chunk.reshape(B, -1)
    present = masked_chunks(chunk >= 0, chunk, S)

    # Each device adds up the nats of its own concepts and sequences; only the total, a scalar, is exchanged.
    def work(view: HeadView, chunk: jax.Array, present: jax.Array, labels: jax.Array) -> jax.Array:
        def step(total: jax.Array, new: ConceptBlock) -> jax.Array:
            evidence = chunk_evidence(new.logits, chunk, S)
            # Labels are compared with the block's ids, which needs no (B, S, C) array of positives.
            concept = new.start + jnp.arange(evidence.shape[2], dtype=jnp.int32)
            positive = (labels[:, :, :, None] == concept[None, None, None, :]).any(axis=2)
            # −log P for a positive concept, −log(1 − P), the evidence itself, for the others.
            nats = jnp.where(positive, -log_presence(evidence), evidence)
            return total + jnp.sum(jnp.where(new.fresh[None] & present[:, :, None], nats, 0.0))

        return sum_over_all(view, bn.scan_concept_blocks(step, jnp.zeros(()), view, block, operands))

    total = on_own_concepts(work, view, ("query", "keys"), chunk, present, labels, whole=True)
    return total / jnp.maximum(jnp.sum(present), 1)


def chunk_evidence(logits: jax.Array, chunk: jax.Array, chunks: int) -> jax.Array:
    """The evidence −log(1 − P) for n concepts in each of S = `chunks` chunks, (B, S, n) float32.

    P = 1 − Π_t (1 − sigmoid(z_t)) over the chunk's rows t, so the evidence is `Σ_t softplus(z_t)`: logits z (B·R, n),
    and each row's chunk (B, R), −1 for none.
    """
    nats = jax.nn.softplus(logits).reshape(*chunk.shape, -1)
    # A sum of logarithms of many tokens: the default precision of a TPU, bfloat16, would lose the small ones.
    member = chunk_of(chunk, chunks).astype(nats.dtype)
    return jnp.einsum("bsr,brn->bsn", member, nats, precision=lax.Precision.HIGHEST)


def log_presence(evidence: jax.Array) -> jax.Array:
    """log P for evidence −log(1 − P) ≥ 0; finite everywhere, with finite gradients."""
    return log1m_exp(-evidence)


def scale_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x unchanged, with its gradient multiplied by `factor` in [0, 1]."""
    return factor * x + lax.stop_gradient((1 - factor) * x)


def log1m_exp(s: jax.Array) -> jax.Array:
    """log(1 − exp(s)) for s ≤ 0, with finite gradients near 0 and far below.

    Source: Mächler 2012, Accurately computing log(1 − exp(−|a|)): which of the two forms is exact changes at −log 2.
    """
    s = jnp.minimum(s, -1e-7)
    near = s > -jnp.log(2.0)
    # The branch that is not selected gets a safe argument: its gradient is multiplied by 0, and 0 · ∞ would be NaN.
    close = jnp.log(-jnp.expm1(jnp.where(near, s, -0.1)))
    far = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, s)))
    return jnp.where(near, close, far)


def residual_loss(discovered: jax.Array, rows: MaskedRows, labelled: jax.Array) -> jax.Array:
    """The mean of `(û − sg(h − k̂_labels))²` over valid rows and D, () float32: trains the discovered head alone.

    discovered: û (M, D); labelled: k̂_labels (M, D), see `label_features`.
    """
    target = lax.stop_gradient(rows.hidden - labelled)
    square = jnp.mean(jnp.square((discovered - target).astype(jnp.float32)), axis=1)
    return jnp.sum(square * rows.valid) / jnp.maximum(jnp.sum(rows.valid), 1.0)


def independence_loss(known: jax.Array, discovered: jax.Array, valid: jax.Array) -> jax.Array:
    """`‖Ψᵀ Φ‖²_F / (D² (M − 1))`, () float32, for centred known features Φ and discovered features Ψ of M valid rows.

    It is 0 where no known feature covaries with a discovered one. Only the discovered features get a gradient, so that
    the known ones do not move away from their labels.
    """
    count = jnp.maximum(jnp.sum(valid), 2.0)
    weight = valid[:, None]

    def centred(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32) * weight
        return (x - jnp.sum(x, axis=0, keepdims=True) / count) * weight

    phi, psi = centred(lax.stop_gradient(known)), centred(discovered)
    M, D = phi.shape
    # ‖ΨᵀΦ‖² = Σ (ΨΨᵀ ∘ ΦΦᵀ): build the smaller of the two squares, (D, D) or (M, M).
    square = jnp.sum(jnp.square(psi.T @ phi)) if D <= M else jnp.sum((psi @ psi.T) * (phi @ phi.T))
    return square / (D**2 * (count - 1))
