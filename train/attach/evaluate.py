"""What a bottleneck costs its model on held-out text, in nats a token, and what two controls cost.

Legend: B windows of a pass, T tokens of a window, D width, V vocabulary, S latents.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.encoding import decode_rows, encode_rows
from steerling_jax.autoencoders.weights import Weights
from steerling_jax.bundle import Bundle
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.train.attach.hidden_rows import Windows

_SHUFFLE = 0  # the seed of the control with other features


def evaluate_bottleneck(bundle: Bundle, autoencoder: Autoencoder, windows: Windows, size: int) -> dict[str, Any]:
    """Figures of a bottleneck on windows of text, `size` a pass, as JSON values.

    cost_nats: the rise of the loss, with its standard error over windows. divergence_nats: KL of the model's own
    distribution and the bottleneck's. cost_other_features: the same cost when each latent is that of another feature,
    drawn once. cost_bias_alone: when no feature is left. agreement: the share of the positions where both give the same
    token the largest logit.
    """
    weights = autoencoder.weights
    shuffle = jnp.asarray(np.random.default_rng(_SHUFFLE).permutation(autoencoder.n_latents), jnp.int32)
    sums: dict[str, list[np.ndarray]] = {}
    kept = np.zeros(autoencoder.n_latents)
    for start in range(0, len(windows.tokens), size):
        part = [jnp.asarray(a[start : start + size]) for a in windows]
        found, counts = jax.device_get(_sums(bundle.params, weights, shuffle, *part, backbone=bundle.backbone))
        kept += counts
        for name, values in found.items():
            sums.setdefault(name, []).append(np.asarray(values, np.float64))
    total = {name: np.concatenate(parts) for name, parts in sums.items()}
    count = total["count"].sum()
    mean = {name: float(values.sum(axis=0).sum() / count) for name, values in total.items() if values.ndim == 1}
    variance = total["square"].sum() - np.sum(total["row"].sum(axis=0) ** 2) / count
    rise = total["bottleneck"] - total["model"]
    spread = rise - rise.sum() / count * total["count"]
    return {
        "cost_nats": mean["bottleneck"] - mean["model"],
        "cost_standard_error": float(np.sqrt(np.sum(spread**2)) / count),
        "divergence_nats": mean["divergence"],
        "loss_model": mean["model"],
        "loss_bottleneck": mean["bottleneck"],
        "cost_other_features": mean["other_features"] - mean["model"],
        "cost_bias_alone": mean["bias_alone"] - mean["model"],
        "agreement": mean["agreement"],
        "unexplained": float(total["error"].sum() / max(variance, 1e-30)),
        "l0": float(kept.sum() / count),
        "dead": float((kept == 0).mean()),
        "tokens": int(count),
    }


@partial(jax.jit, static_argnames=("backbone",))
def _sums(
    params: Params,
    weights: Weights,
    shuffle: jax.Array,
    tokens: jax.Array,
    targets: jax.Array,
    counted: jax.Array,
    *,
    backbone: Backbone,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Sums over the counted positions of each of B windows, by name, and how often each latent is kept, (S,)."""
    hidden = backbone.run(params, backbone.embed(params, tokens)).hidden
    k = weights.settings.k
    assert k is not None

    def of_window(window: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
        rows, target, counts = window[0], window[1], window[2].astype(jnp.float32)
        x = rows.astype(jnp.float32)
        values, index = encode_rows(weights, x, k)
        output = decode_rows(weights, values, index)
        outputs = {
            "bottleneck": output,
            "other_features": decode_rows(weights, values, shuffle[index]),
            "bias_alone": jnp.broadcast_to(weights.b_dec.astype(jnp.float32), x.shape),
        }
        logits = backbone.logits(params, rows)
        loss = lambda logits: optax.softmax_cross_entropy_with_integer_labels(logits, target)  # noqa: E731
        log_p = jax.nn.log_softmax(logits)
        found = {"model": loss(logits), "count": jnp.ones_like(counts)}
        for name, out in outputs.items():
            q = backbone.logits(params, out.astype(rows.dtype))
            found[name] = loss(q)
            if name == "bottleneck":
                found["divergence"] = jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(q)), axis=-1)
                found["agreement"] = (q.argmax(-1) == logits.argmax(-1)).astype(jnp.float32)
        found |= {"square": jnp.sum(x**2, axis=-1), "error": jnp.sum((output - x) ** 2, axis=-1)}
        sums = {name: jnp.sum(value * counts) for name, value in found.items()}
        kept = jnp.zeros(weights.b_enc.shape[0]).at[index].add((values > 0) * counts[:, None])
        return sums | {"row": jnp.sum(x * counts[:, None], axis=0)}, kept

    sums, kept = lax.map(of_window, (hidden, targets, counted))  # a window's logits (T, V) at a time
    return sums, jnp.sum(kept, axis=0)
