"""Steerling, the interpretable causal diffusion language model, in JAX: `import steerling_jax as sj; sj.load(...)`.

The public names are imported on first use, so that importing the package does not import JAX, which takes a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerling_jax.attribution.explorer.show import show as show
    from steerling_jax.autoencoders.autoencoder import Autoencoder as Autoencoder
    from steerling_jax.autoencoders.bottleneck import attach_bottleneck as attach_bottleneck
    from steerling_jax.autoencoders.feature_edit import feature_edit as feature_edit
    from steerling_jax.autoencoders.model_features import with_features as with_features
    from steerling_jax.bundle import Bundle as Bundle
    from steerling_jax.decoding.generation import Generation as Generation
    from steerling_jax.decoding.generation import Prompt as Prompt
    from steerling_jax.decoding.generation import generate as generate
    from steerling_jax.decoding.generation import generate_many as generate_many
    from steerling_jax.decoding.generation import stream as stream
    from steerling_jax.decoding.generation import stream_many as stream_many
    from steerling_jax.decoding.generation_config import GenerationConfig as GenerationConfig
    from steerling_jax.decoding.policies import Policies as Policies
    from steerling_jax.decoding.trace import Trace as Trace
    from steerling_jax.errors import UserError as UserError
    from steerling_jax.evaluation.embeddings import embed as embed
    from steerling_jax.evaluation.likelihood import log_likelihood as log_likelihood
    from steerling_jax.evaluation.likelihood import log_likelihoods as log_likelihoods
    from steerling_jax.explain.considered import considered as considered
    from steerling_jax.explain.contributions import concept_contributions as concept_contributions
    from steerling_jax.explain.feature_contributions import feature_contributions as feature_contributions
    from steerling_jax.explain.given_text import given_trace as given_trace
    from steerling_jax.explain.inputs.integrated_gradients import attribute_inputs as attribute_inputs
    from steerling_jax.explain.ranking import chunk_spans as chunk_spans
    from steerling_jax.explain.ranking import rank_chunk as rank_chunk
    from steerling_jax.inference import forward as forward
    from steerling_jax.inference import hidden_states as hidden_states
    from steerling_jax.io.autoencoders.load import load_autoencoder as load_autoencoder
    from steerling_jax.io.autoencoders.save import save_autoencoder as save_autoencoder
    from steerling_jax.loading import load as load
    from steerling_jax.models.compute import Compute as Compute
    from steerling_jax.models.steerling.config import ConceptConfig as ConceptConfig
    from steerling_jax.models.steerling.config import ModelConfig as ModelConfig
    from steerling_jax.steering.config import SteeringConfig as SteeringConfig
    from steerling_jax.steering.named import amplify as amplify
    from steerling_jax.steering.named import clamp as clamp
    from steerling_jax.steering.named import suppress as suppress

_MODULES = {
    "Bundle": "bundle",
    "load": "loading",
    "forward": "inference",
    "hidden_states": "inference",
    "generate": "decoding.generation",
    "generate_many": "decoding.generation",
    "stream": "decoding.generation",
    "stream_many": "decoding.generation",
    "Prompt": "decoding.generation",
    "Generation": "decoding.generation",
    "GenerationConfig": "decoding.generation_config",
    "SteeringConfig": "steering.config",
    "amplify": "steering.named",
    "suppress": "steering.named",
    "clamp": "steering.named",
    "Policies": "decoding.policies",
    "Trace": "decoding.trace",
    "given_trace": "explain.given_text",
    "concept_contributions": "explain.contributions",
    "considered": "explain.considered",
    "rank_chunk": "explain.ranking",
    "chunk_spans": "explain.ranking",
    "attribute_inputs": "explain.inputs.integrated_gradients",
    "show": "attribution.explorer.show",
    "embed": "evaluation.embeddings",
    "log_likelihood": "evaluation.likelihood",
    "log_likelihoods": "evaluation.likelihood",
    "ModelConfig": "models.steerling.config",
    "ConceptConfig": "models.steerling.config",
    "Compute": "models.compute",
    "UserError": "errors",
    "Autoencoder": "autoencoders.autoencoder",
    "attach_bottleneck": "autoencoders.bottleneck",
    "feature_contributions": "explain.feature_contributions",
    "feature_edit": "autoencoders.feature_edit",
    "load_autoencoder": "io.autoencoders.load",
    "save_autoencoder": "io.autoencoders.save",
    "with_features": "autoencoders.model_features",
}

__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
