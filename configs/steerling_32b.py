"""A 32 B variant of the published 8 B shape.

Command   steerling train --config steerling_32b --distributed --out RUN --corpus CORPUS   (on every host of a pod)
          steerling compile --config steerling_32b --topology v5p:4x4x8                    (on any machine, no TPU)
Hardware  128 v5p chips or more; it has not been run on TPUs
Memory    as the TPU compiler reports it: docs/results/compile.md

Heads are 128 wide and the MLP is four times as wide as the model, as in the 8 B shape, so that all dimensions are
multiples of 512 and fill the matrix unit. Width and depth grow by similar factors, from 4,096 to 6,144 and from 32 to
57 layers. 48 query heads over 8 key/value heads can be sharded equally along a `tensor` axis of 2, 4 or 8. Concepts,
their ranks and the vocabulary are those of 8 B: the concept module falls from 4 % to under 2 % of the parameters.

A step is 256 sequences of 4,096 tokens. 128 sequences of 8,192 tokens would cost twice as much in attention.
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
