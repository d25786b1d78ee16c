"""How much each concept added to the logit of each committed token.

A logit is `composed · lm_head[token]`, and `composed` is a sum of concept vectors and a rest, so the logit splits
exactly into one number a concept and one for the rest. The rest is computed here from the vectors, and `error` says how
far the sum of all parts is from the logit that generation recorded. (The published package calls whatever is missing
epsilon, so that its own check passes by construction; that number is `remainder`.)

Guided text is written with the logit (1 + s) · conditional − s · unconditional, which is linear in the two branches'
`composed`, so shares of both are taken and combined in the same way.

Legend: n committed tokens, s strength of guidance, K listed concepts, D width, P width of the rows of a concept table
(D, or the rank).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax import bottleneck as bn
from steerling_jax.backbone import Params, lm_head_weight
from steerling_jax.config import Compute, ModelConfig
from steerling_jax.errors import UserError
from steerling_jax.heads import Clamps, HeadOutput, run_head
from steerling_jax.inference import RowClamps, compiled_hidden
from steerling_jax.layers import matmul_t
from steerling_jax.model import compose
from steerling_jax.snapshot_passes import require_finite
from steerling_jax.trace import Trace
from steerling_jax.window_pass import injected_on

if TYPE_CHECKING:
    from steerling_jax.api import Bundle

_ROWS = 64  # tokens explained at once, so that one compiled program of bounded memory serves every trace
_SNAPSHOTS = 8  # canvases recomputed at once, for traces without hidden rows
_EXACT = Compute()  # shares are summed in float32, whatever the model computes in


@dataclass(frozen=True)
class Contributions:
    """Concept shares of each committed token's logit, in the order of the trace's commits. NumPy arrays.

    steps, positions, token_ids (n,) int32 and target_logits (n,) float32: what was committed, when and where.
    *_ids (n, K) int32, *_weights (n, K): the listed concepts, best first, and their activations.
    *_contributions (n, K): weight · (E_c · lm_head[token]). K is 0 for discovered ones without such a head.
    Of guided text, K is twice as large: the concepts listed in the conditional branch, then those listed only in the
    other; a slot that is not needed has the id −1, weight and contribution 0. Weights are then effective ones, (1 + s)
    · conditional − s · unconditional, where a branch that does not list a concept counts it to the rest.
    epsilon (n,): (composed − Σ listed concept vectors) · lm_head[token], from the vectors.
    remainder (n,): target logit − Σ listed contributions, the published epsilon.
    error (n,): |Σ listed + epsilon − target logit|.
    net_known, net_discovered, net_epsilon (n,): |k̂·w|, |û·w|, |ε·w| with the whole feature vectors, where
    ε = composed − k̂ − û. Unlike in the sums of absolute shares, concepts that cancel do not count.
    """

    steps: np.ndarray
    positions: np.ndarray
    token_ids: np.ndarray
    target_logits: np.ndarray
    known_ids: np.ndarray
    known_weights: np.ndarray
    known_contributions: np.ndarray
    discovered_ids: np.ndarray
    discovered_weights: np.ndarray
    discovered_contributions: np.ndarray
    epsilon: np.ndarray
    remainder: np.ndarray
    error: np.ndarray
    net_known: np.ndarray
    net_discovered: np.ndarray
    net_epsilon: np.ndarray
    n_concepts: int
    concept_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def absolute_known(self) -> np.ndarray:
        """(n,) sum of the absolute shares of the listed known concepts."""
        return np.abs(self.known_contributions).sum(axis=1)

    @property
    def absolute_discovered(self) -> np.ndarray:
        """(n,) the same, of the discovered concepts."""
        return np.abs(self.discovered_contributions).sum(axis=1)

    def label(self, kind: str, concept_id: int) -> str:
        """A concept's printed name; discovered ids are counted on from the known ones (published)."""
        if kind == "discovered":
            return f"Discovered: #{concept_id + self.n_concepts}"
        return f"Known: {self.concept_names[concept_id]}" if self.concept_names else f"Known: #{concept_id}"


def concept_contributions(bundle: Bundle, trace: Trace) -> Contributions:
    """Explains every committed token of `trace` from the hidden row of the very pass that committed it.

    Rows that the trace does not hold are recomputed from its snapshots. Raises `UserError` for a model without
    concepts, a trace of another model, and weights that are not finite.
    """
    config = bundle.config
    trace.check(config)
    if config.concept is None:
        raise UserError("Concept contributions need a model with concepts; this one is a bare backbone.")
    commits = list(trace.flat())
    steps, positions, tokens = (np.asarray([c[i] for c in commits], np.int32) for i in range(3))
    logits = np.asarray([c[3] for c in commits], np.float32)
    offsets, clamps = positions - np.int32(trace.prompt_length), trace.clamps
    shares = _in_batches(bundle, hidden_rows(bundle, trace), tokens, offsets, clamps)
    if trace.guidance > 0:
        other = _in_batches(bundle, hidden_rows(bundle, trace, unconditional=True), tokens, offsets, clamps)
        shares = _guided(shares, other, trace.guidance)
    nets = {name: np.abs(getattr(shares, name)) for name in ("net_known", "net_discovered", "net_epsilon")}
    shares = shares._replace(**nets)
    listed = shares.known_contributions.sum(axis=1) + shares.discovered_contributions.sum(axis=1)
    return Contributions(
        steps, positions, tokens, logits, **shares._asdict(),
        remainder=logits - listed, error=np.abs(listed + shares.epsilon - logits),
        n_concepts=config.concept.n_concepts, concept_names=bundle.concept_names,
    )  # fmt: skip


class _Shares(NamedTuple):
    """The fields of `Contributions` that come from the hidden rows, net ones still signed; of JAX inside a program, of
    NumPy once fetched."""

    known_ids: Any
    known_weights: Any
    known_contributions: Any
    discovered_ids: Any
    discovered_weights: Any
    discovered_contributions: Any
    epsilon: Any
    net_known: Any
    net_discovered: Any
    net_epsilon: Any


def _guided(conditional: _Shares, unconditional: _Shares, guidance: float) -> _Shares:
    """(1 + guidance) · conditional − guidance · unconditional, of every share."""
    s = np.float32(guidance)
    known, discovered = (
        _united(conditional[first : first + 3], unconditional[first : first + 3], s) for first in (0, 3)
    )
    rest = ((1 + s) * c - s * u for c, u in zip(conditional[6:], unconditional[6:], strict=True))
    return _Shares(*known, *discovered, *rest)


def _united(conditional: Any, unconditional: Any, s: np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, weights and contributions (n, 2K) of both branches' (n, K): what both list is summed in the first's slot."""
    (ids, *mine), (other_ids, *others) = conditional, unconditional
    same = other_ids[:, :, None] == ids[:, None, :]
    alone = ~same.any(axis=2)
    weights, contributions = (
        np.concatenate([(1 + s) * a - s * np.einsum("nij,ni->nj", same, b), np.where(alone, -s * b, 0.0)], axis=1)
        for a, b in zip(mine, others, strict=True)
    )
    united = np.concatenate([ids, np.where(alone, other_ids, -1)], axis=1)
    return united, weights.astype(np.float32), contributions.astype(np.float32)


def _in_batches(
    bundle: Bundle, hidden: np.ndarray, tokens: np.ndarray, offsets: np.ndarray, clamps: RowClamps | None
) -> _Shares:
    """hidden (n, D), tokens and offsets (n,) in batches of a fixed size, the last one filled up with zeros."""
    n = len(tokens)
    pad = max(-n % _ROWS, _ROWS * (n == 0))  # a trace without commits still says its K
    hidden, tokens = np.pad(hidden.reshape(n, -1) if n else np.zeros((0, bundle.config.n_embd), np.float32),
                            ((0, pad), (0, 0))), np.pad(tokens, (0, pad))  # fmt: skip
    offsets = np.pad(offsets, (0, pad))
    batches = []
    for i in range(0, len(tokens), _ROWS):
        part = (each[i : i + _ROWS] for each in (hidden, tokens, offsets))
        batches.append(jax.device_get(_shares(bundle.params, *part, clamps, bundle.config, bundle.compute)))
    shares = _Shares(*(np.concatenate(parts)[:n] for parts in zip(*batches, strict=True)))
    require_finite(shares.epsilon)
    return shares


@partial(jax.jit, static_argnums=(5, 6))
def _shares(
    params: Params, hidden: jax.Array, tokens: jax.Array, offsets: jax.Array, clamps: RowClamps | None,
    config: ModelConfig, compute: Compute,
) -> _Shares:  # fmt: skip
    """hidden (N, D) float32, tokens and offsets after the prompt (N,) to shares: heads in the model's arithmetic,
    products in float32."""
    concept = config.concept
    assert concept is not None
    rows = hidden.astype(compute.dtype)
    target = jnp.take(lm_head_weight(params), tokens, axis=0).astype(jnp.float32)
    rule = "published" if clamps is None else clamps.epsilon
    on_known = on_unknown = None
    if clamps is not None:
        on_known, on_unknown = clamps.at(clamps.known, offsets), clamps.at(clamps.unknown, offsets)
    known = run_head(params["known_head"], rows, bn.known_spec(concept), compute, on_known, rule)
    known_listed = _listed(params["known_head"], known, on_known, bn.known_spec(concept), target)
    unknown, spec = None, bn.unknown_spec(concept)
    nothing = jnp.zeros((len(tokens), 0))
    found = (nothing.astype(jnp.int32), nothing, nothing, jnp.zeros_like(target))
    if spec is not None:
        unknown = run_head(params["unknown_head"], rows, spec, compute, on_unknown, rule)
        found = _listed(params["unknown_head"], unknown, on_unknown, spec, target)
    composed, _, _ = compose(
        rows, known, unknown, use_epsilon=concept.use_epsilon_correction, rule=rule, known_clamped=on_known is not None
    )
    whole = composed.astype(jnp.float32)
    k_hat = known.features.astype(jnp.float32)
    u_hat = jnp.zeros_like(k_hat) if unknown is None else unknown.features.astype(jnp.float32)

    def along(vectors: jax.Array) -> jax.Array:
        return jnp.sum(vectors * target, axis=-1)

    return _Shares(
        *known_listed[:3], *found[:3], epsilon=along(whole - known_listed[3] - found[3]),
        net_known=along(k_hat), net_discovered=along(u_hat), net_epsilon=along(whole - k_hat - u_hat),
    )  # fmt: skip


def _listed(
    params: Params, head: HeadOutput, clamps: Clamps | None, spec: bn.HeadSpec, target: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The reported concepts, and those clamped: ids (−1 for none), weights and contributions (N, K), and the sum of
    their vectors (N, D).

    A factorised head takes the target through its basis, so that only rank-wide rows are gathered.
    """
    view = bn.view_head(params, spec, _EXACT, target)  # only its tables are used
    parts = [(head.topk_indices, jax.nn.sigmoid(head.topk_logits))]
    there = jnp.ones(head.topk_indices.shape, bool)
    if clamps is not None:  # in place of what the head says of them, listed or not
        (ids, weights), here = parts[0], clamps.positions[:, None]
        own = jnp.broadcast_to(clamps.ids[None, :], (len(ids), clamps.ids.shape[0]))
        replaced = here & (ids[:, :, None] == own[:, None, :]).any(axis=-1)
        parts = [(ids, jnp.where(replaced, 0.0, weights)), (own, jnp.where(here, clamps.values[None, :], 0.0))]
        there = jnp.concatenate([~replaced, jnp.broadcast_to(here, own.shape)], axis=1)
    ids, weights = (jnp.concatenate(both, axis=1) for both in zip(*parts, strict=True))
    query = target if view.basis is None else matmul_t(target, view.basis.T, "float32")

    def dots(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, q = row
        return jnp.take(view.values, index, axis=0).astype(jnp.float32) @ q

    contributions = weights * jax.lax.map(dots, (ids, query))
    vectors = jnp.zeros_like(target)
    for part in parts:
        vectors = vectors + bn.mix_concepts(view, *part, spec.block, _EXACT)
    return jnp.where(there, ids, -1), weights, contributions, vectors


def hidden_rows(bundle: Bundle, trace: Trace, *, unconditional: bool = False) -> np.ndarray:
    """Hidden rows (n, D) float32 of the committed positions: as recorded, else from the snapshot of each step, steered
    as it was. unconditional: those of guidance's branch without the prompt, which are never recorded."""
    if trace.hidden is not None and not unconditional:
        return np.asarray(trace.hidden, np.float32)
    config, commits = bundle.config, list(trace.commits)
    rows: list[np.ndarray] = []
    for first in range(0, len(commits), _SNAPSHOTS):
        batch = commits[first : first + _SNAPSHOTS]
        steps = [c.step for c in batch] + [0] * (_SNAPSHOTS - len(batch))
        canvases = np.stack([trace.snapshot(step) for step in steps])
        if unconditional:
            canvases[:, : trace.prompt_length] = trace.mask_id
        tables = [trace.injected(step, config.n_layers, config.n_embd) for step in steps]
        injected = injected_on(canvases, trace.prompt_length, trace.mask_id, *map(np.stack, zip(*tables, strict=True)))
        hidden = compiled_hidden(
            bundle.params, jnp.asarray(canvases), config=config, compute=bundle.compute, injection=injected
        )
        rows += [np.asarray(hidden[i, np.asarray(c.positions)], np.float32) for i, c in enumerate(batch)]
    return np.concatenate(rows) if rows else np.zeros((0, config.n_embd), np.float32)
