"""The decoding loop of the 8 B shape, compiled for real TPUs with none present: memory a device, collectives a pass.

    pip install 'jax[tpu]' && python benchmarks/compile_decode.py

For a slice of v5e and of v5p: 1, 8 and 64 rows, bfloat16, a cache of 4,096 positions, everything split over the chips
along `tensor` (steerling_jax/sharding.py). The compiler says what fits and which collectives there are; it cannot say
how fast. A layer more costs its weights, its cache and its collectives, so `--layers 4` and `--layers 8` tell the rest
in a tenth of the time.
"""

from __future__ import annotations

import os

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import collections
import dataclasses
import datetime
import json
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from steerling_jax import block_decoding as bd
from steerling_jax import lane_programs
from steerling_jax.config import Compute, ConceptConfig, ModelConfig
from steerling_jax.decoding_step import Rules
from steerling_jax.generation_config import GenerationConfig
from steerling_jax.model import param_shapes
from steerling_jax.policies import Policies
from steerling_jax.sharding import param_shardings
from steerling_jax.window_pass import empty_caches

CONFIG = ModelConfig(
    n_layers=32, n_head=32, n_embd=4096, n_kv_heads=4, block_size=4096, diff_block_size=64, mlp_ratio=4,
    vocab_size=100_281, eos_token_id=100_257, pad_token_id=100_277, bos_token_id=100_278, endofchunk_token_id=100_279,
    mask_token_id=100_280,
    concept=ConceptConfig(n_concepts=33_732, n_unknown_concepts=101_196, concept_dim=4096, factorize_rank=256,
                          topk_known=32, unknown_topk=128),
)  # fmt: skip
COMPUTE = Compute(dtype="bfloat16")
COLLECTIVE = re.compile(r"= \S+ (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def unstacked_shapes(config: ModelConfig, mesh: Mesh):
    """Shapes of the parameters, layer by layer, with their shardings."""

    def leaf(shape, sharding, spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(sharding.mesh, PartitionSpec(*spec)))

    shapes, shardings = param_shapes(config), param_shardings(config, mesh)
    params = jax.tree.map(lambda a, s: leaf(a.shape, s, s.spec), shapes, shardings)
    layer = jax.tree.map(lambda a, s: leaf(a.shape[1:], s, s.spec[1:]), shapes["blocks"], shardings["blocks"])
    return {**params, "blocks": (layer,) * config.n_layers}


def batch_shapes(config: ModelConfig, mesh: Mesh, rows: int):
    """Shapes of the cache and of the rows; keys and values split over heads, the rest whole."""
    heads = NamedSharding(mesh, PartitionSpec(None, None, "tensor"))
    slot = NamedSharding(mesh, PartitionSpec(None, None, None, "tensor"))
    whole = NamedSharding(mesh, PartitionSpec())
    L, D, V = config.n_layers, config.n_embd, config.vocab_size
    generation = GenerationConfig(max_new_tokens=64, use_entropy_sampling=False, temperature=0.0)
    values: dict[str, Any] = dict(
        suppression=np.zeros(V, np.float32), seed=np.uint32(0), guidance=np.float32(0), active=np.bool_(True),
        at_masks=np.zeros((L, D), np.float32), at_prompt=np.zeros((L, D), np.float32),
    )  # fmt: skip
    values |= dict.fromkeys(("total", "prompt", "begin", "first", "patience"), np.int32(0))
    rules = Rules(policies=Policies().completed(generation, config.diff_block_size, 1, None), **values)
    blank = lane_programs.blank_rows.eval_shape(rules, size=rows, branches=1, drafts=1, config=config, compute=COMPUTE)
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), blank)
    slots = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=slot), blank.slot)
    cache = jax.eval_shape(lambda: empty_caches(config, COMPUTE, (rows, 1), config.block_size))
    cache = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=heads), cache)
    return cache, placed.replace(slot=slots)


def compile_for(config: ModelConfig, topology: str, shape: tuple[int, ...], rows: int) -> dict:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    mesh = Mesh(grid, ("tensor",), axis_types=(AxisType.Auto,))
    cache, batch = batch_shapes(config, mesh, rows)
    limit = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    begin = time.perf_counter()
    lowered = bd.decode_rows.lower(
        unstacked_shapes(config, mesh), cache, batch, limit, None, config=config, compute=COMPUTE
    )
    found = {"topology": topology, "chips": len(devices), "layers": config.n_layers, "rows": rows}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found["error"] = str(error).splitlines()[0][:200]
        return found
    memory = compiled.memory_analysis()
    kinds = collections.Counter(COLLECTIVE.findall(compiled.as_text() or ""))
    assert memory is not None
    return found | {
        "compile_seconds": round(time.perf_counter() - begin, 1),
        "peak_gib": round(memory.peak_memory_in_bytes / 2**30, 2),
        "arguments_gib": round(memory.argument_size_in_bytes / 2**30, 2),
        "collectives": dict(kinds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64], metavar="N")
    parser.add_argument("--layers", type=int, default=CONFIG.n_layers, metavar="N")
    args = parser.parse_args()
    rows = []
    for topology, shape in (("v5e:2x2", (4,)), ("v5p:2x2x1", (4,))):
        for count in args.rows:
            rows.append(compile_for(dataclasses.replace(CONFIG, n_layers=args.layers), topology, shape, count))
            print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"date": datetime.date.today().isoformat(), "jax": jax.__version__, "compiled": rows}))


if __name__ == "__main__":
    main()
