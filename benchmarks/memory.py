"""Temporary memory that XLA allocates for `forward` with the published number of concepts.

    python benchmarks/memory.py

The program is compiled and not run: 33,732 known and 101,196 discovered concepts (rank 64), tokens (1, 1024), D 512,
V 8192, 2 layers. `temporaries_MB` is the figure of interest; it shows whether concept tables or dense activations
(B, T, C) are copied. It depends on the backend and the version of XLA. Results in
docs/results/training.md. Prints JSON.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp

from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.model import forward, param_shapes


def main() -> None:
    concept = ConceptConfig(concept_dim=512, factorize_rank=64)
    config = ModelConfig(
        n_layers=2,
        n_head=8,
        n_embd=512,
        n_kv_heads=2,
        block_size=1024,
        vocab_size=8192,
        eos_token_id=8187,
        pad_token_id=8188,
        bos_token_id=8189,
        endofchunk_token_id=8190,
        mask_token_id=8191,
        concept=concept,
    )
    tokens = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
    program = jax.jit(lambda p, t: forward(p, t, config=config, compute=Compute()))
    analysis = program.lower(param_shapes(config), tokens).compile().memory_analysis()
    assert analysis is not None
    sizes = {"temporaries_MB": analysis.temp_size_in_bytes, "results_MB": analysis.output_size_in_bytes,
             "weights_MB": analysis.argument_size_in_bytes}  # fmt: skip
    print(json.dumps({name: round(size / 1e6, 1) for name, size in sizes.items()}, indent=1))


if __name__ == "__main__":
    main()
