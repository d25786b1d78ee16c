"""The three programs that pods run, each compiled for devices that need not be there: a training step, the decoding
loop, a pass of integrated gradients. What is compiled is what runs; only shapes and places are made up here.

Legend: B sequences or rows, T positions, S chunks a sequence, L layers, D width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from steerling_jax.decoding import block_loop as block_decoding
from steerling_jax.decoding import lane_programs
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.policies import Policies
from steerling_jax.decoding.step import StepSettings
from steerling_jax.errors import UserError, first_line, require
from steerling_jax.explain.inputs import snapshots as snapshot_passes
from steerling_jax.explain.inputs.targets import TOKEN_LOGIT
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling import flops as model_flops
from steerling_jax.models.steerling.backbone import empty_cache
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.flops import Flops
from steerling_jax.models.steerling.model import param_shapes
from steerling_jax.models.steerling.sharding import param_shardings
from steerling_jax.parallel.mesh import partition_spec
from steerling_jax.parallel.sharding import MeshShape, batch_sharding, make_mesh
from steerling_jax.train.data.batches import batch_shapes
from steerling_jax.train.run.clock import step_flops
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.step import abstract_state, compile_step

Mode = Literal["train", "decode", "attribute"]
MODES: tuple[Mode, ...] = get_args(Mode)
_INFERENCE = Compute(dtype="bfloat16")
_TILE = 512  # of splash_attention.py
_PASSES = 64  # of a call; they run one after the other, so their number is a loop's


def compile_program(mode: Mode, run: RunConfig, mesh: Mesh, rows: int) -> jax.stages.Compiled:
    """rows: of a decoding or attribution pass; a training step has `run.data.batch_size` sequences."""
    if mode == "train":
        return _compile_training(run, mesh)
    if mode == "decode":
        return _compile_decoding(run.model, mesh, rows)
    return _compile_attribution(run, mesh, rows)


def own_flops(mode: Mode, run: RunConfig, rows: int) -> Flops:
    """What the mathematics of one run of the program needs, on all devices together."""
    config, T = run.model, run.data.seq_len
    if mode == "train":
        return step_flops(run)
    if mode == "decode":
        return model_flops.decoding_flops(
            config, batch_size=rows, cached=config.block_size, candidates=config.diff_block_size
        )
    # The target is the logit of one token, which is a row of the output projection and no product.
    return model_flops.forward_flops(config, batch_size=rows, seq_len=T, rows=0, heads=False, gradient="inputs")


def kernel_flops(mode: Mode, run: RunConfig, own: Flops) -> float:
    """FLOPs of the splash kernels, which the compiler cannot see into, beside the program's `own`.

    Of a pair of positions they make two products forward (again on the way back, where layers are computed again), four
    for the gradient of keys and values and three for that of queries; of whole tiles, where any pair in it counts.
    """
    if run.compute.attention != "splash" or mode == "decode":
        return 0.0
    T, block, again = run.data.seq_len, run.model.diff_block_size, run.compute.remat or mode == "attribute"
    two_copies = mode == "train" and run.objective.noise.clean_context
    pairs = (1 + two_copies) * model_flops.block_causal_pairs(T, block)
    forward = own.attention / 3
    return forward * tiled_pairs(T, block, two_copies) / pairs * (2 + 2 * again + 4 + 3) / 2


def tiled_pairs(T: int, block: int, two_copies: bool) -> int:
    """Pairs of positions in the tiles that a splash kernel does, those in which any query sees any key."""
    length = 2 * T if two_copies else T
    tile = math.gcd(length, _TILE)
    done = np.zeros((length // tile, length // tile), np.bool_)
    for begin in range(0, T, block):
        end = min(begin + block, T)
        own = _tiles(begin, end, tile)
        done[own, : own.stop] = True
        if two_copies:
            noisy = _tiles(T + begin, T + end, tile)
            done[noisy, _tiles(0, begin, tile)] = done[noisy, noisy] = True
    return tile**2 * int(done.sum())


def _tiles(begin: int, end: int, tile: int) -> slice:
    """Those that hold any of the positions."""
    return slice(begin // tile, -(-end // tile))


def mesh_for(shape: MeshShape, devices: Sequence[Any]) -> Mesh:
    """`make_mesh`, for devices that the compiler made up. `UserError` where the mesh does not go onto the torus."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and shape.data == 1:
        shape = dataclasses.replace(shape, data=slices)
    try:
        return make_mesh(shape, devices)
    except (NotImplementedError, ValueError, AssertionError) as error:
        raise UserError(
            f"The mesh {sizes_text(shape)} cannot be laid onto {len(devices)} devices of this topology "
            f"({first_line(error)}): choose other sizes."
        ) from error


def sizes_text(shape: MeshShape) -> str:
    return ", ".join(f"{field.name}={getattr(shape, field.name)}" for field in dataclasses.fields(shape))


def bytes_per_device(mode: Mode, run: RunConfig, mesh: Mesh) -> tuple[int, float]:
    """Parameters in all, and the bytes of them that a device holds."""
    width = 4 if mode == "train" else 2
    shapes, places = jax.tree.leaves(param_shapes(run.model)), jax.tree.leaves(param_shardings(run.model, mesh))
    held = sum(np.prod(place.shard_shape(leaf.shape)) for leaf, place in zip(shapes, places, strict=True))
    return sum(leaf.size for leaf in shapes), float(held * width)


def _compile_training(run: RunConfig, mesh: Mesh) -> jax.stages.Compiled:
    B, devices, parts = run.data.batch_size, mesh.shape["data"] * mesh.shape["fsdp"], run.accumulate
    require(
        B % (devices * parts) == 0,
        f"A batch of {B} sequences cannot be split over {devices} devices (data times fsdp)"
        f"{f' in {parts} parts (accumulate)' if parts > 1 else ''}: choose a --batch-size that is a multiple of "
        f"{devices * parts}, or another --mesh.",
    )
    place = batch_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct(size, jnp.int32, sharding=place) for name, size in batch_shapes(run).items()}
    base = None if run.lora is None else _params(run.model, mesh, jnp.float32)
    return compile_step(run, abstract_state(run, mesh), batch, base)


def _compile_decoding(config: ModelConfig, mesh: Mesh, rows: int) -> jax.stages.Compiled:
    """A cache of the whole context, greedy, without clamps."""
    over_rows = _over_rows(mesh, rows)
    cache = jax.eval_shape(lambda: empty_cache(config, _INFERENCE, (rows, 1), config.block_size))
    blank = lane_programs.blank_rows.eval_shape(
        _rules(config), size=rows, branches=1, drafts=1, config=config, compute=_INFERENCE
    )
    # Keys and values over heads, (B, N, G, S, d) and (B, N, K, G, W, d); all else over rows alone.
    heads = "tensor" if config.kv_heads % mesh.shape["tensor"] == 0 else None
    placed = jax.tree.map(partial(_struct, mesh, PartitionSpec(over_rows)), blank)
    slot = jax.tree.map(partial(_struct, mesh, PartitionSpec(over_rows, None, None, heads)), blank.slot)
    cache = jax.tree.map(partial(_struct, mesh, PartitionSpec(over_rows, None, heads)), cache)
    limit = _struct(mesh, PartitionSpec(), jax.ShapeDtypeStruct((), jnp.int32))
    params, batch = _layer_by_layer(config, mesh), placed.replace(slot=slot)
    with jax.set_mesh(mesh):
        return block_decoding.decode_rows.lower(
            params, cache, batch, limit, None, config=config, compute=_INFERENCE
        ).compile()


def _compile_attribution(run: RunConfig, mesh: Mesh, rows: int) -> jax.stages.Compiled:
    """Of the token's logit, no injection, no guidance; layers are computed again on the way back."""
    config, T = run.model, run.data.seq_len
    compute = dataclasses.replace(_INFERENCE, remat=True, attention=run.compute.attention)
    over_rows = _over_rows(mesh, rows)
    struct, whole = jax.ShapeDtypeStruct, partial(_struct, mesh, PartitionSpec())
    tables = struct((1, config.n_layers, config.n_embd), jnp.float32)
    canvases, ids, number = struct((rows, T), jnp.int32), struct((rows,), jnp.int32), struct((), jnp.int32)
    guidance = struct((), jnp.float32)
    cases = snapshot_passes.CaseTable(canvases, ids, ids, TOKEN_LOGIT, number, number, tables, tables, guidance, None)
    by_row = partial(_struct, mesh, PartitionSpec(None, over_rows))
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
        return snapshot_passes.summed_gradients.lower(
            *arguments, config=config, compute=compute, guided=False, kind=type(TOKEN_LOGIT)
        ).compile()


def _over_rows(mesh: Mesh, rows: int) -> Any:
    """The mesh axes that split rows, None where they do not divide them."""
    return partition_spec(("batch",), (rows,), mesh)[0]


def _struct(mesh: Mesh, spec: PartitionSpec, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    place = NamedSharding(mesh, PartitionSpec(*spec[: len(leaf.shape)]))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _params(config: ModelConfig, mesh: Mesh, dtype: Any = jnp.bfloat16) -> Any:
    """Parameters, layers stacked."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place),
        param_shapes(config),
        param_shardings(config, mesh),
    )


def _layer_by_layer(config: ModelConfig, mesh: Mesh) -> Any:
    """bfloat16 parameters as decoding holds them: a tuple of layers."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        place = NamedSharding(mesh, PartitionSpec(*leaf.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=place)

    params = _params(config, mesh)
    return {**params, "blocks": (jax.tree.map(one, params["blocks"]),) * config.n_layers}


def _rules(config: ModelConfig) -> StepSettings:
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
    values |= dict.fromkeys(("total", "prompt", "begin", "first", "patience"), np.int32(0))
    return StepSettings(policies=Policies().completed(generation, config.diff_block_size, 1, None), **values)
