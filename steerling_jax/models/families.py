"""What training and loading need of a model, for every family: parameters, their shapes and shardings, the `Backbone`.

A configuration is a Steerling `ModelConfig` or a `DecoderConfig` (Llama, Qwen3, Gemma, …); its type is the family.
"""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder import backbone as decoder
from steerling_jax.models.decoder import parameters as decoder_parameters
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.steerling import model as steerling
from steerling_jax.models.steerling import sharding as steerling_sharding
from steerling_jax.models.steerling.backbone import steerling_backbone
from steerling_jax.models.steerling.config import ModelConfig

AnyConfig = ModelConfig | DecoderConfig


def model_backbone(config: AnyConfig, compute: Compute) -> Backbone:
    """The model as a `Backbone`: the same object for equal configurations, so that programs are compiled once."""
    if isinstance(config, DecoderConfig):
        return decoder.decoder_backbone(config, compute)
    return steerling_backbone(config, compute)


def init_params(config: AnyConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    if isinstance(config, DecoderConfig):
        return decoder.init_params(config, key)
    return steerling.init_params(config, key)


def param_shapes(config: AnyConfig) -> Params:
    """The parameter tree as ShapeDtypeStructs, without building anything."""
    if isinstance(config, DecoderConfig):
        return decoder.param_shapes(config)
    return steerling.param_shapes(config)


def param_shardings(config: AnyConfig, mesh: Mesh) -> Params:
    """A NamedSharding for every parameter, from the family's table."""
    if isinstance(config, DecoderConfig):
        return decoder_parameters.param_shardings(config, mesh)
    return steerling_sharding.param_shardings(config, mesh)
