"""A model's concept heads by name, "known" or "discovered": their sizes, parameters, views and embeddings.

For running a head see `models.steerling.heads`, for both heads `models.steerling.decompose`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from steerling_jax.concepts.concept import Head
from steerling_jax.errors import UserError
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.head_view import HeadSpec, HeadView, discovered_spec, known_spec, view_head


def head_spec(config: ModelConfig, head: Head) -> HeadSpec:
    """A head's sizes and options. Raises `UserError` for a model without that head."""
    if config.concept is None:
        raise UserError("This model is a bare backbone and has no concepts.")
    spec = known_spec(config.concept) if head == "known" else discovered_spec(config.concept)
    if spec is None:
        raise UserError("This model has no discovered concepts.")
    return spec


def check_concepts(config: ModelConfig, head: Head, ids: Sequence[int]) -> None:
    """Raises `UserError` unless all `ids` are concepts of that head."""
    count = head_spec(config, head).n_concepts
    if outside := [i for i in ids if not 0 <= i < count]:
        raise UserError(f"There is no {head} concept {outside[0]}; the ids are 0 to {count - 1}.")


def head_params(params: Params, head: Head) -> dict[str, Any]:
    """A head's own parameters, under their published name."""
    return params["known_head" if head == "known" else "unknown_head"]


def view_concepts(
    params: Params, hidden: jax.Array, head: Head, config: ModelConfig, compute: Compute
) -> tuple[HeadView, HeadSpec]:
    """A head's view of hidden (N, D), and its sizes and options."""
    spec = head_spec(config, head)
    return view_head(head_params(params, head), spec, compute, hidden), spec


def concept_embeddings(
    params: Params, ids: jax.Array, *, head: Head, config: ModelConfig, compute: Compute
) -> jax.Array:
    """Embeddings (J, D) float32 of the concepts `ids` (J,)."""
    unused = jnp.zeros((1, config.n_embd), compute.dtype)  # embeddings do not depend on the positions
    return bn.embeddings(view_concepts(params, unused, head, config, compute)[0], ids)
