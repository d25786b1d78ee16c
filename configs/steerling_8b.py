"""The published 8 B shape, pre-trained from nothing on a pod.

Command   steerling train --config steerling_8b --distributed --out RUN --corpus CORPUS   (on every host of a pod)
          steerling compile --config steerling_8b --topology v5e:16x16                    (on any machine, no TPU)
Hardware  from 256 v5e or v6e chips, 128 v5p chips or 64 tpu7x chips on; nothing of it has run on any of them
Memory    docs/results/compile.md has what the TPU compiler says for each of them
Corpus    cl100k tokens and exactly 33,732 known concepts: docs/guide/training.md, "A corpus for the 8 B shape"

A step is 256 sequences of 4,096 tokens, a million tokens, as models of this size are trained; 1.29 million steps are
the 1.35 T tokens of the published model. Activations are bfloat16; weights and the optimizer's moments are float32,
twelve bytes a parameter, split over all chips (`fsdp`), so that no chip holds more than a gigabyte of them. A layer's
weights are gathered when its turn comes. `tensor` stays 1: every chip has at least one whole sequence, and splitting
layers would add an exchange to each product where gathering weights overlaps with the layer before. Layers are computed
again in the backward pass (`remat`): what 32 of them keep for one sequence would fill a v5e. Attention is the splash
kernel: 32 heads' scores of 4,096 by 4,096 positions would be 2 GiB, written and read several times a layer.
"""

from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.parallel.sharding import MeshShape
from steerling_jax.train.run.run_config import DataConfig, RunConfig

WIDTH = 4096


def config() -> RunConfig:
    concept = ConceptConfig(
        n_concepts=33_732,
        n_unknown_concepts=101_196,
        concept_dim=WIDTH,
        topk_known=32,
        topk_known_features=32,
        factorize_rank=256,
        unknown_topk=128,
        block_size=4096,
        inject_layer=16,
    )
    model = ModelConfig(
        n_layers=32,
        n_head=32,
        n_kv_heads=4,
        n_embd=WIDTH,
        block_size=4096,
        diff_block_size=64,
        mlp_ratio=4,
        vocab_size=100_281,
        eos_token_id=100_257,
        pad_token_id=100_277,
        bos_token_id=100_278,
        endofchunk_token_id=100_279,
        mask_token_id=100_280,
        concept=concept,
    )
    return RunConfig(
        name="steerling_8b",
        model=model,
        compute=Compute(dtype="bfloat16", remat=True, attention="splash"),
        # Half of all positions are masked on average, and the levels of a sequence's 64 blocks are spread evenly, so
        # the count's standard deviation is 26: 2,304 rows (18 tiles of 128) are nearly ten of them above its mean.
        objective=ObjectiveConfig(noise=NoiseConfig(distribution="uniform"), rows=0.5625),
        optimizer=OptimizerConfig(
            peak_rate=3e-4, warmup_steps=2000, schedule="wsd", final_fraction=0.1, weight_decay=0.1
        ),
        data=DataConfig(vocab_size=100_281, seq_len=4096, batch_size=256),
        mesh=MeshShape(data=1, fsdp=-1, tensor=1),
        steps=1_290_000,
        log_every=10,
        eval_every=5000,
        checkpoint_every=1000,
        keep=3,
    )
