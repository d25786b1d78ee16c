"""A concept head's sizes, its weight tables under their published names, and its view of a batch of positions.

Legend: N positions (B·T), D width, C concepts, Cp rows of a table (C rounded up to the padding), R rank, Q query width
(D or R), P value width (D or R).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
from flax import linen as nn
from jax import lax

from steerling_jax.models.compute import Compute
from steerling_jax.models.layers import matmul_t
from steerling_jax.models.steerling.config import ConceptConfig
from steerling_jax.parallel.mesh import constrain


@dataclass(frozen=True)
class HeadSpec:
    """The sizes and options of one head, taken from the published configuration.

    rows: of its tables, padding included. rank: of a factorised head, None for full tables. topk: concepts selected by
    the dense rule and reported; topk_features: concepts whose embeddings are summed; None selects all of them.
    topk_on_logits: concepts that are not selected get the logit 0, so the weight sigmoid(0) = 0.5, and not the weight
    0 (published). block: concepts scored at once. dictionary: concepts have a bias, and a weight is the positive part
    of the logit, a magnitude, in place of its sigmoid. offset: the head has a constant vector.
    """

    n_concepts: int
    rows: int
    width: int
    attention: bool
    rank: int | None
    topk: int | None
    topk_features: int | None
    topk_on_logits: bool
    block: int
    dictionary: bool = False
    offset: bool = False

    def weights(self, logits: jax.Array) -> jax.Array:
        """The weights of concepts with these logits, if they are selected."""
        return concept_weights(logits, self.dictionary)


def concept_weights(logits: jax.Array, dictionary: bool) -> jax.Array:
    """The weights of selected concepts: the positive part of the logits in a dictionary, else their sigmoid."""
    return jax.nn.relu(logits) if dictionary else jax.nn.sigmoid(logits)


def known_spec(c: ConceptConfig) -> HeadSpec:
    """The known head's sizes and options."""
    features = c.topk_known if c.topk_known_features is None else c.topk_known_features
    return HeadSpec(
        n_concepts=c.n_concepts,
        rows=c.padded(c.n_concepts),
        width=c.concept_dim,
        attention=c.use_attention_known,
        rank=None,
        topk=c.topk_known,
        topk_features=None if c.topk_known is None else features,
        topk_on_logits=c.topk_on_logits,
        block=c.block_size,
    )


def discovered_spec(c: ConceptConfig) -> HeadSpec | None:
    """The discovered head's sizes and options; None when the model has no such head."""
    if not c.use_unknown or c.n_unknown_concepts is None:
        return None
    topk = c.unknown_topk if c.apply_topk_to_unknown else None
    return HeadSpec(
        n_concepts=c.n_unknown_concepts,
        rows=c.padded(c.n_unknown_concepts),
        width=c.concept_dim,
        attention=c.use_attention_unknown,
        rank=c.factorize_rank if c.factorize_unknown else None,
        topk=topk,
        topk_features=topk,
        topk_on_logits=c.topk_on_logits,
        block=c.block_size,
        dictionary=c.dictionary is not None,
        offset=c.dictionary is not None and c.dictionary.offset,
    )


class HeadView(NamedTuple):
    """A head applied to N positions: query (N, Q), keys (Cp, Q), values (Cp, P), basis (D, P) or None, scale, C.

    bias (Cp,): added to the logits of a dictionary, None in a published head.
    The tables include their padding rows, because slicing those off would copy the tables; only the first `n_concepts`
    rows are concepts. Inside a `shard_map` the tables are one device's shard: `first` is the number of its first
    concept, `axis` the mesh axis over which the tables are sharded, and `axes` all mesh axes over which tables and
    positions are sharded.
    """

    query: jax.Array
    keys: jax.Array
    values: jax.Array
    basis: jax.Array | None
    scale: float
    n_concepts: int
    bias: jax.Array | None = None
    first: jax.Array | int = 0
    axis: str | None = None
    axes: tuple[str, ...] = ()

    @property
    def dictionary(self) -> bool:
        """Whether weights are magnitudes; see `HeadSpec`."""
        return self.bias is not None

    def weights(self, logits: jax.Array) -> jax.Array:
        """The weights of concepts with these logits, if they are selected."""
        return concept_weights(logits, self.dictionary)

    def embeddings_of(self, start: jax.Array, count: int) -> jax.Array:
        """The rows (count, P) of `values` for concepts `start` () to `start + count`, which this shard must hold."""
        return lax.dynamic_slice_in_dim(self.values, start - self.first, count)


class ConceptHead(nn.Module):
    """A head's weight tables under their published names; calling it gives its view of the positions."""

    spec: HeadSpec
    compute: Compute

    @nn.compact
    def __call__(self, hidden: jax.Array) -> HeadView:
        """hidden (N, D) to the head's view of it."""
        s, dtype = self.spec, self.compute.dtype
        D = s.width

        def project(x, w):
            # The small square matrices are used whole on every device: gathering them costs less than moving rows.
            return matmul_t(x, constrain(w, (None, None)), self.compute.operands).astype(dtype)

        query = project(hidden, Table((D, D), name="concept_query_projection")()) if s.attention else hidden
        scale = D**-0.5 if s.attention else 1.0
        if s.offset:
            Offset(D, name="offset")()  # `decompose` reads it from the parameters
        if s.rank is None:
            values = Table((s.rows, D), name="concept_embedding")()
            if s.attention:
                return HeadView(query, values, values, None, scale, s.n_concepts)
            keys, bias = Scores((s.rows, D), s.dictionary, name="concept_predictor")()
            return HeadView(query, keys, values, None, scale, s.n_concepts, bias)
        # Factorised: keys = coefficients · basisᵀ, so query · keysᵀ = (query · basis) · coefficientsᵀ, and the (C, D)
        # table is never built.
        values = Table((s.rows, s.rank), name="embedding_coef")()
        basis = Table((D, s.rank), name="embedding_basis")()
        if s.attention:
            return HeadView(project(query, basis.T), values, values, basis, scale, s.n_concepts)
        query = project(query, Table((s.rank, D), name="predictor_down")())
        keys, bias = Scores((s.rows, s.rank), s.dictionary, name="predictor_up")()
        return HeadView(query, keys, values, basis, scale, s.n_concepts, bias)


def view_head(params: dict[str, Any], spec: HeadSpec, compute: Compute, hidden: jax.Array) -> HeadView:
    """The view that a head with `params` has of hidden (N, D)."""
    return cast(HeadView, ConceptHead(spec, compute).apply({"params": params}, hidden))


class Table(nn.Module):
    """A parameter `weight` of shape (rows, width), drawn from a normal distribution with standard deviation `std`."""

    shape: tuple[int, int]
    std: float = 0.02

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("weight", nn.initializers.normal(self.std), self.shape)


class Scores(nn.Module):
    """The parameters that score a head's concepts: `weight` (rows, width), and `bias` (rows,) in a dictionary."""

    shape: tuple[int, int]
    has_bias: bool

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        weight = self.param("weight", nn.initializers.normal(0.02), self.shape)
        return weight, self.param("bias", nn.initializers.zeros, self.shape[:1]) if self.has_bias else None


class Offset(nn.Module):
    """A dictionary's constant vector, `bias` (width,)."""

    width: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("bias", nn.initializers.zeros, (self.width,))
