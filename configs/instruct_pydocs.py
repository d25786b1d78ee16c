"""Instruction tuning of the model of `pydocs` on your own conversations, with LoRA adapters.

Command   steerling train --config instruct_pydocs --corpus CORPUS    (in a folder with conversations.jsonl)
Hardware  two CPU cores
Time      not measured
Result    not measured; a model of this size learns the form of an answer and little else

conversations.jsonl has one conversation per line, {"messages": [{"role": "user", "content": "What does re.sub do?"},
{"role": "assistant", "content": "It replaces what a pattern matches."}]}; see docs/guide/phases.md. The vocabulary
gets three turn tokens. Adapters do not train embeddings, so their embeddings stay as initialised; without `lora` they
are trained too.
"""

import dataclasses

from steerling_jax.configs import pydocs
from steerling_jax.models.lora import LoraConfig
from steerling_jax.objectives.instruction import InstructionObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.train.run.run_config import RunConfig, instruct_ids


def config() -> RunConfig:
    before = pydocs.config()
    vocabulary = pydocs.VOCABULARY + 3
    return dataclasses.replace(
        before,
        name="instruct_pydocs",
        start_from="steerling-pydocs-published",
        model=dataclasses.replace(before.model, vocab_size=vocabulary, **instruct_ids(vocabulary)),
        data=dataclasses.replace(before.data, messages="conversations.jsonl", batch_size=8),
        objective=InstructionObjective(),
        optimizer=OptimizerConfig(peak_rate=1e-3, warmup_steps=20),
        lora=LoraConfig(rank=16, alpha=32.0),
        steps=300,
        eval_every=300,
        checkpoint_every=100,
    )
