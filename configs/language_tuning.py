"""Instruction tuning of a decoder that keeps it from changing the language: `instruct_decoder` with another objective.

Command   steerling train --config language_tuning    (in a folder with ./model, conversations.jsonl, languages.json)
Hardware  a device with room for the weights in float32
Time      not measured
Result    runs/language_tuning/export, a Hugging Face folder with the adapters merged

Each line of conversations.jsonl has a `language` beside its `messages`; `languages.json` is what `steerling sae
languages --save` writes. docs/guide/language-tuning.md describes both. To change the settings, write a file with a
`config()` of its own and pass it to --config:

    from steerling_jax.configs.language_tuning import config_for

    def config():
        return config_for("Qwen/Qwen3-0.6B", "languages.json", weight=5e-4)
"""

from pathlib import Path
from typing import Any

from steerling_jax.configs import instruct_decoder
from steerling_jax.io.language_features_file import read_language_features
from steerling_jax.objectives.language_tuning import LanguageObjective, Penalty
from steerling_jax.train.run.run_config import RunConfig


def config() -> RunConfig:
    return config_for("model", "languages.json")


def config_for(
    model: str | Path,
    features: str | Path,
    *,
    penalty: Penalty = "features",
    weight: float = 1e-3,
    messages: str = "conversations.jsonl",
    **fields: Any,
) -> RunConfig:
    """A run that tunes the model in a folder, or with a Hub id, on the conversations in `messages`.

    features: the file of `steerling sae languages --save`. penalty, weight: of `LanguageObjective`. fields: of
    `RunConfig`, in place of those of `instruct_decoder`. Raises `UserError` where there is no such model or file.
    """
    objective = LanguageObjective(features=read_language_features(features), penalty=penalty, weight=weight)
    return instruct_decoder.config_for(
        model, messages=messages, **{"name": "language_tuning", "objective": objective, **fields}
    )
