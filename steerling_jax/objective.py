"""The training objective: diffusion, concept presence, residual and independence losses.

Source of the terms: the Steerling authors' posts, as collected in docs/training.md. Where sources are silent the
choice is ours and a setting. Losses are computed on masked positions only, gathered into a fixed number of rows.

Legend: B sequences, T positions, M rows (masked positions kept), D width, C concepts, S chunks a sequence, K labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax import lax

from steerling_jax import bottleneck as bn
from steerling_jax.backbone import Params
from steerling_jax.bottleneck import ConceptBlock, HeadView
from steerling_jax.config import Compute, ModelConfig
from steerling_jax.heads import run_head
from steerling_jax.model import lm_logits
from steerling_jax.noise import NoiseConfig, denoise, mask_tokens, noise_levels

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and schedules. Pairs are (at the start, at the end) of training.

    token_weight: of a masked token in the diffusion loss, 1 or 1/t.
    epsilon_dropout: share of masked positions whose prediction is `lm_head(k̂ + û)` alone. Without it the diffusion loss
    sends no gradient to the concepts, because composed equals hidden.
    known_dropout, unknown_dropout: share of those positions where k̂, or û, is left out too. The second makes known
    concepts predict words by themselves, which else the discovered ones do for them.
    concept_warmup: share of training over which the presence loss gains its hold on the backbone. At first every
    concept is claimed everywhere, and the gradient that takes this back would flatten the hidden states; the heads
    alone can do it.
    known_forcing, unknown_forcing: probability that a step uses the labels' features, or the true residual.
    rows: share of positions kept as rows; enough for the expected number of masked ones.
    """

    noise: NoiseConfig = field(default_factory=NoiseConfig)
    token_weight: Literal["one", "inverse_t"] = "one"
    concept_weight: float = 1.0
    concept_warmup: float = 0.05
    residual_weight: float = 1.0
    independence_weight: float = 1.0
    epsilon_dropout: tuple[float, float] = (0.1, 0.3)
    known_dropout: float = 0.1
    unknown_dropout: float = 0.0
    known_forcing: tuple[float, float] = (1.0, 0.5)
    unknown_forcing: tuple[float, float] = (1.0, 0.5)
    rows: float = 1.0


def loss_fn(
    params: Params,
    batch: Batch,
    key: jax.Array,
    progress: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
    objective: ObjectiveConfig,
) -> tuple[jax.Array, Metrics]:
    """The loss, and metrics as float32 scalars. batch: tokens, chunk_index (B, T), chunk_labels (B, S, K), all
    int32.
    """
    level_key, mask_key, path_key = jax.random.split(key, 3)
    tokens = batch["tokens"]
    B, T = tokens.shape
    levels = noise_levels(level_key, (B, -(-T // config.diff_block_size)), progress, objective.noise)
    noisy, masked = mask_tokens(mask_key, tokens, levels, config)
    hidden = denoise(params, tokens, noisy, config=config, compute=compute, clean_context=objective.noise.clean_context)
    rows = gather_rows(hidden, batch, levels, masked, config.diff_block_size, objective.rows)
    if config.concept is None:
        loss, metrics = diffusion_loss(params, rows.hidden, rows, compute, objective)
        return loss, metrics
    return _concept_losses(params, rows, batch, path_key, progress, config, compute, objective)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Masked positions: hidden (M, D); target, chunk (M,) int32, chunk −1 for none, counted b·S + s over the batch;
    level (M,) the block's noise; valid (M,) float32, 0 for a filler; dropped () int32, masked positions that did not
    fit."""

    hidden: jax.Array
    target: jax.Array
    chunk: jax.Array
    level: jax.Array
    valid: jax.Array
    dropped: jax.Array


def gather_rows(
    hidden: jax.Array, batch: Batch, levels: jax.Array, masked: jax.Array, block: int, share: float
) -> Rows:
    """Picks the masked positions out of hidden (B, T, D), in order, into `share` of B·T rows."""
    B, T, D = hidden.shape
    chex.assert_shape((batch["tokens"], batch["chunk_index"], masked), (B, T))
    S = batch["chunk_labels"].shape[1]
    capacity = B * T if share >= 1 else int(B * T * share)
    flat = masked.reshape(-1)
    index = jnp.nonzero(flat, size=capacity, fill_value=0)[0]
    count = jnp.sum(flat)
    valid = (jnp.arange(capacity) < count).astype(jnp.float32)
    sequence = jnp.arange(B, dtype=jnp.int32)[:, None] * S
    chunk = jnp.where(batch["chunk_index"] >= 0, sequence + batch["chunk_index"], -1)
    level = jnp.repeat(levels, block, axis=1)[:, :T]
    return Rows(
        hidden=hidden.reshape(-1, D)[index],
        target=batch["tokens"].reshape(-1)[index],
        chunk=jnp.where(valid > 0, chunk.reshape(-1)[index], -1),
        level=level.reshape(-1)[index],
        valid=valid,
        dropped=jnp.maximum(count - capacity, 0),
    )


def cross_entropy(params: Params, features: jax.Array, target: jax.Array, compute: Compute) -> jax.Array:
    """−log p(target) (M,) float32 for features (M, D)."""
    logits = lm_logits(params, features, compute)
    picked = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - picked


def diffusion_loss(
    params: Params, features: jax.Array, rows: Rows, compute: Compute, objective: ObjectiveConfig
) -> tuple[jax.Array, Metrics]:
    """Weighted cross-entropy on masked tokens, a mean for weight 1, and the likelihood bound's estimate for 1/t."""
    nats = cross_entropy(params, features, rows.target, compute) * rows.valid
    total = jnp.maximum(jnp.sum(rows.valid), 1.0)
    mean = jnp.sum(nats) / total
    # Every token counts once: a masked one stands for 1/t of them, and Σ 1/t estimates their number.
    bound = jnp.sum(nats / rows.level) / jnp.maximum(jnp.sum(rows.valid / rows.level), 1.0)
    loss = mean if objective.token_weight == "one" else bound
    return loss, {"diffusion": mean, "bound": bound, "rows_dropped": rows.dropped.astype(jnp.float32)}


def _concept_losses(params, rows: Rows, batch: Batch, key, progress, config, compute, objective):
    concept = config.concept
    labels = batch["chunk_labels"].reshape(-1, batch["chunk_labels"].shape[-1])
    known_spec, unknown_spec = bn.known_spec(concept), bn.unknown_spec(concept)
    known_view = bn.view_head(params["known_head"], known_spec, compute, rows.hidden)
    known = run_head(params["known_head"], rows.hidden, known_spec, compute).features
    labelled = label_features(known_view, labels, rows.chunk, compute)
    unknown = jnp.zeros_like(rows.hidden)
    if unknown_spec is not None:
        fixed = lax.stop_gradient(rows.hidden)
        unknown = run_head(params["unknown_head"], fixed, unknown_spec, compute).features
    composed = training_features(rows, known, unknown, labelled, key, progress, objective)
    loss, metrics = diffusion_loss(params, composed, rows, compute, objective)
    hold = jnp.minimum(progress / max(objective.concept_warmup, 1e-6), 1.0)
    held = known_view._replace(query=scale_gradient(known_view.query, hold))
    presence = presence_loss(held, rows, labels, known_spec.block, compute.operands)
    loss = loss + objective.concept_weight * presence
    metrics["presence"] = presence
    if unknown_spec is not None:
        metrics["residual"] = residual_loss(unknown, rows, labelled)
        metrics["independence"] = independence_loss(known, unknown, rows.valid)
        loss = loss + objective.residual_weight * metrics["residual"]
        loss = loss + objective.independence_weight * metrics["independence"]
    return loss, metrics | {"loss": loss}


def training_features(
    rows: Rows, known: jax.Array, unknown: jax.Array, labelled: jax.Array, key: jax.Array, progress: jax.Array,
    objective: ObjectiveConfig,
) -> jax.Array:  # fmt: skip
    """What goes to the output projection, (M, D): hidden itself where epsilon is kept (the identity), and k̂ + û
    where it is dropped, with dropout of k̂ and teacher forcing."""
    drop_key, known_key, unknown_key, force_known, force_unknown = jax.random.split(key, 5)
    M = rows.hidden.shape[0]

    def scheduled(pair: tuple[float, float], shape: jax.Array | float) -> jax.Array:
        return pair[0] + (pair[1] - pair[0]) * jnp.asarray(shape)

    cosine = 0.5 - 0.5 * jnp.cos(jnp.pi * progress)
    use_labels = jax.random.uniform(force_known) < scheduled(objective.known_forcing, cosine)
    use_residual = jax.random.uniform(force_unknown) < scheduled(objective.unknown_forcing, progress)
    k = jnp.where(use_labels & (rows.chunk >= 0)[:, None], labelled, known)
    u = jnp.where(use_residual, rows.hidden - labelled, unknown)
    k = jnp.where(jax.random.uniform(known_key, (M, 1)) < objective.known_dropout, 0.0, k)
    u = jnp.where(jax.random.uniform(unknown_key, (M, 1)) < objective.unknown_dropout, 0.0, u)
    dropped = jax.random.uniform(drop_key, (M, 1)) < scheduled(objective.epsilon_dropout, progress)
    return jnp.where(dropped, (k + u).astype(rows.hidden.dtype), rows.hidden)


def label_features(view: HeadView, labels: jax.Array, chunk: jax.Array, compute: Compute) -> jax.Array:
    """`Σ labels E_c` of each row's chunk, (M, D): labels (B·S, K), −1 unused; chunk (M,), −1 gives zeros."""
    C = view.n_concepts
    used = labels >= 0
    per_chunk = bn.mix_concepts(view, jnp.where(used, labels, 0), used.astype(jnp.float32), C, compute)
    return jnp.where((chunk >= 0)[:, None], per_chunk[jnp.maximum(chunk, 0)], 0.0)


def presence_loss(view: HeadView, rows: Rows, labels: jax.Array, block: int, operands: str) -> jax.Array:
    """Binary cross-entropy of `P_c = 1 − Π_t (1 − k_ct)`, t a chunk's masked tokens: sum over concepts, mean of chunks.

    In log space, from each chunk's evidence. Chunks without a masked token are left out. Streams over blocks of
    concepts; positive-only labels (B·S, K) are scattered block by block.
    """
    chunks = labels.shape[0]
    segment = jnp.where(rows.chunk >= 0, rows.chunk, chunks)  # one segment more takes the rows of no chunk
    present = jax.ops.segment_sum(rows.valid, segment, chunks + 1)[:chunks] > 0

    def step(total: jax.Array, new: ConceptBlock) -> jax.Array:
        evidence = chunk_evidence(new.logits, segment, chunks)
        n = evidence.shape[1]
        local = jnp.where((labels >= new.start) & (labels < new.start + n), labels - new.start, n)
        positive = jnp.zeros((chunks, n), bool).at[jnp.arange(chunks)[:, None], local].set(True, mode="drop")
        nats = jnp.where(positive, -log_presence(evidence), evidence)
        return total + jnp.sum(jnp.where(new.fresh & present[:, None], nats, 0.0))

    total = bn.scan_concept_blocks(step, jnp.zeros(()), view, block, operands)
    return total / jnp.maximum(jnp.sum(present), 1)


def chunk_evidence(logits: jax.Array, segment: jax.Array, chunks: int) -> jax.Array:
    """−log(1 − P) (chunks, n) of `P = 1 − Π_t (1 − sigmoid(z))` over the rows of a chunk, for logits z (M, n) and each
    row's chunk `segment` (M,), `chunks` for none."""
    return jax.ops.segment_sum(jax.nn.softplus(logits), segment, chunks + 1)[:chunks]


def log_presence(evidence: jax.Array) -> jax.Array:
    """log P for evidence −log(1 − P) ≥ 0, finite everywhere."""
    return log1m_exp(-evidence)


def scale_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x itself, with its gradient multiplied by `factor` in [0, 1]."""
    return factor * x + lax.stop_gradient((1 - factor) * x)


def log1m_exp(s: jax.Array) -> jax.Array:
    """log(1 − exp(s)) for s ≤ 0, with finite gradients near 0 and far below."""
    s = jnp.minimum(s, -1e-7)
    near = s > -jnp.log(2.0)
    # Each branch sees a harmless argument where it is not chosen, or its gradient would be infinite times zero.
    close = jnp.log(-jnp.expm1(jnp.where(near, s, -0.1)))
    far = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, s)))
    return jnp.where(near, close, far)


def residual_loss(unknown: jax.Array, rows: Rows, labelled: jax.Array) -> jax.Array:
    """Mean over masked rows and D of `(û − sg(h − k̂_labels))²`: teaches the discovered head only."""
    target = lax.stop_gradient(rows.hidden - labelled)
    square = jnp.mean(jnp.square((unknown - target).astype(jnp.float32)), axis=1)
    return jnp.sum(square * rows.valid) / jnp.maximum(jnp.sum(rows.valid), 1.0)


def independence_loss(known: jax.Array, unknown: jax.Array, valid: jax.Array) -> jax.Array:
    """`‖Ψᵀ Φ‖²_F / (D² (M − 1))` of the centred features over the M valid rows; gradient through the discovered
    ones only.
    """
    count = jnp.maximum(jnp.sum(valid), 2.0)
    weight = valid[:, None]

    def centred(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32) * weight
        return (x - jnp.sum(x, axis=0, keepdims=True) / count) * weight

    phi, psi = centred(lax.stop_gradient(known)), centred(unknown)
    M, D = phi.shape
    # ‖ΨᵀΦ‖² = Σ (ΨΨᵀ ∘ ΦΦᵀ): take whichever square is smaller.
    square = jnp.sum(jnp.square(psi.T @ phi)) if D <= M else jnp.sum((psi @ psi.T) * (phi @ phi.T))
    return square / (D**2 * (count - 1))
