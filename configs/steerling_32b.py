"""A 32 B variant of the published 8 B shape.

Command   steerling train --config steerling_32b --distributed --out RUN --corpus CORPUS   (on every host of a pod)
          steerling compile --config steerling_32b --topology v5p:4x4x8                    (on any machine, no TPU)
Hardware  from 128 v5p chips on; nothing of it has run on any of them
Memory    docs/results/compile.md has what the TPU compiler says

The shape keeps what the 8 B one fixes and widens the rest. Heads stay 128 wide, the inner width stays four times the
width, so that all sides are multiples of 512 and fill a matrix unit. Width 6,144 and 57 layers: wider and deeper by the
same half and more, as 4,096 and 32 are to each other within a sixth. 48 heads over 8 key/value heads split evenly along
a `tensor` of 2, 4 or 8. Concepts, their ranks and the vocabulary are those of 8 B: the concept module falls from 4 % of
the parameters to under 2 %.

128 sequences of 8,192 tokens would cost attention twice as much, so the context stays 4,096; 256 sequences a step.
"""

import dataclasses

from steerling_jax.configs import steerling_8b
from steerling_jax.train.run.run_config import RunConfig

WIDTH = 6144


def config() -> RunConfig:
    small = steerling_8b.config()
    assert small.model.concept is not None
    concept = dataclasses.replace(small.model.concept, concept_dim=WIDTH, inject_layer=28)
    model = dataclasses.replace(small.model, n_layers=57, n_head=48, n_kv_heads=8, n_embd=WIDTH, concept=concept)
    optimizer = dataclasses.replace(small.optimizer, peak_rate=1.5e-4)
    return dataclasses.replace(small, name="steerling_32b", model=model, optimizer=optimizer)
