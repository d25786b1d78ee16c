"""The published 8 B shape, pre-trained from scratch on a pod.

Command   steerling train --config steerling_8b --distributed --out RUN --corpus CORPUS   (on every host of a pod)
          steerling compile --config steerling_8b --topology v5e:16x16                    (on any machine, no TPU)
Hardware  256 v5e or v6e chips, 128 v5p chips or 64 tpu7x chips, or more; it has not been run on TPUs
Memory    as the TPU compiler reports it for each of them: docs/results/compile.md
Corpus    cl100k tokens and exactly 33,732 known concepts: docs/guide/training.md

A step is 256 sequences of 4,096 tokens, a million tokens, as usual for models of this size; 1.29 million steps are the
1.35 T tokens of the published model. Activations are bfloat16. Parameters and the optimizer's moments are float32,
twelve bytes per parameter, sharded over all chips (`fsdp`), so that no chip holds more than a gigabyte of them; the
weights of a layer are gathered just before it is computed. `tensor` is 1: every chip has at least one whole sequence,
and tensor parallelism would add communication to each product, while gathering weights overlaps with the previous
layer. Layers are recomputed in the backward pass (`remat`): the activations of 32 layers for one sequence would fill a
v5e. Attention uses the splash kernel: the scores of 32 heads for 4,096 by 4,096 positions would be 2 GiB, written and
read several times per layer.
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
        # On average half of the 4,096 positions are masked. The noise levels of the 64 blocks of a sequence are spread
        # evenly, so the standard deviation of the count is 26: 2,304 rows (18 tiles of 128) are nearly ten of them
        # above the mean, and practically no masked position is left out.
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
