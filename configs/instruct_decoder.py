"""Instruction tuning of a published decoder (Llama, Qwen3, Gemma, …) on your own conversations, with LoRA adapters.

Command   steerling train --config instruct_decoder    (in a folder with the model, ./model, and conversations.jsonl)
Hardware  a device with room for the weights in float32
Time      not measured
Result    runs/instruct_decoder/export, a Hugging Face folder with the adapters merged

`./model` is a Hugging Face folder with a chat template, which makes the prompts; only the answers' tokens have a loss.
conversations.jsonl has one conversation per line; see docs/guide/open-models.md. For another folder or a Hub id, or to
change the settings, write a file with a `config()` of its own and pass it to --config:

    from steerling_jax.configs.instruct_decoder import config_for

    def config():
        return config_for("Qwen/Qwen3-0.6B", steps=500)
"""

from pathlib import Path
from typing import Any

from steerling_jax.io import hub
from steerling_jax.io.weights.decoder_reader import read_decoder_config
from steerling_jax.models.compute import Compute
from steerling_jax.models.lora import LoraConfig
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.train.run.run_config import DataConfig, RunConfig


def config() -> RunConfig:
    return config_for("model")


def config_for(model: str | Path, *, messages: str = "conversations.jsonl", **fields: Any) -> RunConfig:
    """A run that tunes the model in a folder, or with a Hub id, on the conversations in `messages`.

    fields: of `RunConfig`, in place of those here. Raises `UserError` where there is no such model.
    """
    shape = read_decoder_config(hub.resolve(model))
    values: dict[str, Any] = dict(
        name="instruct_decoder",
        start_from=str(model),
        model=shape,
        compute=Compute(remat=True),
        objective=NextTokenObjective(masked=0.0),
        lora=LoraConfig(rank=16, alpha=32.0),
        optimizer=OptimizerConfig(peak_rate=3e-4, warmup_steps=20),
        data=DataConfig(
            vocab_size=shape.vocab_size,
            seq_len=min(1024, shape.context_length),
            batch_size=8,
            messages=messages,
            sources={"reference": 1.0, "docstring": 0.1, "code": 0.0},  # held-out text only: the smallest corpus
        ),
        accumulate=8,
        steps=300,
        eval_every=300,
        checkpoint_every=100,
    )
    return RunConfig(**values | fields)
