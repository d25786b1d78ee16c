"""Compiles the programs that a pod runs, for devices that need not exist: a training step, the decoding loop, and a
pass of integrated gradients. They are the functions that run on a pod, compiled ahead of time: the arguments are
`jax.ShapeDtypeStruct`s, which have shapes, dtypes and shardings but no data.

Legend: B sequences or rows, T positions, S chunks of a sequence, L layers, D width.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from steerling_jax.decoding import block_loop as block_decoding
from steerling_jax.decoding import lane_programs
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.policies import Policies
from steerling_jax.decoding.step import StepSettings
from steerling_jax.errors import require
from steerling_jax.explain.inputs import snapshot_programs
from steerling_jax.explain.inputs.targets import TOKEN_LOGIT
from steerling_jax.models.compute import Compute
from steerling_jax.models.families import AnyConfig, param_shapes, param_shardings
from steerling_jax.models.steerling.backbone import empty_cache
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.parallel.mesh import partition_spec
from steerling_jax.parallel.sharding import batch_sharding
from steerling_jax.train.aot.program import Program
from steerling_jax.train.data.batches import batch_shapes
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.step import abstract_state, compile_step

_INFERENCE = Compute(dtype="bfloat16")
_PASSES = 64  # of one call: iterations of a loop, whose costs the report gives for one pass


def compile_program(program: Program, mesh: Mesh) -> jax.stages.Compiled:
    """Compiles a program for a mesh. Raises `UserError` where its batch cannot be split over the mesh, and JAX's
    `JaxRuntimeError` where the compiler refuses it, as for lack of memory."""
    if program.mode == "train":
        return _compile_training(program.run, mesh)
    if program.mode == "decode":
        return _compile_decoding(program.run.model, mesh, program.rows)
    return _compile_attribution(program.run, mesh, program.rows)


def _compile_training(run: RunConfig, mesh: Mesh) -> jax.stages.Compiled:
    B, devices, parts = run.data.batch_size, mesh.shape["data"] * mesh.shape["fsdp"], run.accumulate
    require(
        B % (devices * parts) == 0,
        f"A batch of {B} sequences cannot be split over {devices} devices (data times fsdp)"
        f"{f' in {parts} parts (accumulate)' if parts > 1 else ''}: choose a --batch-size (with --model: --rows) "
        f"that is a multiple of {devices * parts}, or another --mesh.",
    )
    sharding = batch_sharding(mesh)
    shapes = batch_shapes(run).items()
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for name, shape in shapes}
    base = None if run.lora is None else _params(run.model, mesh, jnp.float32)
    return compile_step(run, abstract_state(run, mesh), batch, base)


def _compile_decoding(config: ModelConfig, mesh: Mesh, rows: int) -> jax.stages.Compiled:
    """Greedy decoding with a cache of the whole context, without clamps.

    Layers are separate arrays, as decoding holds them, so the time to compile grows with their number; the report
    compiles two small depths and extrapolates.
    """
    row_axes = _row_axes(mesh, rows)
    cache = jax.eval_shape(lambda: empty_cache(config, _INFERENCE, (rows, 1), config.block_size))
    blank = lane_programs.blank_rows.eval_shape(
        _greedy_settings(config), size=rows, branches=1, drafts=1, record_hidden=True, config=config, compute=_INFERENCE
    )
    # Keys and values are sharded over heads too, (B, N, G, S, d) and (B, N, K, G, W, d); all else over rows alone.
    heads = "tensor" if config.kv_heads % mesh.shape["tensor"] == 0 else None
    placed = jax.tree.map(partial(_struct, mesh, PartitionSpec(row_axes)), blank)
    slot = jax.tree.map(partial(_struct, mesh, PartitionSpec(row_axes, None, None, heads)), blank.slot)
    cache = jax.tree.map(partial(_struct, mesh, PartitionSpec(row_axes, None, heads)), cache)
    limit = _struct(mesh, PartitionSpec(), jax.ShapeDtypeStruct((), jnp.int32))
    params, batch = _params_by_layer(config, mesh), placed.replace(slot=slot)
    with jax.set_mesh(mesh):
        return block_decoding.decode_rows.lower(
            params, cache, batch, limit, None, config=config, compute=_INFERENCE
        ).compile()


def _compile_attribution(run: RunConfig, mesh: Mesh, rows: int) -> jax.stages.Compiled:
    """Gradients of a token's logit, without injection or guidance; layers are recomputed in the backward pass."""
    config, T = run.model, run.data.seq_len
    compute = dataclasses.replace(_INFERENCE, remat=True, attention=run.compute.attention)
    row_axes = _row_axes(mesh, rows)
    struct, whole = jax.ShapeDtypeStruct, partial(_struct, mesh, PartitionSpec())
    tables = struct((1, config.n_layers, config.n_embd), jnp.float32)
    canvases, ids, number = struct((rows, T), jnp.int32), struct((rows,), jnp.int32), struct((), jnp.int32)
    guidance = struct((), jnp.float32)
    cases = snapshot_programs.CaseTable(
        canvases, ids, ids, TOKEN_LOGIT, number, number, tables, tables, guidance, clamps=None, edits=(), baseline=None
    )
    by_row = partial(_struct, mesh, PartitionSpec(None, row_axes))
    which, points = struct((_PASSES, rows), jnp.int32), struct((_PASSES, rows), jnp.float32)
    arguments = (
        _params(config, mesh),
        jax.tree.map(whole, cases),
        by_row(which),
        by_row(points),
        by_row(points),
        whole(number),
    )
    with jax.set_mesh(mesh):
        return snapshot_programs.summed_gradients.lower(
            *arguments, config=config, compute=compute, guided=False, kind=type(TOKEN_LOGIT)
        ).compile()


def _row_axes(mesh: Mesh, rows: int) -> Any:
    """The mesh axes over which rows are sharded; None where their sizes do not divide the number of rows."""
    return partition_spec(("batch",), (rows,), mesh)[0]


def _struct(mesh: Mesh, spec: PartitionSpec, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """`leaf` with a sharding: the first axes of `spec`, as many as it has."""
    sharding = NamedSharding(mesh, PartitionSpec(*spec[: len(leaf.shape)]))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _params(config: AnyConfig, mesh: Mesh, dtype: Any = jnp.bfloat16) -> Any:
    """Parameters as they are loaded, on the mesh."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        param_shapes(config),
        param_shardings(config, mesh),
    )


def _params_by_layer(config: ModelConfig, mesh: Mesh) -> Any:
    """bfloat16 parameters as decoding has them: a tuple of layers, without the axis of the stack."""

    def one_layer(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*leaf.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)

    params = _params(config, mesh)
    return {**params, "blocks": (jax.tree.map(one_layer, params["blocks"]),) * config.n_layers}


def _greedy_settings(config: ModelConfig) -> StepSettings:
    """Settings of one row, for their shapes and dtypes."""
    generation = GenerationConfig(max_new_tokens=64, use_entropy_sampling=False, temperature=0.0)
    tables = np.zeros((config.n_layers, config.n_embd), np.float32)
    values: dict[str, Any] = dict(
        suppression=np.zeros(config.vocab_size, np.float32),
        seed=np.uint32(0),
        guidance=np.float32(0),
        active=np.bool_(True),
        at_masks=tables,
        at_prompt=tables,
    )
    values |= dict.fromkeys(("total", "prompt", "begin", "first", "commit_limit"), np.int32(0))
    return StepSettings(policies=Policies().completed(generation, config.diff_block_size, 1, None), **values)
