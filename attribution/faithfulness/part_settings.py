"""Settings of the parts that are measured on generated texts, for a given model and for the planted model."""

from __future__ import annotations

from dataclasses import replace

from steerling_jax.attribution.faithfulness.concepts.settings import ConceptSettings
from steerling_jax.attribution.faithfulness.inputs.settings import InputSettings
from steerling_jax.attribution.faithfulness.outputs.settings import OutputSettings
from steerling_jax.attribution.faithfulness.planted.recipe import DOCUMENT_TOKENS, OPENING_TOKENS


def input_settings(seed: int, planted: bool) -> InputSettings:
    """Settings of the inputs part."""
    settings = InputSettings(seed=seed)
    return replace(settings, prompt_tokens=OPENING_TOKENS, blocks=1) if planted else settings


def concept_settings(seed: int, planted: bool) -> ConceptSettings:
    """Settings of the concepts part."""
    settings = ConceptSettings(seed=seed)
    return replace(settings, prompt_tokens=OPENING_TOKENS, blocks=1, seq_len=DOCUMENT_TOKENS) if planted else settings


def output_settings(seed: int, planted: bool) -> OutputSettings:
    """Settings of the outputs part. The planted vocabulary has no words for everyday matters."""
    settings = OutputSettings(seed=seed)
    return replace(settings, prompt_tokens=OPENING_TOKENS, blocks=1, everyday=False) if planted else settings
