"""Steerling, the interpretable causal diffusion language model, in JAX: `import steerling_jax as sj; sj.load(...)`.

Names are imported when they are first used, so that importing the package alone imports no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerling_jax.api import Bundle as Bundle
    from steerling_jax.api import load as load
    from steerling_jax.chunk_ranking import chunk_spans as chunk_spans
    from steerling_jax.chunk_ranking import rank_chunk as rank_chunk
    from steerling_jax.config import Compute as Compute
    from steerling_jax.config import ConceptConfig as ConceptConfig
    from steerling_jax.config import ModelConfig as ModelConfig
    from steerling_jax.contributions import concept_contributions as concept_contributions
    from steerling_jax.embeddings import embed as embed
    from steerling_jax.errors import UserError as UserError
    from steerling_jax.generation import Generation as Generation
    from steerling_jax.generation import Prompt as Prompt
    from steerling_jax.generation import generate as generate
    from steerling_jax.generation import generate_many as generate_many
    from steerling_jax.generation import stream as stream
    from steerling_jax.generation_config import GenerationConfig as GenerationConfig
    from steerling_jax.inference import forward as forward
    from steerling_jax.integrated_gradients import attribute_inputs as attribute_inputs
    from steerling_jax.likelihood import log_likelihood as log_likelihood
    from steerling_jax.likelihood import log_likelihoods as log_likelihoods
    from steerling_jax.policies import Policies as Policies
    from steerling_jax.steering_config import SteeringConfig as SteeringConfig
    from steerling_jax.trace import Trace as Trace

_HOME = {
    "Bundle": "api",
    "load": "api",
    "forward": "inference",
    "generate": "generation",
    "generate_many": "generation",
    "stream": "generation",
    "Prompt": "generation",
    "Generation": "generation",
    "GenerationConfig": "generation_config",
    "SteeringConfig": "steering_config",
    "Policies": "policies",
    "Trace": "trace",
    "concept_contributions": "contributions",
    "rank_chunk": "chunk_ranking",
    "chunk_spans": "chunk_ranking",
    "attribute_inputs": "integrated_gradients",
    "embed": "embeddings",
    "log_likelihood": "likelihood",
    "log_likelihoods": "likelihood",
    "ModelConfig": "config",
    "ConceptConfig": "config",
    "Compute": "config",
    "UserError": "errors",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
